//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// restored is the namespace whose objects are put back to an earlier time.
const restored = "restored"

// restoredEtcd puts the objects of site a back to before a claim was made and joined its group, and kills the operator
// while it happens. The engine keeps what it has, since no removal was asked for. What slipctl prints makes the lost
// objects again.
func (s *suite) restoredEtcd(t *testing.T, shown func(string, ...any)) {
	if !s.protectedRuns {
		t.Skip("the step operator did not end well")
	}
	node := s.nodes("a")[0]
	before := s.images(t, node)
	in := func(manifest string) string {
		return strings.ReplaceAll(manifest, "namespace: "+namespace, "namespace: "+restored)
	}
	s.a.apply(t, "---\napiVersion: v1\nkind: Namespace\n"+
		"metadata: {name: restored, labels: {slipstream.dev/replicate-to: site-b}}\n")
	s.a.apply(t, in(claim("old", "replicable", "Filesystem", "32Mi")+
		pod{name: "first", claims: []string{"old"}, node: node, command: "date > /old/x"}.manifest()))
	s.a.replicates(t, restored, 1)
	if err := s.etcd(t.Context(), "a", "save"); errors.Is(err, errUnsupported) {
		shown("nothing: the objects of these clusters cannot be put back")
		t.SkipNow()
	} else if err != nil {
		t.Fatal(err)
	}
	s.a.apply(t, in(claim("new", "replicable", "Filesystem", "32Mi")+
		pod{name: "second", claims: []string{"new"}, node: node, command: "echo kept > /new/x; sync"}.manifest()))
	s.a.podPhase(t, restored, "second", "Succeeded")
	s.a.replicates(t, restored, 2)
	name, members := s.members(t, restored)

	if err := s.etcd(t.Context(), "a", "restore"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API server is back", func() error {
		_, err := s.a.try("", "get", "--raw", "/readyz")
		return err
	})
	s.a.run(t, "-n", system, "delete", "pod", "-l", "app.kubernetes.io/component in (operator, controller)",
		"--grace-period=0", "--force")
	s.a.run(t, "-n", "kube-system", "delete", "pod", "-l", "app.kubernetes.io/name=snapshot-controller")
	s.a.ready(t, system, "app.kubernetes.io/component=operator")
	s.a.ready(t, system, "app.kubernetes.io/component=controller")
	s.a.ready(t, system, "app.kubernetes.io/component=node")
	if out, err := s.a.try("", "-n", restored, "get", "pvc", "new"); err == nil {
		t.Fatalf("the claim is there after the objects were put back: %s", out)
	}
	s.a.replicates(t, protected, 2)
	// Longer than the 30 s that the operator waits between its two looks for a claim that is gone. The annotation has it
	// look now.
	for began := time.Now(); time.Since(began) < 40*time.Second; time.Sleep(3 * time.Second) {
		s.a.run(t, "-n", restored, "annotate", "--overwrite", "cg", restored,
			"e2e/look="+fmt.Sprint(time.Now().UnixNano()))
		if _, now := s.members(t, restored); !slices.Equal(members, now) {
			t.Fatalf("group %s had members %v, and has %v", name, members, now)
		}
	}
	if n := s.images(t, node); n != before+2 {
		t.Errorf("%d volumes, %d before the two claims", n, before)
	}
	shown("objects put back to before a claim was made, and the operator killed: both volumes are members still")

	// The older objects are there, so the manifests of old change nothing.
	s.a.apply(t, s.a.outside(t, "group", "pvs", name, "--storage-class", "replicable"))
	s.a.apply(t, in(pod{name: "reader", claims: []string{"new"}, node: node, command: "grep -q kept /new/x"}.manifest()))
	s.a.podPhase(t, restored, "reader", "Succeeded")
	s.a.replicates(t, restored, 2)
	shown("the lost claim is made again from what slipctl prints, and has what it had")
	s.a.run(t, "delete", "namespace", restored, "--wait=false")
	s.a.gone(t, "namespace", restored)
}

// members are the name and the volumes of the one group of a namespace at site a.
func (s *suite) members(t *testing.T, ns string) (name string, volumes []string) {
	t.Helper()
	for _, g := range s.a.groups(t) {
		if !strings.HasPrefix(g.Name, ns+"-") {
			continue
		}
		if name != "" {
			t.Fatalf("groups %s and %s of namespace %s", name, g.Name, ns)
		}
		name = g.Name
		for _, v := range g.Volumes {
			volumes = append(volumes, v.VolumeID)
		}
	}
	slices.Sort(volumes)
	return name, volumes
}
