package workload

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Stats sums up the acknowledgements of one run.
type Stats struct {
	Orders int
	// OrdersPerSecond is over the time from the first order's start to the last one's end.
	OrdersPerSecond float64
	P50, P99, Max   time.Duration
}

// highestLatency bounds the histogram; an order that takes longer counts as this.
const highestLatency = 10 * time.Minute

// Summarize computes Stats. acks may be in any order.
func Summarize(acks []Ack) Stats {
	if len(acks) == 0 {
		return Stats{}
	}
	histogram := hdrhistogram.New(1, highestLatency.Microseconds(), 3)
	first, last := acks[0].Start, acks[0].End
	for _, a := range acks {
		if a.Start.Before(first) {
			first = a.Start
		}
		if a.End.After(last) {
			last = a.End
		}
		// The only error is for a value beyond the highest, which min excludes.
		_ = histogram.RecordValue(min(a.Latency(), highestLatency).Microseconds())
	}
	s := Stats{
		Orders: len(acks),
		P50:    time.Duration(histogram.ValueAtQuantile(50)) * time.Microsecond,
		P99:    time.Duration(histogram.ValueAtQuantile(99)) * time.Microsecond,
		Max:    time.Duration(histogram.Max()) * time.Microsecond,
	}
	if span := last.Sub(first).Seconds(); span > 0 {
		s.OrdersPerSecond = float64(len(acks)) / span
	}
	return s
}

// Sample is the load in one interval.
type Sample struct {
	// At is the interval's middle.
	At              time.Time
	OrdersPerSecond float64
	P50, Max        time.Duration
}

// TimeSeries cuts sorted acknowledgements into intervals of one length. Intervals without an order are there with
// zeros, because a stall is what one looks for.
func TimeSeries(acks []Ack, interval time.Duration) []Sample {
	if len(acks) == 0 {
		return nil
	}
	var samples []Sample
	histogram := hdrhistogram.New(1, highestLatency.Microseconds(), 3)
	start := acks[0].Start
	flush := func() {
		samples = append(samples, Sample{
			At:              start.Add(interval / 2),
			OrdersPerSecond: float64(histogram.TotalCount()) / interval.Seconds(),
			P50:             time.Duration(histogram.ValueAtQuantile(50)) * time.Microsecond,
			Max:             time.Duration(histogram.Max()) * time.Microsecond,
		})
		histogram.Reset()
		start = start.Add(interval)
	}
	for _, a := range acks {
		for !a.End.Before(start.Add(interval)) {
			flush()
		}
		_ = histogram.RecordValue(min(a.Latency(), highestLatency).Microseconds()) // in range by min
	}
	// The last interval is only as long as the run: showing it would show a drop that is none.
	if len(samples) == 0 {
		flush()
	}
	return samples
}
