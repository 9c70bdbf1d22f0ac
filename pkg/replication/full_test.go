package replication

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// writeUntilFull writes blocks that count up from 1, at successive places and never twice, until the volume takes no
// more. It returns what was written.
func writeUntilFull(t *testing.T, v *Volume) []byte {
	t.Helper()
	var all []byte
	for i := 0; int64(len(all)) < v.Size(); i++ {
		p := block(byte(i%255+1), 16<<10)
		if _, err := v.WriteAt(p, int64(len(all))); err != nil {
			if !vfs.NoSpace(err) {
				t.Fatalf("write %d: %v", i, err)
			}
			return all
		}
		all = append(all, p...)
	}
	t.Fatal("the pool is not full")
	return nil
}

// TestFullPoolGivesBack: on a pool that its volumes and the journal have filled to the last byte, with nothing left but
// what is in the journal, a volume leaves its group whole, and the group is deleted; with a peer that is away, without
// one, and when another program took the last inode, too.
func TestFullPoolGivesBack(t *testing.T) {
	for _, peer := range []string{"", "site-b"} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("peer %q, restart %t", peer, restart), func(t *testing.T) {
				s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
				g := s.createGroup("shop", peer, 1, 64<<20, nil)
				v := volumeOf(t, g, "v0")
				mustWrite(t, v, v.Size()-4096, block('e', 4096))
				mustFlush(t, v)
				eventually(t, "the journal has its free segments",
					func() bool { return g.journal.TotalBytes() >= 3*g.log.segBytes.Load() })
				total, free, err := s.fs.Space("/")
				if err != nil {
					t.Fatal(err)
				}
				g.applier.mu.Lock() // what is written fills the pool first
				s.fs.SetCapacity(total - free + 3<<20)
				written := writeUntilFull(t, v)
				s.fs.Exhaust()
				g.applier.mu.Unlock()
				if restart {
					s.restart()
					g = s.group("shop")
				}
				if err := g.RemoveVolume("v0", nil); err != nil {
					t.Fatal(err)
				}
				if err := s.site.DeleteGroup("shop", false); err != nil {
					t.Fatal(err)
				}
				img, err := s.pool.OpenImage("v0")
				if err != nil {
					t.Fatal(err)
				}
				defer img.Close()
				got := make([]byte, len(written))
				if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, written) {
					t.Errorf("the volume differs from what was written to it, %v", err)
				}
				if err := s.pool.Delete("v0"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// withoutSpares takes away what lets records be replaced without space, and all space.
func (s *testSite) withoutSpares(g *Group) {
	s.t.Helper()
	for _, path := range []string{g.path(core.MetaFile) + vfs.TempSuffix, "/pool/reserve"} {
		if err := s.fs.RemoveAll(path); err != nil {
			s.t.Fatal(err)
		}
	}
	s.fs.Exhaust()
}

// plenty gives a file system space again.
func (s *testSite) plenty() {
	s.fs.SetCapacity(0)
	s.fs.SetInodes(0)
}

// TestServesAgainWithSpace: a group that has no space to write its record refuses what needed that, and
// nothing else; with space it goes on without a restart, at either site.
func TestServesAgainWithSpace(t *testing.T) {
	net := link.NewNetwork(nil)
	a, b := newTestSite(t, net, "site-a", nil), newTestSite(t, net, "site-b", nil)
	g := a.createGroup("shop", "site-b", 1, 4<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block('x', 8192))
	mustFlush(t, v)
	copied := caughtUp(t, g, b)

	format := json.RawMessage(`{"state":"formatted","fsType":"ext4"}`)
	a.withoutSpares(g)
	err := g.RecordFormat("v0", format)
	if !vfs.NoSpace(err) || errors.Is(err, ErrFailed) || !strings.Contains(fmt.Sprint(err), "free space") {
		t.Errorf("a change without space: %v", err)
	}
	mustWrite(t, v, 0, block('y', 4096)) // into what the journal has
	mustFlush(t, v)
	a.plenty()
	if err := g.RecordFormat("v0", format); err != nil {
		t.Fatal(err)
	}
	sameContent(t, g, caughtUp(t, g, b))

	b.withoutSpares(copied)
	if err := g.RecordFormat("v0", json.RawMessage(`{"state":"formatted","fsType":"xfs"}`)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * g.cfg.ApplyInterval) // the copy tries, and fails
	if state := copied.Status().State; state == "failed" {
		t.Errorf("the copy is %s: %s", state, copied.Status().StateReason)
	}
	b.plenty()
	mustWrite(t, v, 8192, block('z', 4096))
	mustFlush(t, v)
	sameContent(t, g, caughtUp(t, g, b))
	if copied != b.group("shop") {
		t.Error("the copy was opened anew")
	}
}

// TestOpensWithSpace: a group that could not be opened because there was no space is opened when there is some.
func TestOpensWithSpace(t *testing.T) {
	var full atomic.Bool
	s := newTestSite(t, link.NewNetwork(nil), "site-a", func(c *Config) {
		c.FS = vfs.NewErrFS(c.FS, func(op vfs.Op, name string) error {
			if full.Load() && op == vfs.OpOpen && strings.HasSuffix(name, checkpointName) {
				return syscall.ENOSPC
			}
			return nil
		})
	})
	g := s.createGroup("shop", "", 1, 4<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('x', 4096))
	full.Store(true)
	s.restart()
	if _, err := s.site.Group("shop"); !errors.Is(err, ErrNotOpen) || len(s.site.Broken()) != 1 {
		t.Fatalf("%v, broken %v", err, s.site.Broken())
	}
	full.Store(false)
	eventually(t, "the group is open", func() bool { _, err := s.site.Group("shop"); return err == nil })
	g = s.group("shop")
	if len(s.site.Broken()) != 0 || !bytes.Equal(content(t, volumeOf(t, g, "v0"))[:4096], block('x', 4096)) {
		t.Errorf("broken %v", s.site.Broken())
	}
}

// TestJournalHasToFit: a group whose journal its file system has no room for is refused, with what would fit, and so is
// a larger journal for one that there is.
func TestJournalHasToFit(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	s.fs.SetCapacity(365 << 20)
	_, err := s.site.CreateGroup(GroupSpec{Name: "shop"})
	if !vfs.NoSpace(err) {
		t.Fatalf("a journal of a GiB on 365 MiB: %v", err)
	}
	for _, want := range []string{"shop", "1073741824", "2147483648", "382730240", "at most", "/pool/groups"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if _, err := s.site.Group("shop"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the group is there: %v", err)
	}
	g, err := s.site.CreateGroup(GroupSpec{Name: "shop", Settings: core.Settings{JournalSizeBytes: 128 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	size := int64(256 << 20)
	if err := g.Modify(func(s *core.Settings) { s.JournalSizeBytes = size }); !vfs.NoSpace(err) {
		t.Errorf("a larger journal: %v", err)
	}
	size = 160 << 20
	if err := g.Modify(func(s *core.Settings) { s.JournalSizeBytes = size }); err != nil {
		t.Error(err)
	}
}
