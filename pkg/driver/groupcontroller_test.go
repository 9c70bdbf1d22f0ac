package driver

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func (h *node) takeGroup(name string, volumes []string, params map[string]string) (*csi.VolumeGroupSnapshot, error) {
	g := &groupControllerServer{d: h.d}
	response, err := g.CreateVolumeGroupSnapshot(context.Background(), &csi.CreateVolumeGroupSnapshotRequest{Name: name,
		SourceVolumeIds: volumes, Parameters: params})
	return response.GetGroupSnapshot(), err
}

func (h *node) getGroup(id string, members ...string) (*csi.VolumeGroupSnapshot, error) {
	g := &groupControllerServer{d: h.d}
	response, err := g.GetVolumeGroupSnapshot(context.Background(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: id,
		SnapshotIds: members})
	return response.GetGroupSnapshot(), err
}

func (h *node) deleteGroup(id string, members ...string) error {
	g := &groupControllerServer{d: h.d}
	_, err := g.DeleteVolumeGroupSnapshot(context.Background(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: id,
		SnapshotIds: members})
	return err
}

func memberIDs(group *csi.VolumeGroupSnapshot) (ids []string) {
	for _, s := range group.GetSnapshots() {
		ids = append(ids, s.GetSnapshotId())
	}
	return ids
}

func TestGroupSnapshotOfAConsistencyGroup(t *testing.T) {
	h := newNode(t, startSidecar(t))
	class := map[string]string{parameter.KeyConsistencyGroup: "shop"}
	volumes := []string{h.create("v", capabilitytest.Block(capabilitytest.Writer), class),
		h.create("w", capabilitytest.Block(capabilitytest.Writer), class)}
	group, err := h.takeGroup("g", volumes, freezing)
	h.must(err)
	ids := memberIDs(group)
	if len(ids) != 2 || !group.GetReadyToUse() || group.GetCreationTime().AsTime().UnixNano() != 1 {
		t.Fatalf("group snapshot %v", group)
	}
	for _, s := range group.GetSnapshots() {
		rec, err := h.d.store.Pool.GetSnapshot(s.GetSnapshotId())
		h.must(err)
		if s.GetGroupSnapshotId() != group.GetGroupSnapshotId() || rec.Cut.Ordinal != 1 {
			t.Errorf("snapshot %v, record %+v", s, rec)
		}
	}
	slices.Reverse(volumes)
	again, err := h.takeGroup("g", volumes, nil)
	h.must(err)
	got, err := h.getGroup(group.GetGroupSnapshotId(), ids...)
	h.must(err)
	if again.String() != group.String() || got.String() != group.String() {
		t.Errorf("taken %v, again %v, got %v", group, again, got)
	}
	_, err = h.takeGroup("g", volumes[:1], nil)
	h.want(err, codes.AlreadyExists, group.GetGroupSnapshotId())
	second, err := h.takeGroup("h", volumes, nil)
	h.must(err)

	h.want(h.deleteSnapshot(ids[0]), codes.InvalidArgument, group.GetGroupSnapshotId())
	for _, named := range [][]string{ids[:1], {ids[0], ids[1], memberIDs(second)[0]}} {
		_, err = h.getGroup(group.GetGroupSnapshotId(), named...)
		h.want(err, codes.InvalidArgument)
		h.want(h.deleteGroup(group.GetGroupSnapshotId(), named...), codes.InvalidArgument)
	}
	if listed, _ := h.listSnapshots(&csi.ListSnapshotsRequest{}); len(listed) != 4 {
		t.Errorf("listed %v", listed)
	}
	// A volume is made from each of them.
	id, err := h.makeFrom("x", fromSnapshot(ids[0]), capabilitytest.Block(capabilitytest.Writer), 0, nil)
	h.must(err)
	h.must(h.delete(id))
	for range 2 {
		h.must(h.deleteGroup(group.GetGroupSnapshotId(), ids...))
	}
	h.must(h.deleteGroup(second.GetGroupSnapshotId()))
	_, err = h.getGroup(group.GetGroupSnapshotId())
	h.want(err, codes.NotFound, group.GetGroupSnapshotId())
	h.noSnapshots()
}

func TestGroupSnapshotsThatCannotBe(t *testing.T) {
	h := newNode(t, startSidecar(t))
	h.mem.SetReflink(true)
	raw := capabilitytest.Block(capabilitytest.Writer)
	plain, other := h.create("a", raw, nil), h.create("b", raw, nil)
	shop := h.create("c", raw, map[string]string{parameter.KeyConsistencyGroup: "shop"})
	bank := h.create("d", raw, map[string]string{parameter.KeyConsistencyGroup: "bank"})
	for _, tc := range []struct {
		name    string
		volumes []string
		params  map[string]string
		code    codes.Code
		words   string
	}{
		{"", []string{plain}, nil, codes.InvalidArgument, "name"},
		{strings.Repeat("g", 129), []string{plain}, nil, codes.InvalidArgument, "129"},
		{"g", nil, nil, codes.InvalidArgument, "source volume ids"},
		{"g", []string{plain, ""}, nil, codes.InvalidArgument, "empty"},
		{"g", []string{plain, other, plain}, nil, codes.InvalidArgument, "twice"},
		{"g", []string{plain}, map[string]string{parameter.KeyFreeze: "1"}, codes.InvalidArgument, parameter.KeyFreeze},
		{"g", []string{plain, "vol-none"}, nil, codes.NotFound, "vol-none"},
		{"g", []string{shop, bank}, freezing, codes.FailedPrecondition, "group bank"},
		{"g", []string{shop, plain}, freezing, codes.FailedPrecondition, "no group"},
		{"g", []string{plain, other}, nil, codes.FailedPrecondition, parameter.KeyFreeze},
	} {
		_, err := h.takeGroup(tc.name, tc.volumes, tc.params)
		h.want(err, tc.code, tc.words)
	}
	// What cannot be frozen and is in use.
	h.must(h.stage(other, raw))
	_, err := h.takeGroup("g", []string{plain, other}, freezing)
	h.want(err, codes.FailedPrecondition, other, "in use")
	h.must(h.unstage(other))
	h.noSnapshots()
	_, err = h.getGroup("")
	h.want(err, codes.InvalidArgument)
	h.want(h.deleteGroup(""), codes.InvalidArgument)
}

// TestGroupSnapshotOfPlainVolumes: all are frozen before the first is taken, and until the last is.
func TestGroupSnapshotOfPlainVolumes(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	mounted, loose := h.create("a", vc, nil), h.create("b", vc, nil)
	h.must(h.stage(mounted, vc))
	h.put(h.imagePath(mounted), "content", mib)
	h.put(h.imagePath(loose), "content", mib)
	h.events = nil
	group, err := h.takeGroup("g", []string{mounted, loose}, freezing)
	h.must(err)
	for _, id := range memberIDs(group) {
		h.must(h.awaitSnapshot(id))
		if got := h.read(h.snapshotImage(id), mib, 7); got != "content" {
			t.Errorf("%s has %q", id, got)
		}
	}
	var order []string
	for _, e := range h.events {
		if word, _, _ := strings.Cut(e, " "); word == "freeze" || word == "thaw" {
			order = append(order, word)
		}
	}
	if !slices.Equal(order, []string{"freeze", "thaw"}) {
		t.Errorf("events %q", h.events)
	}
	if group, err = h.getGroup(group.GetGroupSnapshotId()); err != nil || !group.GetReadyToUse() {
		t.Errorf("group snapshot %v, %v", group, err)
	}
	h.must(h.deleteGroup(group.GetGroupSnapshotId(), memberIDs(group)...))
	h.noSnapshots()

	// Interrupted before all records say so: nothing of it is left by the next driver.
	mem := h.mem
	updates := 0
	h.stop()
	h.start(vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
		if op == vfs.OpRename && strings.Contains(name, "snapshot.json") {
			if updates++; updates >= 4 { // the fourth: after two creations and one that is ready
				return errDead
			}
		}
		return nil
	}))
	_, err = h.takeGroup("g", []string{mounted, loose}, freezing)
	if err == nil {
		t.Fatalf("taken with a disk that fails after %d renames", updates)
	}
	h.stop()
	h.start(mem)
	h.noSnapshots()
	if _, err := h.getGroup("gsnap-none"); err == nil {
		t.Error("a group snapshot that is none")
	}
	h.must(h.unstage(mounted))
	h.clean()
}

// TestInterruptedGroupSnapshot: what a killed driver left of a cut is taken anew, and is invisible until then.
func TestInterruptedGroupSnapshot(t *testing.T) {
	h := newNode(t, startSidecar(t))
	class := map[string]string{parameter.KeyConsistencyGroup: "shop"}
	volumes := []string{h.create("v", capabilitytest.Block(capabilitytest.Writer), class),
		h.create("w", capabilitytest.Block(capabilitytest.Writer), class)}
	group, err := h.takeGroup("g", volumes, nil)
	h.must(err)
	_, err = h.d.store.Pool.UpdateSnapshot(memberIDs(group)[1], func(r *blockdev.SnapshotRecord) error {
		r.State = blockdev.SnapshotCreating
		return nil
	})
	h.must(err)
	h.stop()
	h.start(h.mem)
	_, err = h.getGroup(group.GetGroupSnapshotId())
	h.want(err, codes.NotFound)
	again, err := h.takeGroup("g", volumes, nil)
	h.must(err)
	if again.GetGroupSnapshotId() == group.GetGroupSnapshotId() || len(again.GetSnapshots()) != 2 {
		t.Errorf("first %v, then %v", group, again)
	}
	if names, err := h.mem.ReadDir("/slipstream-test-pool/snapshots"); err != nil || len(names) != 2 {
		t.Errorf("snapshots %v, %v", names, err)
	}
}
