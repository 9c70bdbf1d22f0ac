package sidecar

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func newNetwork(t *testing.T) *link.Network {
	n := link.NewNetwork(nil)
	t.Cleanup(n.Close)
	return n
}

func TestGroups(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	if p, err := f.client.Probe(f.ctx, &sidecarpb.ProbeRequest{}); err != nil || !p.Ready || p.Site != "site-a" ||
		p.Version != "test" {
		t.Fatalf("%v, %v", p, err)
	}
	type request = sidecarpb.CreateGroupRequest
	type settings = sidecarpb.GroupSettings
	stall := sidecarpb.JournalFull_JOURNAL_FULL_STALL
	create := func(change func(*request, *settings)) (string, error) {
		r := &sidecarpb.CreateGroupRequest{
			Name: "shop", Settings: &sidecarpb.GroupSettings{Remote: new("site-b"),
				JournalSizeBytes: new(int64(replication.MinJournalBytes))},
		}
		if change != nil {
			change(r, r.Settings)
		}
		resp, err := f.client.CreateGroup(f.ctx, r)
		return resp.GetGroupId(), err
	}
	id, err := create(nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := create(nil); err != nil || again != id {
		t.Fatalf("repeated: %s, %v; was %s", again, err, id)
	}
	for what, c := range map[string]struct {
		change func(*request, *settings)
		code   codes.Code
	}{
		"other remote":  {func(_ *request, s *settings) { s.Remote = new("site-c") }, codes.AlreadyExists},
		"other size":    {func(_ *request, s *settings) { *s.JournalSizeBytes *= 2 }, codes.AlreadyExists},
		"other policy":  {func(_ *request, s *settings) { s.JournalFull = &stall }, codes.AlreadyExists},
		"other address": {func(_ *request, s *settings) { s.RemoteAddress = new("elsewhere:1") }, codes.AlreadyExists},
		"no name":       {func(r *request, _ *settings) { r.Name = "" }, codes.InvalidArgument},
		"bad name":      {func(r *request, _ *settings) { r.Name = "../x" }, codes.InvalidArgument},
		"itself":        {func(r *request, s *settings) { r.Name, s.Remote = "self", new("site-a") }, codes.InvalidArgument},
		"tiny journal": {func(r *request, s *settings) {
			r.Name, s.JournalSizeBytes = "tiny", new(int64(1))
		}, codes.InvalidArgument},
		"stall alone": {func(r *request, s *settings) {
			r.Name, s.Remote, s.JournalFull = "alone", nil, &stall
		}, codes.InvalidArgument},
	} {
		_, err := create(c.change)
		wantCode(t, what, err, c.code)
	}
	f.createGroup("another", "")
	if all, err := f.client.ListGroups(f.ctx, &sidecarpb.ListGroupsRequest{}); err != nil || len(all.Groups) != 2 ||
		all.Groups[1].Name != "shop" {
		t.Fatalf("%v, %v", all, err)
	}
	_, err = f.client.ListGroups(f.ctx, &sidecarpb.ListGroupsRequest{Name: "none"})
	wantCode(t, "list of a group that is not there", err, codes.NotFound)

	// Volumes.
	f.createVolume("v0", 1<<20, true)
	f.createVolume("plain", 1<<20, false)
	for range 2 {
		f.addVolume("shop", "v0")
	}
	add := func(group, volume string) error {
		_, err := f.client.AddVolume(f.ctx, &sidecarpb.AddVolumeRequest{Group: group, VolumeId: volume})
		return err
	}
	wantCode(t, "no such volume", add("shop", "none"), codes.NotFound)
	if text := add("shop", "none").Error(); !strings.Contains(text, "where group shop is primary") {
		t.Errorf("no such volume: %s", text)
	}
	wantCode(t, "a path as volume", add("shop", "../x"), codes.NotFound)
	wantCode(t, "no such group", add("none", "v0"), codes.NotFound)
	wantCode(t, "in another group", add("another", "v0"), codes.FailedPrecondition)
	wantCode(t, "not replicable", add("shop", "plain"), codes.FailedPrecondition)
	_, err = f.client.RemoveVolume(f.ctx, &sidecarpb.RemoveVolumeRequest{Group: "none", VolumeId: "v0"})
	wantCode(t, "remove from no such group", err, codes.NotFound)

	// Growing without anything attached.
	resize := func(id string, size int64) (int64, error) {
		r, err := f.client.ResizeVolume(f.ctx, &sidecarpb.ResizeVolumeRequest{VolumeId: id, SizeBytes: size})
		return r.GetSizeBytes(), err
	}
	for _, id := range []string{"v0", "plain"} {
		for _, size := range []int64{2 << 20, 2 << 20, 1 << 20} {
			if got, err := resize(id, size); err != nil || got != 2<<20 {
				t.Fatalf("resize %s to %d: %d, %v", id, size, got, err)
			}
		}
	}
	_, err = resize("none", 4096)
	wantCode(t, "resize of no such volume", err, codes.NotFound)

	// Roles.
	_, err = f.client.Promote(f.ctx, &sidecarpb.PromoteRequest{Group: "none"})
	wantCode(t, "promote no such group", err, codes.NotFound)
	_, err = f.client.Demote(f.ctx, &sidecarpb.DemoteRequest{Group: "none"})
	wantCode(t, "demote no such group", err, codes.NotFound)
	_, err = f.client.Demote(f.ctx, &sidecarpb.DemoteRequest{Group: "another"})
	wantCode(t, "demote without a peer", err, codes.FailedPrecondition)
	for range 2 {
		if _, err := f.client.Demote(f.ctx, &sidecarpb.DemoteRequest{Group: "shop"}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.client.Promote(f.ctx, &sidecarpb.PromoteRequest{Group: "shop"})
	wantCode(t, "take a demotion back without force", err, codes.FailedPrecondition)
	for range 2 {
		if p, err := f.client.Promote(f.ctx, &sidecarpb.PromoteRequest{Group: "shop", Force: true}); err != nil ||
			p.Status.Role != sidecarpb.Role_ROLE_PRIMARY {
			t.Fatalf("%v, %v", p, err)
		}
	}

	// Attaching needs a keeper; nothing else does.
	_, err = f.client.AttachVolume(f.ctx, &sidecarpb.AttachVolumeRequest{VolumeId: "v0"})
	wantCode(t, "attach without a keeper", err, codes.FailedPrecondition)
	_, err = f.client.AttachVolume(f.ctx, &sidecarpb.AttachVolumeRequest{VolumeId: "plain"})
	wantCode(t, "attach what is not replicable", err, codes.FailedPrecondition)
	_, err = f.client.AttachVolume(f.ctx, &sidecarpb.AttachVolumeRequest{VolumeId: "none"})
	wantCode(t, "attach no such volume", err, codes.NotFound)
	_, err = f.client.DetachVolume(f.ctx, &sidecarpb.DetachVolumeRequest{VolumeId: "../x"})
	wantCode(t, "detach a path", err, codes.InvalidArgument)

	// The format record of a member goes into the group's order; of others it is the driver's business alone.
	for _, id := range []string{"v0", "plain"} {
		_, err := f.client.RecordFormat(f.ctx, &sidecarpb.RecordFormatRequest{VolumeId: id,
			FormatJson: []byte(`{"state":"formatted","fsType":"ext4"}`)})
		if err != nil {
			t.Fatal(err)
		}
	}

	// Deleting.
	remove := func(name string, force bool) error {
		_, err := f.client.DeleteGroup(f.ctx, &sidecarpb.DeleteGroupRequest{Name: name, Force: force})
		return err
	}
	wantCode(t, "delete with volumes", remove("shop", false), codes.FailedPrecondition)
	for range 2 {
		if _, err := f.client.RemoveVolume(f.ctx, &sidecarpb.RemoveVolumeRequest{Group: "shop", VolumeId: "v0"}); err != nil {
			t.Fatal(err)
		}
	}
	if rec, err := f.pool.Get("v0"); err != nil || rec.Group != "" {
		t.Fatalf("%v, %v", rec, err)
	}
	f.addVolume("another", "v0")
	for range 2 {
		if err := remove("shop", false); err != nil {
			t.Fatal(err)
		}
	}
	if err := remove("another", true); err != nil {
		t.Fatal(err)
	}
	if rec, err := f.pool.Get("v0"); err != nil || rec.Group != "" || rec.SizeBytes != 2<<20 {
		t.Fatalf("%v, %v", rec, err)
	}
}

func TestWatchGroup(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	f.createGroup("shop", "")
	w, err := f.client.WatchGroup(f.ctx, &sidecarpb.WatchGroupRequest{Name: "shop", IntervalMillis: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if s, err := w.Recv(); err != nil || s.Name != "shop" || s.State != sidecarpb.GroupState_GROUP_STATE_IDLE {
			t.Fatalf("%v, %v", s, err)
		}
	}
	// It ends with the group.
	if _, err := f.client.DeleteGroup(f.ctx, &sidecarpb.DeleteGroupRequest{Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = w.Recv()
	}
	wantCode(t, "watch of a group that was deleted", err, codes.NotFound)
	// And says that one can come back when the replicator stops.
	f.createGroup("shop", "")
	if w, err = f.client.WatchGroup(f.ctx, &sidecarpb.WatchGroupRequest{Name: "shop", IntervalMillis: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := f.svc.Close(); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = w.Recv()
	}
	wantCode(t, "watch of a replicator that stops", err, codes.Unavailable)
}

// A primary that the peer refuses shows why in its own status.
func TestRefusalShowsAtThePrimary(t *testing.T) {
	network := newNetwork(t)
	a, b := newFixture(t, network, "site-a", false), newFixture(t, network, "site-b", false)
	b.createGroup("shop", "") // another group of the same name
	a.createGroup("shop", "site-b")
	a.eventually("the refusal shows", func() bool {
		return strings.Contains(a.status("shop").StateReason,
			"takes no group")
	})
	if s := a.status("shop"); s.Connected || s.State != sidecarpb.GroupState_GROUP_STATE_CONNECTING ||
		!strings.Contains(s.StateReason, "site-b") {
		t.Fatalf("%v", s)
	}
	// The way out: the name is free again.
	if _, err := b.client.DeleteGroup(b.ctx, &sidecarpb.DeleteGroupRequest{Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	a.eventually("it streams", func() bool {
		s := a.status("shop")
		return s.State == sidecarpb.GroupState_GROUP_STATE_STREAMING && s.StateReason == ""
	})
}

// A group that cannot be opened is listed with the reason.
func TestBrokenGroupIsListed(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	f.createGroup("shop", "")
	dirs, err := filepath.Glob(filepath.Join(f.pool.Dir(), "groups", "*"))
	if err != nil || len(dirs) != 1 {
		t.Fatal(dirs, err)
	}
	f.stop()
	if err := f.site.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dirs[0], "group.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f.site, err = replication.Open(replication.Config{FS: vfs.OS, Pool: f.pool, Site: "site-a"}); err != nil {
		t.Fatal(err)
	}
	f.start()
	all, err := f.client.ListGroups(f.ctx, &sidecarpb.ListGroupsRequest{})
	if err != nil || len(all.Groups) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	if g := all.Groups[0]; g.State != sidecarpb.GroupState_GROUP_STATE_FAILED || g.Name != "shop" ||
		!strings.Contains(g.StateReason, "group.json") {
		t.Fatalf("%v", g)
	}
}
