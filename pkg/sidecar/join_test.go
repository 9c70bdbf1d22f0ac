package sidecar

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// TestJoinGroup: one call makes the group and puts the volume into it; a group that does not fit stays as it is.
func TestJoinGroup(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	settings := &sidecarpb.GroupSettings{Remote: new("site-b"),
		JournalSizeBytes: new(int64(replication.MinJournalBytes)), RpoTargetMillis: new(int64(5000))}
	join := func(volume string, change func(*sidecarpb.JoinGroupRequest)) (*sidecarpb.GroupStatus, error) {
		r := &sidecarpb.JoinGroupRequest{Group: "shop", VolumeId: volume, Settings: proto.CloneOf(settings)}
		if change != nil {
			change(r)
		}
		response, err := f.client.JoinGroup(f.ctx, r)
		return response.GetUnfit(), err
	}
	volume := func(id, namespace string) {
		t.Helper()
		_, err := f.pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: 1 << 20, Replicable: true,
			Claim: &blockdev.ClaimRecord{Name: id, Namespace: namespace, Volume: id}})
		if err != nil {
			t.Fatal(err)
		}
	}
	members := func(want int) {
		t.Helper()
		if got := f.status("shop").Volumes; len(got) != want {
			t.Fatalf("members %v, want %d", got, want)
		}
	}
	volume("v0", "east")
	_, err := join("v0", nil)
	wantCode(t, "no group, not to be made", err, codes.NotFound)
	_, err = join("v0", func(r *sidecarpb.JoinGroupRequest) {
		r.Create, r.Settings.JournalSizeBytes = true, new(int64(1))
	})
	wantCode(t, "a journal of one byte", err, codes.InvalidArgument)
	if all, err := f.client.ListGroups(f.ctx, &sidecarpb.ListGroupsRequest{}); err != nil || len(all.Groups) != 0 {
		t.Fatalf("groups after refused calls: %v, %v", all, err)
	}
	for range 2 { // the second one repeats it
		unfit, err := join("v0", func(r *sidecarpb.JoinGroupRequest) { r.Create = true })
		if err != nil || unfit != nil {
			t.Fatalf("%v, %v", unfit, err)
		}
		members(1)
	}
	g := f.status("shop")
	if g.Peer != "site-b" || g.JournalSizeBytes != replication.MinJournalBytes || g.RpoTargetSeconds != 5 ||
		g.JournalFull != sidecarpb.JournalFull_JOURNAL_FULL_TRACK {
		t.Fatalf("group %v", g)
	}

	volume("v1", "east")
	volume("v2", "west")
	stall := sidecarpb.JournalFull_JOURNAL_FULL_STALL
	for what, change := range map[string]func(*sidecarpb.JoinGroupRequest){
		"only a new one":    func(r *sidecarpb.JoinGroupRequest) { r.Create, r.OnlyNew = true, true },
		"other remote":      func(r *sidecarpb.JoinGroupRequest) { r.Settings.Remote = new("site-c") },
		"other size":        func(r *sidecarpb.JoinGroupRequest) { *r.Settings.JournalSizeBytes *= 2 },
		"other policy":      func(r *sidecarpb.JoinGroupRequest) { r.Settings.JournalFull = &stall },
		"other target":      func(r *sidecarpb.JoinGroupRequest) { *r.Settings.RpoTargetMillis = 1 },
		"history":           func(r *sidecarpb.JoinGroupRequest) { r.Settings.HistoryMillis = new(int64(1000)) },
		"rate":              func(r *sidecarpb.JoinGroupRequest) { r.Settings.ShipBytesPerSecond = new(int64(1 << 20)) },
		"schedule":          func(r *sidecarpb.JoinGroupRequest) { r.Settings.ShipSchedule = new("*=1MiB") },
		"another namespace": func(r *sidecarpb.JoinGroupRequest) { r.Namespace = "west" },
	} {
		unfit, err := join("v1", change)
		if err != nil || unfit.GetName() != "shop" || len(unfit.GetVolumes()) != 1 ||
			unfit.GetVolumes()[0].GetClaimNamespace() != "east" {
			t.Errorf("%s: %v, %v", what, unfit, err)
		}
		members(1)
	}
	// What is not given is the group's own affair. A member stays one, whatever its namespace.
	unfit, err := join("v1", func(r *sidecarpb.JoinGroupRequest) { r.Settings, r.Namespace = nil, "east" })
	if err != nil || unfit != nil {
		t.Fatalf("%v, %v", unfit, err)
	}
	if unfit, err := join("v2", nil); err != nil || unfit != nil {
		t.Fatalf("%v, %v", unfit, err)
	}
	unfit, err = join("v2", func(r *sidecarpb.JoinGroupRequest) { r.Namespace = "west" })
	if err != nil || unfit != nil {
		t.Fatalf("%v, %v", unfit, err)
	}
	members(3)

	f.createVolume("plain", 1<<20, false)
	_, err = join("plain", nil)
	wantCode(t, "not replicable", err, codes.FailedPrecondition)
	_, err = join("none", nil)
	wantCode(t, "no such volume", err, codes.NotFound)
	f.createGroup("another", "site-b")
	_, err = join("v0", func(r *sidecarpb.JoinGroupRequest) { r.Group, r.Settings = "another", nil })
	wantCode(t, "in another group", err, codes.FailedPrecondition)
	members(3)
}
