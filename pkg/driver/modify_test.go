package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

func (h *node) modify(id string, mutable map[string]string) error {
	_, err := h.c.ControllerModifyVolume(context.Background(), &csi.ControllerModifyVolumeRequest{VolumeId: id,
		MutableParameters: mutable})
	return err
}

// situation is where a volume is, as a person would look it up.
func (h *node) situation(s *fakeSidecar, id string) string {
	h.t.Helper()
	rec, err := h.d.store.Volume(id)
	if err != nil {
		h.t.Fatal(err)
	}
	text := fmt.Sprintf("volume in %q, order %s", rec.Group, rec.Order)
	if rec.IOBytesPerSecond != 0 || rec.IOPS != 0 {
		text += fmt.Sprintf(", limits %d and %d", rec.IOBytesPerSecond, rec.IOPS)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		g := s.groups[name]
		text += fmt.Sprintf("; %s to %q, journal %d %s, target %v, rate %d, %d volumes", name, g.GetPeer(),
			g.GetJournalSizeBytes(),
			g.GetJournalFull(), g.GetRpoTargetSeconds(), g.GetShipBytesPerSecond(), len(g.GetVolumes()))
		if g.GetTailsMost() != 0 || g.GetTailsMillis() != 0 {
			text += fmt.Sprintf(", %d tails for %v", g.GetTailsMost(), time.Duration(g.GetTailsMillis())*time.Millisecond)
		}
		in := slices.ContainsFunc(g.GetVolumes(), func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == id })
		if in != (g.GetName() == rec.Group) {
			text += fmt.Sprintf(" (its record says %q)", rec.Group)
		}
	}
	return strings.ReplaceAll(text, id, "ID")
}

// changesMade are made one after the other to a volume that was created replicable and without a group.
var changesMade = []struct {
	name    string
	mutable map[string]string
	want    string
}{
	{"on, in a group of its own", map[string]string{parameter.KeyRemote: "west", parameter.KeyRPOTarget: "5s",
		parameter.KeyReplicationRate: "1Mi"},
		`volume in "ID", order ack; ID to "west", journal 1073741824 JOURNAL_FULL_TRACK, target 5, rate 1048576, 1 volumes`},
	{"settings", map[string]string{parameter.KeyJournalSize: "64Mi", parameter.KeyJournalFull: "stall",
		parameter.KeyReplicationRate: "0"},
		`volume in "ID", order ack; ID to "west", journal 67108864 JOURNAL_FULL_STALL, target 5, rate 0, 1 volumes`},
	{"tails", map[string]string{parameter.KeyKeepTails: "5", parameter.KeyKeepTailsFor: "720h"},
		`volume in "ID", order ack; ID to "west", journal 67108864 JOURNAL_FULL_STALL, target 5, rate 0, 1 volumes, ` +
			`5 tails for 720h0m0s`},
	{"fewer tails", map[string]string{parameter.KeyKeepTails: "2", parameter.KeyKeepTailsFor: "0"},
		`volume in "ID", order ack; ID to "west", journal 67108864 JOURNAL_FULL_STALL, target 5, rate 0, 1 volumes, ` +
			`2 tails for 0s`},
	{"all tails", map[string]string{parameter.KeyKeepTails: "0"},
		`volume in "ID", order ack; ID to "west", journal 67108864 JOURNAL_FULL_STALL, target 5, rate 0, 1 volumes`},
	{"limits", map[string]string{parameter.KeyIOBytes: "8Mi", parameter.KeyIOPS: "500"},
		`volume in "ID", order ack, limits 8388608 and 500; ID to "west", journal 67108864 JOURNAL_FULL_STALL, target 5, ` +
			`rate 0, 1 volumes`},
	{"one limit", map[string]string{parameter.KeyIOPS: "0"},
		`volume in "ID", order ack, limits 8388608 and 0; ID to "west", journal 67108864 JOURNAL_FULL_STALL, target 5, ` +
			`rate 0, 1 volumes`},
	{"no limit", map[string]string{parameter.KeyIOBytes: "0"},
		`volume in "ID", order ack; ID to "west", journal 67108864 JOURNAL_FULL_STALL, target 5, rate 0, 1 volumes`},
	{"remote", map[string]string{parameter.KeyRemote: "south", parameter.KeyOrder: "flush"},
		`volume in "ID", order flush; ID to "south", journal 67108864 JOURNAL_FULL_STALL, target 5, rate 0, 1 volumes`},
	{"move", map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west",
		parameter.KeyJournalSize: "32Mi"},
		`volume in "shop", order flush; shop to "west", journal 33554432 JOURNAL_FULL_TRACK, target 0, rate 0, 1 volumes`},
	{"off", map[string]string{parameter.KeyReplication: "off", parameter.KeyOrder: "ack"}, `volume in "", order ack`},
	{"on again", map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyReplication: "on"},
		`volume in "shop", order ack; shop to "", journal 1073741824 JOURNAL_FULL_TRACK, target 0, rate 0, 1 volumes`},
}

func TestModify(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, map[string]string{parameter.KeyReplicable: "true"})
	has := func(mutable map[string]string) bool {
		t.Helper()
		response, err := h.c.ValidateVolumeCapabilities(context.Background(), &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{vc}, MutableParameters: mutable})
		h.must(err)
		if c := response.GetConfirmed(); (c == nil) == (response.GetMessage() == "") || c != nil &&
			!maps.Equal(c.GetMutableParameters(), mutable) {
			t.Errorf("validated %v: %v", mutable, response)
		}
		return response.GetConfirmed() != nil
	}
	for _, bad := range []map[string]string{{parameter.KeyProvisioning: "thin"}, {parameter.KeyIOPS: "many"}} {
		if has(bad) {
			t.Errorf("validated as mutable: %v", bad)
		}
	}
	for _, change := range changesMade {
		if has(change.mutable) {
			t.Errorf("%s: validated before it is made", change.name)
		}
		for range 2 { // repeated, it changes nothing
			if err := h.modify(id, change.mutable); err != nil {
				t.Fatalf("%s: %v", change.name, err)
			}
			if got := h.situation(s, id); got != change.want {
				t.Fatalf("%s:\n%s\nwant\n%s", change.name, got, change.want)
			}
			if !has(change.mutable) {
				t.Errorf("%s: not validated after it is made", change.name)
			}
		}
	}
	// Made once, it is not put back to what it was made as.
	if again := h.create("v", vc, map[string]string{parameter.KeyReplicable: "true"}); again != id {
		t.Fatalf("made twice: %s, %s", id, again)
	}
	if got := h.situation(s, id); got != changesMade[len(changesMade)-1].want {
		t.Fatal(got)
	}
	// A group that a person made stays, and one with other volumes.
	s.groups["mine"] = &sidecarpb.GroupStatus{Name: "mine", Role: sidecarpb.Role_ROLE_PRIMARY, Peer: "west",
		JournalSizeBytes: gib}
	other := h.create("w", vc, map[string]string{parameter.KeyConsistencyGroup: "shop"})
	h.must(h.modify(id, map[string]string{parameter.KeyConsistencyGroup: "mine"}))
	h.must(h.modify(id, map[string]string{parameter.KeyReplication: "off"}))
	if s.groups["mine"] == nil || s.groups["shop"] == nil {
		t.Errorf("groups are gone: %v", s.groups)
	}
	h.must(h.delete(other))
	h.must(h.delete(id))
	if len(s.groups) != 1 {
		t.Errorf("groups stay: %v", s.groups)
	}
}

func TestModifyRefuses(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	plain := h.create("plain", vc, nil)
	id := h.create("v", vc, map[string]string{parameter.KeyReplicable: "true"})
	s.groups["copy"] = &sidecarpb.GroupStatus{Name: "copy", Role: sidecarpb.Role_ROLE_SECONDARY, Peer: "west"}
	s.groups["far"] = &sidecarpb.GroupStatus{Name: "far", Role: sidecarpb.Role_ROLE_PRIMARY, Peer: "west"}
	before := h.situation(s, id)
	h.must(h.modify(plain, map[string]string{parameter.KeyReplication: parameter.ReplicationOff})) // as it is
	for _, tc := range []struct {
		name    string
		id      string
		mutable map[string]string
		code    codes.Code
		says    string
	}{
		{"no id", "", map[string]string{parameter.KeyOrder: "ack"}, codes.InvalidArgument, "volume id"},
		{"no such volume", "vol-none", map[string]string{parameter.KeyOrder: "ack"}, codes.NotFound, "vol-none"},
		{"nothing", id, nil, codes.InvalidArgument, "missing"},
		{"unknown", id, map[string]string{"slipstream.dev/colour": "red"}, codes.InvalidArgument, parameter.KeyRPOTarget},
		{"another's", id, map[string]string{"example.com/tier": "gold"}, codes.InvalidArgument, "example.com/tier"},
		{"limits of a plain volume", plain, map[string]string{parameter.KeyIOPS: "100"}, codes.InvalidArgument,
			parameter.KeyReplicable},
		{"a limit that is none", id, map[string]string{parameter.KeyIOPS: "9"}, codes.InvalidArgument, "at least 10"},
		{"a limit too small", id, map[string]string{parameter.KeyIOBytes: "1000k"}, codes.InvalidArgument, "minimum of 1Mi"},
		{"immutable", id, map[string]string{parameter.KeyProvisioning: "thick"}, codes.InvalidArgument, "fixed"},
		{"bad value", id, map[string]string{parameter.KeyRPOTarget: "soon"}, codes.InvalidArgument, parameter.KeyRPOTarget},
		{"template", id, map[string]string{parameter.KeyConsistencyGroup: "${pvc.namespace}"}, codes.InvalidArgument,
			"StorageClass"},
		{"slow", id, map[string]string{parameter.KeyReplicationRate: "1"}, codes.InvalidArgument, "64Ki"},
		{"fewer tails than none", id, map[string]string{parameter.KeyKeepTails: "-1"}, codes.InvalidArgument,
			"not a number"},
		{"off and where", id, map[string]string{parameter.KeyReplication: "off", parameter.KeyRemote: "west"},
			codes.InvalidArgument, parameter.KeyRemote},
		{"on, nowhere", id, map[string]string{parameter.KeyReplication: "on"}, codes.FailedPrecondition,
			parameter.KeyConsistencyGroup},
		{"of no group", id, map[string]string{parameter.KeyJournalSize: "1Gi"}, codes.FailedPrecondition,
			parameter.KeyJournalSize},
		{"plain", plain, map[string]string{parameter.KeyRemote: "west"}, codes.InvalidArgument, parameter.KeyReplicable},
		{"into a copy", id, map[string]string{parameter.KeyConsistencyGroup: "copy"}, codes.FailedPrecondition,
			"slipctl group promote copy"},
		{"into a group elsewhere", id, map[string]string{parameter.KeyConsistencyGroup: "far", parameter.KeyRemote: "south"},
			codes.FailedPrecondition, "slipctl group set far"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.want(h.modify(tc.id, tc.mutable), tc.code, tc.says)
			if got := h.situation(s, id); got != before {
				t.Errorf("a refused change changed something: %s", got)
			}
		})
	}
	h.must(h.stage(id, vc))
	h.want(h.modify(id, map[string]string{parameter.KeyOrder: "flush"}), codes.FailedPrecondition, "unstage")
	h.must(h.modify(id, map[string]string{parameter.KeyOrder: "ack"})) // as it is
	h.must(h.unstage(id))
	_, err := h.d.store.Pool.Update(id, func(r *blockdev.VolumeRecord) error { r.Secondary = true; return nil })
	h.must(err)
	h.want(h.modify(id, map[string]string{parameter.KeyOrder: "flush"}), codes.FailedPrecondition, "copy")
	s.stop()
	_, err = h.d.store.Pool.Update(id, func(r *blockdev.VolumeRecord) error { r.Secondary = false; return nil })
	h.must(err)
	h.d.sidecar.Patience = 500 * time.Millisecond
	h.want(h.modify(id, map[string]string{parameter.KeyOrder: "flush"}), codes.Unavailable, s.endpoint)
}

// What a VolumeAttributesClass says when the volume is made counts over what the StorageClass says.
func TestCreateWithMutableParameters(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	req := createReq("v", vc, map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west"})
	req.MutableParameters = map[string]string{parameter.KeyRemote: "south", parameter.KeyRPOTarget: "3s",
		parameter.KeyOrder: "flush"}
	var ids []string
	for range 2 {
		response, err := h.c.CreateVolume(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, response.GetVolume().GetVolumeId())
	}
	const want = `volume in "shop", order flush; shop to "south", journal 1073741824 JOURNAL_FULL_TRACK, target 3, ` +
		`rate 0, 1 volumes`
	if got := h.situation(s, ids[0]); got != want || ids[0] != ids[1] {
		t.Errorf("%s, ids %v", got, ids)
	}
	req = createReq("alone", vc, map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west"})
	req.MutableParameters = map[string]string{parameter.KeyReplication: "off"}
	response, err := h.c.CreateVolume(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := h.d.store.Volume(response.GetVolume().GetVolumeId())
	if err != nil || rec.Group != "" || !rec.Replicable {
		t.Errorf("%v, %v", rec, err)
	}
	req = createReq("limited", vc, map[string]string{parameter.KeyReplicable: "true", parameter.KeyIOPS: "100"})
	req.MutableParameters = map[string]string{parameter.KeyIOBytes: "2Mi"}
	response, err = h.c.CreateVolume(context.Background(), req)
	h.must(err)
	if got := h.situation(s, response.GetVolume().GetVolumeId()); !strings.HasPrefix(got,
		`volume in "", order ack, limits 2097152 and 100`) {
		t.Error(got)
	}
	for _, mutable := range []map[string]string{nil, {parameter.KeyIOPS: "100"}} {
		class := map[string]string{parameter.KeyIOBytes: "2Mi"}
		if mutable != nil {
			class = nil
		}
		req = createReq("plain and limited", vc, class)
		req.MutableParameters = mutable
		_, err = h.c.CreateVolume(context.Background(), req)
		h.want(err, codes.InvalidArgument, "replicable volumes only", "io.max")
	}
	req = createReq("bad", vc, nil)
	req.MutableParameters = map[string]string{parameter.KeyProvisioning: "thick"}
	_, err = h.c.CreateVolume(context.Background(), req)
	h.want(err, codes.InvalidArgument, parameter.KeyProvisioning)
}

// A creation that is repeated is the same creation or none: what the first one made durable decides which group the
// volume joins, also when that one came no further.
func TestRepeatedCreation(t *testing.T) {
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	class := map[string]string{parameter.KeyReplicable: "true"}
	first := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west",
		parameter.KeyIOPS: "100"}
	others := []map[string]string{
		nil, {parameter.KeyReplication: parameter.ReplicationOff}, {parameter.KeyConsistencyGroup: "shop",
			parameter.KeyRemote: "south", parameter.KeyIOPS: "100"},
		{parameter.KeyConsistencyGroup: "mine", parameter.KeyRemote: "west",
			parameter.KeyIOPS: "100"}, {parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west"},
	}
	for _, joined := range []bool{false, true} {
		t.Run(fmt.Sprintf("joined %t", joined), func(t *testing.T) {
			s := startSidecar(t)
			h := newNode(t, s)
			create := func(mutable map[string]string) (string, error) {
				req := createReq("v", vc, class)
				req.MutableParameters = mutable
				response, err := h.c.CreateVolume(context.Background(), req)
				return response.GetVolume().GetVolumeId(), err
			}
			if !joined {
				s.hook = func(call string) error {
					if strings.HasPrefix(call, "CreateGroup") {
						return status.Error(codes.Unavailable, "the replicator is on its way")
					}
					return nil
				}
				_, err := create(first)
				h.want(err, codes.Unavailable)
				s.hook = nil
			} else if _, err := create(first); err != nil {
				t.Fatal(err)
			}
			for _, mutable := range others {
				_, err := create(mutable)
				h.want(err, codes.AlreadyExists, "other mutable parameters", "ControllerModifyVolume")
			}
			if _, there := s.groups["mine"]; there || (s.groups["shop"] != nil) != joined {
				t.Errorf("refused creations made groups: %v", s.groups)
			}
			// the same in other words
			id, err := create(map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west",
				parameter.KeyIOPS: "0100"})
			h.must(err)
			const want = `volume in "shop", order ack, limits 0 and 100; shop to "west", journal 1073741824 ` +
				`JOURNAL_FULL_TRACK, target 0, rate 0, 1 volumes`
			if got := h.situation(s, id); got != want {
				t.Errorf("%s\nwant\n%s", got, want)
			}
			// Changed since, it is what it was changed to, whatever it was made with.
			h.must(h.modify(id, map[string]string{parameter.KeyIOPS: "200"}))
			for _, mutable := range append(others, first) {
				again, err := create(mutable)
				h.must(err)
				if again != id || !strings.Contains(h.situation(s, id), "limits 0 and 200; shop") {
					t.Errorf("with %v: %s, %s", mutable, again, h.situation(s, id))
				}
			}
		})
	}
}

// Replication that is switched on again without a place goes where it was, as long as that is there, and then where the
// volume was made.
func TestReplicationOnAgain(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	on, off := map[string]string{parameter.KeyReplication: parameter.ReplicationOn},
		map[string]string{parameter.KeyReplication: parameter.ReplicationOff}
	in := func(id, group, remote string) {
		t.Helper()
		if got, want := h.situation(s, id), fmt.Sprintf("volume in %q,", group); !strings.HasPrefix(got, want) {
			t.Fatalf("%s, want it in %q", got, group)
		}
		if g := s.groups[group]; group != "" && g.GetPeer() != remote {
			t.Fatalf("group %s has remote %q, want %q", group, g.GetPeer(), remote)
		}
	}
	s.groups["mine"] = &sidecarpb.GroupStatus{Name: "mine", Role: sidecarpb.Role_ROLE_PRIMARY, Peer: "west",
		JournalSizeBytes: gib}
	id := h.create("v", vc, map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west"})
	for range 2 {
		h.must(h.modify(id, map[string]string{parameter.KeyConsistencyGroup: "mine"}))
		h.must(h.modify(id, off))
		h.must(h.modify(id, off))
		in(id, "", "")
		h.must(h.modify(id, on))
		h.must(h.modify(id, on))
		in(id, "mine", "west")
	}
	h.must(h.modify(id, off))
	delete(s.groups, "mine")
	h.must(h.modify(id, on))
	in(id, "shop", "west")

	// What it was made with includes the mutable parameters.
	req := createReq("w", vc, map[string]string{parameter.KeyReplicable: "true"})
	req.MutableParameters = map[string]string{parameter.KeyConsistencyGroup: "later", parameter.KeyRemote: "south"}
	response, err := h.c.CreateVolume(context.Background(), req)
	h.must(err)
	w := response.GetVolume().GetVolumeId()
	h.must(h.modify(w, off))
	if s.groups["later"] != nil {
		t.Error("the group of the driver stays without volumes")
	}
	h.must(h.modify(w, on))
	in(w, "later", "south")

	// Made with replication off, it goes where its class would have put it.
	req = createReq("x", vc, map[string]string{parameter.KeyConsistencyGroup: "class", parameter.KeyRemote: "west"})
	req.MutableParameters = off
	response, err = h.c.CreateVolume(context.Background(), req)
	h.must(err)
	x := response.GetVolume().GetVolumeId()
	in(x, "", "")
	h.must(h.modify(x, on))
	in(x, "class", "west")

	// Nowhere to go.
	y := h.create("y", vc, map[string]string{parameter.KeyReplicable: "true"})
	h.must(h.modify(y, map[string]string{parameter.KeyConsistencyGroup: "gone", parameter.KeyRemote: "west"}))
	h.must(h.modify(y, off))
	h.want(h.modify(y, on), codes.FailedPrecondition, "was in group gone", parameter.KeyRemote)
}

// TestDeathWhileModifying kills the driver at each step of each change in turn; repeated by another one, the change
// comes to the same, and nothing is left over when the volume is deleted.
func TestDeathWhileModifying(t *testing.T) {
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	for _, powerLoss := range []bool{false, true} {
		steps := 0
		for n := range changesMade {
			for step := 1; ; step++ {
				s := startSidecar(t)
				h := newNode(t, s)
				id := h.create("v", vc, map[string]string{parameter.KeyReplicable: "true"})
				for _, before := range changesMade[:n] {
					h.must(h.modify(id, before.mutable))
				}
				h.stop()
				k := &killer{left: step}
				h.startMortal(k)
				err := h.modify(id, changesMade[n].mutable)
				if !k.dead() {
					h.must(err)
					steps += step - 1
					h.restart(false) // the deletion's steps are not counted
					h.must(h.delete(id))
					break
				}
				h.restart(powerLoss)
				if err := h.modify(id, changesMade[n].mutable); err != nil {
					t.Fatalf("%s, death before step %d: %v", changesMade[n].name, step, err)
				}
				if got := h.situation(s, id); got != changesMade[n].want {
					t.Fatalf("%s, death before step %d:\n%s\nwant\n%s", changesMade[n].name, step, got, changesMade[n].want)
				}
				h.must(h.delete(id))
				if len(s.groups) > 0 {
					t.Fatalf("%s, death before step %d: groups stay: %v", changesMade[n].name, step, s.groups)
				}
			}
		}
		t.Logf("power loss %t: %d steps", powerLoss, steps)
		if steps < 30 {
			t.Errorf("%d steps: the killer does not see them", steps)
		}
	}
}
