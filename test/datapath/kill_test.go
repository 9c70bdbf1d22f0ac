package datapath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
)

// kills is how often each process is killed.
const kills = 10

// G5: under a verifying load the replicator, the driver, both at once, and the keeper are killed in turn. The load sees
// no error, reads back what it wrote, and the replica is identical in the end.
func TestKillUnderLoad(t *testing.T) {
	for _, order := range []string{"flush", "ack"} {
		t.Run(order, func(t *testing.T) { killUnderLoad(t, order) })
	}
}

func killUnderLoad(t *testing.T, order string) {
	const sizeBytes = 64 << 20
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	p := newPair(t, ctx)
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: "kill", Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(64 << 20))},
	})
	v, dev := blockVolume(t, ctx, p.A, "kill-"+order, "kill", sizeBytes, order)

	stop := make(chan struct{})
	killed := make(chan error, 1)
	go func() { killed <- killInTurn(ctx, p.A, rng, stop) }()
	passes := 0
	for done := false; !done; passes++ {
		select {
		case err := <-killed:
			if err != nil {
				close(stop)
				t.Fatal(err)
			}
			done = true // one more pass without kills
		default:
		}
		if err := startVerify(t, ctx, rng, dev, sizeBytes, 16<<20)(); err != nil {
			t.Fatalf("pass %d: %v", passes, err)
		}
	}
	t.Logf("%d kills of each process and of replicator and driver together, %d verified passes", kills, passes)

	atA := copyDevice(t, dev)
	sameDevices(t, atA, relocate(t, ctx, p, "kill", v))
}

// killInTurn kills the replicator, the driver, both at one instant, and the keeper, each after the others are whole
// again. Replicator and driver come back in either order.
func killInTurn(ctx context.Context, s *testsite.Site, rng *rand.Rand, stop <-chan struct{}) error {
	for range kills {
		first, second := s.LaunchReplicator, s.LaunchDriver
		if rng.IntN(2) == 0 {
			first, second = second, first
		}
		for _, victim := range []struct {
			name   string
			kill   func() error
			launch []func() error
		}{
			{"replicator", func() error { return s.Replicator().Kill() }, []func() error{s.LaunchReplicator}},
			{"csi-driver", func() error { return s.Driver().Kill() }, []func() error{s.LaunchDriver}},
			{"replicator and csi-driver", func() error {
				return killTogether(s.Replicator(), s.Driver())
			}, []func() error{first, second}},
			{"keeper", func() error { return s.Keeper().Kill() }, []func() error{s.LaunchKeeper}},
		} {
			select {
			case <-stop:
				return nil
			case <-time.After(time.Duration(100+rng.IntN(400)) * time.Millisecond):
			}
			if err := victim.kill(); err != nil {
				return fmt.Errorf("kill %s: %w", victim.name, err)
			}
			time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond) // I/O waits meanwhile
			for _, launch := range victim.launch {
				if err := launch(); err != nil {
					return fmt.Errorf("launch %s: %w", victim.name, err)
				}
			}
			if err := s.WaitReady(ctx); err != nil {
				return fmt.Errorf("after killing %s: %w", victim.name, err)
			}
			if err := keeperHolds(ctx, s); err != nil {
				return fmt.Errorf("after killing %s: %w", victim.name, err)
			}
		}
	}
	return nil
}

// killTogether kills processes at one instant, as nearly as signals can.
func killTogether(processes ...*testsite.Process) error {
	var errs []error
	for _, p := range processes {
		errs = append(errs, p.Signal(syscall.SIGKILL))
	}
	for _, p := range processes {
		errs = append(errs, p.Kill())
	}
	return errors.Join(errs...)
}

// keeperHolds waits until the keeper holds a volume's descriptor. A keeper that was killed holds nothing until the
// replicator has told it again, and until then the replicator's death would be an I/O error, which is known.
func keeperHolds(ctx context.Context, s *testsite.Site) error {
	for {
		names, err := heldNames(ctx, s)
		if err == nil && len(names) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the keeper holds nothing: %w (%v)", ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func heldNames(ctx context.Context, s *testsite.Site) ([]string, error) {
	c, err := keeper.Dial(s.Config.KeeperSocket())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.List(ctx)
}
