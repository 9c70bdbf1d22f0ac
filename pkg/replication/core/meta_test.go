package core

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestValidate(t *testing.T) {
	if m := freshMeta("a"); m.Validate() != nil {
		t.Fatal(m.Validate())
	}
	for _, c := range []struct {
		what   string
		change func(*Meta)
		want   string
	}{
		{"newer version", func(m *Meta) { m.Version = 2 }, "format version 2"},
		{"no version", func(m *Meta) { m.Version = 0 }, "format version 0"},
		{"no id", func(m *Meta) { m.GroupID = "" }, "missing"},
		{"no name", func(m *Meta) { m.Name = "" }, "missing"},
		{"no site", func(m *Meta) { m.Site = "" }, "missing"},
		{"role", func(m *Meta) { m.Role = "tertiary" }, "unknown role"},
		{"no timeline", func(m *Meta) { m.Timelines = nil }, "no timeline"},
		{"timeline without id", func(m *Meta) { m.Timelines = []Timeline{{}} }, "timeline 1 of 1"},
		{"timelines descend", func(m *Meta) {
			m.Timelines = []Timeline{{ID: "T1"}, {ID: "T2", ForkOrdinal: 9}, {ID: "T3", ForkOrdinal: 8}}
		}, "timeline 3 of 3"},
		{"policy", func(m *Meta) { m.JournalFull = "hope" }, "journal-full"},
		{"sync", func(m *Meta) { m.Sync = "" }, "sync state"},
		{"journal size", func(m *Meta) { m.JournalSizeBytes = 0 }, "journal size"},
		{"member without volume", func(m *Meta) { m.Members = []Member{{Index: 3}} }, "member 3 has no volume"},
		{"negative size", func(m *Meta) { m.Members = []Member{{VolumeID: "v", SizeBytes: -1}} }, "size -1"},
		{"absurd size", func(m *Meta) { m.Members = []Member{{VolumeID: "v", SizeBytes: MaxVolumeBytes + 1}} },
			"the limit is"},
		{"index twice", func(m *Meta) { m.Members = []Member{{VolumeID: "v"}, {VolumeID: "w"}} }, "listed twice"},
		{"volume twice", func(m *Meta) { m.Members = []Member{{VolumeID: "v"}, {Index: 1, VolumeID: "v"}} },
			"both member 0 and member 1"},
	} {
		m := freshMeta("a")
		c.change(&m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.what, err, c.want)
		}
	}
}

// A volume that was removed may come back, under another index; an index keeps its volume for good.
func TestMembers(t *testing.T) {
	g := New(freshMeta("a"))
	add := func(m Member) error { _, _, err := g.Step(MemberChanged{Member: m}); return err }
	for _, m := range []Member{
		{Index: 0, VolumeID: "v", SizeBytes: 1}, {Index: 1, VolumeID: "w"}, {Index: 0, VolumeID: "v", SizeBytes: 2},
		{Index: 0, VolumeID: "v", State: MemberRemoved}, {Index: g.Meta.NextIndex() + 2, VolumeID: "v"},
	} {
		if err := add(m); err != nil {
			t.Fatal(err)
		}
	}
	if m := g.Meta.Member("v"); m == nil || m.Index != 2 || g.Meta.NextIndex() != 3 || g.Meta.Member("x") != nil {
		t.Fatalf("%+v, next index %d", m, g.Meta.NextIndex())
	}
	before := len(g.Meta.Members)
	for _, m := range []Member{{Index: 1, VolumeID: "other"}, {Index: 7, VolumeID: "w"}, {Index: 8}} {
		if err := add(m); !errors.Is(err, ErrPrecondition) || len(g.Meta.Members) != before || g.Meta.Validate() != nil {
			t.Fatalf("%+v: %v; members %+v", m, err, g.Meta.Members)
		}
	}
	if _, _, err := g.Step(MembersReplaced{Members: []Member{{Index: 1, VolumeID: "other"}}}); !errors.Is(err,
		ErrPrecondition) {
		t.Fatal(err)
	}
	if _, _, err := g.Step(MembersReplaced{Members: []Member{{Index: 1, VolumeID: "w", SizeBytes: 5}}}); err != nil ||
		len(g.Meta.Members) != 1 {
		t.Fatal(err)
	}
}

func TestWritableAndPromotable(t *testing.T) {
	for _, c := range []struct {
		role                 Role
		copy                 CopyState
		writable, promotable bool
	}{
		{RolePrimary, CopyWhole, true, true},
		{RoleDemoted, CopyWhole, false, true},
		{RoleSecondary, CopyWhole, false, true},
		{RoleSecondary, CopyPartial, false, false},
		{RoleSecondary, CopyAwaiting, false, false},
	} {
		m := freshMeta("a")
		m.Role, m.Copy = c.role, c.copy
		if g := New(m); g.Writable() != c.writable || g.Promotable() != c.promotable {
			t.Errorf("%+v: writable %v, promotable %v", c, g.Writable(), g.Promotable())
		}
	}
}

// TestRelateMirrors asks every pair of histories from both sides. Histories are forks of one tree, as real ones are.
func TestRelateMirrors(t *testing.T) {
	mirror := map[Relation]Relation{
		RelationSame: RelationSame, RelationTheyContinue: RelationIContinue, RelationIContinue: RelationTheyContinue,
		RelationTheyDiverged: RelationIDiverged, RelationIDiverged: RelationTheyDiverged,
		RelationBothDiverged: RelationBothDiverged, RelationUnrelated: RelationUnrelated,
	}
	history := func(t *rapid.T, who string) (list []Timeline, last uint64) {
		for _, id := range rapid.SliceOfN(rapid.SampledFrom([]string{"x", "y"}), 0, 3).Draw(t, who) {
			list = append(list, Timeline{ID: id, ForkOrdinal: last})
			last += rapid.Uint64Range(0, 3).Draw(t, "written")
		}
		return list, last
	}
	rapid.Check(t, func(t *rapid.T) {
		mine, myLast := history(t, "mine")
		theirs, theirLast := history(t, "theirs")
		r, common := Relate(mine, myLast, theirs, theirLast)
		back, commonBack := Relate(theirs, theirLast, mine, myLast)
		if back != mirror[r] || commonBack != common {
			t.Fatalf("%v at %d and %v at %d: %s at %d, from the other side %s at %d", mine, myLast, theirs, theirLast, r,
				common, back, commonBack)
		}
		if common > min(myLast, theirLast) {
			t.Fatalf("%s: common %d of %d and %d", r, common, myLast, theirLast)
		}
	})
}
