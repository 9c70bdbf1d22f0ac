package replication

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// openOddSite opens a site on the operating system's file system.
func openOddSite(dir string) (*Site, *blockdev.Pool, error) {
	pool, err := blockdev.OpenPool(vfs.OS, dir, blockdev.WhoReplicator)
	if err != nil {
		return nil, nil, err
	}
	site, err := Open(Config{FS: vfs.OS, Pool: pool, Site: "site-a"})
	if err != nil {
		pool.Close()
	}
	return site, pool, err
}

// makeOddSite makes a site with the groups "shop" and "other", each with a volume of its name, and closes it. It
// returns the directory of shop.
func makeOddSite(t *testing.T, dir string) string {
	t.Helper()
	site, pool, err := openOddSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var shop string
	for _, name := range []string{"shop", "other"} {
		g, err := site.CreateGroup(GroupSpec{Name: name, Settings: core.Settings{JournalSizeBytes: MinJournalBytes}})
		if err != nil {
			t.Fatal(err)
		}
		rec, err := pool.Create(blockdev.VolumeRecord{ID: name, Name: name, SizeBytes: 1 << 20, Replicable: true,
			Order: blockdev.OrderFlush})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.AddVolume(rec, nil); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, volumeOf(t, g, name), 0, block(1, 4096))
		mustFlush(t, volumeOf(t, g, name))
		if name == "shop" {
			shop = g.dir
		}
	}
	if err := site.Close(); err != nil {
		t.Fatal(err)
	}
	return shop
}

// liveSegment is the file with the group's last durable record. The first file by name may be a spare, which is
// replaced.
func liveSegment(t *testing.T, shop string) string {
	c, err := openCheckpoint(vfs.OS, filepath.Join(shop, checkpointName))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if c.last.Mark.File == 0 {
		t.Fatal("the checkpoint names no segment")
	}
	return filepath.Join(shop, core.JournalDir, fmt.Sprintf("%08d.seg", c.last.Mark.File))
}

// Whatever lies in the place of a group's file, or beside the groups, the site opens and the other group serves; what
// is wrong is named, and no foreign entry is removed.
func TestOddFilesCostOnlyTheirGroup(t *testing.T) {
	// A group opens without these; what is in their place is replaced or not used.
	const optional = true
	places := []struct {
		path     func(t *testing.T, shop string) string
		optional bool
	}{
		{func(_ *testing.T, shop string) string { return filepath.Join(shop, core.MetaFile) }, false},
		{func(_ *testing.T, shop string) string { return filepath.Join(shop, checkpointName) }, false},
		{func(_ *testing.T, shop string) string { return filepath.Join(shop, changeMapFile) }, optional},
		{func(_ *testing.T, shop string) string { return filepath.Join(shop, cutsFile) }, optional},
		{func(_ *testing.T, shop string) string { return filepath.Join(shop, rememberedName) }, optional},
		{func(_ *testing.T, shop string) string { return filepath.Join(shop, core.JournalDir) }, false},
		{liveSegment, false},
		{func(_ *testing.T, shop string) string { return filepath.Join(shop, core.JournalDir, "notes") }, optional},
		{func(_ *testing.T, shop string) string { return shop }, false},
	}
	for _, odd := range testenv.Odds {
		for _, place := range places {
			dir := filepath.Join(t.TempDir(), "pool")
			shop := makeOddSite(t, dir)
			path := place.path(t, shop)
			t.Run(odd.Name+"/"+strings.ReplaceAll(strings.TrimPrefix(path, filepath.Dir(shop)), "/", "_"), func(t *testing.T) {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				if err := odd.Put(path, t.TempDir()); err != nil {
					t.Fatal(err)
				}
				testenv.Within(t, "the site", func() { checkOddSite(t, dir, shop, path, place.optional) })
			})
		}
	}
}

func checkOddSite(t *testing.T, dir, shop, path string, optional bool) {
	site, pool, err := openOddSite(dir)
	if err != nil {
		t.Error(err)
		return
	}
	defer pool.Close()
	defer site.Kill()
	checkOtherServes(t, site)
	if _, err := site.Group("shop"); err == nil {
		if !optional {
			t.Errorf("the group opened, with something else in the place of %s", path)
		}
		return
	}
	if err := site.Broken()[shop]; err == nil || site.BrokenName(shop) != "shop" || !strings.Contains(err.Error(), path) {
		t.Errorf("group %q is broken by %v, want shop and %s named", site.BrokenName(shop), err, path)
	}
}

func checkOtherServes(t *testing.T, site *Site) {
	g, err := site.Group("other")
	if err != nil {
		t.Error(err)
		return
	}
	v, err := g.Volume("other")
	if err == nil {
		_, err = v.WriteAt(block(2, 4096), 4096)
	}
	if err == nil {
		err = v.Flush()
	}
	if err == nil {
		_, err = site.CreateGroup(GroupSpec{Name: "new", Settings: core.Settings{JournalSizeBytes: MinJournalBytes}})
	}
	if err != nil {
		t.Errorf("the other groups: %v", err)
	}
}

func TestOddEntriesBesideGroups(t *testing.T) {
	const uuid = "7d8f3a52-8b0e-4a53-9f64-0d7c0e1c2b3a"
	for _, odd := range testenv.Odds {
		for _, name := range []string{"notes", "notes.creating", "notes.deleting", uuid, uuid + creatingSuffix,
			uuid + deletingSuffix} {
			if odd.Name == "directory" && strings.HasPrefix(name, uuid) {
				continue // that is what a crash leaves
			}
			t.Run(odd.Name+"/"+name, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "pool")
				path := filepath.Join(filepath.Dir(makeOddSite(t, dir)), name)
				if err := odd.Put(path, t.TempDir()); err != nil {
					t.Fatal(err)
				}
				testenv.Within(t, "the site", func() {
					site, pool, err := openOddSite(dir)
					if err != nil {
						t.Error(err)
						return
					}
					defer pool.Close()
					defer site.Kill()
					checkOtherServes(t, site)
					if _, err := site.Group("shop"); err != nil {
						t.Error(err)
					}
					if err := site.Broken()[path]; err == nil || !strings.Contains(err.Error(), path) || len(site.Broken()) != 1 {
						t.Errorf("broken: %v, want %s and its path named", site.Broken(), path)
					}
					if err := site.DeleteGroup("", true); err != nil {
						t.Error(err)
					}
				})
				if _, err := os.Lstat(path); err != nil {
					t.Error("it was removed:", err)
				}
				if odd.Name == "directory" {
					if _, err := os.Stat(filepath.Join(path, "notes")); err != nil {
						t.Error("what was in it was removed:", err)
					}
				}
			})
		}
	}
}
