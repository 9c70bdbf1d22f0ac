package sidecar

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

func (f *fixture) createSnapshot(id, volume string) *sidecarpb.CutTarget {
	f.t.Helper()
	_, err := f.pool.CreateSnapshot(blockdev.SnapshotRecord{
		ID: id, Name: id, SourceVolumeID: volume, SizeBytes: 1 << 20, BlockSizeBytes: blockdev.DefaultBlockSizeBytes,
		State: blockdev.SnapshotCreating,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return &sidecarpb.CutTarget{VolumeId: volume, SnapshotId: id}
}

func (f *fixture) snapshot(id string) *blockdev.SnapshotRecord {
	f.t.Helper()
	rec, err := f.pool.GetSnapshot(id)
	if err != nil {
		f.t.Fatal(err)
	}
	return rec
}

// A cut through the service: the answer is the record's, a repetition the same, errors have their codes.
func TestCutGroup(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	f.createGroup("shop", "")
	for _, id := range []string{"v0", "v1", "alone"} {
		f.createVolume(id, 1<<20, true)
	}
	f.addVolume("shop", "v0")
	f.addVolume("shop", "v1")
	targets := []*sidecarpb.CutTarget{f.createSnapshot("snap-0", "v0"), f.createSnapshot("snap-1", "v1")}
	r := &sidecarpb.CutGroupRequest{Group: "shop", Targets: targets}
	cut, err := f.client.CutGroup(f.ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	s := f.status("shop")
	if cut.Ordinal != s.HeadOrdinal || cut.Timeline != s.Timeline || cut.UnixNanos == 0 {
		t.Fatalf("cut %v of a group with status %v", cut, s)
	}
	for _, id := range []string{"snap-0", "snap-1"} {
		f.eventually("the snapshot is ready", func() bool { return f.snapshot(id).State == blockdev.SnapshotReady })
		if c := f.snapshot(id).Cut; c.Ordinal != cut.Ordinal || c.Timeline != cut.Timeline || c.UnixNanos != cut.UnixNanos ||
			c.GroupID != s.GroupId || c.Group != "shop" {
			t.Fatalf("%s was taken at %+v, the answer was %v", id, c, cut)
		}
	}
	if again, err := f.client.CutGroup(f.ctx, r); err != nil || again.Ordinal != cut.Ordinal ||
		again.UnixNanos != cut.UnixNanos {
		t.Fatalf("repeated: %v, %v; was %v", again, err, cut)
	}
	f.eventually("nothing is copied", func() bool {
		list, err := f.client.ListCuts(f.ctx, &sidecarpb.ListCutsRequest{})
		return err == nil && len(list.Cuts) == 0
	})
	for what, c := range map[string]struct {
		r    *sidecarpb.CutGroupRequest
		code codes.Code
	}{
		"no group":   {&sidecarpb.CutGroupRequest{Group: "none", Targets: targets}, codes.NotFound},
		"no targets": {&sidecarpb.CutGroupRequest{Group: "shop"}, codes.InvalidArgument},
		"no id": {&sidecarpb.CutGroupRequest{Group: "shop", Targets: []*sidecarpb.CutTarget{{VolumeId: "v0"}}},
			codes.InvalidArgument},
		"path as id": {&sidecarpb.CutGroupRequest{Group: "shop",
			Targets: []*sidecarpb.CutTarget{{VolumeId: "v0", SnapshotId: "../x"}}}, codes.InvalidArgument},
		"nil target": {&sidecarpb.CutGroupRequest{Group: "shop", Targets: []*sidecarpb.CutTarget{nil}},
			codes.InvalidArgument},
		"no record": {&sidecarpb.CutGroupRequest{Group: "shop",
			Targets: []*sidecarpb.CutTarget{{VolumeId: "v0", SnapshotId: "snap-9"}}}, codes.NotFound},
		"not a member": {&sidecarpb.CutGroupRequest{Group: "shop",
			Targets: []*sidecarpb.CutTarget{f.createSnapshot("snap-a", "alone")}}, codes.FailedPrecondition},
	} {
		_, err := f.client.CutGroup(f.ctx, c.r)
		wantCode(t, what, err, c.code)
	}
	for _, id := range []string{"snap-0", "snap-none"} {
		if _, err := f.client.ReleaseCut(f.ctx, &sidecarpb.ReleaseCutRequest{SnapshotId: id}); err != nil {
			t.Fatalf("release %s: %v", id, err)
		}
	}
	_, err = f.client.ReleaseCut(f.ctx, &sidecarpb.ReleaseCutRequest{SnapshotId: "../x"})
	wantCode(t, "release a path", err, codes.InvalidArgument)
}

// What is done to a group over several nodes is refused for a group of one node, with what to do instead.
func TestGroupOfOneNodeHasNoShards(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	f.createGroup("shop", "")
	for _, id := range []string{"v0", "alone"} {
		f.createVolume(id, 1<<20, true)
	}
	f.addVolume("shop", "v0")
	calls := map[string]struct {
		call func() error
		code codes.Code
	}{
		"fix": {func() error {
			_, err := f.client.FixGroup(f.ctx, &sidecarpb.FixGroupRequest{VolumeId: "v0"})
			return err
		}, codes.FailedPrecondition},
		"fix without a group": {func() error {
			_, err := f.client.FixGroup(f.ctx, &sidecarpb.FixGroupRequest{VolumeId: "alone"})
			return err
		}, codes.FailedPrecondition},
		"release for no caller": {func() error {
			_, err := f.client.ReleaseGroup(f.ctx, &sidecarpb.ReleaseGroupRequest{VolumeId: "v0", Holder: "0"})
			return err
		}, codes.InvalidArgument},
		"drop a shard": {func() error {
			_, err := f.client.DropShard(f.ctx, &sidecarpb.DropShardRequest{Group: "shop", Shard: 1})
			return err
		}, codes.FailedPrecondition},
		"drop a shard that cannot be": {func() error {
			_, err := f.client.DropShard(f.ctx, &sidecarpb.DropShardRequest{Group: "shop", Shard: 1 << 16})
			return err
		}, codes.InvalidArgument},
		"cut at no epoch": {func() error {
			_, err := f.client.CutGroup(f.ctx, &sidecarpb.CutGroupRequest{Group: "shop", Epoch: "seven",
				Targets: []*sidecarpb.CutTarget{f.createSnapshot("snap-seven", "v0")}})
			return err
		}, codes.InvalidArgument},
		"cut at an epoch": {func() error {
			_, err := f.client.CutGroup(f.ctx, &sidecarpb.CutGroupRequest{Group: "shop", Epoch: "7.a",
				Targets: []*sidecarpb.CutTarget{f.createSnapshot("snap-7", "v0")}})
			return err
		}, codes.FailedPrecondition},
	}
	for what, c := range calls {
		wantCode(t, what, c.call(), c.code)
	}
}
