package driver

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func thick(is bool) map[string]string {
	if is {
		return map[string]string{parameter.KeyProvisioning: parameter.ProvisioningThick}
	}
	return nil
}

func (h *node) capacity(params map[string]string) (available, most int64) {
	h.t.Helper()
	response, err := h.c.GetCapacity(context.Background(), &csi.GetCapacityRequest{Parameters: params})
	h.must(err)
	return response.GetAvailableCapacity(), response.GetMaximumVolumeSize().GetValue()
}

func (h *node) createSized(name string, size int64, params map[string]string) (string, error) {
	req := createReq(name, capabilitytest.Block(capabilitytest.Writer), params)
	req.CapacityRange.RequiredBytes = size
	response, err := h.c.CreateVolume(context.Background(), req)
	return response.GetVolume().GetVolumeId(), err
}

// addGroup makes a group's record and journal, as the replicator does.
func (h *node) addGroup(name string, journalBytes int64, policy core.Policy) *core.Meta {
	h.t.Helper()
	id := fmt.Sprintf("00000000-0000-4000-8000-%012x", len(name)<<32|int(name[len(name)-1]))
	meta := &core.Meta{Version: core.MetaVersion, GroupID: id, Name: name, Site: "east", Role: core.RolePrimary,
		Timelines: []core.Timeline{{ID: id}}, Settings: core.Settings{JournalSizeBytes: journalBytes,
			JournalFull: policy}, Sync: core.SyncNever, Instance: id, Copy: core.CopyWhole}
	dir := filepath.Join(h.d.opts.PoolDir, "groups", id)
	h.must(h.mem.MkdirAll(filepath.Join(dir, "journal")))
	h.must(recordfile.Write(h.mem, filepath.Join(dir, "group.json"), "group", meta))
	h.fill(filepath.Join(dir, "journal", "0001"), 0)
	return meta
}

func (h *node) journalFile(m *core.Meta) string {
	return filepath.Join(h.d.opts.PoolDir, "groups", m.GroupID, "journal", "0001")
}

// fill makes a file take at least so much space, and reports whether there was room.
func (h *node) fill(path string, bytes int64) bool {
	h.t.Helper()
	f, err := h.mem.Open(path)
	if err != nil {
		f, err = h.mem.Create(path)
	}
	h.must(err)
	defer f.Close()
	return f.Preallocate(0, bytes) == nil
}

func (h *node) imagePath(id string) string {
	h.t.Helper()
	path, err := h.d.store.Pool.ImagePath(id)
	h.must(err)
	return path
}

// TestCapacityIsWhatFits: at any moment the largest volume that GetCapacity names can be made, a larger one not, and
// when everything that was promised is written, to volumes, journals and snapshots, no writer meets a full file system,
// and nothing is left but the reserve. The model does not calculate: it fills the file system.
func TestCapacityIsWhatFits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const total, reserve = 64 * mib, mib
		h := newNode(t, nil)
		defer h.stop()
		h.mem.SetCapacity(total)
		h.d.space.Capacity.Reserve = space.Reserve{Bytes: reserve}
		sizes := map[string]int64{} // volumes
		var journals []*core.Meta
		copies := map[string]int64{} // images of snapshots being copied, and what they will take
		copied := map[string]bool{}
		foreign := 0
		pick := func() string {
			ids := make([]string, 0, len(sizes))
			for id := range sizes {
				ids = append(ids, id)
			}
			if len(ids) == 0 {
				return ""
			}
			slices.Sort(ids)
			return rapid.SampledFrom(ids).Draw(rt, "volume")
		}
		allocated := func(path string) int64 {
			n, err := h.mem.AllocatedTogether([]string{path})
			h.must(err)
			return n
		}
		for i := range rapid.IntRange(1, 25).Draw(rt, "steps") {
			_, most := h.capacity(nil)
			switch rapid.SampledFrom([]string{"create", "create", "write", "write", "grow", "delete", "group", "snapshot",
				"foreign"}).Draw(rt, "step") {
			case "create":
				isThick := rapid.Bool().Draw(rt, "thick")
				_, most := h.capacity(thick(isThick))
				size := rapid.Int64Range(1, 12).Draw(rt, "mib") * mib
				id, err := h.createSized(fmt.Sprint("v", i), size, thick(isThick))
				switch {
				case size <= most && err != nil:
					rt.Fatalf("GetCapacity says %d, a volume of %d: %v", most, size, err)
				case size > most && status.Code(err) != codes.ResourceExhausted:
					rt.Fatalf("GetCapacity says %d, a volume of %d: %v", most, size, err)
				case err == nil:
					sizes[id] = size
				}
			case "write":
				if id := pick(); id != "" && !h.fill(h.imagePath(id), rapid.Int64Range(0, sizes[id]).Draw(rt, "bytes")) {
					rt.Fatalf("no space for %s", id)
				}
			case "grow":
				id := pick()
				if id == "" {
					break
				}
				rec, err := h.d.store.Pool.Get(id)
				h.must(err)
				_, most := h.capacity(thick(rec.Thick))
				more := rapid.Int64Range(1, 8).Draw(rt, "mib") * mib
				err = h.d.attachments.GrowImage(context.Background(), rec, sizes[id]+more)
				switch {
				case more <= most && err != nil, more > most && status.Code(err) != codes.ResourceExhausted:
					rt.Fatalf("GetCapacity says %d, growing by %d: %v", most, more, err)
				case err == nil:
					sizes[id] += more
				}
			case "delete":
				if id := pick(); id != "" && !copied[id] { // a copy needs its volume
					h.must(h.delete(id))
					delete(sizes, id)
				}
			case "group":
				size := rapid.Int64Range(1, 4).Draw(rt, "mib") * mib
				policy := rapid.SampledFrom([]core.Policy{core.PolicyTrack, core.PolicyStall}).Draw(rt, "policy")
				if 2*size > most {
					break
				}
				m := h.addGroup(fmt.Sprintf("g%c", 'a'+i), size, policy)
				if !h.fill(h.journalFile(m), rapid.Int64Range(0, m.JournalLimitBytes()).Draw(rt, "bytes")) {
					rt.Fatal("no space for a journal")
				}
				journals = append(journals, m)
			case "snapshot":
				id := pick()
				if id == "" || allocated(h.imagePath(id)) > most {
					break
				}
				snapshot := fmt.Sprint("snap-", i)
				state := rapid.SampledFrom([]blockdev.SnapshotState{blockdev.SnapshotCopying, blockdev.SnapshotReady}).Draw(rt,
					"state")
				_, err := h.d.store.Pool.CreateSnapshot(blockdev.SnapshotRecord{ID: snapshot, SourceVolumeID: id,
					SizeBytes: sizes[id], BlockSizeBytes: 4096, State: state})
				h.must(err)
				path, err := h.d.store.Pool.SnapshotImagePath(snapshot)
				h.must(err)
				holds := allocated(h.imagePath(id))
				if state == blockdev.SnapshotReady {
					if !h.fill(path, holds) {
						rt.Fatal("no space for a snapshot")
					}
				} else {
					copies[path], copied[id] = holds, true
					h.fill(path, holds/2)
				}
			case "foreign":
				size := rapid.Int64Range(0, 4).Draw(rt, "mib") * mib
				if size <= most && !h.fill(fmt.Sprint("/foreign", foreign), size) {
					rt.Fatal("no space for another program's file")
				}
				foreign++
			}
		}

		available, most := h.capacity(nil)
		if available != most {
			rt.Fatalf("without overcommitting, available is %d and the largest volume %d", available, most)
		}
		if _, err := h.createSized("larger", max(most, mib)+capability.SizeUnitBytes,
			nil); status.Code(err) != codes.ResourceExhausted {
			rt.Fatalf("GetCapacity says %d, a larger one: %v", most, err)
		}
		if most >= capability.MinBlockSizeBytes {
			id, err := h.createSized("last", most, nil)
			h.must(err)
			sizes[id], most = most, 0
		}
		for id, size := range sizes {
			if !h.fill(h.imagePath(id), size) {
				rt.Fatalf("no space for the %d bytes of %s", size, id)
			}
		}
		for _, m := range journals {
			if !h.fill(h.journalFile(m), m.JournalLimitBytes()) {
				rt.Fatalf("no space for the journal of %s", m.Name)
			}
		}
		for path, size := range copies {
			if !h.fill(path, size) {
				rt.Fatalf("no space for snapshot %s", path)
			}
		}
		_, free, err := h.mem.Space("/")
		h.must(err)
		if len(copies) == 0 && free > reserve+most+capability.SizeUnitBytes {
			rt.Fatalf("%d bytes are left when everything is full, more than the reserve of %d", free, reserve)
		}
	})
}

func TestCapacityOfJournalsAndRatio(t *testing.T) {
	h := newNode(t, startSidecar(t))
	const total = 4 * gib
	h.mem.SetCapacity(total)
	free := func() int64 {
		_, free, err := h.mem.Space("/")
		h.must(err)
		return free
	}
	group := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "64Mi"}
	stall := map[string]string{parameter.KeyRemote: "west", parameter.KeyJournalSize: "64Mi",
		parameter.KeyJournalFull: parameter.JournalFullStall}
	for _, tc := range []struct {
		name   string
		params map[string]string
		less   int64
	}{
		{"plain", nil, 0},
		{"thick", thick(true), 0},
		{"new group", group, 128 * mib}, // a journal that is not stalled may grow to twice its size
		{"default journal", map[string]string{parameter.KeyRemote: "west"}, 2 * gib},
		{"stalled journal", stall, 64 * mib},
	} {
		if available, most := h.capacity(tc.params); available != free()-tc.less || most != available {
			t.Errorf("%s: available %d, largest %d, want %d", tc.name, available, most, free()-tc.less)
		}
	}

	// A volume that is on its way into its group has the group's journal promised, whatever comes in between.
	h.sidecar.mu.Lock()
	h.sidecar.hook = func(call string) error {
		return status.Error(codes.Unavailable, "test: the replicator is away")
	}
	h.sidecar.mu.Unlock()
	_, err := h.createSized("v", 16*mib, group)
	h.want(err, codes.Unavailable)
	if available, _ := h.capacity(nil); available != free()-16*mib-128*mib {
		t.Errorf("beside a volume that waits for its group: available %d, want %d", available, free()-16*mib-128*mib)
	}
	// The second volume of the group has no more journal to pay for; nor when the group is there.
	if available, _ := h.capacity(group); available != free()-16*mib-128*mib {
		t.Errorf("for another volume of that group: available %d, want %d", available, free()-16*mib-128*mib)
	}
	m := h.addGroup("shop", 64*mib, core.PolicyTrack)
	for range 2 {
		if available, _ := h.capacity(group); available > free()-16*mib-128*mib+mib*32 || available < free()-16*mib-128*mib {
			t.Errorf("with the group there: available %d, free %d", available, free())
		}
		h.fill(h.journalFile(m), 32*mib)
	}

	h.d.space.Capacity.OvercommitRatio = 3
	available, most := h.capacity(nil)
	base := free() - 96*mib // less what the journal has still to take
	if available != 3*base-16*mib || most != base {
		t.Errorf("overcommitted: available %d, largest %d, want %d and %d", available, most, 3*base-16*mib, base)
	}
	if available, most := h.capacity(thick(true)); available > base || available < base-16*mib || most != available {
		t.Errorf("thick volumes cannot be overcommitted: available %d, largest %d, want %d", available, most, base)
	}
	whole, err := h.createSized("whole", most, nil)
	h.must(err)
	_, err = h.createSized("too large", most+mib, nil)
	h.want(err, codes.ResourceExhausted, "overcommit ratio of 3", "journals 134217728", "node-a")
	// When thin volumes have used up what they were promised together, the journal still has its space and nothing more
	// is promised.
	h.fill(h.imagePath(whole), free()-96*mib-32*mib)
	if _, most := h.capacity(thick(true)); most > 32*mib || most < 31*mib {
		t.Errorf("with 32 MiB that are not the journal's a thick volume can have %d", most)
	}
	h.fill(h.imagePath(whole), free()+allocatedBytes(t, h, whole)-96*mib)
	if available, most := h.capacity(nil); available != 0 || most != 0 {
		t.Errorf("with no space but the journal's: available %d, largest %d", available, most)
	}
}

// A view has its limit promised, and what it takes goes off that.
func TestCapacityOfViews(t *testing.T) {
	h := newNode(t, startSidecar(t))
	h.mem.SetCapacity(4 * gib)
	before, _ := h.capacity(nil)
	rec := blockdev.ViewRecord{ID: "view-1", Name: "look", PoolID: "p", GroupID: "g", LimitBytes: 256 * mib,
		Volumes: []blockdev.ViewVolume{{VolumeID: "v0", SizeBytes: gib, BlockSizeBytes: 512}}}
	pool := h.d.store.Pool
	h.must(pool.CreateView(rec, func(dir string) error { return nil }))
	for _, taken := range []int64{0, 64 * mib} {
		if !h.fill(pool.ViewPaths(&rec)[1], taken) {
			t.Fatal("no room")
		}
		if after, _ := h.capacity(nil); before-after < 256*mib || before-after > 257*mib {
			t.Errorf("with a view that holds %d bytes: available %d after %d", taken, after, before)
		}
	}
	h.must(pool.DeleteView(rec.ID))
	if after, _ := h.capacity(nil); after < before-mib {
		t.Errorf("after the view: available %d after %d", after, before)
	}
}

// TestCapacityCountsMutableParameters: what a VolumeAttributesClass says of the journal is promised from the first
// moment on, as if the StorageClass had said it; and nothing for a volume that it keeps, or later takes, out of the
// class's group.
func TestCapacityCountsMutableParameters(t *testing.T) {
	shop := map[string]string{parameter.KeyConsistencyGroup: "shop"}
	for _, tc := range []struct {
		name           string
		class, mutable map[string]string
		modified       map[string]string // later
		journal        int64
	}{
		{"size", shop, map[string]string{parameter.KeyJournalSize: "64Mi"}, nil, 128 * mib},
		{"size over the class's", map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "512Mi"},
			map[string]string{parameter.KeyJournalSize: "64Mi",
				parameter.KeyJournalFull: parameter.JournalFullStall}, nil, 64 * mib},
		{"group", map[string]string{parameter.KeyReplicable: "true"}, map[string]string{parameter.KeyConsistencyGroup: "shop",
			parameter.KeyJournalSize: "32Mi"}, nil, 64 * mib},
		{"off", shop, map[string]string{parameter.KeyReplication: parameter.ReplicationOff}, nil, 0},
		{"off later", shop, nil, map[string]string{parameter.KeyReplication: parameter.ReplicationOff}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newNode(t, startSidecar(t))
			h.mem.SetCapacity(4 * gib)
			req := createReq("v", capabilitytest.Block(capabilitytest.Writer), tc.class)
			req.CapacityRange.RequiredBytes, req.MutableParameters = 16*mib, tc.mutable
			if tc.journal > 0 {
				h.sidecar.mu.Lock()
				h.sidecar.hook = func(string) error { return status.Error(codes.Unavailable, "test: the replicator is away") }
				h.sidecar.mu.Unlock()
			}
			response, err := h.c.CreateVolume(context.Background(), req)
			if tc.journal > 0 {
				h.want(err, codes.Unavailable)
			} else {
				h.must(err)
			}
			if tc.modified != nil {
				h.must(h.modify(response.GetVolume().GetVolumeId(), tc.modified))
			}
			_, free, err := h.mem.Space("/")
			h.must(err)
			if available, _ := h.capacity(nil); available != free-16*mib-tc.journal {
				t.Errorf("available %d, want %d less the volume and a journal of %d", available, free, tc.journal)
			}
			// There is no room for the volume without room for its journal.
			full := newNode(t, startSidecar(t))
			full.mem.SetCapacity(16*mib + tc.journal - 1)
			_, err = full.c.CreateVolume(context.Background(), req)
			full.want(err, codes.ResourceExhausted, "journals")
		})
	}
}

func allocatedBytes(t *testing.T, h *node, id string) int64 {
	t.Helper()
	n, err := h.mem.AllocatedTogether([]string{h.imagePath(id)})
	h.must(err)
	return n
}

// TestLastSpaceIsTakenOnce: of many calls at once as many succeed as there is room for, and those are whole.
func TestLastSpaceIsTakenOnce(t *testing.T) {
	for _, isThick := range []bool{false, true} {
		t.Run(fmt.Sprint("thick ", isThick), func(t *testing.T) {
			h := newNode(t, nil)
			const size, room = 8 * mib, 5
			h.mem.SetCapacity(room*size + size/2)
			var wg sync.WaitGroup
			errs := make([]error, 4*room)
			for i := range errs {
				wg.Go(func() { _, errs[i] = h.createSized(fmt.Sprint("v", i), size, thick(isThick)) })
			}
			wg.Wait()
			made := 0
			for _, err := range errs {
				if err == nil {
					made++
				} else if status.Code(err) != codes.ResourceExhausted {
					t.Error(err)
				}
			}
			// A thick volume that is being made may be counted as not yet allocated and not free any more: that refuses one too
			// many, for which there is room when it is asked for again.
			for i := range errs {
				if errs[i] != nil {
					if _, errs[i] = h.createSized(fmt.Sprint("v", i), size, thick(isThick)); errs[i] == nil {
						made++
						if !isThick {
							t.Errorf("v%d was refused although there was room", i)
						}
					}
				}
			}
			recs, err := h.d.store.Pool.List()
			h.must(err)
			if made != room || len(recs) != room || len(h.d.space.Reserved.Volumes) > 0 {
				t.Errorf("%d calls succeeded, %d volumes, want %d; reservations left: %v", made, len(recs), room,
					h.d.space.Reserved.Volumes)
			}
		})
	}
}

func TestReserve(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "0%": 0, "10Gi": 10 * gib, "2.5%": 25, "1000": 1000} {
		r, err := space.ParseReserve(text)
		if got := r.Of(1000); err != nil || got != want {
			t.Errorf("%s of 1000 bytes: %d, %v; want %d", text, got, err, want)
		}
		if again, err := space.ParseReserve(r.String()); err != nil || again != r {
			t.Errorf("%s is written as %s: %v", text, r, err)
		}
	}
	for _, text := range []string{"", "-1", "100%", "-1%", "NaN%", "x", "1.5Gi", "%"} {
		if r, err := space.ParseReserve(text); err == nil {
			t.Errorf("%q is taken for %s", text, r)
		}
	}
	for _, ratio := range []float64{0.5, -1, math.Inf(1), math.NaN()} {
		if err := (&space.CapacityOptions{OvercommitRatio: ratio}).Check(); err == nil {
			t.Errorf("a ratio of %g is accepted", ratio)
		}
	}
}

func FuzzLedger(f *testing.F) {
	f.Add(int64(100), int64(50), int64(1), int64(20), int64(30), int64(5), int64(5), int64(8), 1.0)
	f.Fuzz(func(t *testing.T, free, used, reserve, thin, thick, journals, snapshots, owed int64, ratio float64) {
		const most = int64(1) << 55
		for _, v := range []int64{free, used, reserve, thin, thick, journals, snapshots, owed} {
			if v < 0 || v > most {
				t.Skip()
			}
		}
		if (&space.CapacityOptions{OvercommitRatio: ratio}).Check() != nil || ratio == 0 {
			t.Skip()
		}
		l := space.Ledger{Free: free, Used: used, Reserve: reserve, Thin: thin, Thick: thick, Journals: journals,
			Snapshots: snapshots, Owed: owed, Ratio: ratio}
		for _, isThick := range []bool{false, true} {
			available, largest := l.Available(isThick)
			if available < 0 || largest < 0 || largest > available || largest%capability.SizeUnitBytes != 0 ||
				(isThick && available > free) {
				t.Fatalf("%+v, thick %t: %d, %d", l, isThick, available, largest)
			}
		}
	})
}
