package driver

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

func TestLifeOfAReplicableVolume(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, map[string]string{parameter.KeyReplicable: "true"})
	path := s.shimDir + "/" + id + "/volume"
	for range 2 {
		h.must(h.stage(id, vc))
	}
	if l := h.loops["/dev/loop0"]; l == nil || l.BackingPath != path || l.SizeBytes != 16*mib || !h.writeback[path] ||
		!s.attached[id] {
		t.Errorf("loop %+v, writeback %v, attached %v", l, h.writeback, s.attached)
	}
	if got := s.formats[id]; len(got) < 2 || got[0].State != blockdev.FormatFormatting ||
		got[1].State != blockdev.FormatFormatted || got[1].UUID == "" {
		t.Errorf("format records at the replicator: %+v", got)
	}
	h.must(h.publish(id, "a", vc, false))
	h.must(h.expand(id, 24*mib))
	if s.sizes[id] != 24*mib || h.loops["/dev/loop0"].SizeBytes != 24*mib {
		t.Errorf("sizes: replicator %d, device %d", s.sizes[id], h.loops["/dev/loop0"].SizeBytes)
	}
	h.must(h.unpublish(id, "a"))

	// Without the replicator an unstage would hang in the kernel: it is refused before anything is touched.
	h.d.sidecar.Patience = 500 * time.Millisecond
	s.stop()
	h.want(h.unstage(id), codes.Unavailable, s.endpoint)
	if len(h.mounts) != 1 || len(h.loops) != 1 || !h.writeback[path] {
		t.Errorf("a refused unstage changed something: %v %v", h.mounts, h.loops)
	}
	if probe, err := h.i.Probe(context.Background(), nil); err != nil || !probe.GetReady().GetValue() {
		t.Errorf("Probe fails for the replicator's absence: %v, %v", probe, err)
	}
	s.start(t)
	h.d.sidecar.Patience = time.Minute
	h.must(h.unstage(id))
	h.clean()
	h.d.sidecar.Patience = 500 * time.Millisecond
	s.stop()
	h.want(h.stage(id, vc), codes.Unavailable, s.endpoint)
	s.start(t)
	h.d.sidecar.Patience = time.Minute
	h.must(h.stage(id, vc))
	h.must(h.unstage(id))
	h.must(h.delete(id))
	h.clean()
}

func TestGroups(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	class := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west",
		parameter.KeyJournalSize: "64Mi", parameter.KeyJournalFull: "stall",
		parameter.KeyKeepTails: "5", parameter.KeyKeepTailsFor: "720h"}
	members := func(group string) (ids []string) {
		for _, v := range s.groups[group].GetVolumes() {
			ids = append(ids, v.GetVolumeId())
		}
		return ids
	}
	a, b := h.create("a", vc, class), h.create("b", vc, class)
	g := s.groups["shop"]
	if g.GetPeer() != "west" || g.GetJournalSizeBytes() != 64*mib ||
		g.GetJournalFull() != sidecarpb.JournalFull_JOURNAL_FULL_STALL || g.GetTailsMost() != 5 ||
		g.GetTailsMillis() != 720*time.Hour.Milliseconds() || !slices.Equal(members("shop"), []string{a, b}) {
		t.Errorf("group %v", g)
	}
	// A class that contradicts the group makes nothing and leaves nothing.
	for key, value := range map[string]string{parameter.KeyRemote: "east", parameter.KeyJournalSize: "128Mi",
		parameter.KeyJournalFull: "track", parameter.KeyKeepTails: "4", parameter.KeyKeepTailsFor: "1h"} {
		other := map[string]string{parameter.KeyConsistencyGroup: "shop", key: value}
		_, err := h.c.CreateVolume(context.Background(), createReq("c", vc, other))
		h.want(err, codes.InvalidArgument, "shop", key)
	}
	recs, err := h.d.store.Pool.List()
	if err != nil || len(recs) != 2 {
		t.Errorf("volumes after refused creations: %v, %v", recs, err)
	}
	// A class that says less joins.
	c := h.create("c", vc, map[string]string{parameter.KeyConsistencyGroup: "shop"})
	h.must(h.delete(a)) // the one that the group was made for is not the last
	h.must(h.delete(b))
	if !slices.Equal(members("shop"), []string{c}) {
		t.Errorf("members %v", members("shop"))
	}
	h.must(h.delete(c))
	if s.groups["shop"] != nil {
		t.Error("the group that the driver made outlives its last volume")
	}

	// A group that a person made stays.
	s.groups["manual"] = &sidecarpb.GroupStatus{Name: "manual", Role: sidecarpb.Role_ROLE_PRIMARY, Peer: "west",
		JournalSizeBytes: gib}
	d := h.create("d", vc, map[string]string{parameter.KeyConsistencyGroup: "manual"})
	h.must(h.delete(d))
	if s.groups["manual"] == nil || len(members("manual")) > 0 {
		t.Errorf("the group that a person made: %v", s.groups["manual"])
	}

	// A remote without a group: a group of its own.
	e := h.create("e", vc, map[string]string{parameter.KeyRemote: "west"})
	if !slices.Equal(members(e), []string{e}) {
		t.Errorf("groups %v", s.groups)
	}
	h.must(h.delete(e))
	if s.groups[e] != nil {
		t.Error("a volume's own group outlives it")
	}
}

// TestGroupErrors: what may have happened is asked for again, what was refused is taken back.
func TestGroupErrors(t *testing.T) {
	for _, tc := range []struct {
		from, to codes.Code
		kept     bool
	}{
		{codes.Unavailable, codes.Unavailable, true},
		{codes.Aborted, codes.Aborted, true},
		{codes.FailedPrecondition, codes.FailedPrecondition, false},
		{codes.ResourceExhausted, codes.ResourceExhausted, false},
		{codes.NotFound, codes.FailedPrecondition, false},
		{codes.AlreadyExists, codes.FailedPrecondition, false},
		{codes.Unknown, codes.Internal, false},
	} {
		t.Run(tc.from.String(), func(t *testing.T) {
			s := startSidecar(t)
			h := newNode(t, s)
			s.hook = func(call string) error {
				if strings.HasPrefix(call, "AddVolume") {
					return status.Error(tc.from, "said the replicator")
				}
				return nil
			}
			req := createReq("v", capabilitytest.Mount(capabilitytest.Writer, ""),
				map[string]string{parameter.KeyConsistencyGroup: "shop"})
			_, err := h.c.CreateVolume(context.Background(), req)
			h.want(err, tc.to, "JoinGroup", "shop")
			recs, err := h.d.store.Pool.List()
			h.must(err)
			if (len(recs) == 1) != tc.kept || (s.groups["shop"] != nil) != tc.kept {
				t.Errorf("volumes %v, groups %v; want kept %t", recs, s.groups, tc.kept)
			}
			s.hook = nil
			_, err = h.c.CreateVolume(context.Background(), req)
			h.must(err)
		})
	}
}

// TestRestartResumesWriteback: a driver that was killed goes on bounding the age of unseen writes, without touching the
// file.
func TestRestartResumesWriteback(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	flush := h.create("flush", vc, map[string]string{
		parameter.KeyReplicable: "true", parameter.KeyOrder: parameter.OrderFlush})
	h.must(h.stage(flush, vc))
	clear(h.writeback)
	s.stop()
	h.restart(false)
	if !h.writeback[s.shimDir+"/"+flush+"/volume"] {
		t.Errorf("writeback %v", h.writeback)
	}
	s.start(t)
	h.d.sidecar.Patience = time.Minute
	h.must(h.unstage(flush))
	h.clean()
}
