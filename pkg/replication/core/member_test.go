package core

import (
	"encoding/json"
	"errors"
	"testing"
)

// Each state with each of its changes: what it becomes, or that it is refused and stays.
func TestMemberStates(t *testing.T) {
	add := func(m *Member) error { return m.Add() }
	join := func(m *Member) error { return m.Join() }
	change := func(m *Member) error { return m.Change() }
	leave := func(m *Member) error { return m.Leave() }
	settle := func(m *Member) error { m.Settle(); return nil }
	drop := func(m *Member) error { m.Drop(); return nil }
	for _, tc := range []struct {
		from MemberState
		what func(*Member) error
		to   MemberState
		fits bool
	}{
		{MemberPresent, add, MemberAdding, true}, {MemberPresent, join, MemberPresent, false},
		{MemberPresent, change, MemberUnannounced, true}, {MemberPresent, leave, MemberLeaving, true},
		{MemberPresent, settle, MemberPresent, true}, {MemberPresent, drop, MemberRemoved, true},

		{MemberAdding, add, MemberAdding, true}, {MemberAdding, join, MemberJoining, true},
		{MemberAdding, change, MemberAdding, true}, {MemberAdding, leave, MemberLeaving, true},
		{MemberAdding, settle, MemberPresent, true}, {MemberAdding, drop, MemberRemoved, true},

		{MemberJoining, add, MemberJoining, true}, {MemberJoining, join, MemberJoining, true},
		{MemberJoining, change, MemberJoining, true}, {MemberJoining, leave, MemberLeaving, true},
		{MemberJoining, settle, MemberPresent, true}, {MemberJoining, drop, MemberRemoved, true},

		{MemberUnannounced, add, MemberAdding, true}, {MemberUnannounced, join, MemberUnannounced, false},
		{MemberUnannounced, change, MemberUnannounced, true}, {MemberUnannounced, leave, MemberLeaving, true},
		{MemberUnannounced, settle, MemberPresent, true}, {MemberUnannounced, drop, MemberRemoved, true},

		{MemberLeaving, add, MemberLeaving, false}, {MemberLeaving, join, MemberLeaving, false},
		{MemberLeaving, change, MemberLeaving, false}, {MemberLeaving, leave, MemberLeaving, true},
		{MemberLeaving, settle, MemberRemoved, true}, {MemberLeaving, drop, MemberRemoved, true},

		{MemberRemoved, add, MemberRemoved, false}, {MemberRemoved, join, MemberRemoved, false},
		{MemberRemoved, change, MemberRemoved, false}, {MemberRemoved, leave, MemberRemoved, false},
		{MemberRemoved, settle, MemberRemoved, true}, {MemberRemoved, drop, MemberRemoved, true},
	} {
		m := Member{Index: 1, VolumeID: "v", State: tc.from}
		err := tc.what(&m)
		if m.State != tc.to || (err == nil) != tc.fits || err != nil && !errors.Is(err, ErrPrecondition) {
			t.Errorf("from %s: %s, %v; want %s", tc.from, m.State, err, tc.to)
		}
	}
}

// A description that is older than the departure of its member does not bring the member back.
func TestRemovedMemberStaysRemoved(t *testing.T) {
	for _, from := range []MemberState{MemberLeaving, MemberRemoved} {
		g := New(Meta{Members: MemberList{{Index: 1, VolumeID: "v", State: from}}})
		_, _, err := g.Step(MemberChanged{Member: Member{Index: 1, VolumeID: "v", State: MemberPresent}})
		if !errors.Is(err, ErrPrecondition) || g.Meta.Members[0].State != from {
			t.Errorf("from %s: %s, %v", from, g.Meta.Members[0].State, err)
		}
	}
}

// The keys are those that all releases wrote, and the peer gets no more than that a volume was removed.
func TestMemberJSON(t *testing.T) {
	for state, want := range map[MemberState]struct{ own, described string }{
		MemberPresent: {`{"index":1,"volumeID":"v","sizeBytes":0}`, `{"index":1,"volumeID":"v","sizeBytes":0}`},
		MemberAdding: {`{"index":1,"volumeID":"v","sizeBytes":0,"unsynced":true}`,
			`{"index":1,"volumeID":"v","sizeBytes":0}`},
		MemberJoining: {`{"index":1,"volumeID":"v","sizeBytes":0,"unsynced":true}`,
			`{"index":1,"volumeID":"v","sizeBytes":0}`},
		MemberUnannounced: {`{"index":1,"volumeID":"v","sizeBytes":0,"unannounced":true}`,
			`{"index":1,"volumeID":"v","sizeBytes":0}`},
		MemberLeaving: {`{"index":1,"volumeID":"v","sizeBytes":0,"removed":true,"unannounced":true}`,
			`{"index":1,"volumeID":"v","sizeBytes":0,"removed":true}`},
		MemberRemoved: {`{"index":1,"volumeID":"v","sizeBytes":0,"removed":true}`,
			`{"index":1,"volumeID":"v","sizeBytes":0,"removed":true}`},
	} {
		m := Member{Index: 1, VolumeID: "v", State: state}
		own, err := json.Marshal(m)
		described, describedErr := json.Marshal(m.Described())
		if err != nil || describedErr != nil || string(own) != want.own || string(described) != want.described {
			t.Errorf("%s: %s, %s, %v, %v", state, own, described, err, describedErr)
		}
		var again Member
		if err := json.Unmarshal(own, &again); err != nil || again.State != state &&
			(state != MemberJoining || again.State != MemberAdding) {
			t.Errorf("%s is read as %s, %v", state, again.State, err)
		}
	}
	var later Member
	if err := json.Unmarshal([]byte(`{"index":1,"volumeID":"v","new":1}`), &later); err != nil {
		t.Errorf("a member of a later release: %v", err)
	}
	var list MemberList
	if err := json.Unmarshal([]byte(`[{"index":1,"volumeID":"v","new":1}]`), &list); err == nil {
		t.Error("a group.json with a key that is not known is read")
	}
}
