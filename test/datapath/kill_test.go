package datapath

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// kills is how often each process is killed.
const kills = 10

// G5: under a verifying load the replicator and the driver are killed in turn. The load sees no error, reads back what
// it wrote, and the replica is identical in the end.
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
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{Name: "kill", Remote: "site-b", JournalSizeBytes: 64 << 20})
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
		wait := startFio(t, ctx, "--name=verify", "--filename="+dev, "--rw=randwrite", "--bs=4k", fmt.Sprintf("--size=%d", sizeBytes),
			"--io_size=16m", "--ioengine=libaio", "--iodepth=8", "--direct=1", "--fsync=32", "--verify=crc32c", "--verify_fatal=1",
			"--do_verify=1", "--serialize_overlap=1", fmt.Sprintf("--randseed=%d", rng.Uint32()))
		r, err := wait()
		if err != nil {
			t.Fatalf("pass %d: %v", passes, err)
		}
		if r.Jobs[0].Write.TotalIOs == 0 || r.Jobs[0].Read.TotalIOs == 0 {
			t.Fatalf("pass %d wrote %d and verified %d blocks", passes, r.Jobs[0].Write.TotalIOs, r.Jobs[0].Read.TotalIOs)
		}
	}
	t.Logf("%d kills of each process, %d verified passes", kills, passes)

	atA := copyDevice(t, dev)
	sameDevices(t, atA, relocate(t, ctx, p, "kill", v))
}

// killInTurn kills the replicator and the driver alternately, each after the other is whole again.
func killInTurn(ctx context.Context, s *testsite.Site, rng *rand.Rand, stop <-chan struct{}) error {
	for range kills {
		for _, victim := range []struct {
			name   string
			kill   func() error
			launch func() error
		}{
			{"replicator", func() error { return s.Replicator().Kill() }, s.LaunchReplicator},
			{"csi-driver", func() error { return s.Driver().Kill() }, s.LaunchDriver},
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
			if err := victim.launch(); err != nil {
				return fmt.Errorf("launch %s: %w", victim.name, err)
			}
			if err := s.WaitReady(ctx); err != nil {
				return fmt.Errorf("after killing %s: %w", victim.name, err)
			}
		}
	}
	return nil
}
