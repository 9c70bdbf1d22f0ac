package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// wanderer is a volume that a test writes to while its replication is changed.
type wanderer struct {
	*plainVolume
	r *siteReplicator
}

// change writes through the volume's group, or to its image where it is in none.
func (w *wanderer) change(off, n int64, fill byte) {
	g, err := w.r.site.GroupOf(w.id)
	if errors.Is(err, replication.ErrNotFound) {
		w.plainVolume.change(off, n, fill)
		return
	}
	w.b.must(err)
	v, err := g.Volume(w.id)
	w.b.must(err)
	p := bytes.Repeat([]byte{fill}, int(n))
	copy(w.content[off:], p)
	if fill == 0 {
		err = v.Discard(off, n)
	} else {
		_, err = v.WriteAt(p, off)
	}
	w.b.must(err)
}

// modify changes the volume as a CO does, which calls again while it cannot be done: a group may hold on to a snapshot
// for a moment after that is ready.
func (w *wanderer) modify(mutable map[string]string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		_, err := (&controllerServer{d: w.b.d}).ControllerModifyVolume(context.Background(),
			&csi.ControllerModifyVolumeRequest{VolumeId: w.id, MutableParameters: mutable})
		if code := status.Code(err); (code == codes.FailedPrecondition || code == codes.Aborted) &&
			time.Now().Before(deadline) {
			continue
		}
		w.b.must(err)
		return
	}
}

// TestMetadataWhileReplicationChanges takes snapshots of a volume whose replication is switched off and on, goes to
// another remote and into another group in between, with writes in each of these states, and rebuilds every snapshot
// from every earlier one. With or without blocks that are shared: where no set says what changed, what is allocated
// does.
func TestMetadataWhileReplicationChanges(t *testing.T) {
	for _, reflink := range []bool{true, false} {
		t.Run(fmt.Sprintf("reflink %t", reflink), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			net := link.NewNetwork(nil)
			t.Cleanup(net.Close)
			mem := vfs.NewMem()
			mem.SetReflink(reflink)
			pass := func(vfs.Op, string) error { return nil }
			const dir = "/slipstream-test-pool"
			r := startReplicator(t, net, "east", mem, dir, pass)
			for _, peer := range []string{"west", "south"} {
				startReplicator(t, net, peer, vfs.NewMem(), dir, pass)
			}
			d := metadataDriver(t, mem, dir, r.endpoint)
			t.Cleanup(func() { d.Close() })
			b := &backup{t: t, d: d, contents: map[string][]byte{}}
			const size = 2 * mib
			_, err := d.store.Pool.Create(blockdev.VolumeRecord{ID: "vol-1", Name: "v", SizeBytes: size, Replicable: true,
				Order: blockdev.OrderFlush})
			b.must(err)
			w := &wanderer{plainVolume: &plainVolume{b: b, id: "vol-1", content: make([]byte, size)}, r: r}
			writes := func() {
				for range 1 + random.IntN(6) {
					off := random.Int64N(size/sector) * sector
					w.change(off, min(1+random.Int64N(20), (size-off)/sector)*sector, byte(max(0, random.IntN(320)-64)))
				}
			}
			steps := []map[string]string{
				{parameter.KeyConsistencyGroup: "a", parameter.KeyRemote: "west", parameter.KeyJournalSize: "16Mi"},
				{parameter.KeyRemote: "south"},
				{parameter.KeyReplication: parameter.ReplicationOff},
				{parameter.KeyReplication: parameter.ReplicationOn, parameter.KeyConsistencyGroup: "a", parameter.KeyRemote: "west",
					parameter.KeyJournalSize: "16Mi"},
				{parameter.KeyConsistencyGroup: "b", parameter.KeyRemote: "south", parameter.KeyJournalSize: "16Mi"},
				{parameter.KeyConsistencyGroup: "a", parameter.KeyRemote: "south", parameter.KeyJournalSize: "16Mi"},
			}
			var between [][]int // the steps between a snapshot and the one before it
			var since []int
			snapshot := func() {
				w.snapshot()
				between, since = append(between, since), nil
			}
			writes()
			snapshot()
			for i := range 2 * len(steps) {
				writes()
				step := i % len(steps)
				w.modify(steps[step])
				since = append(since, step)
				writes()
				if random.IntN(3) > 0 {
					snapshot()
				}
				if random.IntN(3) == 0 {
					writes()
					snapshot() // within one state
				}
			}
			snapshot()
			t.Logf("%d snapshots, between them %v", len(w.taken), between)
			for j, target := range w.taken {
				b.rebuild("", target, 0)
				for _, base := range w.taken[:j] {
					b.rebuild(base, target, 0)
				}
			}
		})
	}
}
