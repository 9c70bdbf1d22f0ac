package main

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"time"
)

// row is a line of the results.
type row struct {
	Name    string `json:"name"`
	Variant string `json:"variant,omitempty"`
	// Setting is where the sites ran.
	Setting setting `json:"setting,omitempty"`
	// Against is the variant that Baseline is of; empty for a row that is no comparison.
	Against string `json:"against,omitempty"`
	// Ratio to the baseline; nil for a row that is no comparison.
	Ratio *float64 `json:"ratio"`
	// Target is what the ratio, or the value of a row without one, should reach; nil for what is only reported.
	Target *float64 `json:"target"`
	// AtMost says that the target is an upper bound.
	AtMost bool `json:"at_most,omitempty"`
	// Spread is the smallest and largest of the rounds.
	Spread [2]float64 `json:"spread"`
	// Value and Baseline are medians, in Unit.
	Value    float64 `json:"value"`
	Baseline float64 `json:"baseline,omitempty"`
	Unit     string  `json:"unit"`
	// P99Millis is the 99th percentile of the latency: of a flush where there are any, otherwise of a request. If each
	// write is flushed, it is the larger one of write and flush: one of the two waits until the write is durable.
	P99Millis         float64 `json:"p99_ms,omitempty"`
	BaselineP99Millis float64 `json:"baseline_p99_ms,omitempty"`
	Rounds            int     `json:"rounds"`
	Met               *bool   `json:"met"`
	Note              string  `json:"note,omitempty"`
	// Measured is when, and Commit with which version.
	Measured time.Time `json:"measured"`
	Commit   string    `json:"commit"`
}

// judge sets Met from the rest.
func (r row) judge() row {
	if r.Target == nil {
		return r
	}
	v := r.Value
	if r.Ratio != nil {
		v = *r.Ratio
	}
	met := v >= *r.Target
	if r.AtMost {
		met = v <= *r.Target
	}
	r.Met = &met
	return r
}

// measured is a row that is no comparison. A target of 0 is none.
func measured(name string, values []float64, unit string, atMost float64, note string) row {
	r := row{Name: name, Value: median(values), Unit: unit, Rounds: len(values), AtMost: atMost > 0, Note: note}
	r.Spread[0], r.Spread[1] = spread(values)
	if atMost > 0 {
		r.Target = &atMost
	}
	return r.judge()
}

// rows are one for each variant but the baseline, in the order of variants.
func (c *comparison) rows() []row {
	var rows []row
	against := c.baseline()
	baseline := c.values(against)
	for _, v := range variants {
		if v == against {
			continue
		}
		quotients := ratios(c.values(v), baseline)
		if len(quotients) == 0 {
			continue
		}
		ratio := median(quotients)
		r := row{
			Name: c.name, Variant: string(v), Ratio: &ratio, Unit: c.load.unit(), Rounds: len(quotients), Note: c.note,
			Value: median(mapValues(c.values(v))), Baseline: median(mapValues(baseline)),
			P99Millis: c.p99(v), BaselineP99Millis: c.p99(against), Against: string(against),
		}
		r.Spread[0], r.Spread[1] = spread(quotients)
		if target := c.targets[v]; target > 0 {
			r.Target = &target
		}
		rows = append(rows, r.judge())
	}
	return slices.Concat(rows, c.slowestRows(), c.peerRows(), c.cpuRows(), c.more)
}

// slowestRows compare the p99 of the replicated volume with the baseline's.
func (c *comparison) slowestRows() []row {
	against := c.baseline()
	quotients := ratios(c.p99s(replicated), c.p99s(against))
	if c.slowest == 0 || len(quotients) == 0 {
		return nil
	}
	ratio := median(quotients)
	r := row{Name: c.name + ", p99 of the durable write", Variant: string(replicated), Ratio: &ratio, Target: &c.slowest,
		AtMost: true, Unit: "ms", Rounds: len(quotients), Value: c.p99(replicated), Baseline: c.p99(against),
		Against: string(against)}
	r.Spread[0], r.Spread[1] = spread(quotients)
	return []row{r.judge()}
}

// p99s are those of a variant by round, in milliseconds.
func (c *comparison) p99s(v variant) map[int]float64 {
	all := map[int]float64{}
	for round, s := range c.samples[v] {
		if s.p99 > 0 {
			all[round] = s.p99.Seconds() * 1000
		}
	}
	return all
}

// Targets against the peer: with a flush after each write, and without.
const (
	targetPeerFlush = 1.5
	targetPeer      = 1.0
)

// peerRows compare the replicated volume with the peer's mirrors instead of the plain loop device.
func (c *comparison) peerRows() []row {
	var rows []row
	for _, v := range []variant{peer, peerSync} {
		quotients := ratios(c.values(replicated), c.values(v))
		if len(quotients) == 0 {
			continue
		}
		target := targetPeer
		if l, ok := c.load.(fioLoad); !ok || l.flushEvery == 1 {
			target = targetPeerFlush // a database flushes each commit
		}
		ratio := median(quotients)
		r := row{
			Name: c.name + ", replicated against " + string(v), Variant: againstPeer, Ratio: &ratio, Target: &target,
			Unit:   c.load.unit(),
			Rounds: len(quotients), Value: median(mapValues(c.values(replicated))), Baseline: median(mapValues(c.values(v))),
			Note: "baseline and its p99 are the peer's", P99Millis: c.p99(replicated), BaselineP99Millis: c.p99(v),
		}
		r.Spread[0], r.Spread[1] = spread(quotients)
		rows = append(rows, r.judge())
	}
	return rows
}

// cpuRows are the CPU time of the replicators per flush, of a load that flushes after each write, and per MiB of one
// with large writes.
func (c *comparison) cpuRows() []row {
	l, ok := c.load.(fioLoad)
	if !ok || l.pattern == "randread" || l.flushEvery == 0 {
		return nil
	}
	var here, there []float64
	for _, s := range c.samples[replicated] {
		per := s.flushes
		if l.flushEvery > 1 {
			per = s.bytes / (1 << 20)
		}
		if per > 0 {
			here, there = append(here, float64(s.here.CPU.Microseconds())/per), append(there,
				float64(s.there.CPU.Microseconds())/per)
		}
	}
	if len(here) == 0 {
		return nil
	}
	unit := "µs per flush"
	if l.flushEvery > 1 {
		unit = "µs per MiB"
	}
	return []row{
		measured(c.name+", CPU of the primary's replicator", here, unit, c.cpu[0], ""),
		measured(c.name+", CPU of the secondary's replicator", there, unit, c.cpu[1], ""),
	}
}

// againstPeer marks rows whose baseline is the peer.
const againstPeer = "against peer"

func (c *comparison) p99(v variant) float64 {
	all := mapValues(c.p99s(v))
	if len(all) == 0 {
		return 0
	}
	return median(all)
}

func mapValues(m map[int]float64) []float64 {
	var values []float64
	for _, v := range m {
		values = append(values, v)
	}
	sort.Float64s(values)
	return values
}

// cost is what a load on a variant took, of the whole machine and of the processes that serve it, per operation.
type cost struct {
	Name       string  `json:"name"`
	Setting    setting `json:"setting,omitempty"`
	Variant    string  `json:"variant"`
	Operations float64 `json:"operations"`
	// Machine includes the load itself. CPU times are in microseconds.
	MachineCPU      float64 `json:"machine_cpu_us"`
	MachineSwitches float64 `json:"machine_switches"`
	// Here and There are the replicators of the two sites, or the peer product's processes.
	HereCPU       float64 `json:"here_cpu_us"`
	HereSwitches  float64 `json:"here_switches"`
	HereReads     float64 `json:"here_reads"`
	HereWrites    float64 `json:"here_writes"`
	ThereCPU      float64 `json:"there_cpu_us"`
	ThereSwitches float64 `json:"there_switches"`
	// HereCPUPerMiB is per MiB that the load wrote, 0 where that is not known.
	HereCPUPerMiB  float64 `json:"here_cpu_us_per_mib,omitempty"`
	ThereCPUPerMiB float64 `json:"there_cpu_us_per_mib,omitempty"`
}

// costs sums up all rounds.
func (c *comparison) costs() []cost {
	var costs []cost
	for _, v := range variants {
		var operations, bytes float64
		var machine, here, there usage
		for _, s := range c.samples[v] {
			operations += s.operations
			bytes += s.bytes
			machine = machine.plus(s.machine)
			here = here.plus(s.here)
			there = there.plus(s.there)
		}
		if operations == 0 {
			continue
		}
		micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / operations }
		k := cost{
			Name: c.name, Variant: string(v), Operations: operations,
			MachineCPU: micros(machine.CPU), MachineSwitches: machine.Switches / operations,
			HereCPU: micros(here.CPU), HereSwitches: here.Switches / operations,
			HereReads: here.Reads / operations, HereWrites: here.Writes / operations,
			ThereCPU: micros(there.CPU), ThereSwitches: there.Switches / operations,
		}
		if bytes > 0 {
			k.HereCPUPerMiB = float64(here.CPU.Microseconds()) / (bytes / (1 << 20))
			k.ThereCPUPerMiB = float64(there.CPU.Microseconds()) / (bytes / (1 << 20))
		}
		costs = append(costs, k)
	}
	return costs
}

// figure writes a number with three digits that count.
func figure(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
