package core

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

func TestCheckTimelines(t *testing.T) {
	a, b, c := uuid.NewString(), uuid.NewString(), uuid.NewString()
	many := make([]Timeline, MaxTimelines+1)
	for i := range many {
		many[i].ID = uuid.NewString()
	}
	for name, tc := range map[string]struct {
		list  []Timeline
		sound int
		want  string
	}{
		"none":           {nil, 0, ""},
		"one":            {[]Timeline{{ID: a}}, 1, ""},
		"three":          {[]Timeline{{ID: a}, {ID: b, ForkOrdinal: 5}, {ID: c, ForkOrdinal: 5}}, 3, ""},
		"as many as fit": {many[:MaxTimelines], MaxTimelines, ""},
		"too many":       {many, MaxTimelines, "limit of 4096"},
		"a name":         {[]Timeline{{ID: a}, {ID: "main"}}, 1, `timeline 2 of 2 has the malformed identifier "main"`},
		"empty":          {[]Timeline{{}}, 0, "malformed"},
		"upper case":     {[]Timeline{{ID: strings.ToUpper("a" + a[1:])}}, 0, "malformed"},
		"in braces":      {[]Timeline{{ID: "{" + a + "}"}}, 0, "malformed"},
		"long":           {[]Timeline{{ID: strings.Repeat("\x1b", 1<<20)}}, 0, "malformed"},
		"twice":          {[]Timeline{{ID: a}, {ID: b}, {ID: a}}, 2, "identifier of an earlier one"},
		"first forks":    {[]Timeline{{ID: a, ForkOrdinal: 1}}, 0, "is the first, and forks"},
		"descending": {[]Timeline{{ID: a}, {ID: b, ForkOrdinal: 9}, {ID: c, ForkOrdinal: 8}}, 2,
			"before the one that it continues (9)"},
	} {
		sound, err := CheckTimelines(tc.list)
		if sound != tc.sound || (err == nil) != (tc.want == "") {
			t.Errorf("%s: %d are sound, %v; want %d, %q", name, sound, err, tc.sound, tc.want)
		}
		if err != nil && (!strings.Contains(err.Error(), tc.want) || len(err.Error()) > 300 ||
			untrusted.Reason(err.Error()) != err.Error()) {
			t.Errorf("%s: %.500v; want %q", name, err, tc.want)
		}
	}
}

// FuzzCheckTimelines: a list that passes makes a record that passes too, alone and with what a promotion adds to it.
func FuzzCheckTimelines(f *testing.F) {
	f.Add("0b0e2f5e-52a4-4a8c-9b38-2f2f0f0f0f0f", "1c0e2f5e-52a4-4a8c-9b38-2f2f0f0f0f0f", uint64(0), uint64(7), uint64(3))
	f.Add("x", "", uint64(1), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, a, b string, forkA, forkB, durable uint64) {
		list := []Timeline{{ID: a, ForkOrdinal: forkA}, {ID: b, ForkOrdinal: forkB}}
		sound, err := CheckTimelines(list)
		if again, cut := CheckTimelines(list[:sound]); again != sound || cut != nil {
			t.Fatalf("%d of %v are sound, and alone: %d, %v", sound, list, again, cut)
		}
		if err != nil {
			return
		}
		g := New(Meta{
			Version: MetaVersion, GroupID: "g", Name: "g", Site: "b",
			Settings: Settings{Peer: "a", JournalSizeBytes: 1, JournalFull: PolicyTrack}, Role: RoleSecondary, Timelines: list,
			Sync: SyncNever, Copy: CopyWhole,
		})
		if _, _, err := g.Step(Promote{Force: true, Durable: durable, NewTimeline: uuid.NewString()}); err != nil {
			t.Fatal(err)
		}
		if err := g.Meta.Validate(); err != nil {
			t.Fatalf("promoted at %d after %v: %v", durable, list, err)
		}
		if _, err := CheckTimelines(g.Meta.Timelines); err != nil {
			t.Fatalf("promoted at %d after %v: %v", durable, list, err)
		}
	})
}
