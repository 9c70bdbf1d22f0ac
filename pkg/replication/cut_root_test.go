package replication

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// On a pool that can share blocks a snapshot is ready at once, on another one it is copied; both are their volumes at
// the cut's ordinal, taken while a writer goes on.
func TestCutOnRealPools(t *testing.T) {
	for name, c := range map[string]struct {
		mkfs   []string
		method blockdev.SnapshotMethod
	}{
		"xfs":  {[]string{"mkfs.xfs", "-q", "-m", "reflink=1"}, blockdev.MethodReflink},
		"ext4": {[]string{"mkfs.ext4", "-q"}, blockdev.MethodCopy},
	} {
		t.Run(name, func(t *testing.T) {
			rng := seeded(t)
			dir := testenv.MountFS(t, c.mkfs...)
			pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(dir, "pool"), blockdev.WhoReplicator)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			site, err := Open(Config{FS: vfs.OS, Pool: pool, Site: "site-a", ApplyInterval: 20 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer site.Kill()
			s := &testSite{t: t, name: "site-a", pool: pool, site: site}
			g := s.createGroup("shop", "", 2, 24<<20, func(spec *GroupSpec) { spec.JournalSizeBytes = 8 << 20 })
			l := newCutLog(g)
			stop, done := make(chan struct{}), make(chan error, 1)
			go func() {
				for {
					select {
					case <-stop:
						done <- nil
						return
					default:
					}
					if err := l.do(rng, g, 256<<10); err != nil {
						done <- err
						return
					}
				}
			}()
			for g.journal.Head() < 200 {
				time.Sleep(time.Millisecond)
			}
			var before []CutTarget
			for i := range 3 {
				targets := createSnapshots(t, pool, string(rune('a'+i)), "v0", "v1")
				asked := g.journal.Durable()
				cut := mustCut(t, g, targets)
				if cut.Ordinal < asked {
					t.Fatalf("cut at ordinal %d, %d were durable before", cut.Ordinal, asked)
				}
				for _, target := range targets {
					rec, err := pool.GetSnapshot(target.SnapshotID)
					if err != nil || rec.Method != c.method || c.method == blockdev.MethodReflink &&
						rec.State != blockdev.SnapshotReady {
						t.Fatalf("%+v, %v", rec, err)
					}
				}
				if err := checkCut(vfs.OS, pool, l, cut, targets); err != nil {
					t.Fatal(err)
				}
				for j := range before {
					said, differ, err := checkChanges(vfs.OS, pool, before[j].SnapshotID, targets[j].SnapshotID)
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%s at ordinal %d: %d extents changed, %d differ", targets[j].SnapshotID, cut.Ordinal, said, differ)
				}
				before = targets
			}
			close(stop)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}
