package replication

import (
	"errors"
	"path"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// slowApply leaves what is flushed in the journals.
func slowApply(c *Config) { c.ApplyInterval = time.Hour }

// TestNotOpen: a group that cannot be opened is not one that does not exist. Its volumes are its own until it is open
// again, with all that was flushed, or is given up.
func TestNotOpen(t *testing.T) {
	away := func(s *testSite, name string) (back func()) {
		must(t, s.fs.Rename(name, name+".away"))
		return func() { must(t, s.fs.RemoveAll(name)); must(t, s.fs.Rename(name+".away", name)) }
	}
	failing := func(with error) func(*testSite, string) func() {
		return func(s *testSite, dir string) func() {
			s.fails = func(op vfs.Op, name string) error {
				if op == vfs.OpOpen && name == path.Join(dir, checkpointName) {
					return with
				}
				return nil
			}
			return func() { s.fails = nil }
		}
	}
	for name, obstruct := range map[string]func(s *testSite, dir string) (clear func()){
		"no space":     failing(syscall.ENOSPC),
		"I/O error":    failing(syscall.EIO),
		"no directory": func(s *testSite, dir string) func() { return away(s, dir) },
		"a directory that does not say whose it is": func(s *testSite, dir string) func() {
			meta, register := away(s, path.Join(dir, core.MetaFile)), away(s, path.Join("/pool", registerFile))
			return func() { meta(); register() }
		},
	} {
		for _, giveUp := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				s := newTestSite(t, link.NewNetwork(nil), "site-a", slowApply)
				g := s.createGroup("shop", "", 1, 1<<20, nil)
				s.createGroup("next", "", 0, 0, nil)
				mustWrite(t, volumeOf(t, g, "v0"), 0, block('x', 4096))
				mustFlush(t, volumeOf(t, g, "v0"))
				s.kill()
				clear := obstruct(s, g.dir)
				s.open()
				s.wantNotOpen("shop", "v0")
				if giveUp {
					must(t, s.site.DeleteGroup("shop", true))
					if _, err := s.site.Group("shop"); !errors.Is(err, ErrNotFound) {
						t.Errorf("given up: %v", err)
					}
					if _, err := s.site.GroupOf("v0"); !errors.Is(err, ErrNotFound) {
						t.Errorf("the volume of a group that was given up: %v", err)
					}
					must(t, s.add("next", "v0"))
					return
				}
				s.kill()
				clear()
				s.open()
				if got := content(t, volumeOf(t, s.group("shop"), "v0")); got[0] != 'x' {
					t.Error("a write that was flushed is lost")
				}
			})
		}
	}
}

// wantNotOpen checks that nothing takes a volume away from a group that is not open.
func (s *testSite) wantNotOpen(name, volume string) {
	s.t.Helper()
	image, err := s.pool.OpenImage(volume)
	must(s.t, err)
	p := make([]byte, 1)
	_, err = image.ReadAt(p, 0)
	must(s.t, errors.Join(err, image.Close()))
	if p[0] != 0 {
		s.t.Fatal("what was written is in the image already")
	}
	_, group := s.site.Group(name)
	_, groupOf := s.site.GroupOf(volume)
	_, create := s.site.CreateGroup(GroupSpec{Name: name, Settings: core.Settings{JournalSizeBytes: MinJournalBytes}})
	for what, err := range map[string]error{
		"group": group, "group of its volume": groupOf, "a new one of its name": create,
		"another group": s.add("next", volume), "delete": s.site.DeleteGroup(name, false),
	} {
		if !errors.Is(err, ErrNotOpen) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), name) ||
			!strings.Contains(err.Error(), "slipctl group delete") {
			s.t.Errorf("%s: %v", what, err)
		}
	}
	if rec, err := s.pool.Get(volume); err != nil || rec.Group != name {
		s.t.Errorf("the record says %v, %v", rec, err)
	}
}

// add puts a volume of the pool into a group, as its record says that it is.
func (s *testSite) add(group, volume string) error {
	s.t.Helper()
	rec, err := s.pool.Get(volume)
	must(s.t, err)
	return s.group(group).AddVolume(rec, nil)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestVolumeOfAnotherGroup: a group takes no volume that another one has. One that is in none is taken, whatever its
// record says, unless that changes meanwhile.
func TestVolumeOfAnotherGroup(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	s.createGroup("shop", "", 1, 1<<20, nil)
	s.createGroup("next", "", 0, 0, nil)
	if err := s.add("next", "v0"); !errors.Is(err, ErrInUse) ||
		!strings.Contains(err.Error(), "slipctl group remove shop v0") {
		t.Errorf("a volume of an open group: %v", err)
	}
	bind := func(group string) {
		_, err := s.pool.Update("late", func(r *blockdev.VolumeRecord) error { r.Group = group; return nil })
		must(t, err)
	}
	s.createVolume("late", 1<<20)
	bind("shop")
	record := s.pool.RecordPath("late")
	changed, err := vfs.ReadFile(s.fs, record, 1<<20)
	must(t, err)
	reads := 0
	s.before = func(op vfs.Op, name string) {
		if op != vfs.OpOpen || name != record {
			return
		}
		if reads++; reads == 2 { // what the group of the first record has is looked up
			must(t, vfs.WriteFileAtomic(s.fs, record, changed))
		}
	}
	s.restart()
	for _, tc := range []struct {
		record string
		want   error
	}{{"next", ErrInUse}, {"shop", nil}} {
		bind(tc.record)
		rec, err := s.pool.Get("late")
		must(t, err)
		g := s.createGroup("for-"+tc.record, "", 0, 0, nil)
		reads = 0
		if err := g.AddVolume(rec, nil); !errors.Is(err, tc.want) {
			t.Errorf("a record that says %s: %v, want %v", tc.record, err, tc.want)
		}
	}
}

// TestCopyStaysWithoutItsGroup: a copy does not go on to another group while the one that it is in is not open: that
// would never open again.
func TestCopyStaysWithoutItsGroup(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, 1<<20, nil)
	next := a.createGroup("next", "site-b", 0, 0, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	closed := path.Join(caughtUp(t, g, b).dir, checkpointName)
	caughtUp(t, next, b)
	var full atomic.Bool
	var looks atomic.Int64
	record := b.pool.RecordPath("v0")
	b.fails = func(op vfs.Op, name string) error {
		if op == vfs.OpOpen && name == record {
			looks.Add(1)
		}
		if op == vfs.OpOpen && name == closed && full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}
	full.Store(true)
	b.restart()
	must(t, g.RemoveVolume("v0", nil))
	looks.Store(0)
	must(t, a.add("next", "v0"))
	eventually(t, "the copy was asked for, and once more", func() bool { return looks.Load() >= 3 })
	if rec, err := b.pool.Get("v0"); err != nil || rec.Group != "shop" {
		t.Errorf("the copy of a group that is not open: %v, %v", rec, err)
	}
	full.Store(false)
	sameContent(t, g, caughtUp(t, g, b))
	sameContent(t, next, caughtUp(t, next, b))
}
