package driver

import (
	"context"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// TestVolumeOfAGroupThatIsNotOpen: nothing is done to a volume whose group cannot be opened, because the group may have
// writes that the image lacks, or keep the volume for its peer. Where the group is open again, or was given up, the
// volume is deleted; its group too, with its last volume.
func TestVolumeOfAGroupThatIsNotOpen(t *testing.T) {
	for _, givenUp := range []bool{false, true} {
		s := startSidecar(t)
		h := newNode(t, s)
		vc := capabilitytest.Mount(capabilitytest.Writer, "")
		class := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west"}
		id, other := h.create("v", vc, class), h.create("w", vc, class)
		open := s.groups["shop"]
		s.groups["shop"] = &sidecarpb.GroupStatus{Name: "shop", State: sidecarpb.GroupState_GROUP_STATE_FAILED,
			StateReason: "no space left on device; give it up with slipctl group delete shop --force"}
		before := h.situation(s, id)
		for range 2 {
			h.want(h.delete(id), codes.FailedPrecondition, "shop", "no space left", "slipctl group delete shop --force")
			for what, mutable := range map[string]map[string]string{
				"off":         {parameter.KeyReplication: parameter.ReplicationOff},
				"move":        {parameter.KeyConsistencyGroup: "next"},
				"as it is":    {parameter.KeyConsistencyGroup: "shop"},
				"limit alone": {parameter.KeyIOPS: "100"},
			} {
				err := h.modify(id, mutable)
				h.want(err, codes.FailedPrecondition, "shop", "no space left")
				if got := h.situation(s, id); got != before {
					t.Errorf("%s: a refused change changed something: %s", what, got)
				}
			}
		}
		if givenUp {
			delete(s.groups, "shop")
			for _, v := range []string{id, other} {
				h.must(s.recordGroup(v, ""))
			}
		} else {
			s.groups["shop"] = open
		}
		h.must(h.delete(id))
		h.must(h.delete(other))
		if len(s.groups) > 0 {
			t.Errorf("groups are left: %v", s.groups)
		}
		h.clean()
	}
}

// DeleteVolume of a copy answers OK and keeps the copy, which may be the last one: a persistent volume can go away at
// every site. A copy without a group is listed and deleted as other volumes are.
func TestDeleteKeepsACopy(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	class := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west"}
	id := h.create("v", vc, class)
	set := func(change func(*blockdev.VolumeRecord)) {
		_, err := h.d.store.Pool.Update(id, func(r *blockdev.VolumeRecord) error { change(r); return nil })
		h.must(err)
	}
	listed := func() bool {
		response, err := h.c.ListVolumes(context.Background(), &csi.ListVolumesRequest{})
		h.must(err)
		return slices.ContainsFunc(response.GetEntries(), func(e *csi.ListVolumesResponse_Entry) bool {
			return e.GetVolume().GetVolumeId() == id
		})
	}
	kept := func(what string) {
		t.Helper()
		for range 2 {
			h.must(h.delete(id))
		}
		rec, err := h.d.store.Pool.Get(id)
		h.must(err)
		if !rec.Unwanted || rec.Group != "shop" || len(s.groups["shop"].GetVolumes()) != 1 {
			t.Errorf("%s: record %v, group %v", what, rec, s.groups["shop"])
		}
	}

	set(func(r *blockdev.VolumeRecord) { r.Secondary = true })
	kept("secondary")
	if listed() {
		t.Error("a copy in a group is listed")
	}

	// Demoted for the peer to take over, it is about to be the copy.
	set(func(r *blockdev.VolumeRecord) { r.Secondary, r.Unwanted = false, false })
	s.groups["shop"].State = sidecarpb.GroupState_GROUP_STATE_DEMOTED
	kept("demoted")
	s.hook = func(string) error { return status.Error(codes.Unavailable, "away") }
	h.want(h.delete(id), codes.Unavailable) // which role the group has is not known
	s.hook = nil

	set(func(r *blockdev.VolumeRecord) {
		r.Secondary, r.Group, r.Left = true, "", &blockdev.LeftRecord{Peer: "west", Group: "shop", UnixNanos: 1}
	})
	if !listed() {
		t.Error("a copy without a group is not listed")
	}
	h.must(h.delete(id))
	h.clean()
	if _, err := h.d.store.Pool.Get(id); err == nil {
		t.Error("the copy without a group is still there")
	}
}

func TestCatchesADeletedLastCopy(t *testing.T) {
	testenv.Catches(t, bug.DeleteLastCopy, "TestDeleteKeepsACopy")
}
