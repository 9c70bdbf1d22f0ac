package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// TestVolumesAfterChanges: a list has what was written last, by this process or another one, also when its entries were
// cached, and callers cannot change the cache.
func TestVolumesAfterChanges(t *testing.T) {
	dir := t.TempDir()
	pool, err := blockdev.OpenPool(vfs.OS, dir, blockdev.WhoDriver)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for i := range 3 {
		id := fmt.Sprintf("vol-%d", i)
		if _, err := pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	d := New(pool, vfs.OS, dir)
	list := func() (ids, groups string) {
		t.Helper()
		recs, err := d.Volumes()
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range recs {
			ids, groups = ids+rec.ID+" ", groups+rec.Remote+" "
			rec.Remote = "changed by the caller"
		}
		return ids, groups
	}
	list()
	time.Sleep(2 * settledAfter)
	list()
	if n := len(d.cache.entries); n != 3 {
		t.Fatalf("%d records are cached, want 3", n)
	}
	// Several changes within one tick of the clock that files get their times from.
	for n := range 20 {
		remote := fmt.Sprintf("site-%d", n)
		if _, err := pool.Update("vol-1", func(r *blockdev.VolumeRecord) error {
			r.Remote = remote
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if _, groups := list(); groups != " "+remote+"  " {
			t.Fatalf("after change %d: %q", n, groups)
		}
	}
	if err := pool.Delete("vol-0"); err != nil {
		t.Fatal(err)
	}
	if ids, _ := list(); ids != "vol-1 vol-2 " {
		t.Errorf("after a deletion: %q", ids)
	}
}
