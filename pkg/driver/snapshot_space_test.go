package driver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// written is a volume of which a part is allocated.
func (h *node) written(name string, size, allocated int64, params map[string]string) string {
	h.t.Helper()
	id, err := h.createSized(name, size, params)
	h.must(err)
	h.put(h.imagePath(id), strings.Repeat(name[:1], int(allocated)), 0)
	return id
}

// TestSnapshotsNeedRoom: what a snapshot may keep is asked of the ledger before anything is made, whichever way it is
// taken, alone or with others; what it keeps is missing for volumes, and there again when it is deleted.
func TestSnapshotsNeedRoom(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		for _, group := range []string{"", "shop"} {
			t.Run(fmt.Sprintf("reflink %t, group %q", reflink, group), func(t *testing.T) {
				h := newNode(t, startSidecar(t))
				h.mem.SetReflink(reflink)
				h.mem.SetCapacity(101 * mib) // one is for records, and what the pool keeps for giving space back
				var params map[string]string
				if group != "" {
					// The fake replicator has no journals.
					params = map[string]string{parameter.KeyConsistencyGroup: group, parameter.KeyJournalSize: "16Mi",
						parameter.KeyJournalFull: parameter.JournalFullStall}
				}
				a, b := h.written("a", 24*mib, 20*mib, params), h.written("b", 24*mib, 10*mib, params)
				takeBoth := func() error {
					_, err := h.takeGroup("both", []string{a, b}, freezing)
					return err
				}
				room := func() int64 { _, most := h.capacity(nil); return most }
				empty := room()
				if empty/mib != 52 {
					t.Fatalf("room for %d", empty)
				}
				first, err := h.takeSnapshot("first", a, nil)
				h.must(err)
				h.must(h.awaitSnapshot(first.GetSnapshotId()))
				if got := room(); got > empty-20*mib || got < empty-21*mib {
					t.Errorf("beside a snapshot of 20 MiB there is room for %d, before %d", got, empty)
				}
				second, err := h.takeSnapshot("second", a, nil)
				h.must(err)
				h.must(h.awaitSnapshot(second.GetSnapshotId()))
				// 12 MiB are left: neither for a alone nor for both, though for b.
				_, err = h.takeSnapshot("third", a, nil)
				h.want(err, codes.ResourceExhausted, `"third"`, a, "up to 20971520 bytes", "room for 13", "node-a",
					"delete snapshots")
				h.want(takeBoth(), codes.ResourceExhausted, `"both"`, a, b, "up to 31457280 bytes", "room for 13")
				if recs, err := h.d.store.Snapshots(); err != nil || len(recs) != 2 {
					t.Errorf("after refusals there are %d snapshots, %v", len(recs), err)
				}
				third, err := h.takeSnapshot("third", b, nil)
				h.must(err)
				h.must(h.awaitSnapshot(third.GetSnapshotId()))
				h.must(h.deleteSnapshot(first.GetSnapshotId()))
				h.must(h.deleteSnapshot(third.GetSnapshotId()))
				h.must(takeBoth())
				// With all promises kept, no writer meets a full file system.
				for _, id := range []string{a, b} {
					if !h.fill(h.imagePath(id), 24*mib) {
						t.Errorf("no space for %s", id)
					}
				}
			})
		}
	}
}

// A copy has to be allocated; sharing blocks takes nothing now, and what it may take later can be overcommitted as
// volumes are.
func TestSnapshotRoomByMethod(t *testing.T) {
	for _, tc := range []struct {
		name           string
		reflink, thick bool
		ratio          float64
		allocated      int64
		code           codes.Code
		says           string
	}{
		{"copy with room", false, false, 8, 30 * mib, codes.OK, ""},
		{"copy without", false, false, 8, 40 * mib, codes.ResourceExhausted, "cannot share blocks"},
		{"shared where a copy has no room", true, false, 8, 40 * mib, codes.OK, ""},
		{"shared, with promises in the way", true, false, 2, 40 * mib, codes.ResourceExhausted, "sharing their blocks"},
		{"thick is a copy", true, true, 8, 40 * mib, codes.ResourceExhausted, "thick volume has no reserved space"},
		{"nothing written", false, false, 2, 0, codes.OK, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newNode(t, nil)
			h.mem.SetReflink(tc.reflink)
			h.mem.SetCapacity(64 * mib)
			h.d.space.Capacity.OvercommitRatio = tc.ratio
			size := int64(60 * mib)
			if tc.thick {
				size = tc.allocated
			}
			id := h.written("v", size, tc.allocated, thick(tc.thick))
			h.d.space.Reserved.Mu.Lock()
			err := h.d.space.SnapshotSpace([]blockdev.SnapshotRecord{{Name: "s", SourceVolumeID: id, SizeBytes: size,
				Thick: tc.thick}})
			h.d.space.Reserved.Mu.Unlock()
			if tc.code == codes.OK {
				h.must(err)
			} else {
				h.want(err, tc.code, tc.says)
			}
			names, err := h.mem.ReadDir(h.d.opts.PoolDir)
			h.must(err)
			if slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, "clone-test") }) {
				t.Errorf("left in the pool: %v", names)
			}
		})
	}
}

// A driver that is killed while it finds out whether files can share blocks leaves its files; the next one removes
// them.
func TestDeathInTheReflinkProbe(t *testing.T) {
	left := 0
	for _, powerLoss := range []bool{false, true} {
		for step := 1; ; step++ {
			h := newNode(t, nil)
			files := func() []string {
				names, err := h.mem.ReadDir(h.d.opts.PoolDir)
				h.must(err)
				return slices.DeleteFunc(names, func(name string) bool { return !strings.Contains(name, "clone-test") })
			}
			h.stop()
			k := &killer{left: step}
			h.startMortal(k)
			_, err := h.d.space.Sharing.Ask(h.d.space)
			if !k.dead() {
				h.must(err)
				break
			}
			left += len(files())
			h.restart(powerLoss)
			if names := files(); len(names) > 0 {
				t.Errorf("killed before step %d, power loss %t: the next driver leaves %v", step, powerLoss, names)
			}
		}
	}
	if left == 0 {
		t.Error("no death left a file: the test shows nothing")
	}
}

// Of many snapshots at once as many are taken as there is room for.
func TestLastSnapshotSpaceIsTakenOnce(t *testing.T) {
	h := newNode(t, nil)
	const volumes, size, fit = 8, 4 * mib, 3
	h.mem.SetCapacity(volumes*size + fit*size + size/2)
	ids := make([]string, volumes)
	for i := range ids {
		ids[i] = h.written(fmt.Sprint("v", i), size, size, nil)
	}
	errs := make([]error, volumes)
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { _, errs[i] = h.takeSnapshot(fmt.Sprint("s", i), id, nil) })
	}
	wg.Wait()
	taken := 0
	for _, err := range errs {
		switch status.Code(err) {
		case codes.OK:
			taken++
		case codes.ResourceExhausted:
		default:
			t.Error(err)
		}
	}
	if taken != fit {
		t.Errorf("%d snapshots were taken, there is room for %d", taken, fit)
	}
}

// A clone is made by way of a snapshot, which becomes the volume: it has room where a new volume of that size has.
func TestCloneNeedsItsOwnSizeOnly(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		h := newNode(t, nil)
		h.mem.SetReflink(reflink)
		h.mem.SetCapacity(49 * mib)
		id := h.written("v", 24*mib, 20*mib, nil)
		req := createReq("clone", capabilitytest.Block(capabilitytest.Writer), nil)
		req.CapacityRange.RequiredBytes, req.VolumeContentSource = 24*mib, fromVolume(id)
		_, err := h.c.CreateVolume(context.Background(), req)
		h.must(err)
		req.Name = "one too many"
		_, err = h.c.CreateVolume(context.Background(), req)
		h.want(err, codes.ResourceExhausted, "one too many")
		h.noSnapshots()
	}
}
