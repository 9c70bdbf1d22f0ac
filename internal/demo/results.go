package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/slipstream-storage/slipstream/internal/workload"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// Results are what a demo measured.
type Results struct {
	Workload workload.Kind
	Clients  int
	Seed     uint64
	Machine  string
	Began    time.Time
	Took     time.Duration
	Rounds   []Round
	RPO      RPO
	// Joint and Separate are the failovers with one group and with two.
	Joint, Separate *Variant
	// Comeback is the second act, with one group.
	Comeback *Comeback
}

// Round is one turn of load.
type Round struct {
	Replicated bool
	Acks       []workload.Ack
	Stats      workload.Stats
}

// Variant is one failover.
type Variant struct {
	Groups []string
	// Killed is when site A died, Served when site B had the volumes mounted.
	Killed, Served time.Time
	// Promotion, Mounted and Opened are counted from the call to promote: until the groups were primary, the volumes
	// mounted, the databases recovered and checked.
	Promotion, Mounted, Opened time.Duration
	// Acks are the orders of the run that the failure ended.
	Acks   []workload.Ack
	Result workload.Result
	// Loss is of all groups together: the sum of what they lost, the longest time, and exact only if all are.
	Loss Loss
	// Lag is by group.
	Lag map[string][]LagSample
	// Earlier is the copy as it was before the failure; nil without history.
	Earlier *Earlier
}

// Loss is a group's loss report in plain values.
type Loss struct {
	Reported bool
	Exact    bool
	Ordinals uint64
	Writes   uint64
	Bytes    uint64
	Seconds  float64
	// Unbounded: of some group nothing was known of the time.
	Unbounded bool
}

func (v *Variant) addLoss(l *sidecarpb.LossReport) {
	exact := l.GetExact() && (v.Loss.Exact || !v.Loss.Reported)
	v.Loss = Loss{
		Reported: true, Exact: exact,
		Ordinals: v.Loss.Ordinals + l.GetLostOrdinals(),
		Writes:   v.Loss.Writes + l.GetLostWrites(),
		Bytes:    v.Loss.Bytes + l.GetLostBytes(),
		Seconds:  max(v.Loss.Seconds, l.GetLostSeconds()),

		Unbounded: v.Loss.Unbounded || l.LostSeconds == nil,
	}
}

// loaded are the spans in which the replicated volumes were under load in the first variant.
func (r *Results) loaded() []span {
	var spans []span
	add := func(acks []workload.Ack) {
		if len(acks) > 0 {
			workload.SortAcks(acks)
			spans = append(spans, span{acks[0].Start, acks[len(acks)-1].End})
		}
	}
	for _, round := range r.Rounds {
		if round.Replicated {
			add(round.Acks)
		}
	}
	if r.Joint != nil {
		add(r.Joint.Acks)
	}
	return spans
}

// medianOf returns the median over the rounds of one side.
func (r *Results) medianOf(replicated bool, value func(workload.Stats) float64) float64 {
	var values []float64
	for _, round := range r.Rounds {
		if round.Replicated == replicated {
			values = append(values, value(round.Stats))
		}
	}
	if len(values) == 0 {
		return 0
	}
	sort.Float64s(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

func ordersPerSecond(s workload.Stats) float64 { return s.OrdersPerSecond }
func medianLatency(s workload.Stats) float64   { return s.P50.Seconds() }
func p99Latency(s workload.Stats) float64      { return s.P99.Seconds() }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// ThroughputRatio is replicated to plain, medians over the rounds: 1 is no cost, less is slower.
func (r *Results) ThroughputRatio() float64 {
	return ratio(r.medianOf(true, ordersPerSecond), r.medianOf(false, ordersPerSecond))
}

// LatencyRatio is replicated to plain, of the median latency: 1 is no cost, more is slower.
func (r *Results) LatencyRatio() float64 {
	return ratio(r.medianOf(true, medianLatency), r.medianOf(false, medianLatency))
}

// Err is what must not be: a copy of one group that is not of one instant, or a single database that is damaged.
func (r *Results) Err() error {
	var errs []error
	if err := r.Joint.Result.OneInstant(r.Clients); err != nil {
		errs = append(errs, fmt.Errorf("the copy of the consistency group is not of one instant: %w", err))
	}
	if err := r.Separate.Result.Intact(); err != nil {
		errs = append(errs, fmt.Errorf("a copy in separate groups is damaged: %w", err))
	}
	return errors.Join(append(errs, r.comebackErr(), r.earlierErr())...)
}

// summary is summary.json. Its fields are read by programs: they stay.
type summary struct {
	Variants        map[string]summaryVariant `json:"variants"`
	ThroughputRatio float64                   `json:"throughput_ratio"`
	LatencyRatio    float64                   `json:"latency_ratio"`
	RPO             *summaryRPO               `json:"rpo_ms"`
	Machine         string                    `json:"machine"`
	Date            time.Time                 `json:"date"`
	Seed            uint64                    `json:"seed"`
	Workload        workload.Kind             `json:"workload"`
}

type summaryVariant struct {
	Orders             int      `json:"orders"`
	OrdersWithoutStock int      `json:"orders_without_stock"`
	LostOrdinals       uint64   `json:"lost_ordinals"`
	LostSeconds        *float64 `json:"lost_seconds"` // null: unknown
}

type summaryRPO struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func (r *Results) summary() summary {
	variant := func(v *Variant) summaryVariant {
		var lost *float64
		if !v.Loss.Unbounded {
			lost = new(round(v.Loss.Seconds, 3))
		}
		return summaryVariant{v.Result.Orders, v.Result.OrdersWithoutStock, v.Loss.Ordinals, lost}
	}
	var rpo *summaryRPO
	if r.RPO.Samples > 0 {
		rpo = &summaryRPO{round(r.RPO.P50.Seconds()*1000, 1), round(r.RPO.P99.Seconds()*1000, 1)}
	}
	return summary{
		Variants: map[string]summaryVariant{"consistency-group": variant(r.Joint), "separate-groups": variant(r.Separate)},
		// Three digits are more than a noisy machine can repeat.
		ThroughputRatio: round(r.ThroughputRatio(), 3), LatencyRatio: round(r.LatencyRatio(), 3),
		RPO:     rpo,
		Machine: r.Machine, Date: r.Began.UTC().Truncate(time.Second), Seed: r.Seed, Workload: r.Workload,
	}
}

// WriteFiles writes summary.json and report.html into a directory, which is made when missing, and returns their paths.
// Other workloads than SQLite have files of their own, such as summary-postgres.json.
func (r *Results) WriteFiles(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(r.summary(), "", "  ")
	if err != nil {
		return nil, err
	}
	suffix := ""
	if r.Workload != workload.SQLite {
		suffix = "-" + string(r.Workload)
	}
	paths := []string{filepath.Join(dir, "summary"+suffix+".json"), filepath.Join(dir, "report"+suffix+".html")}
	if err := os.WriteFile(paths[0], append(text, '\n'), 0o644); err != nil {
		return nil, err
	}
	if err := r.page().WriteFile(paths[1]); err != nil {
		return nil, err
	}
	return paths, nil
}
