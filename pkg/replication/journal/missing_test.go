package journal

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Each live segment, removed: the error has the name of its file, also when everything in it was applied.
func TestMissingSegmentIsNamed(t *testing.T) {
	fs := vfs.NewMem()
	var mark Mark
	announced := 0
	o := Options{FS: fs, Dir: "/j", SegmentBytes: minSegmentBytes, Checkpoint: "/checkpoint",
		Announce: func(m Mark) error {
			mark = m
			announced++
			return nil
		}}
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for len(j.Segments()) < 4 {
		if _, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, 8<<10)); err != nil {
			t.Fatal(err)
		}
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if announced != 4 || mark != j.DurableMark() {
		t.Fatalf("%d segments were announced, the last with %+v; the journal ends with %+v", announced, mark, j.DurableMark())
	}
	head := j.Head()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// Everything is applied: only the mark says that there is a journal.
	o.Mark, o.StartOrdinal, o.MinDurableOrdinal = mark, head, head
	for n := uint64(1); n <= 4; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			o := o
			clone := fs.CrashClone(vfs.CrashConfig{})
			name := path.Join("/j", fileName(n))
			if err := clone.Remove(name); err != nil {
				t.Fatal(err)
			}
			o.FS = clone
			_, err := Open(o)
			var corrupt *CorruptionError
			if !errors.As(err, &corrupt) || corrupt.File != name || !strings.Contains(err.Error(), "missing") {
				t.Fatalf("%v", err)
			}
			// Released, it is not missed.
			o.OldestSegment = n + 1
			o.StartOrdinal = head
			if j, err := Open(o); err != nil {
				t.Fatal(err)
			} else {
				j.Close()
			}
		})
	}
}

// Records of a segment that could not be announced are not durable; the next sync announces it again.
func TestSegmentThatIsNotAnnounced(t *testing.T) {
	refused := errors.New("refused")
	fail := refused
	j, err := Open(Options{FS: vfs.NewMem(), Dir: "/j", SegmentBytes: minSegmentBytes, Announce: func(Mark) error {
		return fail
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := j.Sync(); !errors.Is(err, refused) || j.Durable() != 0 {
		t.Fatalf("sync: %v, durable %d", err, j.Durable())
	}
	fail = nil
	if err := j.Sync(); err != nil || j.Durable() != 1 {
		t.Fatalf("sync: %v, durable %d", err, j.Durable())
	}
}

// A checkpoint that is older than a segment is told by its generation.
func TestOlderCheckpointIsNamed(t *testing.T) {
	fs, generation := vfs.NewMem(), uint64(7)
	o := Options{FS: fs, Dir: "/j", SegmentBytes: minSegmentBytes, Checkpoint: "/checkpoint",
		Generation: func() uint64 { return generation }}
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Sync(), j.Close()); err != nil {
		t.Fatal(err)
	}
	generation = 6
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "/checkpoint") {
		t.Fatalf("%v", err)
	}
	generation = 7
	if j, err = Open(o); err != nil {
		t.Fatal(err)
	}
	j.Close()
}
