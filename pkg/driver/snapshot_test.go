package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

var freezing = map[string]string{parameter.KeyFreeze: "true"}

func (h *node) takeSnapshot(name, volume string, params map[string]string) (*csi.Snapshot, error) {
	response, err := h.c.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{Name: name,
		SourceVolumeId: volume, Parameters: params})
	return response.GetSnapshot(), err
}

func (h *node) deleteSnapshot(id string) error {
	_, err := h.c.DeleteSnapshot(context.Background(), &csi.DeleteSnapshotRequest{SnapshotId: id})
	return err
}

func (h *node) getSnapshot(id string) (*csi.Snapshot, error) {
	response, err := h.c.GetSnapshot(context.Background(), &csi.GetSnapshotRequest{SnapshotId: id})
	return response.GetSnapshot(), err
}

func (h *node) listSnapshots(req *csi.ListSnapshotsRequest) (ids []string, next string) {
	h.t.Helper()
	response, err := h.c.ListSnapshots(context.Background(), req)
	h.must(err)
	for _, e := range response.GetEntries() {
		ids = append(ids, e.GetSnapshot().GetSnapshotId())
	}
	return ids, response.GetNextToken()
}

// awaitSnapshot waits until a snapshot is ready or an error says why it will not be.
func (h *node) awaitSnapshot(id string) error {
	h.t.Helper()
	return h.await(func() (bool, error) {
		snap, err := h.getSnapshot(id)
		return snap.GetReadyToUse(), err
	})
}

func (h *node) await(done func() (bool, error)) error {
	h.t.Helper()
	for range 30000 {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	h.t.Fatal("waited for half a minute")
	return nil
}

// put writes into a file of the pool, as a loop device or the replicator does.
func (h *node) put(path, text string, off int64) {
	h.t.Helper()
	f, err := h.mem.Open(path)
	h.must(err)
	defer f.Close()
	_, err = f.WriteAt([]byte(text), off)
	h.must(err)
	h.must(f.Datasync())
}

func (h *node) read(path string, off int64, n int) string {
	h.t.Helper()
	f, err := h.mem.OpenReadOnly(path)
	h.must(err)
	defer f.Close()
	p := make([]byte, n)
	_, err = f.ReadAt(p, off)
	h.must(err)
	return string(p)
}

func (h *node) snapshotImage(id string) string {
	h.t.Helper()
	path, err := h.d.store.Pool.SnapshotImagePath(id)
	h.must(err)
	return path
}

// noSnapshots fails when anything of a snapshot is left.
func (h *node) noSnapshots() {
	h.t.Helper()
	names, err := h.mem.ReadDir("/slipstream-test-pool/snapshots")
	if err != nil || len(names) > 0 {
		h.t.Fatalf("snapshots left: %v, %v", names, err)
	}
}

func TestSnapshotOfAPlainVolume(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		for _, isThick := range []bool{false, true} {
			t.Run(fmt.Sprintf("reflink %t, thick %t", reflink, isThick), func(t *testing.T) {
				h := newNode(t, nil)
				h.mem.SetReflink(reflink)
				id := h.create("v", capabilitytest.Block(capabilitytest.Writer), thick(isThick))
				h.put(h.imagePath(id), "before", 4*mib)
				snap, err := h.takeSnapshot("s", id, nil)
				h.must(err)
				h.must(h.awaitSnapshot(snap.GetSnapshotId()))
				h.put(h.imagePath(id), "behind", 4*mib)
				again, err := h.takeSnapshot("s", id, nil)
				h.must(err)
				if again.GetSnapshotId() != snap.GetSnapshotId() || !again.GetReadyToUse() || again.GetSizeBytes() != 16*mib ||
					again.GetSourceVolumeId() != id ||
					!again.GetCreationTime().AsTime().Equal(snap.GetCreationTime().AsTime()) {
					t.Errorf("repeated: %v, first %v", again, snap)
				}
				if got := h.read(h.snapshotImage(snap.GetSnapshotId()), 4*mib, 6); got != "before" {
					t.Errorf("the snapshot has %q", got)
				}
				rec, err := h.d.store.Pool.GetSnapshot(snap.GetSnapshotId())
				h.must(err)
				want := blockdev.MethodCopy
				if reflink && !isThick {
					want = blockdev.MethodReflink
				}
				if rec.Method != want || rec.CopiedBytes != 16*mib || rec.Thick != isThick {
					t.Errorf("record %+v, want method %s", rec, want)
				}
				h.must(h.await(func() (bool, error) { // what a thick volume's was copied from goes after it is ready
					names, err := h.mem.ReadDir(filepath.Dir(h.snapshotImage(rec.ID)))
					return len(names) == 3, err // the record has a spare
				}))
				other := h.create("w", capabilitytest.Block(capabilitytest.Writer), nil)
				_, err = h.takeSnapshot("s", other, nil)
				h.want(err, codes.AlreadyExists, id, other)

				// In any order.
				h.must(h.delete(id))
				if got := h.read(h.snapshotImage(snap.GetSnapshotId()), 4*mib, 6); got != "before" {
					t.Errorf("without its volume the snapshot has %q", got)
				}
				for range 2 {
					h.must(h.deleteSnapshot(snap.GetSnapshotId()))
				}
				_, err = h.getSnapshot(snap.GetSnapshotId())
				h.want(err, codes.NotFound, snap.GetSnapshotId())
				h.noSnapshots()
			})
		}
	}
}

// TestSnapshotOfAMountedVolume: a clone needs nothing, a copy a freeze, and what is frozen is thawed whatever happens.
func TestSnapshotOfAMountedVolume(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.put(h.imagePath(id), "content", mib)
	_, err := h.takeSnapshot("s", id, nil)
	h.want(err, codes.FailedPrecondition, "staged on "+h.staging(), parameter.KeyFreeze, "consistency group", "reflink")
	h.noSnapshots()

	h.events = nil
	snap, err := h.takeSnapshot("s", id, freezing)
	h.must(err)
	if !snap.GetReadyToUse() || h.read(h.snapshotImage(snap.GetSnapshotId()), mib, 7) != "content" {
		t.Errorf("the snapshot %v is not whole when the file system goes on", snap)
	}
	froze := slices.IndexFunc(h.events, func(e string) bool { return e == "freeze "+h.staging()+" /dev/loop0" })
	thawed := slices.IndexFunc(h.events, func(e string) bool { return e == "thaw "+h.staging() })
	if froze < 0 || thawed < froze {
		t.Errorf("events %q", h.events)
	}

	for what, hook := range map[string]func(string) error{
		"the freeze fails": func(op string) error {
			if strings.HasPrefix(op, "freeze") {
				return errors.New("test: no")
			}
			return nil
		},
		"another program thaws": func(op string) error {
			if strings.HasPrefix(op, "thaw") {
				clear(h.frozen)
			}
			return nil
		},
	} {
		h.hook = hook
		_, err = h.takeSnapshot("t", id, freezing)
		h.hook = nil
		h.want(err, codes.FailedPrecondition)
		if len(h.frozen) > 0 {
			t.Errorf("%s: frozen %v", what, h.frozen)
		}
	}
	h.mem.SetReflink(true)
	h.events = nil
	cloned, err := h.takeSnapshot("t", id, nil)
	h.must(err)
	if !cloned.GetReadyToUse() || slices.ContainsFunc(h.events, func(e string) bool {
		return strings.HasPrefix(e, "freeze")
	}) {
		t.Errorf("clone %v, events %q", cloned, h.events)
	}
	if ids, _ := h.listSnapshots(&csi.ListSnapshotsRequest{}); len(ids) != 2 {
		t.Errorf("snapshots %v", ids)
	}
	h.must(h.unstage(id))
	h.clean()

	// A raw block volume has nothing to freeze.
	h.mem.SetReflink(false)
	raw := h.create("raw", capabilitytest.Block(capabilitytest.Writer), nil)
	h.must(h.stage(raw, capabilitytest.Block(capabilitytest.Writer)))
	_, err = h.takeSnapshot("u", raw, freezing)
	h.want(err, codes.FailedPrecondition, "in use")
}

// TestCopyInterrupted: a copy goes on after a restart from where it was durable, holds its volume still meanwhile, and
// ends with the deletion of what it makes.
func TestCopyInterrupted(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Block(capabilitytest.Writer)
	id := h.create("v", vc, nil)
	h.put(h.imagePath(id), "content", 12*mib)
	release := h.holdCopies()
	snap, err := h.takeSnapshot("s", id, nil)
	h.must(err)
	if snap.GetReadyToUse() {
		t.Error("ready before it is copied")
	}
	h.want(h.stage(id, vc), codes.Aborted, snap.GetSnapshotId(), "0 of 16777216 bytes")
	h.want(h.delete(id), codes.Aborted, snap.GetSnapshotId())
	if ids, _ := h.listSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: id}); len(ids) != 1 {
		t.Errorf("snapshots %v", ids)
	}
	// The driver is killed; the next one goes on.
	h.cancel()
	release()
	h.must(h.d.Close())
	h.mem = h.mem.CrashClone(vfs.CrashConfig{})
	h.start(h.mem)
	h.must(h.awaitSnapshot(snap.GetSnapshotId()))
	if got := h.read(h.snapshotImage(snap.GetSnapshotId()), 12*mib, 7); got != "content" {
		t.Errorf("the snapshot has %q", got)
	}

	release = h.holdCopies()
	snap, err = h.takeSnapshot("t", id, nil)
	h.must(err)
	release()
	h.must(h.deleteSnapshot(snap.GetSnapshotId()))
	h.must(h.stage(id, vc))
	h.must(h.unstage(id))
	h.clean()
}

// holdCopies occupies the driver's copier until release.
func (h *node) holdCopies() (release func()) {
	held, stop := make(chan struct{}), make(chan struct{})
	h.d.tasks.StartCopy("hold", "", 0, func(ctx context.Context, _ *work.Copy) error {
		close(held)
		select {
		case <-stop:
		case <-ctx.Done():
		}
		return nil
	})
	<-held
	return func() { close(stop) }
}

// TestCopyFails: a snapshot that will never be ready says why, and takes no space.
func TestCopyFails(t *testing.T) {
	h := newNode(t, nil)
	id := h.create("v", capabilitytest.Block(capabilitytest.Writer), nil)
	h.fill(h.imagePath(id), 8*mib)
	h.stop()
	h.start(vfs.NewErrFS(h.mem, func(op vfs.Op, name string) error {
		if op == vfs.OpTruncate && strings.Contains(name, "snapshots") && filepath.Base(name) == blockdev.ImageFile {
			return errors.New("test: the disk is broken")
		}
		return nil
	}))
	snap, err := h.takeSnapshot("s", id, nil)
	h.must(err)
	h.want(h.awaitSnapshot(snap.GetSnapshotId()), codes.FailedPrecondition, "the disk is broken", "delete it")
	_, err = h.takeSnapshot("s", id, nil)
	h.want(err, codes.FailedPrecondition, "the disk is broken")
	_, err = h.c.ListSnapshots(context.Background(), &csi.ListSnapshotsRequest{SnapshotId: snap.GetSnapshotId()})
	h.want(err, codes.FailedPrecondition, "the disk is broken")
	if _, err := h.mem.Stat(h.snapshotImage(snap.GetSnapshotId())); err == nil {
		t.Error("the image of a failed snapshot takes space")
	}
	h.must(h.deleteSnapshot(snap.GetSnapshotId()))
	h.noSnapshots()
}

func TestSnapshotNeedsSpace(t *testing.T) {
	h := newNode(t, nil)
	h.mem.SetCapacity(40 * mib)
	id, err := h.createSized("v", 32*mib, nil)
	h.must(err)
	h.fill(h.imagePath(id), 24*mib)
	_, err = h.takeSnapshot("s", id, nil)
	h.want(err, codes.ResourceExhausted, id, "node-a")
	h.noSnapshots()
}

func TestSnapshotRequests(t *testing.T) {
	h := newNode(t, nil)
	id := h.create("v", capabilitytest.Block(capabilitytest.Writer), nil)
	for _, tc := range []struct {
		req   *csi.CreateSnapshotRequest
		code  codes.Code
		words string
	}{
		{&csi.CreateSnapshotRequest{SourceVolumeId: id}, codes.InvalidArgument, "name"},
		{&csi.CreateSnapshotRequest{Name: "s"}, codes.InvalidArgument, "source volume id"},
		{&csi.CreateSnapshotRequest{Name: strings.Repeat("x", 129), SourceVolumeId: id}, codes.InvalidArgument, "129"},
		{&csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "vol-none"}, codes.NotFound, "vol-none"},
		{&csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id, Parameters: map[string]string{parameter.KeyFreeze: "yes"}},
			codes.InvalidArgument, parameter.KeyFreeze},
		{&csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id, Parameters: map[string]string{"freeze": "true"}},
			codes.InvalidArgument, parameter.KeyFreeze},
		{&csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id, Parameters: map[string]string{parameter.Prefix +
			"freze": "true"}}, codes.InvalidArgument, parameter.KeyFreeze},
		{&csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: id, AccessibilityRequirements: &csi.TopologyRequirement{
			Requisite: []*csi.Topology{{Segments: map[string]string{plugin.TopologyKey: "node-b"}}}}}, codes.ResourceExhausted,
			"node-a"},
	} {
		_, err := h.c.CreateSnapshot(context.Background(), tc.req)
		h.want(err, tc.code, tc.words)
	}
	h.noSnapshots()
	here, err := h.c.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{Name: "here", SourceVolumeId: id,
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: []*csi.Topology{h.d.topology()}}})
	h.must(err)
	if topology := here.GetSnapshot().GetAccessibleTopology(); len(topology) != 1 ||
		topology[0].GetSegments()[plugin.TopologyKey] != "node-a" {
		t.Errorf("topology %v", topology)
	}
	_, err = h.takeSnapshot("s", id, map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "s",
		"other.example/x": "y"})
	h.must(err)
	h.want(h.deleteSnapshot(""), codes.InvalidArgument)
	h.must(h.deleteSnapshot("not/an id"))
	_, err = h.getSnapshot("")
	h.want(err, codes.InvalidArgument)
}

func TestListSnapshotsPaged(t *testing.T) {
	h := newNode(t, nil)
	h.mem.SetReflink(true)
	var want []string
	volumes := []string{h.create("v", capabilitytest.Block(capabilitytest.Writer), nil),
		h.create("w", capabilitytest.Block(capabilitytest.Writer), nil)}
	for i := range 7 {
		snap, err := h.takeSnapshot(fmt.Sprint("s", i), volumes[i%2], nil)
		h.must(err)
		want = append(want, snap.GetSnapshotId())
	}
	slices.Sort(want)
	var got []string
	token := ""
	for {
		ids, next := h.listSnapshots(&csi.ListSnapshotsRequest{MaxEntries: 3, StartingToken: token})
		if len(ids) > 3 {
			t.Fatalf("a page of %d", len(ids))
		}
		got = append(got, ids...)
		if token = next; token == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	if ids, _ := h.listSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: volumes[0]}); len(ids) != 4 {
		t.Errorf("of one volume %v", ids)
	}
	if ids, _ := h.listSnapshots(&csi.ListSnapshotsRequest{SnapshotId: want[2]}); len(ids) != 1 || ids[0] != want[2] {
		t.Errorf("by id %v", ids)
	}
	for _, req := range []*csi.ListSnapshotsRequest{{SnapshotId: "none"}, {SnapshotId: want[0], SourceVolumeId: "none"},
		{SourceVolumeId: "none"}} {
		if ids, next := h.listSnapshots(req); len(ids) > 0 || next != "" {
			t.Errorf("%v lists %v", req, ids)
		}
	}
	_, err := h.c.ListSnapshots(context.Background(), &csi.ListSnapshotsRequest{MaxEntries: -1})
	h.want(err, codes.InvalidArgument)
	_, err = h.c.ListSnapshots(context.Background(), &csi.ListSnapshotsRequest{StartingToken: "x"})
	h.want(err, codes.Aborted)
}

// TestSnapshotOfAGroupsVolume: it is the group's business; nothing is frozen, and the group hears of the deletion
// first.
func TestSnapshotOfAGroupsVolume(t *testing.T) {
	h := newNode(t, startSidecar(t))
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, map[string]string{parameter.KeyConsistencyGroup: "shop"})
	h.must(h.stage(id, vc))
	h.put(h.imagePath(id), "content", mib)
	snap, err := h.takeSnapshot("s", id, freezing)
	h.must(err)
	rec, err := h.d.store.Pool.GetSnapshot(snap.GetSnapshotId())
	h.must(err)
	if !snap.GetReadyToUse() || rec.Cut.Ordinal != 1 || rec.Format == nil ||
		snap.GetCreationTime().AsTime().UnixNano() != 1 {
		t.Errorf("snapshot %v, record %+v", snap, rec)
	}
	if slices.ContainsFunc(h.events, func(e string) bool { return strings.HasPrefix(e, "freeze") }) {
		t.Errorf("events %q", h.events)
	}
	// The answer got lost: what was cut is given up and cut again.
	h.sidecar.mu.Lock()
	h.sidecar.hook = func(call string) error {
		if strings.HasPrefix(call, "CutGroup") || strings.HasPrefix(call, "ReleaseCut") {
			return errDead
		}
		return nil
	}
	h.sidecar.mu.Unlock()
	_, err = h.takeSnapshot("t", id, nil)
	h.want(err, codes.Internal)
	if ids, _ := h.listSnapshots(&csi.ListSnapshotsRequest{}); len(ids) != 1 {
		t.Errorf("a snapshot that was not answered is listed: %v", ids)
	}
	h.want(h.deleteSnapshot(snap.GetSnapshotId()), codes.Internal)
	h.sidecar.mu.Lock()
	h.sidecar.hook, h.sidecar.calls = nil, nil
	h.sidecar.mu.Unlock()
	second, err := h.takeSnapshot("t", id, nil)
	h.must(err)
	for _, s := range []*csi.Snapshot{snap, second} {
		h.must(h.deleteSnapshot(s.GetSnapshotId()))
	}
	if !slices.Contains(h.sidecar.calls, "ReleaseCut "+snap.GetSnapshotId()) {
		t.Errorf("calls %q", h.sidecar.calls)
	}
	h.noSnapshots()
	h.must(h.unstage(id))
	h.clean()
}
