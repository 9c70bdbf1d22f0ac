package journal

import (
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A journal that is rewound is empty at the lower ordinal, takes records with ordinals that it had before, never goes
// back in its places, and is the same after a restart, and after one that comes before Rewind itself.
func TestRewind(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	j := mustOpen(t, o)
	for i := 1; i <= 100; i++ {
		mustAppend(t, j, 3000, byte(i))
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	end, begin := j.End(), j.NextBegin()
	if !end.Before(begin) {
		t.Fatalf("the next segment begins at %v, before the end at %v", begin, end)
	}
	rewound := o
	rewound.OldestSegment, rewound.StartOrdinal, rewound.MinDurableOrdinal = begin.Segment, 40, 40
	check := func(j *Journal, what string) {
		t.Helper()
		if j.Head() != 40 || j.Durable() != 40 || len(j.Segments()) != 0 || j.End() != begin || j.DurableEnd() != begin {
			t.Fatalf("%s: head %d, durable %d, end %v %v, segments %v", what, j.Head(), j.Durable(), j.End(), j.DurableEnd(),
				j.Segments())
		}
	}
	early := rewound
	early.FS = fs.CrashClone(vfs.CrashConfig{})
	check(mustOpen(t, early), "power loss before Rewind")

	reader := j.NewCursor(j.Segments()[0].Begin)
	if _, err := reader.Next(1); err != nil {
		t.Fatal(err)
	}
	if err := j.Rewind(40); err != nil {
		t.Fatal(err)
	}
	check(j, "Rewind")
	reader.Close()
	h, _ := mustAppend(t, j, 3000, 7)
	if err := j.Sync(); err != nil || h.Ordinal != 41 {
		t.Fatalf("ordinal %d, want 41: %v", h.Ordinal, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	rewound.Visit = func(h Header, _ Location) error {
		if n++; h.Ordinal != 41 || h.Offset != 7*4096 {
			t.Errorf("recovered %+v", h)
		}
		return nil
	}
	if j = mustOpen(t, rewound); n != 1 || j.Head() != 41 {
		t.Fatalf("recovered %d records, head %d", n, j.Head())
	}
	// The other way: the site takes its rewinding back.
	if err := j.Rewind(90); err != nil {
		t.Fatal(err)
	}
	if h, _ = mustAppend(t, j, 100, 8); h.Ordinal != 91 {
		t.Fatalf("ordinal %d, want 91", h.Ordinal)
	}
}
