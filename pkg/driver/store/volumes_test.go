package store

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// openStore returns the store of a pool at dir. Without watched each record's file is looked at.
func openStore(t *testing.T, dir string, watched bool) *Store {
	t.Helper()
	pool, err := blockdev.OpenPool(vfs.OS, dir, blockdev.WhoDriver)
	noErr(t, err)
	d := New(pool, vfs.OS, dir)
	d.index.unwatched = !watched
	t.Cleanup(func() {
		noErr(t, d.Close())
		noErr(t, pool.Close())
	})
	return d
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// show is what a list says of the volumes: id, name and remote site of each.
func show(recs []*blockdev.VolumeRecord) string {
	var text strings.Builder
	for _, rec := range recs {
		fmt.Fprintf(&text, "%s,%s,%s ", rec.ID, rec.Name, rec.Remote)
	}
	return text.String()
}

// TestListIsTheCallersOwn: callers of Volumes and VolumesNamed cannot change the index.
func TestListIsTheCallersOwn(t *testing.T) {
	d := openStore(t, t.TempDir(), true)
	_, err := d.Pool.Create(blockdev.VolumeRecord{ID: "vol-1", Name: "one", SizeBytes: 1 << 20})
	noErr(t, err)
	for range 2 {
		recs, err := d.Volumes()
		noErr(t, err)
		named, err := d.VolumesNamed("one")
		noErr(t, err)
		if got := show(recs) + show(named); got != "vol-1,one, vol-1,one, " {
			t.Fatal(got)
		}
		recs[0].Name, named[0].Name = "changed", "changed"
	}
}

// otherProcess, in the environment, is the pool that the test binary changes as another process; see TestMain.
const otherProcess = "STORE_TEST_POOL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(otherProcess); dir != "" {
		if err := changePool(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// changePool does one random change of the pool's records for each line that it reads, and answers with the state of
// the pool afterwards.
func changePool(dir string) error {
	pool, err := blockdev.OpenPool(vfs.OS, dir, blockdev.WhoReplicator)
	if err != nil {
		return err
	}
	defer pool.Close()
	var seed uint64
	if _, err := fmt.Sscan(os.Getenv("STORE_TEST_SEED"), &seed); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for requests := bufio.NewScanner(os.Stdin); requests.Scan(); {
		for range 1 + rng.IntN(3) { // several within one tick of the clock that files get their times from
			if err := changeOne(pool, rng); err != nil {
				return err
			}
		}
		recs, err := pool.List()
		if err != nil {
			return err
		}
		fmt.Println(show(recs))
	}
	return nil
}

func changeOne(pool *blockdev.Pool, rng *rand.Rand) error {
	id := fmt.Sprintf("vol-%d", rng.IntN(8))
	moved := filepath.Join(pool.Dir(), "moved-"+id)
	dir := filepath.Join(pool.VolumesDir(), id)
	if _, err := pool.Get(id); err != nil {
		if _, err := os.Stat(moved); err == nil && rng.IntN(2) == 0 { // a person puts a volume back
			return os.Rename(moved, dir)
		}
		_, err := pool.Create(blockdev.VolumeRecord{ID: id, Name: fmt.Sprint("name-", rng.IntN(4)), SizeBytes: 1 << 20})
		return err
	}
	switch rng.IntN(6) {
	case 0:
		return pool.Delete(id)
	case 1: // a person takes a volume away
		if err := os.RemoveAll(moved); err != nil {
			return err
		}
		return os.Rename(dir, moved)
	case 2: // a person restores a record in place
		data, err := os.ReadFile(pool.RecordPath(id))
		if err != nil {
			return err
		}
		rec, err := blockdev.DecodeVolumeRecord(pool.RecordPath(id), data)
		if err != nil {
			return err
		}
		rec.Remote = fmt.Sprint("restored-", rng.IntN(1000))
		if data, err = blockdev.EncodeVolumeRecord(rec); err != nil {
			return err
		}
		return os.WriteFile(pool.RecordPath(id), data, 0o600)
	}
	_, err := pool.Update(id, func(r *blockdev.VolumeRecord) error {
		r.Name, r.Remote = fmt.Sprint("name-", rng.IntN(4)), fmt.Sprint("site-", rng.IntN(1000))
		return nil
	})
	return err
}

// TestTwoProcesses: after each change that another process has made, the index has it, whatever was read before.
func TestTwoProcesses(t *testing.T) {
	for _, watched := range []bool{true, false} {
		t.Run(fmt.Sprint("watched=", watched), func(t *testing.T) { testTwoProcesses(t, watched) })
	}
}

func testTwoProcesses(t *testing.T, watched bool) {
	dir := t.TempDir()
	d := openStore(t, dir, watched)
	seed := rand.Uint64()
	t.Logf("STORE_TEST_SEED=%d", seed)
	other := exec.Command(os.Args[0], "-test.run=^$")
	other.Env = append(os.Environ(), otherProcess+"="+dir, fmt.Sprint("STORE_TEST_SEED=", seed))
	other.Stderr = os.Stderr
	requests, err := other.StdinPipe()
	noErr(t, err)
	answers, err := other.StdoutPipe()
	noErr(t, err)
	noErr(t, other.Start())
	scanner := bufio.NewScanner(answers)
	for n := range 300 {
		_, err := fmt.Fprintln(requests)
		noErr(t, err)
		if !scanner.Scan() {
			t.Fatal("the other process ended")
		}
		if n%3 == 1 {
			continue // several answers' worth of changes at once
		}
		recs, err := d.SharedVolumes()
		noErr(t, err)
		if got, want := show(recs), scanner.Text(); got != want {
			t.Fatalf("after answer %d\n got %s\nwant %s", n, got, want)
		}
		for i := range 4 {
			name := fmt.Sprint("name-", i)
			var want []*blockdev.VolumeRecord
			for _, rec := range recs {
				if rec.Name == name {
					want = append(want, rec)
				}
			}
			if got, err := d.VolumesNamed(name); err != nil || show(got) != show(want) {
				t.Fatalf("after answer %d: named %s: %s %v, want %s", n, name, show(got), err, show(want))
			}
		}
	}
	noErr(t, requests.Close())
	noErr(t, other.Wait())
	if (d.index.watch != nil) != watched {
		t.Errorf("there is a watch: %v", d.index.watch != nil)
	}
}

// TestDirectoryReplaced: the directory of all volumes is moved away and another one takes its place.
func TestDirectoryReplaced(t *testing.T) {
	d := openStore(t, t.TempDir(), true)
	_, err := d.Pool.Create(blockdev.VolumeRecord{ID: "vol-1", Name: "one", SizeBytes: 1 << 20})
	noErr(t, err)
	want := func(want string) {
		t.Helper()
		recs, err := d.SharedVolumes()
		if noErr(t, err); show(recs) != want {
			t.Fatalf("%q, want %q", show(recs), want)
		}
	}
	want("vol-1,one, ")
	old := d.Pool.VolumesDir() + ".old"
	noErr(t, os.Rename(d.Pool.VolumesDir(), old))
	noErr(t, os.Mkdir(d.Pool.VolumesDir(), 0o700))
	want("")
	noErr(t, os.Rename(filepath.Join(old, "vol-1"), filepath.Join(d.Pool.VolumesDir(), "vol-1")))
	want("vol-1,one, ")
}

// TestLostEvents: the kernel drops events when too many are queued, and says so.
func TestLostEvents(t *testing.T) {
	d := openStore(t, t.TempDir(), true)
	_, err := d.SharedVolumes()
	noErr(t, err)
	_, err = d.Pool.Create(blockdev.VolumeRecord{ID: "vol-1", Name: "one", SizeBytes: 1 << 20})
	noErr(t, err)
	// Takes the events away, as if there had been no room for them, and says that some were lost.
	for {
		if _, err := unix.Read(d.index.watch.fd, d.index.watch.buffer); err != nil {
			break
		}
	}
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	noErr(t, err)
	var most int
	_, err = fmt.Sscan(string(limit), &most)
	noErr(t, err)
	for i := range most + 1 {
		path := filepath.Join(d.Pool.VolumesDir(), fmt.Sprint("x.", i%2)) // two names: equal events are merged
		noErr(t, os.WriteFile(path, nil, 0o600))
		noErr(t, os.Remove(path))
	}
	recs, err := d.SharedVolumes()
	if noErr(t, err); show(recs) != "vol-1,one, " {
		t.Error(show(recs))
	}
}

// TestWatchFails: when a watch cannot be read, another one is made and all records are read.
func TestWatchFails(t *testing.T) {
	d := openStore(t, t.TempDir(), true)
	_, err := d.SharedVolumes()
	noErr(t, err)
	noErr(t, unix.Close(d.index.watch.fd)) // whatever is asked of it fails from now on
	d.index.watch.fd = -1                  // a number that no later file gets
	for _, id := range []string{"vol-1", "vol-2"} {
		_, err = d.Pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: 1 << 20})
		noErr(t, err)
	}
	recs, err := d.SharedVolumes()
	if noErr(t, err); len(recs) != 2 {
		t.Error(show(recs))
	}
}

// TestGroupRecord: what is returned is what was written last, also within one tick of the clock of files.
func TestGroupRecord(t *testing.T) {
	d := openStore(t, t.TempDir(), true)
	dir := filepath.Join(d.Pool.GroupsDir(), "g-1")
	noErr(t, os.MkdirAll(dir, 0o700))
	for n := range 30 {
		meta := core.Meta{Name: fmt.Sprint("group-", n), Settings: core.Settings{JournalSizeBytes: int64(n+1) << 30}}
		noErr(t, recordfile.Write(vfs.OS, filepath.Join(dir, core.MetaFile), core.MetaKind, &meta))
		if n == 20 {
			time.Sleep(2 * settledAfter) // from here on it is known
		}
		for range 2 {
			r, err := d.GroupRecord("g-1")
			if noErr(t, err); r.Name != meta.Name || r.JournalLimitBytes != meta.JournalLimitBytes() {
				t.Fatalf("after change %d: %+v", n, r)
			}
		}
	}
	noErr(t, os.RemoveAll(dir))
	if _, err := d.GroupRecord("g-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
