package demo

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/internal/workload"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// load makes n orders, one after the other, of one latency each.
func load(begin time.Duration, n int, latency time.Duration) []workload.Ack {
	var acks []workload.Ack
	at := began.Add(begin)
	for i := range n {
		acks = append(acks, workload.Ack{ID: int64(i + 1), Start: at, End: at.Add(latency)})
		at = at.Add(latency)
	}
	return acks
}

// measured is a run in which replication halved the speed.
func measured() *Results {
	r := &Results{Workload: workload.SQLite, Clients: 1, Seed: 7, Machine: "a machine", Began: began, Took: time.Minute}
	for i := range 4 {
		latency := time.Millisecond
		if i%2 == 1 {
			latency = 2 * time.Millisecond
		}
		acks := load(time.Duration(i)*5*time.Second, 1000, latency)
		r.Rounds = append(r.Rounds, Round{Replicated: i%2 == 1, Acks: acks, Stats: workload.Summarize(acks)})
	}
	variant := func(withoutStock int, groups ...string) *Variant {
		v := &Variant{
			Groups: groups, Killed: began.Add(23 * time.Second), Served: began.Add(24 * time.Second), Mounted: time.Second,
			Acks: load(20*time.Second, 1000, 3*time.Millisecond),
			Result: workload.Result{Orders: 990, Movements: 990 - withoutStock, LastOrder: 990,
				OrdersWithoutStock: withoutStock},
			Lag: map[string][]LagSample{},
		}
		for _, g := range groups {
			for i := range 60 {
				v.Lag[g] = append(v.Lag[g], LagSample{At: began.Add(20*time.Second + time.Duration(i)*lagInterval),
					Lag: time.Duration(i) * time.Millisecond})
			}
		}
		return v
	}
	r.Joint = variant(0, jointGroup)
	r.Joint.addLoss(&sidecarpb.LossReport{Exact: true, LostOrdinals: new(uint64(5)), LostSeconds: new(0.0126)})
	r.Joint.Earlier = &Earlier{At: began.Add(13 * time.Second), Opened: 12 * time.Millisecond,
		Result: workload.Result{Orders: 420, Movements: 421, LastOrder: 420, MovementsWithoutOrder: 1}}
	r.Separate = variant(31, stockGroup, salesGroup)
	r.Separate.addLoss(&sidecarpb.LossReport{Exact: true, LostOrdinals: new(uint64(5)), LostSeconds: new(0.25)})
	r.Separate.addLoss(&sidecarpb.LossReport{LostOrdinals: new(uint64(2)), LostSeconds: new(0.1)})
	r.RPO = summarizeLag(r.Joint.Lag[jointGroup], r.loaded())
	r.Joint.Result.Lost = []int64{991, 992}
	r.Comeback = &Comeback{OrdersAtB: 4000, TailWrites: 22, TailBytes: 90 << 10, Copied: 3 << 20, Kept: 2,
		Followed: time.Second, Away: 300 * time.Millisecond, Back: workload.Result{Orders: 4990, Movements: 4990},
		Tail: workload.Result{Orders: 992, Movements: 992}}
	return r
}

func TestSummary(t *testing.T) {
	dir := t.TempDir()
	paths, err := measured().WriteFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	variant := func(withoutStock, ordinals, seconds float64) map[string]any {
		return map[string]any{"orders": 990.0, "orders_without_stock": withoutStock, "lost_ordinals": ordinals,
			"lost_seconds": seconds}
	}
	want := map[string]any{
		"variants": map[string]any{
			"consistency-group": variant(0, 5, 0.013),
			"separate-groups":   variant(31, 7, 0.25),
		},
		"throughput_ratio": 0.5, "latency_ratio": got.(map[string]any)["latency_ratio"],
		"rpo_ms":  map[string]any{"p50": 30.0, "p99": 59.0},
		"machine": "a machine", "date": "2026-01-02T03:04:05Z", "seed": 7.0, "workload": "sqlite",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// The histogram rounds to three digits.
	if ratio := want["latency_ratio"].(float64); ratio < 1.99 || ratio > 2.01 {
		t.Errorf("latency ratio %v, want 2", ratio)
	}
}

// Each workload has files of its own.
func TestFilesOfAWorkload(t *testing.T) {
	dir := t.TempDir()
	other := measured()
	other.Workload = workload.Postgres
	for _, r := range []*Results{measured(), other} {
		if _, err := r.WriteFiles(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"summary.json", "report.html", "summary-postgres.json", "report-postgres.html"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestReport(t *testing.T) {
	paths, err := measured().WriteFiles(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	html, err := os.ReadFile(paths[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"are of one instant", "they are not", "31 of 990 orders without stock", "site A dies",
		"group stock", "group sales", "at least 7", "a machine",
		"The kept tail was opened", "10 s before", "no. 420"} {
		if !strings.Contains(string(html), want) {
			t.Errorf("report lacks %q", want)
		}
	}
	var table strings.Builder
	if err := measured().WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.50", "orders without stock movement", "at most 250 ms", "2 of 2",
		"3.0 MiB", "no. 420"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("table lacks %q:\n%s", want, table.String())
		}
	}
}

// A failure that loses nothing leaves no tail, and that is no error.
func TestNothingToKeep(t *testing.T) {
	r := measured()
	r.Joint.Result.Lost, r.Comeback.TailWrites, r.Comeback.Kept, r.Comeback.Tail = nil, 0, 0, workload.Result{}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}

func TestErr(t *testing.T) {
	if err := measured().Err(); err != nil {
		t.Errorf("a good run: %v", err)
	}
	for name, spoil := range map[string]func(*Results){
		"one group, order without stock": func(r *Results) { r.Joint.Result.OrdersWithoutStock = 1 },
		"way back, an order lost":        func(r *Results) { r.Comeback.Back.LostOrders = 1 },
		"way back, order without stock":  func(r *Results) { r.Comeback.Back.OrdersWithoutStock = 1 },
		"tail, an order missing":         func(r *Results) { r.Comeback.Kept = 1 },
		"tail, order without stock":      func(r *Results) { r.Comeback.Tail.OrdersWithoutStock = 1 },
		"view, an order missing":         func(r *Results) { r.Joint.Earlier.Result.LostOrders = 1 },
		"view, an order of later":        func(r *Results) { r.Joint.Earlier.Later = 1 },
		"view, order without stock":      func(r *Results) { r.Joint.Earlier.Result.OrdersWithoutStock = 1 },
		"one group, too much under way":  func(r *Results) { r.Joint.Result.MovementsWithoutOrder = 2 },
		"one group, damage":              func(r *Results) { r.Joint.Result.Damage = []string{"x"} },
		"separate groups, damage":        func(r *Results) { r.Separate.Result.Damage = []string{"x"} },
		"separate groups, out of order":  func(r *Results) { r.Separate.Result.OutOfOrder = 1 },
	} {
		r := measured()
		spoil(r)
		if r.Err() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestLagOnlyUnderLoad checks that only samples under load count: between rounds the lag is zero and would make the RPO
// look better than it is.
func TestLagOnlyUnderLoad(t *testing.T) {
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	samples := []LagSample{{at(0.5), 0}, {at(1.5), 10 * time.Millisecond}, {at(2.5), 0}, {at(3.5), 30 * time.Millisecond}}
	got := summarizeLag(samples, []span{{at(1), at(2)}, {at(3), at(4)}})
	want := RPO{Samples: 2, P50: 30 * time.Millisecond, P99: 30 * time.Millisecond}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := summarizeLag(nil, nil); got != (RPO{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestWarm(t *testing.T) {
	acks := load(0, 1000, time.Millisecond)
	if got := len(warm(acks)); got != 500 {
		t.Errorf("%d orders left of 1000 in one second, want 500", got)
	}
	// A run shorter than that keeps what it has.
	if got := len(warm(acks[:100])); got != 100 {
		t.Errorf("%d orders left of a short run, want all 100", got)
	}
}
