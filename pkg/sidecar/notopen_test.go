package sidecar

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// TestVolumeOfAGroupThatIsNotOpen: no call takes a volume away from a group that cannot be opened, or says that one of
// them is not there. A volume that is not in the group has nothing to do with it.
func TestVolumeOfAGroupThatIsNotOpen(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	reopen := func(meanwhile func() error) {
		t.Helper()
		f.stop()
		if err := f.site.Close(); err != nil {
			t.Fatal(err)
		}
		if err := meanwhile(); err != nil {
			t.Fatal(err)
		}
		f.openSite()
		f.start()
	}
	f.createGroup("shop", "")
	for _, id := range []string{"v0", "free"} {
		f.createVolume(id, testVolumeBytes, true)
	}
	f.addVolume("shop", "v0")
	g, err := f.site.Group("shop")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := f.pool.GroupDir(g.ID())
	if err != nil {
		t.Fatal(err)
	}
	f.createGroup("next", "")
	away := filepath.Join(f.dir, "away")
	intended := func(id, group string) {
		t.Helper()
		if _, err := f.pool.Update(id, func(r *blockdev.VolumeRecord) error { r.MoveTo = group; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	intended("v0", "next") // a crash came in the middle of a move
	intended("free", "shop")
	reopen(func() error { return os.Rename(dir, away) })

	before, err := f.pool.Get("v0")
	if err != nil {
		t.Fatal(err)
	}
	if before.Group != "shop" {
		t.Errorf("an interrupted move went on without the group that it is out of: %v", before)
	}
	order := string(blockdev.OrderAck)
	for what, call := range map[string]func() error{
		"add": func() error {
			_, err := f.client.AddVolume(f.ctx, &sidecarpb.AddVolumeRequest{Group: "next", VolumeId: "v0"})
			return err
		},
		"move": func() error {
			_, err := f.client.AddVolume(f.ctx, &sidecarpb.AddVolumeRequest{Group: "next", VolumeId: "v0", Move: true})
			return err
		},
		"join": func() error {
			_, err := f.client.JoinGroup(f.ctx, &sidecarpb.JoinGroupRequest{Group: "next", VolumeId: "v0"})
			return err
		},
		"join its own": func() error {
			_, err := f.client.JoinGroup(f.ctx, &sidecarpb.JoinGroupRequest{Group: "shop", VolumeId: "v0", Create: true})
			return err
		},
		"remove": func() error {
			_, err := f.client.RemoveVolume(f.ctx, &sidecarpb.RemoveVolumeRequest{Group: "shop", VolumeId: "v0"})
			return err
		},
		"resize": func() error {
			_, err := f.client.ResizeVolume(f.ctx, &sidecarpb.ResizeVolumeRequest{VolumeId: "v0",
				SizeBytes: 2 * testVolumeBytes})
			return err
		},
		"format": func() error {
			_, err := f.client.RecordFormat(f.ctx, &sidecarpb.RecordFormatRequest{VolumeId: "v0", FormatJson: []byte("{}")})
			return err
		},
		"set": func() error {
			_, err := f.client.ModifyVolume(f.ctx, &sidecarpb.ModifyVolumeRequest{VolumeId: "v0", Order: &order})
			return err
		},
		"cut": func() error {
			_, err := f.client.CutGroup(f.ctx, &sidecarpb.CutGroupRequest{Group: "shop"})
			return err
		},
		"delete": func() error {
			_, err := f.client.DeleteGroup(f.ctx, &sidecarpb.DeleteGroupRequest{Name: "shop"})
			return err
		},
	} {
		err := call()
		wantCode(t, what, err, codes.FailedPrecondition)
		if text := status.Convert(err).Message(); !strings.Contains(text, "group shop") {
			t.Errorf("%s: %s", what, text)
		}
	}
	after, err := f.pool.Get("v0")
	if err != nil || after.Group != "shop" || after.SizeBytes != before.SizeBytes || after.Joins != before.Joins {
		t.Errorf("the record of the volume: %v, %v, before %v", after, err, before)
	}
	if _, err := f.client.RemoveVolume(f.ctx, &sidecarpb.RemoveVolumeRequest{Group: "shop",
		VolumeId: "free"}); err != nil {
		t.Error(err)
	}
	if rec, err := f.pool.Get("free"); err != nil || rec.MoveTo != "" {
		t.Errorf("a volume that was only to be in the group: %v, %v", rec, err)
	}

	reopen(func() error { return os.Rename(away, dir) })
	f.eventually("the move is complete", func() bool {
		rec, err := f.pool.Get("v0")
		return err == nil && rec.Group == "next" && rec.MoveTo == ""
	})
}
