package journal

import (
	"sync/atomic"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// readsFS counts the bytes that are read from its files.
type readsFS struct {
	vfs.FS
	bytes *atomic.Int64
}

// countReads returns fsys with the bytes counted that are read from files opened for reading and writing.
func countReads(fsys vfs.FS, bytes *atomic.Int64) vfs.FS { return readsFS{fsys, bytes} }

func (r readsFS) Create(name string) (vfs.File, error) { return r.counted(r.FS.Create(name)) }

func (r readsFS) Open(name string) (vfs.File, error) { return r.counted(r.FS.Open(name)) }

func (r readsFS) counted(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return readsFile{f, r.bytes}, nil
}

type readsFile struct {
	vfs.File
	bytes *atomic.Int64
}

func (f readsFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.bytes.Add(int64(n))
	return n, err
}

// TestReadsOfTheNewestRecords: what ships, applies and looks for an acknowledged ordinal a moment after the records
// were written reads nothing from the files.
func TestReadsOfTheNewestRecords(t *testing.T) {
	for _, withMemory := range []bool{true, false} {
		var read atomic.Int64
		o := testOptions(countReads(vfs.NewMem(), &read))
		if withMemory {
			o.Memory = NewMemory(DefaultMemoryBytes)
		}
		j := mustOpen(t, o)
		begin := j.End()
		const records = 100
		for range records {
			mustAppend(t, j, 4096, 'x')
		}
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the sender and apply
			c := j.NewCursor(begin)
			for seen := 0; seen < records; {
				recs, err := c.Next(1 << 20)
				if err != nil || len(recs) == 0 {
					t.Fatal(len(recs), err)
				}
				seen += len(recs)
			}
			c.Close()
		}
		for ordinal := range uint64(records) {
			if _, ok, err := j.PositionOf(ordinal); !ok || err != nil {
				t.Fatal(ordinal, ok, err)
			}
		}
		if got := read.Load(); (got == 0) != withMemory {
			t.Errorf("with memory %v: %d bytes are read from the files", withMemory, got)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
