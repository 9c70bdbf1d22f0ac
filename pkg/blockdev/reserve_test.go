package blockdev

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// fullPool makes a pool with volumes a, b, c and snapshots of a, s1 to s3, on a file system.
func fullPool(t *testing.T, fsys vfs.FS, dir string) *Pool {
	t.Helper()
	p := openPool(t, fsys, dir, WhoDriver)
	for _, id := range []string{"a", "b", "c"} {
		_, err := p.Create(volume(id))
		noErr(t, err)
	}
	for _, id := range []string{"s1", "s2", "s3"} {
		_, err := p.CreateSnapshot(SnapshotRecord{ID: id, SourceVolumeID: "a", SizeBytes: 4096, BlockSizeBytes: 4096})
		noErr(t, err)
	}
	return p
}

// giveBack does everything in a pool that gives space back, or that this begins with.
func giveBack(t *testing.T, p *Pool) {
	t.Helper()
	for i := range 10 {
		_, err := p.Update("a", func(r *VolumeRecord) error {
			r.Stage = &StageRecord{StagingPath: strings.Repeat("/staging", i), Device: fmt.Sprint("/dev/loop", i)}
			return nil
		})
		noErr(t, err)
		_, err = p.UpdateSnapshot("s1", func(r *SnapshotRecord) error {
			r.State, r.FailReason = SnapshotFailed, strings.Repeat("no space", i)
			return nil
		})
		noErr(t, err)
	}
	_, err := p.Update("a", func(r *VolumeRecord) error {
		r.Stage, r.Group, r.MoveTo = nil, "", ""
		return nil
	})
	noErr(t, err)
	noErr(t, p.DeleteSnapshot("s1"))
	noErr(t, p.Delete("a"))
	_, err = p.Sweep()
	noErr(t, err)
}

// TestGiveBackWithoutSpace: records change and what is deleted goes with neither a byte nor an inode left, also after
// a restart.
func TestGiveBackWithoutSpace(t *testing.T) {
	for _, again := range []bool{false, true} {
		m := vfs.NewMem()
		p := fullPool(t, m, "/pool")
		m.Exhaust()
		if _, err := p.Create(volume("d")); !vfs.NoSpace(err) {
			t.Fatalf("the pool is not full: %v", err)
		}
		if again {
			noErr(t, p.Close())
			p = openPool(t, m, "/pool", WhoDriver)
		}
		giveBack(t, p)
	}
}

// TestReserve: where a deletion needs a block that is not there, it takes one of the reserve, which is made again,
// and comes after the image's contents without a reserve, too. What makes volumes takes nothing of it.
func TestReserve(t *testing.T) {
	m := vfs.NewMem()
	needsBlock := vfs.NewErrFS(m, func(op vfs.Op, name string) error {
		if op != vfs.OpRename || !strings.HasSuffix(name, deletingSuffix) {
			return nil
		}
		if _, free, err := m.Space("/"); err != nil || free == 0 {
			return syscall.EDQUOT
		}
		return nil
	})
	p := fullPool(t, needsBlock, "/pool")
	img, err := p.OpenImage("b")
	noErr(t, err)
	_, err = img.WriteAt(make([]byte, 4096), 0)
	noErr(t, err)
	noErr(t, img.Close())
	if held, err := p.ReserveBytes(); err != nil || held != reserveFiles*maxReserveBytes {
		t.Errorf("the reserve has %d bytes, %v", held, err)
	}
	whole := func(after string) {
		t.Helper()
		names, err := m.ReadDir("/pool/" + reserveDirName)
		if err != nil || len(names) != reserveFiles {
			t.Errorf("%s: the reserve has %q, %v", after, names, err)
		}
	}
	m.Exhaust()
	if _, err := p.Create(volume("d")); !vfs.NoSpace(err) {
		t.Errorf("a creation: %v", err)
	}
	whole("after a creation")
	noErr(t, p.Delete("a"))
	whole("after a deletion")
	// Another file takes what is given up, and the rest of it too.
	for i := range reserveFiles {
		noErr(t, m.Remove(p.reserve().path(i)))
	}
	m.Exhaust()
	noErr(t, p.Delete("b"))
	if got := ids(t, p); len(got) != 1 {
		t.Errorf("volumes %q", got)
	}
}

// TestReadWhileReplaced: a record is read whole, however often it is replaced meanwhile.
func TestReadWhileReplaced(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"mem": vfs.NewMem(), "os": vfs.OS} {
		dir := "/pool"
		if name == "os" {
			dir = filepath.Join(t.TempDir(), "pool")
		}
		p := fullPool(t, fsys, dir)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := p.Get("a"); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
		var err error
		for i := 0; i < 300 && err == nil; i++ {
			_, err = p.Update("a", func(r *VolumeRecord) error {
				r.Stage = &StageRecord{StagingPath: "/" + strings.Repeat(string(rune('a'+i%26)), i*37%3000)}
				return nil
			})
		}
		close(stop)
		wg.Wait()
		noErr(t, err)
	}
}

// TestGiveBackOnFullFileSystems: as TestGiveBackWithoutSpace, on real file systems without a block, and without an
// inode, left.
func TestGiveBackOnFullFileSystems(t *testing.T) {
	for name, mkfs := range map[string][]string{
		"ext4":        {"mkfs.ext4", "-q", "-F"},
		"ext4 inodes": {"mkfs.ext4", "-q", "-F", "-N", "64"},
		"xfs":         {"mkfs.xfs", "-q", "-m", "reflink=1"},
	} {
		t.Run(name, func(t *testing.T) {
			at := testenv.MountFS(t, mkfs...)
			p := fullPool(t, vfs.OS, filepath.Join(at, "pool"))
			empty := testenv.Fill(t, at)
			if _, err := p.Create(volume("d")); !vfs.NoSpace(err) {
				t.Fatalf("the file system is not full: %v", err)
			}
			giveBack(t, p)
			empty()
			_, err := p.Create(volume("d"))
			noErr(t, err)
		})
	}
}
