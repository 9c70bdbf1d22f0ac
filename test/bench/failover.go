package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// measureFailover fills both journals with records that are not applied, then restarts the primary's replicator and
// after that kills the primary and promotes the secondary.
func (e *env) measureFailover(ctx context.Context, p *piece) error {
	e.say("restart and failover with %d MiB unapplied", e.unappliedBytes>>20)
	lazy := *e
	// Nothing is applied while the journal has room, and it has.
	lazy.applyInterval = time.Hour
	lazy.journalBytes = 4 * e.unappliedBytes
	return lazy.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
		volume, err := pair.A.CreateVolume(ctx, testsite.VolumeOptions{Name: "v", SizeBytes: e.unappliedBytes,
			Block: true, Parameters: testsite.Replicable()})
		if err != nil {
			return err
		}
		device, err := pair.A.Mount(ctx, volume)
		if err != nil {
			return err
		}
		b := &bed{variant: replicated, sizeBytes: e.unappliedBytes, volumes: []*testsite.Volume{volume}}
		// Joined while empty, so that everything comes through the journal.
		if err := lazy.join(ctx, pair, b, bedOptions{name: "failover"}); err != nil {
			return err
		}
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = writeNoise(f, e.unappliedBytes)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		waitCtx, cancel := context.WithTimeout(ctx, settleTimeout)
		defer cancel()
		primary, err := pair.A.WaitGroup(waitCtx, b.group, "acknowledged", func(g *sidecarpb.GroupStatus) bool {
			return testsite.Streaming(g) && g.GetAcknowledgedOrdinal() >= g.GetHeadOrdinal()
		})
		if err != nil {
			return err
		}
		secondary, err := pair.B.Group(ctx, b.group)
		if err != nil {
			return err
		}

		restart, err := restartReplicator(ctx, pair.A, device)
		if err != nil {
			return fmt.Errorf("restarting the replicator: %w", err)
		}
		p.Rows = append(p.Rows,
			measured("restart of a killed replicator: from its start to the first write and flush",
				[]float64{restart.Seconds()}, "s", 1,
				fmt.Sprintf("%.0f MiB unapplied", unapplied(primary))))

		took, err := failOver(ctx, pair, b.group, volume)
		if err != nil {
			return fmt.Errorf("failing over: %w", err)
		}
		p.Rows = append(p.Rows, measured("failover: from promote to the first read", []float64{took.Seconds()}, "s", 0.1,
			fmt.Sprintf("%.0f MiB unapplied at the secondary; with staging and publishing the volume", unapplied(secondary))))
		return nil
	})
}

// unapplied is in MiB.
func unapplied(g *sidecarpb.GroupStatus) float64 {
	var sum uint64
	for _, v := range g.GetVolumes() {
		sum += v.GetUnappliedBytes()
	}
	return float64(sum) / (1 << 20)
}

// restartReplicator kills a replicator and starts it again while a write waits, and returns how long that write waited
// for the new one.
func restartReplicator(ctx context.Context, s *testsite.Site, device string) (time.Duration, error) {
	if err := s.Replicator().Signal(syscall.SIGKILL); err != nil {
		return 0, err
	}
	if err := s.Replicator().Wait(20 * time.Second); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := s.LaunchReplicator(); err != nil {
		return 0, err
	}
	type result struct {
		at  time.Time
		err error
	}
	written := make(chan result, 1)
	go func() {
		err := directIO(device, true)
		written <- result{time.Now(), err}
	}()
	select {
	case w := <-written:
		return w.at.Sub(began), errors.Join(w.err, s.WaitReady(ctx))
	case <-ctx.Done():
		return 0, ctx.Err() // closing the pair frees the writer
	}
}

// failOver kills the primary, promotes the secondary and returns how long it took from the call until its volume could
// be read.
func failOver(ctx context.Context, pair *testsite.Pair, group string, volume *testsite.Volume) (time.Duration, error) {
	if err := pair.A.Kill(); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := pair.B.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: group, Force: true}); err != nil {
		return 0, err
	}
	device, err := pair.B.Mount(ctx, volume)
	if err != nil {
		return 0, err
	}
	err = directIO(device, false)
	return time.Since(began), err
}

// directIO reads a block from a device past its page cache, or writes one and flushes.
func directIO(device string, write bool) error {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	// Direct I/O wants aligned memory, which an anonymous mapping is.
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if write {
		_, err = f.WriteAt(block, 0)
		err = errors.Join(err, f.Sync())
	} else {
		_, err = f.ReadAt(block, 0)
	}
	return errors.Join(err, unix.Munmap(block), f.Close())
}
