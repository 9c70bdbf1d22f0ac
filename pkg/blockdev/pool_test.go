package blockdev

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func openPool(t testing.TB, fsys vfs.FS, dir string, who Who) *Pool {
	t.Helper()
	p, err := OpenPool(fsys, dir, who)
	noErr(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func volume(id string) VolumeRecord {
	return VolumeRecord{ID: id, Name: "pvc-" + id, SizeBytes: 64 << 10}
}

func ids(t testing.TB, p *Pool) []string {
	t.Helper()
	list, err := p.List()
	noErr(t, err)
	out := []string{}
	for _, r := range list {
		out = append(out, r.ID)
	}
	return out
}

func TestPool(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"os": vfs.OS, "mem": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := "/pool"
			if fsys == vfs.OS {
				dir = filepath.Join(t.TempDir(), "pool")
			}
			_, err := OpenPool(fsys, dir, WhoReader)
			if !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("reading a missing pool: %v", err)
			}
			p := openPool(t, fsys, dir, WhoDriver)
			if got := ids(t, p); len(got) != 0 {
				t.Fatalf("a fresh pool holds %q", got)
			}
			b, err := p.Create(volume("b"))
			noErr(t, err)
			if b.BlockSizeBytes != 4096 || b.State != VolumeReady || b.CreatedUnixNanos == 0 || b.Order != "" {
				t.Errorf("defaults: %v", b)
			}
			a := volume("a")
			a.Replicable, a.Thick = true, true
			_, err = p.Create(a)
			noErr(t, err)
			_, err = p.Create(volume("a"))
			if !errors.Is(err, ErrVolumeExists) || !errors.Is(err, fs.ErrExist) {
				t.Errorf("creating a second a: %v", err)
			}

			// A reader and the replicator see the same pool beside the driver.
			reader := openPool(t, fsys, dir, WhoReader)
			replicator := openPool(t, fsys, dir, WhoReplicator)
			if reader.ID() != p.ID() || replicator.ID() != p.ID() || p.ID() == "" {
				t.Errorf("pool ids %q, %q, %q", p.ID(), reader.ID(), replicator.ID())
			}
			if got := ids(t, reader); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("volumes %q", got)
			}
			_, err = reader.Update("a", func(*VolumeRecord) error { return nil })
			if !errors.Is(err, ErrReadOnlyPool) {
				t.Errorf("update by a reader: %v", err)
			}
			got, err := replicator.Update("a", func(r *VolumeRecord) error { r.Secondary = true; return nil })
			noErr(t, err)
			read, err := p.Get("a")
			noErr(t, err)
			if d := cmp.Diff(got, read); d != "" || !read.Secondary || read.Order != OrderFlush {
				t.Errorf("%v; (-updated +read):\n%s", read, d)
			}

			img, err := p.OpenImage("a")
			noErr(t, err)
			if img.Size() != 64<<10 || !img.thick {
				t.Errorf("image of %d bytes, thick %v", img.Size(), img.thick)
			}
			noErr(t, img.Close())
			grown, err := p.Grow("a", 128<<10)
			noErr(t, err)
			img, err = p.OpenImage("a")
			noErr(t, err)
			if grown.SizeBytes != 128<<10 || img.Size() != 128<<10 {
				t.Errorf("grown to %d, image %d", grown.SizeBytes, img.Size())
			}
			noErr(t, img.Close())
			_, err = p.Grow("a", 64<<10)
			wantErrText(t, err, "less than")
			_, err = p.Grow("a", 128<<10+1)
			wantErrText(t, err, "volume a", "block size")

			noErr(t, p.Delete("a"))
			noErr(t, p.Delete("a"))
			_, err = p.Get("a")
			if !errors.Is(err, ErrNoVolume) || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("get of a deleted volume: %v", err)
			}
			if got := ids(t, p); !slices.Equal(got, []string{"b"}) {
				t.Errorf("volumes %q", got)
			}
			total, free, err := p.Space()
			if err != nil || free <= 0 || free > total {
				t.Errorf("%d of %d bytes free, %v", free, total, err)
			}
			if removed, err := p.Sweep(); len(removed) != 0 || err != nil {
				t.Errorf("sweep of a clean pool removed %q, %v", removed, err)
			}
		})
	}
}

func TestPoolPaths(t *testing.T) {
	p := openPool(t, vfs.NewMem(), "/pool", WhoDriver)
	image, err := p.ImagePath("v1")
	noErr(t, err)
	group, err := p.GroupDir("g1")
	noErr(t, err)
	if image != "/pool/volumes/v1/image" || group != "/pool/groups/g1" {
		t.Errorf("paths %s, %s", image, group)
	}
	for _, id := range []string{"", "..", "../../etc", "a/b", "a.deleting"} {
		if path, err := p.ImagePath(id); err == nil {
			t.Errorf("image of %q: %s", id, path)
		}
		if path, err := p.GroupDir(id); err == nil {
			t.Errorf("group %q: %s", id, path)
		}
		if _, err := p.Get(id); !errors.Is(err, ErrNoVolume) {
			t.Errorf("Get(%q): %v", id, err)
		}
		if _, err := p.Create(volume(id)); err == nil {
			t.Errorf("volume %q was created", id)
		}
		if err := p.Delete(id); err == nil {
			t.Errorf("volume %q was deleted", id)
		}
	}
}

func TestPoolUpdateRefuses(t *testing.T) {
	p := openPool(t, vfs.NewMem(), "/pool", WhoDriver)
	want, err := p.Create(volume("a"))
	noErr(t, err)
	mine := errors.New("mine")
	for text, change := range map[string]func(*VolumeRecord) error{
		"mine":       func(r *VolumeRecord) error { r.Name = "x"; return mine },
		"its id":     func(r *VolumeRecord) error { r.ID = "b"; return nil },
		"shrink":     func(r *VolumeRecord) error { r.SizeBytes = 4096; return nil },
		`state "no"`: func(r *VolumeRecord) error { r.State = "no"; return nil },
	} {
		_, err := p.Update("a", change)
		wantErrText(t, err, text)
	}
	_, err = p.Update("b", func(*VolumeRecord) error { t.Error("called for a missing volume"); return nil })
	if !errors.Is(err, ErrNoVolume) {
		t.Errorf("update of a missing volume: %v", err)
	}
	got, err := p.Get("a")
	noErr(t, err)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("refused updates changed the record:\n%s", d)
	}
}

// TestPoolUpdatesAreAtomic: no update of two processes' many is lost.
func TestPoolUpdatesAreAtomic(t *testing.T) {
	for name, fsys := range map[string]vfs.FS{"os": vfs.OS, "mem": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := "/pool"
			if fsys == vfs.OS {
				dir = filepath.Join(t.TempDir(), "pool")
			}
			pools := []*Pool{openPool(t, fsys, dir, WhoDriver), openPool(t, fsys, dir, WhoReplicator)}
			_, err := pools[0].Create(volume("a"))
			noErr(t, err)
			const writers, rounds = 4, 10
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for range rounds {
						_, err := pools[w%2].Update("a", func(r *VolumeRecord) error { r.Name += "x"; return nil })
						if err != nil {
							t.Error(err)
						}
						if _, err := pools[w%2].Get("a"); err != nil { // never sees half a record
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			r, err := pools[0].Get("a")
			noErr(t, err)
			if got := strings.Count(r.Name, "x"); got != writers*rounds {
				t.Errorf("%d of %d updates are there", got, writers*rounds)
			}
		})
	}
}

func TestPoolLockInProcess(t *testing.T) {
	m := vfs.NewMem()
	for name, fsys := range map[string]vfs.FS{"os": vfs.OS, "mem": m} {
		t.Run(name, func(t *testing.T) {
			dir := "/pool"
			if fsys == vfs.OS {
				dir = filepath.Join(t.TempDir(), "pool")
			}
			p := openPool(t, fsys, dir, WhoDriver)
			_, err := OpenPool(fsys, dir, WhoDriver)
			if !errors.Is(err, ErrLocked) {
				t.Fatalf("second driver: %v", err)
			}
			wantErrText(t, err, filepath.Join(dir, "driver.lock"))
			openPool(t, fsys, dir, WhoReplicator)
			noErr(t, p.Close())
			openPool(t, fsys, dir, WhoDriver)
		})
	}
	// After a crash no lock is held.
	openPool(t, m.CrashClone(vfs.CrashConfig{}), "/pool", WhoDriver)
}

// TestPoolLockBetweenProcesses holds a pool by another process and kills it.
func TestPoolLockBetweenProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	exe, err := os.Executable()
	noErr(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+dir)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	noErr(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	noErr(t, err)
	noErr(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	noErr(t, err)
	id, ok := strings.CutPrefix(strings.TrimSpace(line), "holding ")
	if !ok {
		t.Fatalf("the other process says %q", line)
	}
	_, err = OpenPool(vfs.OS, dir, WhoDriver)
	if !errors.Is(err, ErrLocked) {
		t.Fatalf("second driver: %v", err)
	}
	wantErrText(t, err, filepath.Join(dir, "driver.lock"), fmt.Sprintf("process %d", cmd.Process.Pid))

	noErr(t, cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
	p := openPool(t, vfs.OS, dir, WhoDriver)
	if p.ID() != id {
		t.Errorf("pool %s has become %s", id, p.ID())
	}
}

func TestPoolDamage(t *testing.T) {
	m := vfs.NewMem()
	p := openPool(t, m, "/pool", WhoDriver)
	for _, id := range []string{"a", "b", "c", "d"} {
		_, err := p.Create(volume(id))
		noErr(t, err)
	}
	noErr(t, m.Remove("/pool/volumes/a/volume.json"))
	other, err := vfs.ReadFile(m, "/pool/volumes/d/volume.json", 1<<30)
	noErr(t, err)
	noErr(t, vfs.WriteFileAtomic(m, "/pool/volumes/b/volume.json", other))

	list, err := p.List()
	if len(list) != 2 || list[0].ID != "c" || list[1].ID != "d" {
		t.Errorf("list of a damaged pool: %v", list)
	}
	wantErrText(t, err, "/pool/volumes/a/volume.json is damaged: it is missing",
		"/pool/volumes/b/volume.json is damaged: it is the record of volume d")
	var corrupt *recordfile.CorruptError
	if _, err := p.Get("a"); !errors.As(err, &corrupt) {
		t.Errorf("Get: %v", err)
	}
	// Damage is not garbage.
	removed, err := p.Sweep()
	noErr(t, err)
	if len(removed) != 0 {
		t.Errorf("sweep removed %q", removed)
	}
	if _, err := p.Create(volume("a")); !errors.Is(err, ErrVolumeExists) {
		t.Errorf("creating over a damaged volume: %v", err)
	}
	noErr(t, p.Delete("a"))
	noErr(t, p.Delete("b"))
	if got := ids(t, p); !slices.Equal(got, []string{"c", "d"}) {
		t.Errorf("volumes %q", got)
	}

	// A pool that lost its own record does not become a new pool.
	noErr(t, p.Close())
	noErr(t, m.Remove("/pool/pool.json"))
	_, err = OpenPool(m, "/pool", WhoDriver)
	wantErrText(t, err, "/pool/pool.json", "missing", "volumes")
}

// TestPoolCrash stops the world at each operation on the file system while volumes come, change and go, and looks at
// what a crash there leaves: every volume is there whole or not at all, what a call returned for stays, and nothing
// is left over after Sweep.
func TestPoolCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	m := vfs.NewMem()

	// What the pool must hold, as far as calls have returned, and what the running call may change.
	done := map[string]string{} // id to name
	var id, before, after string
	crashes := 0
	check := func() {
		for _, percent := range []int{0, 50, 100} {
			crashes++
			c := m.CrashClone(vfs.CrashConfig{UnsyncedPercent: percent, RNG: rng})
			p, err := OpenPool(c, "/pool", WhoDriver)
			noErr(t, err)
			_, err = p.Sweep()
			noErr(t, err)
			got := map[string]string{}
			list, err := p.List()
			noErr(t, err)
			for _, r := range list {
				got[r.ID] = r.Name
				img, err := p.OpenImage(r.ID)
				noErr(t, err)
				noErr(t, img.Close())
			}
			names, err := c.ReadDir("/pool/volumes")
			noErr(t, err)
			if len(names) != len(list) {
				t.Errorf("%d volumes, but the directory holds %q", len(list), names)
			}
			if g := got[id]; g != before && g != after {
				t.Errorf("volume %s is %q, want %q or %q", id, g, before, after)
			}
			delete(got, id)
			want := map[string]string{}
			for k, v := range done {
				if k != id {
					want[k] = v
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("other volumes (-want +got):\n%s", d)
			}
			// What was interrupted can be done again.
			if _, err := p.Create(volume(id)); id != "" && err != nil && !errors.Is(err, ErrVolumeExists) {
				t.Error(err)
			}
			noErr(t, p.Close())
		}
	}
	armed := false
	p := openPool(t, vfs.NewErrFS(m, func(vfs.Op, string) error {
		if armed {
			check()
		}
		return nil
	}), "/pool", WhoDriver)
	armed = true

	step := func(which, to string, call func() error) {
		t.Helper()
		id, before, after = which, done[which], to
		noErr(t, call())
		done[which], before = to, to // from here on it stays
		if to == "" {
			delete(done, which)
		}
		check()
	}
	rename := func(to string) func(*VolumeRecord) error {
		return func(r *VolumeRecord) error { r.Name = to; return nil }
	}
	step("a", "pvc-a", func() error { _, err := p.Create(volume("a")); return err })
	step("b", "pvc-b", func() error { v := volume("b"); v.Thick = true; _, err := p.Create(v); return err })
	step("a", "renamed", func() error { _, err := p.Update("a", rename("renamed")); return err })
	step("b", "pvc-b", func() error { _, err := p.Grow("b", 128<<10); return err })
	step("b", "", func() error { return p.Delete("b") })
	step("b", "pvc-b", func() error { _, err := p.Create(volume("b")); return err })
	step("a", "", func() error { return p.Delete("a") })
	if crashes < 100 {
		t.Errorf("only %d crashes", crashes)
	}
}

// TestPoolCreateFails: whatever fails, there is no volume, nothing is left, and the next try works.
func TestPoolCreateFails(t *testing.T) {
	boom := errors.New("boom")
	for _, op := range []vfs.Op{vfs.OpMkdirAll, vfs.OpCreate, vfs.OpTruncate, vfs.OpDatasync, vfs.OpWrite} {
		m := vfs.NewMem()
		armed := false
		p := openPool(t, vfs.NewErrFS(m, func(o vfs.Op, name string) error {
			if armed && o == op {
				return boom
			}
			return nil
		}), "/pool", WhoDriver)
		armed = true
		_, err := p.Create(volume("a"))
		if !errors.Is(err, boom) {
			t.Errorf("%s: %v", op, err)
		}
		armed = false
		names, err := m.ReadDir("/pool/volumes")
		noErr(t, err)
		if len(names) != 0 {
			t.Errorf("%s failed and left %q", op, names)
		}
		_, err = p.Create(volume("a"))
		noErr(t, err)
	}
}

func TestPoolSpace(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(10 << 20)
	p := openPool(t, m, "/pool", WhoDriver)
	v := volume("a")
	v.Thick, v.SizeBytes = true, 4<<20
	_, err := p.Create(v)
	noErr(t, err)
	total, free, err := p.Space()
	if err != nil || total != 10<<20 || free > 6<<20 || free < 6<<20-64<<10 {
		t.Errorf("%d of %d bytes free beside a thick volume of 4 MiB, %v", free, total, err)
	}
	if used, err := p.AllocatedTogether(append(p.ImagePaths("a"), p.ImagePaths("b")...)); err != nil || used != 4<<20 {
		t.Errorf("images take %d, %v", used, err)
	}
	if same, err := p.SameFileSystem("/pool/groups"); err != nil || !same {
		t.Errorf("a directory of the pool is on another file system than the pool: %v", err)
	}
}

// TestPoolLockOfADyingProcess: a killed driver's lock is held by its child for a moment, until that has become another
// program.
func TestPoolLockOfADyingProcess(t *testing.T) {
	lockPatiently(t, time.Minute)
	dir := filepath.Join(t.TempDir(), "pool")
	noErr(t, openPool(t, vfs.OS, dir, WhoDriver).Close())
	killed, err := flocker{}.lock(filepath.Join(dir, "driver.lock"))
	noErr(t, err)
	f, ok := killed.(*os.File)
	if !ok {
		t.Fatalf("the lock is a %T", killed)
	}
	child := exec.Command("sleep", "0.3")
	child.ExtraFiles = []*os.File{f}
	noErr(t, errors.Join(child.Start(), killed.Close()))
	openPool(t, vfs.OS, dir, WhoDriver)
	noErr(t, child.Wait())
}
