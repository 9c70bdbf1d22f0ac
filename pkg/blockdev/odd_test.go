package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// oddPool is a pool on disk with two volumes and a snapshot, closed.
func oddPool(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "pool")
	p, err := OpenPool(vfs.OS, dir, WhoDriver)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		if _, err := p.Create(VolumeRecord{ID: id, Name: id, SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"s", "u"} {
		if _, err := p.CreateSnapshot(SnapshotRecord{
			ID: id, Name: id, SourceVolumeID: "b", SizeBytes: 1 << 20, BlockSizeBytes: 512, Order: OrderFlush,
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Whatever lies in the place of a volume or snapshot, or of its record, the pool opens, the others are there, and the
// error names it.
func TestOddEntriesCostOnlyThemselves(t *testing.T) {
	places := []struct {
		path             string // in the pool
		volumes, records string // those that can be read
	}{
		{"volumes/stray", "a b", "s u"},
		{"volumes/a", "b", "s u"},
		{"volumes/a/volume.json", "b", "s u"},
		{"snapshots/stray", "a b", "s u"},
		{"snapshots/s", "a b", "u"},
		{"snapshots/s/snapshot.json", "a b", "u"},
	}
	for _, odd := range testenv.Odds {
		for _, place := range places {
			t.Run(odd.Name+"/"+place.path, func(t *testing.T) {
				dir := oddPool(t)
				path := filepath.Join(dir, place.path)
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				if err := odd.Put(path, t.TempDir()); err != nil {
					t.Fatal(err)
				}
				testenv.Within(t, "the pool", func() { checkOddPool(t, dir, path, place.volumes, place.records) })
				if _, err := os.Lstat(path); err != nil {
					t.Error("it was removed:", err)
				}
			})
		}
	}
}

func checkOddPool(t *testing.T, dir, path, volumes, snapshots string) {
	p, err := OpenPool(vfs.OS, dir, WhoDriver)
	if err != nil {
		t.Error(err)
		return
	}
	defer p.Close()
	if _, err := p.Sweep(); err != nil {
		t.Error(err)
	}
	var ids, snapshotIDs []string
	recs, volumesErr := p.List()
	for _, rec := range recs {
		ids = append(ids, rec.ID)
	}
	snaps, snapshotsErr := p.ListSnapshots()
	for _, rec := range snaps {
		snapshotIDs = append(snapshotIDs, rec.ID)
	}
	if got := strings.Join(ids, " "); got != volumes {
		t.Errorf("volumes %q, want %q", got, volumes)
	}
	if got := strings.Join(snapshotIDs, " "); got != snapshots {
		t.Errorf("snapshots %q, want %q", got, snapshots)
	}
	err = errors.Join(volumesErr, snapshotsErr)
	if info, statErr := os.Lstat(path); statErr == nil && info.IsDir() && strings.HasPrefix(path, dir+"/snapshots/") &&
		filepath.Dir(path) == dir+"/snapshots" {
		return // a snapshot's directory without a record is one that is being deleted
	}
	if err == nil || !recordfile.OnlyCorrupt(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that says %s is damaged", err, path)
	}
	if _, err := p.Create(VolumeRecord{ID: "new", Name: "new", SizeBytes: 1 << 20}); err != nil {
		t.Errorf("no volume can be made: %v", err)
	}
	if err := p.Delete("b"); err != nil {
		t.Errorf("another volume cannot be deleted: %v", err)
	}
}

// What cannot be removed does not keep the rest from being removed.
func TestSweepGoesOn(t *testing.T) {
	mem := vfs.NewMem()
	fsys := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
		if op == vfs.OpRemoveAll && strings.Contains(name, "/bad.") {
			return errors.New("cannot be removed")
		}
		return nil
	})
	p, err := OpenPool(fsys, "/pool", WhoDriver)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"volumes/bad.deleting", "volumes/good.deleting", "snapshots/bad.creating", "snapshots/good.creating",
	} {
		if err := mem.MkdirAll("/pool/" + name); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := p.Sweep()
	if got := strings.Join(removed, " "); got != "/pool/volumes/good.deleting /pool/snapshots/good.creating" {
		t.Errorf("removed %s", got)
	}
	if err == nil || strings.Count(err.Error(), "cannot be removed") != 2 {
		t.Errorf("error %v", err)
	}
}

// A lock that is no file is refused at once, with its name, and what a link points to stays as it is.
func TestOddLocksAndImages(t *testing.T) {
	for _, odd := range testenv.Odds {
		if odd.Name == "empty file" || odd.Name == "other file" || odd.Name == "huge file" {
			continue
		}
		for _, name := range []string{"driver.lock", recordsLock} {
			dir, outside := oddPool(t), t.TempDir()
			path := filepath.Join(dir, name)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := odd.Put(path, outside); err != nil {
				t.Fatal(err)
			}
			testenv.Within(t, "opening the pool", func() {
				p, err := OpenPool(vfs.OS, dir, WhoDriver)
				if err == nil {
					p.Close()
				}
				if err == nil || !strings.Contains(err.Error(), path) {
					t.Errorf("%s in place of %s: error %v", odd.Name, name, err)
				}
				holder(path)
			})
			if text, err := os.ReadFile(filepath.Join(outside, "target of "+name)); err == nil && string(text) != "foreign" {
				t.Errorf("%s in place of %s: the file behind the link is now %q", odd.Name, name, text)
			}
		}
		image := filepath.Join(t.TempDir(), "image")
		if err := odd.Put(image, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		for _, root := range []string{"", "/"} {
			for _, flags := range []int{os.O_RDONLY, os.O_RDWR} {
				testenv.Within(t, "opening the image", func() {
					if f, err := openBacking(LoopConfig{BackingPath: image, Root: root}, flags); err == nil {
						f.Close()
						t.Errorf("%s was opened as an image, root %q, flags %x", odd.Name, root, flags)
					} else if !strings.Contains(err.Error(), image) {
						t.Errorf("%s, root %q: the error does not name the image: %v", odd.Name, root, err)
					}
				})
			}
		}
	}
}
