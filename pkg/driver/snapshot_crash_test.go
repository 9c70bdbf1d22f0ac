package driver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// TestDeathInSnapshotsAndClones kills the driver at each step of the life of snapshots, clones and group snapshots in
// turn, and has another one finish it, as a CO would: by calling again. Nothing may be left, and nothing may have other
// content than its source.
func TestDeathInSnapshotsAndClones(t *testing.T) {
	kinds := []struct {
		name    string
		params  map[string]string
		class   map[string]string // of snapshots
		reflink bool
		mounted bool
		sidecar bool
	}{
		{name: "clone", reflink: true, mounted: true},
		{name: "copy"},
		{name: "frozen copy", class: freezing, mounted: true},
		{name: "thick", params: thick(true), reflink: true},
		{name: "group", params: map[string]string{parameter.KeyConsistencyGroup: "shop"}, reflink: true, mounted: true,
			sidecar: true},
	}
	first, stride := 1, 1
	if testenv.Race {
		// What it looks for is found without each step.
		stride = 7
		first += rand.IntN(stride)
		t.Logf("each %dth step, from step %d on", stride, first)
	}
	for _, kind := range kinds {
		for _, powerLoss := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/power loss %t", kind.name, powerLoss), func(t *testing.T) {
				for step := first; ; step += stride {
					var sidecar *fakeSidecar
					if kind.sidecar {
						sidecar = startSidecar(t)
					}
					h := newNode(t, sidecar)
					h.mem.SetReflink(kind.reflink)
					life := killedSnapshots{params: kind.params, class: kind.class, powerLoss: powerLoss, mounted: kind.mounted,
						step: step,
						vc:   capabilitytest.Block(capabilitytest.Writer), size: 2 * mib}
					if kind.mounted {
						life.vc, life.size = capabilitytest.Mount(capabilitytest.Writer, ""), 16*mib
					}
					req := createReq("v", life.vc, kind.params)
					req.CapacityRange.RequiredBytes = life.size
					response, err := h.c.CreateVolume(context.Background(), req)
					h.must(err)
					life.origin = response.GetVolume().GetVolumeId()
					h.put(h.imagePath(life.origin), "content", mib)
					if kind.mounted {
						h.must(h.stage(life.origin, life.vc))
					}
					h.stop()
					k := &killer{left: step}
					h.startMortal(k)
					h.snapshotsWithAKill(k, life)
					if !k.dead() {
						t.Logf("less than %d steps", step)
						if step < 20 {
							t.Errorf("a life of less than %d steps: the killer does not see them", step)
						}
						return
					}
				}
			})
		}
	}
}

// killedSnapshots is what the calls of one life are made with.
type killedSnapshots struct {
	origin             string // volume
	params             map[string]string
	class              map[string]string // of snapshots
	powerLoss, mounted bool
	step               int
	vc                 *csi.VolumeCapability
	size               int64 // of the volume; what is made from it is larger
}

// snapshotsWithAKill runs the calls under k, and goes on with another driver when it strikes: with the call that
// failed, after a power loss with the volume staged again.
func (h *node) snapshotsWithAKill(k *killer, m killedSnapshots) {
	h.t.Helper()
	fatal := func(format string, args ...any) {
		h.t.Helper()
		h.t.Fatalf("death before step %d: %s", m.step, fmt.Sprintf(format, args...))
	}
	origin, params, class, vc := m.origin, m.params, m.class, m.vc
	larger := m.size + 2*mib
	var snap, restored, group string
	holds := func(path string) error {
		if got := h.read(path, mib, 7); got != "content" {
			return fmt.Errorf("%s has %q", path, got)
		}
		return nil
	}
	calls := []struct {
		name string
		do   func() error
	}{
		{"snapshot", func() error {
			s, err := h.takeSnapshot("s", origin, class)
			if err == nil {
				snap = s.GetSnapshotId()
			}
			return err
		}},
		{"ready", func() error {
			if err := h.awaitSnapshot(snap); err != nil {
				return err
			}
			return holds(h.snapshotImage(snap))
		}},
		{"restore", func() error {
			id, err := h.makeFrom("w", fromSnapshot(snap), vc, larger, params)
			if err == nil {
				restored = id
				err = holds(h.imagePath(id))
			}
			return err
		}},
		{"clone", func() error {
			id, err := h.makeFrom("x", fromVolume(restored), vc, larger, params)
			if err == nil {
				err = holds(h.imagePath(id))
			}
			if err == nil {
				err = h.delete(id)
			}
			return err
		}},
		{"group snapshot", func() error {
			g, err := h.takeGroup("g", []string{origin, restored}, freezing)
			if err == nil {
				group = g.GetGroupSnapshotId()
				for _, m := range memberIDs(g) {
					if err = h.awaitSnapshot(m); err == nil {
						err = holds(h.snapshotImage(m))
					}
					if err != nil {
						return err
					}
				}
			}
			return err
		}},
		{"delete snapshot", func() error { return h.deleteSnapshot(snap) }},
		{"delete group snapshot", func() error { return h.deleteGroup(group) }},
		{"delete restored", func() error { return h.delete(restored) }},
		{"unstage", func() error { return h.unstage(origin) }},
		{"delete", func() error { return h.delete(origin) }},
	}
	wasDead := false
	for i := 0; i < len(calls); i++ {
		err := calls[i].do()
		if k.dead() && !wasDead {
			wasDead = true
			h.restart(m.powerLoss)
			if m.powerLoss && m.mounted && calls[i].name != "delete" {
				h.must(h.stage(origin, vc))
			}
			i--
			continue
		}
		if err != nil {
			fatal("%s: %v", calls[i].name, err)
		}
	}
	h.clean()
	h.noSnapshots()
	if recs, err := h.d.store.Pool.List(); err != nil || len(recs) > 0 {
		fatal("left in the pool: %v, %v", recs, err)
	}
	if _, err := h.getSnapshot(snap); status.Code(err) != codes.NotFound {
		fatal("the snapshot is still there: %v", err)
	}
	if response, err := h.c.ListVolumes(context.Background(), &csi.ListVolumesRequest{}); err != nil ||
		len(response.GetEntries()) > 0 {
		fatal("listed %v, %v", response, err)
	}
	if s, err := h.d.snapshots.CloneSnapshot(restored); err != nil || s != nil {
		fatal("the driver's own snapshot %v is left, %v", s, err)
	}
}
