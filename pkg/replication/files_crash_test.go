package replication

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A power loss before any operation on the disk while a group is made, written to, changed, stopped, opened and
// deleted: it opens with what was flushed, or is not there yet, or not there any more. No crash looks like a missing or
// an older file.
func TestCrashWhileFilesChange(t *testing.T) {
	type instant struct {
		fs      *vfs.MemFS
		what    string
		flushed byte
		stage   string
	}
	var mu sync.Mutex
	var instants []instant
	rng := seeded(t)
	stage, flushed := "none", byte(0)
	s := &testSite{t: t, name: "site-a", fs: vfs.NewMem(), net: link.NewNetwork(nil), conf: func(c *Config) {
		c.ApplyInterval, c.CommitInterval = time.Hour, time.Hour
	}}
	s.open() // the pool is there
	s.kill()
	reading := map[vfs.Op]bool{vfs.OpOpen: true, vfs.OpRead: true, vfs.OpStat: true, vfs.OpSize: true, vfs.OpReadDir: true,
		vfs.OpNextData: true, vfs.OpSpace: true}
	s.before = func(op vfs.Op, _ string) {
		mu.Lock()
		defer mu.Unlock()
		if reading[op] {
			return
		}
		for _, percent := range []int{0, 50, 100} {
			instants = append(instants, instant{s.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: percent, RNG: rng}),
				fmt.Sprintf("%s, %d %%", op, percent), flushed, stage})
		}
	}
	note := func(what string) { mu.Lock(); stage = what; mu.Unlock() }
	s.open()
	t.Cleanup(s.kill)
	note("made")
	s.createGroup("shop", "site-b", 1, 1<<20, nil)
	note("there")
	for n := byte(1); n <= 3; n++ {
		g := s.group("shop")
		v := volumeOf(t, g, "v0")
		for off := int64(0); off < 384<<10; off += 64 << 10 { // more than a segment in all
			mustWrite(t, v, off, block(n, 64<<10))
		}
		mustFlush(t, v)
		mu.Lock()
		flushed = n
		mu.Unlock()
		if err := g.applier.applyAll(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := g.shipper.saveChangeMap(); err != nil {
			t.Fatal(err)
		}
		if _, err := g.step(core.Folded{}, nil); err != nil {
			t.Fatal(err)
		}
		g.cuts.mu.Lock()
		g.cuts.file.changed()
		err := g.cuts.saveLocked()
		g.cuts.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Resize("v0", 1<<20+int64(n)<<12); err != nil {
			t.Fatal(err)
		}
		s.restart()
	}
	if err := s.site.Close(); err != nil {
		t.Fatal(err)
	}
	s.kill()
	s.open()
	note("deleted")
	if err := s.site.DeleteGroup("shop", true); err != nil {
		t.Fatal(err)
	}
	note("gone")
	s.kill()
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d instants", len(instants))
	for i, at := range instants {
		name := fmt.Sprintf("instant %d of %d, stage %s, before %s", i, len(instants), at.stage, at.what)
		pool, err := blockdev.OpenPool(at.fs, "/pool", blockdev.WhoReplicator)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		site, err := Open(Config{FS: at.fs, Pool: pool, Site: "site-a", ApplyInterval: time.Hour})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if broken := site.Broken(); len(broken) > 0 {
			t.Fatalf("%s: %v", name, broken)
		}
		g, err := site.Group("shop")
		if err != nil && at.stage == "there" {
			t.Fatalf("%s: %v", name, err)
		}
		rec, recErr := pool.Get("v0")
		switch {
		case err != nil:
			if recErr == nil && rec.Group != "" {
				t.Fatalf("%s: volume v0 is in group %q, which is not there", name, rec.Group)
			}
		case at.flushed > 0:
			p := make([]byte, 1)
			if _, err := volumeOf(t, g, "v0").ReadAt(p, 128<<10); err != nil || p[0] < at.flushed {
				t.Fatalf("%s: read %d, %v; flushed was %d", name, p[0], err, at.flushed)
			}
		}
		site.Kill()
		pool.Close()
	}
}

// A group of which the directory is gone, and one that is damaged, can be given up; then their names are free again,
// and the volumes are in no group.
func TestGiveUpBrokenGroup(t *testing.T) {
	for _, what := range []string{"directory", "group.json", "checkpoint", "register and directory"} {
		t.Run(what, func(t *testing.T) {
			s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
			g := s.createGroup("shop", "", 2, 1<<20, nil)
			mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
			mustFlush(t, volumeOf(t, g, "v0"))
			dir := g.dir
			s.kill()
			doomed := map[string]string{"directory": dir, "register and directory": dir, "group.json": g.path(core.MetaFile),
				"checkpoint": g.path(checkpointName)}[what]
			if err := s.fs.RemoveAll(doomed); err != nil {
				t.Fatal(err)
			}
			if what == "register and directory" {
				if err := s.fs.Remove("/pool/" + registerFile); err != nil {
					t.Fatal(err)
				}
			}
			s.open()
			if len(s.site.Broken()) != 1 {
				t.Fatalf("broken: %v", s.site.Broken())
			}
			if err := s.site.DeleteGroup("shop", false); err == nil {
				t.Fatal("it is deleted without force")
			}
			for range 2 { // it can be repeated
				if err := s.site.DeleteGroup("shop", true); err != nil {
					t.Fatal(err)
				}
			}
			s.restart()
			if len(s.site.Broken()) != 0 || len(s.site.Groups()) != 0 {
				t.Fatalf("broken: %v, groups: %v", s.site.Broken(), s.site.Groups())
			}
			g, err := s.site.CreateGroup(GroupSpec{
				Name: "shop", Settings: core.Settings{JournalSizeBytes: MinJournalBytes},
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range []string{"v0", "v1"} {
				rec, err := s.pool.Get(id)
				if err != nil || rec.Group != "" {
					t.Fatalf("volume %s is in group %q, %v", id, rec.Group, err)
				}
				if err := g.AddVolume(rec, nil); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A pool that was copied to another disk as a whole opens.
func TestCopiedPoolOpens(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := s.createGroup("shop", "", 1, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	s.kill()
	other := vfs.NewMem()
	if err := other.MkdirAll("/another/place"); err != nil { // numbers of inodes differ, as on another disk
		t.Fatal(err)
	}
	copyTree(t, other, "/pool", s.fs, "/pool")
	s.fs = other
	s.open()
	if got := content(t, volumeOf(t, s.group("shop"), "v0")); got[0] != 'a' {
		t.Fatalf("read %q", got[0])
	}
	s.restart()
	s.group("shop")
}
