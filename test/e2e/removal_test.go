//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// tenant and leaver are namespaces that stop being replicated, in each of the ways there are.
const (
	tenant = "tenant"
	leaver = "leaver"
)

// removal takes a claim of one namespace and the label of another one away, and at last both namespaces, while site b
// cannot be reached. Nothing waits for site b, nothing of site a is left, and at site b the copies stay until a person
// deletes them. Site b waits 30 s before it removes claims, so the first two are done at once.
func (s *suite) removal(t *testing.T, shown func(string, ...any)) {
	if !s.protectedRuns {
		t.Skip("the step operator did not end well")
	}
	node := s.nodes("a")[0]
	before := s.images(t, node)
	const label = "slipstream.dev/replicate-to"
	writer := claim("one", "replicable", "Filesystem", "32Mi") + pod{name: "writer", claims: []string{"one"}, node: node,
		command: "trap exit TERM; while :; do date >> /one/x; sync; sleep 1; done"}.manifest()
	for ns, manifest := range map[string]string{leaver: writer, tenant: writer +
		claim("two", "replicable", "Filesystem", "32Mi") +
		pod{name: "once", claims: []string{"two"}, node: node, command: "date > /two/x"}.manifest()} {
		s.a.apply(t, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+", labels: {"+label+": site-b}}\n"+
			strings.ReplaceAll(manifest, "namespace: "+namespace, "namespace: "+ns))
	}
	for ns, claims := range map[string][]string{leaver: {"one"}, tenant: {"one", "two"}} {
		s.a.podRuns(t, ns, "writer")
		s.a.replicates(t, ns, len(claims))
		for _, c := range claims {
			s.b.waits(t, ns, c)
		}
	}

	s.a.run(t, "-n", tenant, "delete", "pod", "once")
	s.a.run(t, "-n", tenant, "delete", "pvc", "two")
	s.a.run(t, "label", "namespace", leaver, label+"-")
	s.a.replicates(t, tenant, 1)
	s.a.gone(t, "-n", leaver, "cg", leaver)
	s.noGroup(t, node, leaver)
	s.b.gone(t, "-n", tenant, "pvc", "two")
	if n := len(s.b.copiesOf(t, tenant, "two")); n != 1 {
		t.Errorf("site b lists %d copies of the deleted claim", n)
	}
	shown("a claim deleted: its volume leaves the group, the claim at site b goes, its copy stays and is listed")
	s.b.gone(t, "-n", leaver, "pvc", "one")
	if n := len(s.b.copiesOf(t, leaver, "one")); n != 1 {
		t.Errorf("site b lists %d copies of the claim of the namespace without a label", n)
	}
	if restarts := s.a.restarts(t, leaver, "writer"); restarts != 0 {
		t.Errorf("the pod was restarted %d times", restarts)
	}
	s.a.run(t, "-n", leaver, "exec", "writer", "--", "sh", "-ec", "date >> /one/x; sync")
	shown("the label removed: the group is gone at site a, the pod goes on without a restart, the copies stay")

	s.a.run(t, "label", "namespace", leaver, label+"=site-b")
	s.a.replicates(t, leaver, 1)
	s.b.waits(t, leaver, "one")
	away := true
	if err := s.line(t.Context(), "cut"); errors.Is(err, errUnsupported) {
		away = false
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.line(t.Context(), "heal"); away && err != nil {
			t.Error(err)
		}
	}()
	s.a.run(t, "delete", "namespace", tenant, leaver, "--wait=false")
	for _, ns := range []string{tenant, leaver} {
		s.a.gone(t, "namespace", ns)
		s.noGroup(t, node, ns)
	}
	eventually(t, "the volumes of the namespaces are gone", func() error {
		if n := s.images(t, node); n != before {
			return fmt.Errorf("%d images, %d before", n, before)
		}
		return nil
	})
	if away {
		if err := s.line(t.Context(), "heal"); err != nil {
			t.Fatal(err)
		}
		shown("the namespaces deleted with site b away: nothing waits, and nothing of them is left at site a")
	}

	s.b.run(t, "delete", "namespace", tenant, leaver, "--wait=false")
	for _, ns := range []string{tenant, leaver} {
		s.b.gone(t, "namespace", ns)
	}
	s.forget(t, shown, tenant, leaver)
}

// forget deletes at site b what is left of namespaces there, by the verbs that a person has.
func (s *suite) forget(t *testing.T, shown func(string, ...any), namespaces ...string) {
	t.Helper()
	left := func(name string) bool {
		return slices.ContainsFunc(namespaces, func(ns string) bool { return strings.HasPrefix(name, ns+"-") })
	}
	groups := 0
	for _, g := range s.b.groups(t) {
		if left(g.Name) {
			s.b.outside(t, "group", "delete", g.Name, "--force", "--yes") // site b never heard that the volumes left
			groups++
		}
	}
	copies := 0
	for _, ns := range namespaces {
		for _, claim := range []string{"one", "two"} {
			for _, id := range s.b.copiesOf(t, ns, claim) {
				s.b.outside(t, "copy", "delete", id, "--yes")
				copies++
			}
		}
	}
	for _, o := range s.b.list(t, "pv") {
		if slices.Contains(namespaces, field(o.Spec, "claimRef", "namespace")) {
			s.b.run(t, "delete", "pv", o.Metadata.Name, "--wait=false")
			s.b.gone(t, "pv", o.Metadata.Name)
		}
	}
	for _, g := range s.b.groups(t) {
		if left(g.Name) {
			t.Errorf("site b still has group %s", g.Name)
		}
	}
	shown("at site b %d groups and %d copies were left, and deleted with slipctl", groups, copies)
}

// replicates waits until the group of a namespace is ready with so many members.
func (c cluster) replicates(t *testing.T, ns string, members int) {
	t.Helper()
	want := fmt.Sprintf("%d/%d", members, members)
	eventually(t, "namespace "+ns+" is replicated with "+want, func() error {
		out, err := c.try("", "-n", ns, "get", "cg", ns, "-o", "json")
		if err != nil {
			return err
		}
		var o object
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			return err
		}
		if field(o.Status, "membersReady") != want || !hasCondition(o, "Ready", "True") {
			return fmt.Errorf("members %s, conditions %v, next: %s", field(o.Status, "membersReady"), o.Status["conditions"],
				field(o.Status, "nextStep"))
		}
		return nil
	})
}

// waits waits until a claim is bound, at the site of the copy.
func (c cluster) waits(t *testing.T, ns, name string) {
	t.Helper()
	eventually(t, "claim "+name+" waits at site "+c.site, func() error {
		out, err := c.try("", "-n", ns, "get", "pvc", name, "-o", "json")
		if err != nil {
			return err
		}
		var o object
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			return err
		}
		if phase := field(o.Status, "phase"); phase != "Bound" {
			return fmt.Errorf("it is %s", phase)
		}
		return nil
	})
}

// groups of a site, as slipctl lists them.
func (c cluster) groups(t *testing.T) []groupStatus {
	t.Helper()
	var list struct{ Groups []groupStatus }
	if err := json.Unmarshal([]byte(c.outside(t, "group", "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Groups
}

// unmounted waits until no volume of a namespace's groups is in use. The pod may be gone, and the kubelet still at it.
func (c cluster) unmounted(t *testing.T, ns string) {
	t.Helper()
	eventually(t, "the volumes of namespace "+ns+" are unmounted at site "+c.site, func() error {
		for _, g := range c.groups(t) {
			for _, v := range g.Volumes {
				if v.Attached && strings.HasPrefix(g.Name, ns+"-") {
					return fmt.Errorf("volume %s of group %s is attached", v.VolumeID, g.Name)
				}
			}
		}
		return nil
	})
}

// noGroup waits until a node of site a has no group of a namespace.
func (s *suite) noGroup(t *testing.T, node, ns string) {
	t.Helper()
	eventually(t, "the groups of namespace "+ns+" are gone at site a", func() error {
		out, err := s.a.slipctl(t, node, "group", "list")
		if err != nil {
			return err
		}
		if strings.Contains(out, ns+"-") {
			return errors.New(out)
		}
		return nil
	})
}

// copiesOf are the volumes of a claim of site a that belong to no group at a site.
func (c cluster) copiesOf(t *testing.T, ns, claim string) (ids []string) {
	t.Helper()
	var list struct {
		Copies []struct{ VolumeID, ClaimNamespace, ClaimName string }
	}
	if err := json.Unmarshal([]byte(c.outside(t, "copy", "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, v := range list.Copies {
		if v.ClaimNamespace == ns && v.ClaimName == claim {
			ids = append(ids, v.VolumeID)
		}
	}
	slices.Sort(ids)
	return ids
}

// images is how many volumes a node has.
func (s *suite) images(t *testing.T, node string) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(s.a.onNode(t, node, "sh", "-c", "ls /var/lib/slipstream/pool-?/volumes | wc -l"),
		&n); err != nil {
		t.Fatal(err)
	}
	return n
}
