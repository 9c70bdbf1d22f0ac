package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// load is what runs on a bed.
type load interface {
	// unit is that of a sample's value; more is better.
	unit() string
	// prepare makes the state that the measurement begins with. What it puts off is settled off the clock.
	prepare(context.Context, *bed) error
	// run measures for about that long. Runs with the same round do the same on every bed.
	run(ctx context.Context, b *bed, d time.Duration, round int) (sample, error)
}

// sample is one measurement.
type sample struct {
	value      float64
	operations float64
	bytes      float64 // 0 where it is not known
	flushes    float64 // 0 where it is not known
	p99        time.Duration
	settle     time.Duration // until everything put off was done

	machine usage
	here    usage // of the bed's processes
	there   usage
}

// comparison is a load on several variants, in turn.
type comparison struct {
	name string
	load load
	// targets are ratios to the baseline; a variant with target 0 is reported only.
	targets map[variant]float64
	// slowest is a bound of the p99 of a durable write, as a multiple of the baseline's; 0 is none.
	slowest float64
	// cpu are bounds of the CPU time of the primary's and the secondary's replicator for a write with its flush, in
	// microseconds; 0 is none.
	cpu [2]float64
	// note is what a reader has to know about it.
	note string
	// samples by variant and round.
	samples map[variant]map[int]sample
	// more are rows beside those that are made of the samples.
	more []row
}

func (c *comparison) add(v variant, round int, s sample) {
	if c.samples == nil {
		c.samples = map[variant]map[int]sample{}
	}
	if c.samples[v] == nil {
		c.samples[v] = map[int]sample{}
	}
	c.samples[v][round] = s
}

// baseline is the variant that ratios are to: the better one of those without replication and shim. Of raw loads
// without a flush it is the driver's, since a buffered loop device then measures the memory.
func (c *comparison) baseline() variant {
	driver, loop := c.values(driverPlain), c.values(plain)
	l, raw := c.load.(fioLoad)
	switch {
	case len(driver) == 0:
		return plain
	case raw && l.flushEvery == 0, len(loop) == 0, median(mapValues(driver)) > median(mapValues(loop)):
		return driverPlain
	}
	return plain
}

// values of a variant by round.
func (c *comparison) values(v variant) map[int]float64 {
	values := map[int]float64{}
	for round, s := range c.samples[v] {
		values[round] = s.value
	}
	return values
}

// runsOn reports whether the load runs on a variant.
func (c *comparison) runsOn(v variant) bool {
	_, wanted := c.targets[v]
	return wanted || v.isPlain()
}

// stage is comparisons that share beds.
type stage struct {
	name        string
	setting     setting
	comparisons []*comparison
	// variants are what it runs on, each on so many volumes of so many bytes; peers: the peer's variants too.
	variants  []variant
	volumes   int
	sizeBytes int64
	peers     bool
	// share of the budget that is used up when the stage ends.
	share float64
	// with sets up the beds, calls measure with them, and takes everything away.
	with func(ctx context.Context, measure func(context.Context, []*bed) error) error
}

// measureStage runs all rounds of a stage.
func (e *env) measureStage(ctx context.Context, s *stage) error {
	e.say("%s, %s: setting up", s.name, s.setting)
	return s.with(ctx, func(ctx context.Context, beds []*bed) error {
		var took time.Duration
		for round := range e.rounds {
			began := time.Now()
			if e.budget > 0 && round >= 2 && time.Since(e.began)+took > time.Duration(s.share*float64(e.budget)) {
				e.say("%s: the time is up after %d of %d rounds", s.name, round, e.rounds)
				break
			}
			for _, c := range s.comparisons {
				if err := e.measureRound(ctx, c, beds, round); err != nil {
					return fmt.Errorf("%s, round %d: %w", c.name, round+1, err)
				}
			}
			took = time.Since(began)
			e.say("%s: round %d of %d took %.1f s", s.name, round+1, e.rounds, took.Seconds())
		}
		return nil
	})
}

func (e *env) measureRound(ctx context.Context, c *comparison, beds []*bed, round int) error {
	for i := range beds {
		// Another one begins in each round: what is systematic about a place in the turn evens out.
		b := beds[(i+round)%len(beds)]
		if !c.runsOn(b.variant) {
			continue
		}
		s, err := e.measure(ctx, c.load, b, round)
		if err != nil {
			return fmt.Errorf("on %s: %w", b.variant, err)
		}
		c.add(b.variant, round, s)
		e.detail("%s, %s, round %d: %.4g %s, p99 %v, settled in %v", c.name, b.variant, round+1, s.value, c.load.unit(),
			s.p99.Round(time.Microsecond), s.settle.Round(time.Millisecond))
	}
	return nil
}

func (e *env) measure(ctx context.Context, l load, b *bed, round int) (sample, error) {
	if err := l.prepare(ctx, b); err != nil {
		return sample{}, err
	}
	if err := b.settle(ctx); err != nil {
		return sample{}, err
	}
	m, err := startMeter(b.here, b.there)
	if err != nil {
		return sample{}, err
	}
	s, err := l.run(ctx, b, e.cell, round)
	if err != nil {
		return sample{}, err
	}
	var meterErr error
	s.machine, s.here, s.there, meterErr = m.stop()
	began := time.Now()
	err = errors.Join(meterErr, b.settle(ctx))
	s.settle = time.Since(began)
	return s, err
}
