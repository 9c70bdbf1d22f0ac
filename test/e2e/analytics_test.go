//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// analytics reads a snapshot of the copy at site b while the shop sells at site a: both claims of one instant, in a pod
// of its own. SLIPSTREAM_E2E_ANALYTICS is how many snapshots are taken, one a minute from the second on (default 1).
func (s *suite) analytics(t *testing.T, shown func(string, ...any)) {
	if !s.protectedRuns {
		t.Skip("the step operator did not end well")
	}
	rounds := 1
	if text := os.Getenv("SLIPSTREAM_E2E_ANALYTICS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil || rounds < 1 {
			t.Fatalf("SLIPSTREAM_E2E_ANALYTICS is %q", text)
		}
	}
	node, group := s.a.engineGroup(t)
	address, token := s.metricsAt(t, node)
	began := time.Now()
	quiet, err := s.watchCopy(t.Context(), address, token, node, group,
		func() bool { return time.Since(began) > 15*time.Second })
	if err != nil {
		t.Fatal(err)
	}
	s.b.run(t, "-n", protected, "label", "pvc", "stock", "sales", "analytics=yes", "--overwrite")

	var ended atomic.Bool
	var busy copySamples
	sampled := make(chan error, 1)
	go func() {
		var err error
		busy, err = s.watchCopy(t.Context(), address, token, node, group, ended.Load)
		sampled <- err
	}()
	defer ended.Store(true)
	began = time.Now()
	var orders []string
	for i := range rounds {
		if i > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Minute)))
		}
		acks := s.a.run(t, "-n", protected, "logs", "shop")
		result := s.readCopy(t, i)
		if result.Orders == 0 || result.OrdersWithoutStock != 0 {
			t.Errorf("snapshot %d: %+v", i, result)
		}
		if n := strings.Count(acks, "\n"); result.Orders < n/2 {
			t.Errorf("snapshot %d has %d orders, the shop had sold %d before", i, result.Orders, n)
		}
		orders = append(orders, strconv.Itoa(result.Orders))
	}
	ended.Store(true)
	if err := <-sampled; err != nil {
		t.Fatal(err)
	}
	if len(quiet.lags) == 0 || len(busy.lags) == 0 {
		t.Fatalf("the lag was read %d and %d times", len(quiet.lags), len(busy.lags))
	}
	if restarts := s.a.restarts(t, protected, "shop"); restarts != 0 {
		t.Errorf("the shop was restarted %d times", restarts)
	}
	shown("group snapshots of the copy, read by a pod at site b while the shop sells at site a: %s orders, none without "+
		"stock movement; p99 of the lag %v before (%d samples), %v meanwhile (%d samples)", strings.Join(orders, ", "),
		p99(quiet.lags), len(quiet.lags), p99(busy.lags), len(busy.lags))
}

// readCopy takes a group snapshot of the waiting claims, has a pod read both, and removes all of it.
func (s *suite) readCopy(t *testing.T, i int) shopResult {
	t.Helper()
	name := fmt.Sprintf("analytics-%d", i)
	s.b.apply(t, fmt.Sprintf(`---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: %s, namespace: %s}
spec: {volumeGroupSnapshotClassName: slipstream, source: {selector: {matchLabels: {analytics: "yes"}}}}
`, name, protected))
	of := s.b.groupSnapshotOf(t, protected, name)
	if of["stock"] == "" || of["sales"] == "" {
		t.Fatalf("the group snapshot has %v", of)
	}
	claims := []string{"stock-" + name, "sales-" + name}
	s.b.apply(t, inProtected(from("VolumeSnapshot/"+of["stock"], claims[0], "plain", "Filesystem", "128Mi")+
		from("VolumeSnapshot/"+of["sales"], claims[1], "plain", "Filesystem", "128Mi")+
		pod{name: name, claims: claims, command: "trap exit TERM; while :; do sleep 1; done"}.manifest()))
	s.b.podRuns(t, protected, name)
	result := s.b.checkShop(t, protected, name, "", "/"+claims[0], "/"+claims[1], 1)
	s.b.run(t, "-n", protected, "delete", "pod", name, "--wait=false")
	s.b.run(t, "-n", protected, "delete", "pvc", claims[0], claims[1], "--wait=false")
	s.b.run(t, "-n", protected, "delete", "volumegroupsnapshot", name)
	for _, c := range claims {
		s.b.gone(t, "-n", protected, "pvc", c)
	}
	return result
}

// groupSnapshotOf waits until a group snapshot is ready, and returns its snapshots by claim.
func (c cluster) groupSnapshotOf(t *testing.T, ns, name string) map[string]string {
	t.Helper()
	eventually(t, "the group snapshot is ready", func() error {
		o := c.get(t, "-n", ns, "volumegroupsnapshot", name)
		if field(o.Status, "readyToUse") != "true" {
			return fmt.Errorf("status %v", o.Status)
		}
		return nil
	})
	of := map[string]string{}
	for _, o := range c.list(t, "-n", ns, "volumesnapshots") {
		if field(o.Status, "volumeGroupSnapshotName") == name {
			of[field(o.Spec, "source", "persistentVolumeClaimName")] = o.Metadata.Name
		}
	}
	return of
}

// engineGroup is the operator's group at the engine, and its node.
func (c cluster) engineGroup(t *testing.T) (node, name string) {
	t.Helper()
	groups, _ := c.get(t, "-n", protected, "cg", protected).Status["engineGroups"].([]any)
	if len(groups) != 1 {
		t.Fatalf("the group has %v at the engine", groups)
	}
	g, _ := groups[0].(map[string]any)
	return field(g, "node"), field(g, "name")
}

// copySamples are what the metrics of a primary said of its copy, again and again.
type copySamples struct {
	lags []time.Duration
	// syncBytes is the largest sync that ran, and changeMap how much of the copy differed at the end, in bytes.
	syncBytes, changeMap float64
}

// watchCopy reads the metrics of a group from its node at site a, five times a second, until enough says so. It calls
// enough every five seconds.
func (s *suite) watchCopy(ctx context.Context, address, token, node, group string,
	enough func() bool) (c copySamples, err error) {
	script := fmt.Sprintf(`for i in $(seq 25); do curl -sS --fail -H "Authorization: Bearer %s" %s |
		grep -E '^slipstream_group_(lag_seconds|sync_total_bytes|change_map_bytes)[{].*group="%s"' || true
		sleep 0.2; done`, token, address, group)
	for {
		out, err := command(ctx, "", append(s.node(node), "sh", "-ec", script)...)
		if err != nil {
			return c, err
		}
		for line := range strings.Lines(out) {
			name, value, _ := strings.Cut(line, "{")
			_, value, _ = strings.Cut(value, "} ")
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				return c, fmt.Errorf("the metrics have %q: %w", line, err)
			}
			switch name {
			case "slipstream_group_lag_seconds":
				c.lags = append(c.lags, time.Duration(number*float64(time.Second)))
			case "slipstream_group_sync_total_bytes":
				c.syncBytes = max(c.syncBytes, number)
			default:
				c.changeMap = number
			}
		}
		if enough() {
			return c, nil
		}
	}
}

// p99 of some durations, in whole milliseconds.
func p99(list []time.Duration) time.Duration {
	list = slices.Sorted(slices.Values(list))
	return list[int(math.Ceil(0.99*float64(len(list))))-1].Round(time.Millisecond)
}
