package blockdev

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// openKnown opens /disk/pool for both kinds of processes, and closes it.
func openKnown(fsys vfs.FS) error {
	for _, who := range []Who{WhoDriver, WhoReplicator} {
		p, err := OpenPool(fsys, "/disk/pool", who, WithStateDir("/state", "/disk/pool"))
		if err != nil {
			return err
		}
		if err := p.Close(); err != nil {
			return err
		}
	}
	return nil
}

// TestPoolNotMounted: a pool that was there is not made anew, and nothing is made in its place.
func TestPoolNotMounted(t *testing.T) {
	m := vfs.NewMem()
	for range 2 {
		noErr(t, openKnown(m))
	}
	gone := func(words ...string) {
		t.Helper()
		for _, who := range []Who{WhoDriver, WhoReplicator} {
			_, err := OpenPool(m, "/disk/pool", who, WithStateDir("/state", "/disk/pool"))
			if !errors.Is(err, ErrPoolGone) || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("opened by %d: %v", who, err)
			}
			for _, w := range append(words, "/disk/pool", "mount", "/state/pool-") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if err := CheckKnownPool(m, "/state", "/disk/pool"); !errors.Is(err, ErrPoolGone) {
				t.Errorf("check: %v", err)
			}
		}
	}
	noErr(t, m.Rename("/disk/pool", "/kept"))
	gone("not made anew")
	if _, err := m.Stat("/disk/pool"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was made where the pool was: %v", err)
	}
	noErr(t, m.MkdirAll("/disk/pool")) // the mount point
	gone("not made anew")
	if names, err := m.ReadDir("/disk/pool"); err != nil || len(names) > 0 {
		t.Errorf("on the mount point: %q, %v", names, err)
	}
	// Another path is another pool.
	p, err := OpenPool(m, "/disk/other", WhoDriver, WithStateDir("/state", "/disk/other"))
	noErr(t, err)
	noErr(t, p.Close())
	// And another disk at the path is not the pool that was there.
	noErr(t, m.RemoveAll("/disk/pool"))
	noErr(t, m.Rename("/disk/other", "/disk/pool"))
	gone("right file system")
	noErr(t, m.RemoveAll("/disk/pool"))
	noErr(t, m.Rename("/kept", "/disk/pool"))
	noErr(t, openKnown(m))

	// A record outside that is damaged does not keep a pool that is there, and does not let one be made.
	state, err := m.ReadDir("/state")
	noErr(t, err)
	for _, name := range state {
		noErr(t, vfs.WriteFileAtomic(m, "/state/"+name, []byte("{")))
	}
	noErr(t, m.Rename("/disk/pool", "/kept"))
	if err := openKnown(m); err == nil || !strings.Contains(err.Error(), "mount its file system") {
		t.Errorf("with a damaged record: %v", err)
	}
	noErr(t, m.Rename("/kept", "/disk/pool"))
	noErr(t, openKnown(m))
	noErr(t, m.RemoveAll("/disk/pool"))
	gone()
	// A person says that it is gone for good.
	noErr(t, m.RemoveAll("/state"))
	noErr(t, openKnown(m))

	_, err = OpenPool(m, "/disk/pool", WhoDriver, WithStateDir("/disk/pool/state", "/disk/pool"))
	if !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a state directory in the pool: %v", err)
	}
}

func TestCatchesAPoolMadeAnew(t *testing.T) {
	testenv.Catches(t, bug.MakePoolAnew, "TestPoolNotMounted")
}

// TestKnownPoolSurvivesPowerLoss: wherever the first start is interrupted, the next one needs no person, and from its
// end on the pool is known.
func TestKnownPoolSurvivesPowerLoss(t *testing.T) {
	m := vfs.NewMem()
	rng := rand.New(rand.NewPCG(1, 2))
	crashes := 0
	noErr(t, openKnown(vfs.NewErrFS(m, func(vfs.Op, string) error {
		crashes++
		for _, percent := range []int{0, 50, 100} {
			c := m.CrashClone(vfs.CrashConfig{UnsyncedPercent: percent, RNG: rng})
			noErr(t, openKnown(c))
			noErr(t, c.RemoveAll("/disk"))
			if err := openKnown(c); !errors.Is(err, ErrPoolGone) {
				t.Errorf("after the pool went: %v", err)
			}
		}
		return nil
	})))
	if crashes < 10 {
		t.Errorf("%d crashes only", crashes)
	}
}

// TestPoolGoesAway: a pool that is unmounted under a process has unknown volumes, not none.
func TestPoolGoesAway(t *testing.T) {
	m := vfs.NewMem()
	p := openPool(t, m, "/pool", WhoDriver)
	_, err := p.Create(volume("a"))
	noErr(t, err)
	noErr(t, m.Rename("/pool", "/kept"))
	noErr(t, m.MkdirAll("/pool"))
	calls := map[string]func() error{
		"get":            func() error { _, err := p.Get("a"); return err },
		"ids":            func() error { _, err := p.IDs(); return err },
		"list":           func() error { _, err := p.List(); return err },
		"create":         func() error { _, err := p.Create(volume("b")); return err },
		"update":         func() error { _, err := p.Update("a", func(*VolumeRecord) error { return nil }); return err },
		"delete":         func() error { return p.Delete("a") },
		"sweep":          func() error { _, err := p.Sweep(); return err },
		"get snapshot":   func() error { _, err := p.GetSnapshot("s"); return err },
		"list snapshots": func() error { _, err := p.ListSnapshots(); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrPoolGone) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if names, err := m.ReadDir("/pool"); err != nil || len(names) > 0 {
		t.Errorf("made where the pool was: %q, %v", names, err)
	}
	// Another pool is not this one either.
	other := openPool(t, m, "/other", WhoDriver)
	noErr(t, other.Close())
	noErr(t, m.RemoveAll("/pool"))
	noErr(t, m.Rename("/other", "/pool"))
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrPoolGone) {
			t.Errorf("%s in another pool: %v", name, err)
		}
	}
	noErr(t, m.RemoveAll("/pool"))
	noErr(t, m.Rename("/kept", "/pool"))
	if list, err := p.List(); err != nil || len(list) != 1 {
		t.Errorf("mounted again: %v, %v", list, err)
	}
}
