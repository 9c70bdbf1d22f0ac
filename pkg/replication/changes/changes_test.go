package changes

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// chain makes snapshots s0, s1, ... of one volume, each with a set of changes since the one before.
func chain(t testing.TB, fsys vfs.FS, sets []*changemap.Map) *blockdev.Pool {
	t.Helper()
	pool, err := blockdev.OpenPool(fsys, "/pool", blockdev.WhoDriver)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Create(blockdev.VolumeRecord{ID: "v", Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for i, set := range sets {
		rec := blockdev.SnapshotRecord{
			ID: name(i), Name: name(i), SourceVolumeID: "v", SizeBytes: 1 << 20,
			BlockSizeBytes: blockdev.DefaultBlockSizeBytes, State: blockdev.SnapshotCreating,
		}
		if i > 0 {
			rec.ParentID = name(i - 1)
		}
		if _, err := pool.CreateSnapshot(rec); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := Save(fsys, pool, rec.ID, set); err != nil {
				t.Fatal(err)
			}
		}
	}
	return pool
}

func name(i int) string { return fmt.Sprintf("snap-%d", i) }

func union(sets []*changemap.Map) *changemap.Map {
	m := changemap.New()
	for _, s := range sets {
		m.Merge(s)
	}
	return m
}

// Whatever is deleted in whatever order, and whichever operation of it a power loss interrupts, what is said about any
// two that are left has all that changed between them; without power losses it is exactly that.
func TestDeleteInAnyOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		var sets []*changemap.Map
		for range rapid.IntRange(2, 7).Draw(rt, "snapshots") {
			m := changemap.New()
			for range rng.IntN(4) {
				m.MarkExtent(0, rng.Uint64N(16))
			}
			sets = append(sets, m)
		}
		mem := vfs.NewMem()
		ops, crashAt := 0, -1
		var crashed *vfs.MemFS
		fsys := vfs.NewErrFS(mem, func(vfs.Op, string) error {
			if ops++; ops == crashAt {
				crashed = mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
			}
			return nil
		})
		pool := chain(t, fsys, sets)
		interrupted := false
		var alive []int
		for i := range sets {
			alive = append(alive, i)
		}
		for len(alive) > 1 && rapid.Bool().Draw(rt, "another") {
			at := rng.IntN(len(alive))
			id := name(alive[at])
			if rng.IntN(2) == 0 {
				crashAt, crashed = ops+1+rng.IntN(30), nil
			}
			remove := func() {
				if err := Unlink(fsys, pool, id); err != nil {
					rt.Fatal(err)
				}
				if err := pool.DeleteSnapshot(id); err != nil {
					rt.Fatal(err)
				}
			}
			remove()
			if crashed != nil {
				interrupted = true
				pool.Close()
				mem = crashed
				fsys = vfs.NewErrFS(mem, func(vfs.Op, string) error { ops++; return nil })
				crashed, crashAt = nil, -1
				var err error
				if pool, err = blockdev.OpenPool(fsys, "/pool", blockdev.WhoDriver); err != nil {
					rt.Fatal(err)
				}
				remove()
			}
			alive = append(alive[:at], alive[at+1:]...)
		}
		defer func() { pool.Close() }()
		for i, base := range alive {
			for _, target := range alive[i:] {
				m, err := Between(fsys, pool, name(base), name(target))
				if err != nil {
					rt.Fatalf("%d to %d of %v: %v", base, target, alive, err)
				}
				want := union(sets[base+1 : target+1])
				more := m.Clone()
				more.Merge(want)
				if !more.Equal(m) || !interrupted && !m.Equal(want) {
					rt.Fatalf("%d to %d of %v: %d extents, want %d", base, target, alive, m.Len(), want.Len())
				}
			}
		}
	})
}

// A set that is damaged or gone breaks the chain; what is deleted then leaves snapshots without a parent.
func TestBrokenChain(t *testing.T) {
	sets := []*changemap.Map{nil, changemap.New(), changemap.New(), changemap.New()}
	for what, harm := range map[string]func(fsys vfs.FS, file string) error{
		"missing": func(fsys vfs.FS, file string) error { return fsys.Remove(file) },
		"damaged": func(fsys vfs.FS, file string) error {
			return vfs.WriteFileAtomic(fsys, file, []byte("not a change map"))
		},
	} {
		t.Run(what, func(t *testing.T) {
			fsys := vfs.NewMem()
			pool := chain(t, fsys, sets)
			defer pool.Close()
			file, err := path(pool, name(2))
			if err != nil {
				t.Fatal(err)
			}
			if err := harm(fsys, file); err != nil {
				t.Fatal(err)
			}
			if _, err := Between(fsys, pool, name(0), name(3)); !errors.Is(err, ErrUnrelated) {
				t.Fatal(err)
			}
			if _, err := Between(fsys, pool, name(0), name(1)); err != nil {
				t.Fatal(err)
			}
			if err := Unlink(fsys, pool, name(2)); err != nil {
				t.Fatal(err)
			}
			rec, err := pool.GetSnapshot(name(3))
			if err != nil || rec.ParentID != "" {
				t.Fatalf("parent %q, %v", rec.ParentID, err)
			}
		})
	}
}

func TestUnknownSnapshots(t *testing.T) {
	fsys := vfs.NewMem()
	pool := chain(t, fsys, []*changemap.Map{nil})
	defer pool.Close()
	if err := Unlink(fsys, pool, "snap-none"); err != nil {
		t.Fatal(err)
	}
	if _, err := Between(fsys, pool, name(0), "snap-none"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if m, err := Between(fsys, pool, name(0), name(0)); err != nil || m.Len() != 0 {
		t.Fatalf("%v, %v", m, err)
	}
}
