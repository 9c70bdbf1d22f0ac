package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

// deviceSites are two sites of real processes, kept from round to round, with a line in each direction.
type deviceSites struct {
	pair *testsite.Pair
	ways []*linktest.Proxy
}

// startDeviceSites starts both sites, whose lines to each other can be cut.
func startDeviceSites(ctx context.Context, binDir string) (_ *deviceSites, err error) {
	// What is compared are the images: what is durable is in them soon.
	pair, err := testsite.New(testsite.Options{BinDir: binDir, ReplicatorArgs: []string{"--apply-interval", "50ms"}})
	if err != nil {
		return nil, err
	}
	s := &deviceSites{pair: pair}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, site := range []*testsite.Site{pair.A, pair.B} {
		way, err := linktest.NewProxy("127.0.0.1:0", site.Config.Peers[0].Addr)
		if err != nil {
			return nil, err
		}
		s.ways = append(s.ways, way)
		site.Config.Peers[0].Addr = way.Addr()
	}
	return s, pair.Start(ctx)
}

// deviceSearch runs something with sites, and takes them away.
func deviceSearch(ctx context.Context, binDir string, do func(*deviceSites) error) error {
	s, err := startDeviceSites(ctx, binDir)
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.close())
}

func (s *deviceSites) close() error {
	var errs []error
	for _, way := range s.ways {
		errs = append(errs, way.Close())
	}
	return errors.Join(append(errs, s.pair.Close())...)
}

// cut and heal change the lines in both directions.
func (s *deviceSites) cut() {
	for _, way := range s.ways {
		way.Cut()
	}
}

func (s *deviceSites) heal() {
	for _, way := range s.ways {
		way.Heal()
	}
}

// persist repeats an operation as long as it fails in a way that a kill or a state on its way explains.
func (c *deviceCircle) persist(what string, do func() error) error {
	var last error
	err := c.eventually(what, func() (bool, string) {
		last = do()
		switch code := status.Code(unwrapped(last)); code {
		case codes.Unavailable, codes.Aborted, codes.FailedPrecondition, codes.DeadlineExceeded:
			return false, last.Error()
		}
		return true, ""
	})
	if err == nil && last != nil {
		err = c.h.violation("%s: %v", what, last)
	}
	return err
}

// unwrapped is the innermost error, which is a call's.
func unwrapped(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// eventually waits for a state that has to come. What holds says is for the report.
func (c *deviceCircle) eventually(what string, holds func() (bool, string)) error {
	deadline := time.Now().Add(patience())
	for {
		ok, text := holds()
		if ok {
			return nil
		}
		if time.Now().After(deadline) || c.ctx.Err() != nil {
			return c.h.violation("%s has not come: %s", what, text)
		}
		c.pause(10 * time.Millisecond)
	}
}

// pause waits for a time, or until the round ends.
func (c *deviceCircle) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.ctx.Done():
	case <-timer.C:
	}
}

// harass kills replicators of both sites at random moments while something is done, and returns when they run again.
func (c *deviceCircle) harass(do func() error) error {
	type kill struct {
		after time.Duration
		at    *testsite.Site
	}
	var kills []kill
	for range c.rng.IntN(3) {
		kills = append(kills, kill{time.Duration(c.rng.IntN(150)) * time.Millisecond,
			pick(c.rng, c.primary, c.secondary).Site})
	}
	done := make(chan error, 1)
	go func() {
		for _, k := range kills {
			c.pause(k.after)
			if err := errors.Join(k.at.Replicator().Kill(), k.at.LaunchReplicator()); err != nil {
				done <- err
				return
			}
			c.h.note("the replicator of %s was killed", k.at.Config.Name)
			c.tally.kills.Add(1)
		}
		done <- nil
	}()
	err := errors.Join(do(), <-done)
	for _, s := range []*deviceSite{c.primary, c.secondary} {
		err = errors.Join(err, s.WaitReady(c.ctx))
	}
	c.killed = c.killed || len(kills) > 0
	return err
}
