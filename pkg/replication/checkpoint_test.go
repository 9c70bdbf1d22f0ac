package replication

import (
	"fmt"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const checkpointPath = "/checkpoint"

// numbered is a checkpoint whose every field says which one it is.
func numbered(n uint64) checkpoint {
	return checkpoint{
		AppliedOrdinal: n, Applied: journal.Position{Segment: n + 1, Offset: int64(n) * 64}, OldestSegment: n + 2,
		DurableOrdinal: n + 3, ReleasedAcked: n + 4, Owner: owner{group: [16]byte{byte(n)}, pool: [16]byte{1, byte(n)}},
		Mark: journal.Mark{Ordinal: n + 3, End: journal.Position{Segment: n + 5, Offset: int64(n) + 6}, Chain: uint32(n) + 7,
			File: n + 8},
		Files: [fileCount]uint64{n + 9, n + 10, n + 11},
	}
}

func mustOpenCheckpoint(t *testing.T, fs vfs.FS) *checkpointFile {
	t.Helper()
	if _, err := fs.Stat(checkpointPath); err != nil {
		if err := createCheckpoint(fs, checkpointPath, checkpoint{}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := openCheckpoint(fs, checkpointPath)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func flipByte(t *testing.T, fs vfs.FS, path string, off int64, mask byte) {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Datasync(); err != nil {
		t.Fatal(err)
	}
}

// Whatever share of an unfinished write a power loss keeps, the file opens with the checkpoint before it or with it.
func TestCheckpointSurvivesPowerLoss(t *testing.T) {
	rng := seeded(t)
	fs := vfs.NewMem()
	c := mustOpenCheckpoint(t, fs)
	for n := uint64(1); n <= 50; n++ {
		if err := c.change(func(next *checkpoint) { *next = numbered(n) }); err != nil {
			t.Fatal(err)
		}
		crashed := fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
		again := mustOpenCheckpoint(t, crashed)
		want := numbered(n)
		want.Generation = c.last.Generation
		if again.last != want {
			t.Fatalf("after a power loss %+v, want %+v", again.last, want)
		}
		// The next write may be torn.
		if _, err := again.file.WriteAt(numbered(n+1).encodeAs(want.Generation+1),
			int64((want.Generation+1)%2)*checkpointSlotBytes); err != nil {
			t.Fatal(err)
		}
		torn := mustOpenCheckpoint(t, crashed.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng}))
		next := numbered(n + 1)
		next.Generation = want.Generation + 1
		if torn.last != want && torn.last != next {
			t.Fatalf("after a torn write %+v", torn.last)
		}
	}
}

func (c checkpoint) encodeAs(generation uint64) []byte {
	c.Generation = generation
	return c.encode()
}

// One damaged slot leaves the other one; two are an error that names the file and both places.
func TestCheckpointDamage(t *testing.T) {
	fs := vfs.NewMem()
	c := mustOpenCheckpoint(t, fs)
	for n := uint64(1); n <= 2; n++ {
		if err := c.change(func(next *checkpoint) { *next = numbered(n) }); err != nil {
			t.Fatal(err)
		}
	}
	newer := int64(c.last.Generation%2) * checkpointSlotBytes
	older := checkpointSlotBytes - newer
	for off := range int64(checkpointUsedBytes) {
		for bit := range 8 {
			one := fs.CrashClone(vfs.CrashConfig{})
			flipByte(t, one, checkpointPath, newer+off, 1<<bit)
			if got := mustOpenCheckpoint(t, one).last; got.AppliedOrdinal != 1 {
				t.Fatalf("byte %d bit %d: %+v, want the checkpoint before", off, bit, got)
			}
			flipByte(t, one, checkpointPath, older+off, 1<<bit)
			_, err := openCheckpoint(one, checkpointPath)
			if err == nil || !strings.Contains(err.Error(), checkpointPath) || !strings.Contains(err.Error(), "offset 0") ||
				!strings.Contains(err.Error(), fmt.Sprint("offset ", checkpointSlotBytes)) {
				t.Fatalf("byte %d bit %d of both slots: %v", off, bit, err)
			}
		}
	}
	for size := range int64(checkpointSlotBytes + checkpointUsedBytes) {
		cut := fs.CrashClone(vfs.CrashConfig{})
		f, err := cut.Open(checkpointPath)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
		got, err := openCheckpoint(cut, checkpointPath)
		switch {
		case size < checkpointUsedBytes && (err == nil || !strings.Contains(err.Error(), checkpointPath)):
			t.Fatalf("cut to %d bytes: %v", size, err)
		case size >= checkpointUsedBytes && err != nil:
			t.Fatalf("cut to %d bytes: %v", size, err)
		case err == nil && got.last.AppliedOrdinal != 1 && got.last.AppliedOrdinal != 2:
			t.Fatalf("cut to %d bytes: %+v", size, got.last)
		}
	}
}
