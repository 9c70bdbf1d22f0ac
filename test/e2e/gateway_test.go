//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// gateway replicates the other way, from site b to the two nodes of site a behind one address. Whatever dies there, the
// group stays on the node that it was put on, and on no other.
func (s *suite) gateway(t *testing.T, shown func(string, ...any)) {
	load := verifying("back", "back")
	s.b.apply(t, claim("back", "back", "Filesystem", "64Mi")+load.manifest())
	s.b.phase(t, "pod", "back", "Running")
	var home string
	eventually(t, "site a has a copy of group back", func() error {
		g, err := s.b.group(t, s.nodes("b")[0], "back")
		if err != nil {
			return err
		}
		if homes := s.homes(t, "back"); len(homes) == 1 && g.State == "streaming" {
			home = homes[0]
			return nil
		}
		return fmt.Errorf("state %s %s, on %v", g.State, g.StateReason, s.homes(t, "back"))
	})
	follows := func(what string) {
		t.Helper()
		s.b.goesOn(t, "back", load.claims...)
		s.b.catchesUp(t, "back", s.nodes("b")[0])
		if homes := s.homes(t, "back"); len(homes) != 1 || homes[0] != home {
			t.Fatalf("%s: group back is on %v, was on %s", what, homes, home)
		}
	}
	follows("at first")
	s.a.run(t, "-n", system, "delete", "pod", "-l", "app.kubernetes.io/component=gateway")
	s.a.ready(t, system, "app.kubernetes.io/component=gateway")
	follows("the gateways were replaced")
	shown("site b replicates to site a's two nodes behind one address; new gateways find the node that has the group")

	// Without the kubelet the replicator is not started again.
	if err := s.service(t.Context(), home, "stop", "kubelet"); err != nil {
		t.Fatal(err)
	}
	_, id, _ := s.containerStatus(t, s.a.nodePod(t, "node", home), "replicator")
	s.killProcess(t, home, "replicator", id)
	eventually(t, "site b is turned away, and the status says why", func() error {
		g, err := s.b.group(t, s.nodes("b")[0], "back")
		if err == nil && !strings.Contains(g.StateReason, "may be on "+home) {
			err = fmt.Errorf("state %s, %s", g.State, g.StateReason)
		}
		return err
	})
	s.b.goesOn(t, "back", load.claims...)
	if err := s.service(t.Context(), home, "start", "kubelet"); err != nil {
		t.Fatal(err)
	}
	follows("its node's replicator was away")
	shown(
		"while that node is silent nothing is put on the other one, and the status at site b says so; afterwards the " +
			"copy catches up")
	shown("%s", s.b.finish(t, "back", load.claims...))
	s.b.remove(t, []string{"back"}, load.claims)
}

// homes are the nodes of site a that have a group.
func (s *suite) homes(t *testing.T, name string) (nodes []string) {
	t.Helper()
	for _, node := range s.nodes("a") {
		out := s.a.onNode(t, node, "sh", "-c",
			`grep -l '"name": *"`+name+`"' /var/lib/slipstream/journal/groups/*/group.json 2>/dev/null | wc -l`)
		if strings.TrimSpace(out) != "0" {
			nodes = append(nodes, node)
		}
	}
	return nodes
}
