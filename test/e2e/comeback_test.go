//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"testing"
)

// comesBack starts the destroyed site a again. It has writes that site b never got, and site b has sold meanwhile: site
// a yields, its writes are kept as snapshots, and then the application moves home without a loss.
func (s *suite) comesBack(t *testing.T, shown func(string, ...any)) {
	s.startAgain(t, shown)
	// The shop of site a has started again, on what was there when the site was destroyed. It serves no customer.
	s.a.run(t, "-n", protected, "delete", "pod", "shop", "--ignore-not-found")
	for _, c := range []cluster{s.a, s.b} {
		c.condition(t, protected, "Converged", "False")
	}
	shown("site a starts again: both sites took writes, and both say so (Converged False)")

	yielded := s.a.act(t, "yield", "Yield")
	steps, _ := yielded.Status["steps"].([]any)
	if len(steps) != 1 {
		t.Fatalf("the yield has steps %v", steps)
	}
	step, _ := steps[0].(map[string]any)
	for _, c := range []cluster{s.a, s.b} {
		c.condition(t, protected, "Ready", "True")
	}
	shown("site a yields: %v; its group is a copy of site b again", step["message"])

	acks := s.b.run(t, "-n", protected, "logs", "again")
	s.b.run(t, "-n", protected, "delete", "pod", "again")
	s.b.unmounted(t, protected)
	moved := s.b.act(t, "home", "Relocate")
	steps, _ = moved.Status["steps"].([]any)
	if len(steps) != 1 {
		t.Fatalf("the relocation has steps %v", steps)
	}
	step, _ = steps[0].(map[string]any)
	s.a.apply(t, inProtected(pod{name: "check", claims: []string{"stock", "sales"},
		command: "trap exit TERM; while :; do sleep 1; done"}.manifest()))
	s.a.podRuns(t, protected, "check")
	result := s.a.checkShop(t, protected, "check", acks, "/stock", "/sales", s.protectedCuts)
	if result.Orders == 0 || result.OrdersWithoutStock != 0 || result.LostOrders != 0 {
		t.Errorf("found %+v", result)
	}
	shown("relocated home: %v; %d orders at site a, %d without stock movement, %d of those sold at site b lost",
		step["message"], result.Orders, result.OrdersWithoutStock, result.LostOrders)
}

// startAgain starts the destroyed site a.
func (s *suite) startAgain(t *testing.T, shown func(string, ...any)) {
	t.Helper()
	if err := s.comeBack(t.Context(), "a"); errors.Is(err, errUnsupported) {
		shown("nothing: a destroyed site of these clusters does not come back")
		t.SkipNow()
	} else if err != nil {
		t.Fatal(err)
	}
	s.destroyed = false
	s.a.ready(t, system, "app.kubernetes.io/component=node")
	s.a.ready(t, system, "app.kubernetes.io/component=operator")
}

// act makes a GroupAction and waits until it has succeeded.
func (c cluster) act(t *testing.T, name, kind string) object {
	t.Helper()
	c.begin(t, name, kind)
	return c.succeeded(t, protected, name)
}

// begin makes a GroupAction.
func (c cluster) begin(t *testing.T, name, kind string) {
	t.Helper()
	c.apply(t, fmt.Sprintf(`---
apiVersion: slipstream.dev/v1alpha1
kind: GroupAction
metadata: {name: %s, namespace: %s}
spec: {group: %s, type: %s}
`, name, protected, protected, kind))
}

// succeeded waits until a GroupAction of a namespace has succeeded.
func (c cluster) succeeded(t *testing.T, ns, name string) (action object) {
	t.Helper()
	eventually(t, "action "+name+" ends", func() error {
		action = c.get(t, "-n", ns, "ga", name)
		switch field(action.Status, "phase") {
		case "Succeeded":
			return nil
		case "Failed":
			t.Fatalf("action %s: %v", name, action.Status)
		}
		return fmt.Errorf("%v", action.Status)
	})
	return action
}

// condition waits until the group of a namespace has a condition.
func (c cluster) condition(t *testing.T, ns, kind, status string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is %s at site %s", kind, status, c.site), func() error {
		o := c.get(t, "-n", ns, "cg", ns)
		if !hasCondition(o, kind, status) {
			return fmt.Errorf("conditions %v", o.Status["conditions"])
		}
		return nil
	})
}
