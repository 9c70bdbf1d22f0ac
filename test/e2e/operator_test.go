//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// protected is the namespace that the operator replicates. Its application is a shop with two databases.
const protected = "protected"

// inProtected moves a manifest of this package into that namespace.
func inProtected(manifest string) string {
	return strings.ReplaceAll(manifest, "namespace: "+namespace, "namespace: "+protected)
}

// shopManifest is the application: the same text at both sites.
func shopManifest(firstID int) string {
	claims := []string{"stock", "sales"}
	return inProtected(claim("stock", "replicable", "Filesystem", "128Mi") +
		claim("sales", "replicable", "Filesystem", "128Mi") +
		pod{name: "shop", claims: claims,
			command: fmt.Sprintf("exec shop run --stock /stock --sales /sales --first-id %d", firstID)}.manifest())
}

// operator labels the namespace of a running application, and looks at what both sites make of it.
func (s *suite) operator(t *testing.T, shown func(string, ...any)) {
	if !central() {
		t.Skip("the operator needs controller.mode controller")
	}
	for _, c := range []cluster{s.a, s.b} {
		c.ready(t, system, "app.kubernetes.io/component=operator")
	}
	s.introduce(t)
	s.a.apply(t, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: protected}\n")
	s.a.apply(t, shopManifest(1))
	s.a.podRuns(t, protected, "shop")

	began := time.Now()
	s.a.run(t, "label", "namespace", protected, "slipstream.dev/replicate-to=site-b")
	s.a.replicates(t, protected, 2)
	shown("namespace labelled under load: both claims are replicated and promotable after %.0f s, without a restart",
		time.Since(began).Seconds())
	if restarts := s.a.restarts(t, protected, "shop"); restarts != 0 {
		t.Errorf("the shop was restarted %d times", restarts)
	}

	for _, name := range []string{"stock", "sales"} {
		s.b.waits(t, protected, name)
	}
	shown("the claims wait at site b, bound, under the same names")
	s.protectedRuns, s.protectedCuts = true, 1
}

// operatorFailsOver fails the operator's group over after site a was destroyed, and starts the application at site b
// from the manifest it had at site a.
func (s *suite) operatorFailsOver(t *testing.T, shown func(string, ...any)) {
	action := s.failOver(t, protected, "failover", func() {})
	shown("failover by a GroupAction: RTO %s, loss: %s", field(action.Status, "result", "rto"),
		field(action.Status, "result", "loss", "text"))

	s.b.apply(t, shopManifest(1000000))
	s.b.podRuns(t, protected, "shop")
	eventually(t, "the shop sells at site b", func() error {
		if n := strings.Count(s.b.run(t, "-n", protected, "logs", "shop"), "\n"); n < 10 {
			return fmt.Errorf("%d orders", n)
		}
		return nil
	})
	s.b.run(t, "-n", protected, "delete", "pod", "shop")
	s.b.apply(t, inProtected(pod{name: "check", claims: []string{"stock", "sales"},
		command: "trap exit TERM; while :; do sleep 1; done"}.manifest()))
	s.b.podRuns(t, protected, "check")
	result := s.b.checkShop(t, protected, "check", s.protectedOrders, "/stock", "/sales", s.protectedCuts)
	if result.Orders == 0 || result.OrdersWithoutStock != 0 {
		t.Errorf("found %+v", result)
	}
	shown("the application runs at site b from its own manifest: %d orders, %d without stock movement, %d acknowledged "+
		"ones lost", result.Orders, result.OrdersWithoutStock, result.LostOrders)
	s.b.run(t, "-n", protected, "delete", "pod", "check")
	s.b.apply(t, inProtected(pod{name: "again", claims: []string{"stock", "sales"},
		command: "exec shop run --stock /stock --sales /sales --first-id 2000000"}.manifest()))
	s.b.podRuns(t, protected, "again")
}

// introduce makes the sites known to each other's operators.
func (s *suite) introduce(t *testing.T) {
	t.Helper()
	s.a.apply(t, remoteSite("site-b", ""))
	s.b.apply(t, remoteSite("site-a", fmt.Sprintf("accept: {namespaces: [%s, %s, %s, %s]}", protected, tenant, leaver,
		spread)))
}

func remoteSite(name, more string) string {
	return fmt.Sprintf(`---
apiVersion: slipstream.dev/v1alpha1
kind: RemoteSite
metadata: {name: %s}
spec:
  defaults: {journalSize: 64Mi, rpoTarget: 1m}
  %s
`, name, more)
}

func hasCondition(o object, kind, status string) bool {
	conditions, _ := o.Status["conditions"].([]any)
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == kind {
			return m["status"] == status
		}
	}
	return false
}

// podRuns waits for a pod of another namespace than that of the other steps.
func (c cluster) podRuns(t *testing.T, ns, name string) {
	t.Helper()
	c.podPhase(t, ns, name, "Running")
}

func (c cluster) podPhase(t *testing.T, ns, name, want string) {
	t.Helper()
	eventually(t, "pod "+name+" is "+want, func() error {
		if phase := field(c.get(t, "-n", ns, "pod", name).Status, "phase"); phase != want {
			out, _ := c.try("", "-n", ns, "get", "events", "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
			return fmt.Errorf("it is %s; events: %s", phase, out)
		}
		return nil
	})
}

func (c cluster) restarts(t *testing.T, ns, name string) int {
	t.Helper()
	var n int
	statuses, _ := c.get(t, "-n", ns, "pod", name).Status["containerStatuses"].([]any)
	for _, one := range statuses {
		if m, ok := one.(map[string]any); ok {
			count, _ := m["restartCount"].(float64)
			n += int(count)
		}
	}
	return n
}
