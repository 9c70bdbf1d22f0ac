//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// drill is the action of the step, and drillSpace the namespace that it makes.
const (
	drill      = "drill"
	drillSpace = protected + "-test"
)

// testFailover opens the copy of the shop at site b in a namespace of its own while the shop sells at site a, has a Job
// check it there, and throws it away. The copy stays a copy, lags as it did, and nothing is copied again.
func (s *suite) testFailover(t *testing.T, shown func(string, ...any)) {
	if !s.protectedRuns {
		t.Skip("the step operator did not end well")
	}
	node, group := s.a.engineGroup(t)
	home := s.nodes("b")[0]
	before := s.inventory(t, s.b, home)
	address, token := s.metricsAt(t, node)
	watch := func(d time.Duration) copySamples {
		t.Helper()
		began := time.Now()
		samples, err := s.watchCopy(t.Context(), address, token, node, group,
			func() bool { return time.Since(began) >= d })
		if err != nil {
			t.Fatal(err)
		}
		if len(samples.lags) == 0 {
			t.Fatal("the lag was never known")
		}
		if samples.syncBytes > 0 || samples.changeMap > 0 {
			t.Errorf("a sync of %.0f bytes ran, %.0f bytes differ", samples.syncBytes, samples.changeMap)
		}
		return samples
	}
	without := watch(5 * time.Second)

	sold := strings.Count(s.a.run(t, "-n", protected, "logs", "shop"), "\n")
	// Checks may write 4 KiB about what they found, so the numbers of the orders are left out.
	s.b.apply(t, fmt.Sprintf(`---
apiVersion: slipstream.dev/v1alpha1
kind: GroupAction
metadata: {name: %s, namespace: %s}
spec:
  group: %s
  type: TestFailover
  timeout: 4m
  test:
    keepFor: 10m
    checks:
    - name: orders
      image: %s
      command: [sh, -ec]
      args:
      - |
        shop check --stock /claims/stock --sales /claims/sales < /dev/null > /tmp/found
        sed 's/,"IDs":.*/}/' /tmp/found > /dev/termination-log
`, drill, protected, protected, toolbox))
	eventually(t, "the checks have ended, and the test is kept", func() error {
		action := s.b.get(t, "-n", protected, "ga", drill)
		if phase := field(action.Status, "phase"); phase == "Failed" {
			t.Fatalf("the test failed: %v", action.Status)
		}
		if !strings.Contains(field(action.Status, "message"), "can be looked at until") {
			return fmt.Errorf("%v", action.Status)
		}
		return nil
	})
	policy := s.b.get(t, "-n", drillSpace, "networkpolicy", "deny-all")
	if types, _ := policy.Spec["policyTypes"].([]any); len(types) != 2 || policy.Spec["ingress"] != nil ||
		policy.Spec["egress"] != nil {
		t.Errorf("the policy of the test is %v", policy.Spec)
	}
	if n := len(s.b.list(t, "-n", drillSpace, "pvc")); n != 2 {
		t.Errorf("%d claims in %s", n, drillSpace)
	}
	during := watch(5 * time.Second)
	if copied, err := s.b.group(t, home, group); err != nil || copied.Role != "secondary" || !copied.Promotable {
		t.Errorf("the copy is %+v during the test: %v", copied, err)
	}
	s.b.run(t, "-n", protected, "annotate", "ga", drill, "slipstream.dev/end-test=true")
	s.b.succeeded(t, protected, drill)

	var report struct {
		RTO, RPO struct{ MeasuredSeconds *float64 }
		Steps    []struct{ Name, Message string }
	}
	if err := json.Unmarshal([]byte(s.b.plugin(t, "report", drill, "-n", protected, "-o", "json")), &report); err != nil {
		t.Fatal(err)
	}
	var found shopResult
	for _, step := range report.Steps {
		if step.Name == "Check orders" {
			if err := json.Unmarshal([]byte(step.Message), &found); err != nil {
				t.Fatalf("the check said %q: %v", step.Message, err)
			}
		}
	}
	if found.Orders < sold/2 || found.Orders == 0 || found.OrdersWithoutStock != 0 {
		t.Errorf("the check found %+v, the shop had sold %d", found, sold)
	}
	if report.RTO.MeasuredSeconds == nil || report.RPO.MeasuredSeconds == nil {
		t.Fatalf("the report has no RTO or RPO: %+v", report)
	}
	shown("the copy opened in a namespace of its own without network, checked by a Job while the shop sells: %d orders, "+
		"%d without stock movement; the report has RTO %.1f s, RPO %.3f s", found.Orders, found.OrdersWithoutStock,
		*report.RTO.MeasuredSeconds, *report.RPO.MeasuredSeconds)

	s.b.gone(t, "namespace", drillSpace)
	s.b.gone(t, "pv", "-l", "slipstream.dev/test-action")
	if views := s.b.outside(t, "view", "list"); strings.Contains(views, group) {
		t.Errorf("views are left: %s", views)
	}
	eventually(t, "node "+home+" is as it was", func() error {
		after := s.inventory(t, s.b, home)
		for name := range before {
			if after[name] != before[name] && !strings.HasPrefix(name, "descriptors") {
				return fmt.Errorf("%s: %s, then %s", name, before[name], after[name])
			}
		}
		return nil
	})
	after := watch(5 * time.Second)
	s.a.catchesUp(t, group, node)
	// A copy that waits for the test would be behind by as long as the test takes.
	if limit := 3*p99(without.lags) + 2*time.Second; p99(during.lags) > limit || p99(after.lags) > limit {
		t.Errorf("the copy lags by %v and %v, %v before", p99(during.lags), p99(after.lags), p99(without.lags))
	}
	shown("nothing of the test is left at site b, and nothing was copied again; p99 of the lag %v before, %v during, %v "+
		"after it", p99(without.lags), p99(during.lags), p99(after.lags))
}
