package replication

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// damagedSite is a site that ran, was killed, and is about to be opened with one file changed.
type damagedSite struct {
	fs *vfs.MemFS
	// flushed is what each volume has to show.
	flushed map[string][]byte
	dir     string // of the group that is damaged
}

const damagedVolumeBytes = 1 << 20

// makeDamagedSite runs two groups: "other" is left alone, "shop" has a change map, applied records, released segments,
// durable records that are not applied, and behind them one record that was never flushed. That one is how recovery
// can know that those before it were durable; it is written where no flushed data is.
func makeDamagedSite(t *testing.T) *damagedSite {
	t.Helper()
	d := &damagedSite{flushed: map[string][]byte{}}
	s := newTestSite(t, link.NewNetwork(nil), "site-a", func(c *Config) {
		c.ApplyInterval, c.CommitInterval = time.Hour, time.Hour
	})
	write := func(g *Group, id string, off int64, p []byte) {
		mustWrite(t, volumeOf(t, g, id), off, p)
		copy(d.flushed[id][off:], p)
	}
	old := s.createVolume("v1", damagedVolumeBytes)
	image, err := s.pool.OpenImage("v1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(block('o', 4096), 64<<10); err != nil {
		t.Fatal(err)
	}
	if err := image.Flush(); err != nil {
		t.Fatal(err)
	}
	image.Close()
	shop := s.createGroup("shop", "site-b", 1, damagedVolumeBytes, nil)
	if err := shop.AddVolume(old, nil); err != nil { // its content is marked in the change map
		t.Fatal(err)
	}
	other := s.createGroup("other", "", 0, 0, nil)
	if err := other.AddVolume(s.createVolume("w0", damagedVolumeBytes), nil); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"v0", "v1", "w0"} {
		d.flushed[id] = make([]byte, damagedVolumeBytes)
	}
	copy(d.flushed["v1"][64<<10:], block('o', 4096))
	for i := range int64(100) { // more than a segment, which is applied and released
		write(shop, []string{"v0", "v1"}[i%2], i*8192%(damagedVolumeBytes/2), block(byte(i+1), 4096))
	}
	mustFlush(t, volumeOf(t, shop, "v0"))
	if err := shop.applier.applyAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := shop.trimmer.trim(); err != nil {
		t.Fatal(err)
	}
	if shop.log.retained() == 1 {
		t.Fatal("nothing was released")
	}
	for i := range int64(12) {
		write(shop, []string{"v0", "v1"}[i%2], i*12288, block(byte(i+130), 4096))
	}
	if err := volumeOf(t, shop, "v1").Discard(64<<10, 4096); err != nil {
		t.Fatal(err)
	}
	clear(d.flushed["v1"][64<<10:][:4096])
	write(other, "w0", 0, block('w', 4096))
	mustFlush(t, volumeOf(t, shop, "v0"))
	mustFlush(t, volumeOf(t, other, "w0"))
	if err := shop.checkpoint.takeEnd(shop.journal); err != nil { // as a clean end, or a pass of apply, does
		t.Fatal(err)
	}
	mustWrite(t, volumeOf(t, shop, "v0"), damagedVolumeBytes-4096, block('u', 4096))
	d.dir = shop.dir
	s.kill()
	d.fs = s.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100})
	return d
}

// outcome of opening a damaged site.
type outcome int

const (
	intact outcome = iota
	reported
)

// open opens the site after change was made to the file, and checks: either every flushed byte is there, or the error
// names the file (or names[0]) and the group is not served; the other group is served in any case.
func (d *damagedSite) open(t *testing.T, file string, change func(vfs.File) error, names ...string) outcome {
	t.Helper()
	fs := d.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100})
	f, err := fs.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := change(f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	pool, err := blockdev.OpenPool(fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	site, err := Open(Config{FS: fs, Pool: pool, Site: "site-a", ApplyInterval: time.Hour})
	if err != nil {
		t.Fatalf("one group's damage keeps the site from opening: %v", err)
	}
	defer site.Kill()
	result := intact
	for _, name := range []string{"shop", "other"} {
		g, err := site.Group(name)
		if err != nil {
			broken := site.Broken()[d.dir]
			if name == "other" || broken == nil {
				t.Fatalf("group %s is gone: %v; broken: %v", name, err, site.Broken())
			}
			for _, name := range append(names, file)[:1] {
				if !strings.Contains(broken.Error(), name) {
					t.Fatalf("the error does not name %s: %v", name, broken)
				}
			}
			if _, err := site.CreateGroup(GroupSpec{
				Name: "new", Settings: core.Settings{JournalSizeBytes: MinJournalBytes},
			}); err != nil {
				t.Fatalf("no group can be made beside a broken one: %v", err)
			}
			result = reported
			continue
		}
		for _, v := range g.Volumes() {
			got := content(t, v)
			if v.ID() == "v0" { // the unflushed write may be there or not
				clear(got[damagedVolumeBytes-4096:])
			}
			if !bytes.Equal(got, d.flushed[v.ID()]) {
				at := 0
				for got[at] == d.flushed[v.ID()][at] {
					at++
				}
				t.Fatalf("volume %s silently differs at %d: %#x, flushed was %#x", v.ID(), at, got[at], d.flushed[v.ID()][at])
			}
		}
		if len(g.Volumes()) != map[string]int{"shop": 2, "other": 1}[name] {
			t.Fatalf("group %s has %d volumes", name, len(g.Volumes()))
		}
	}
	return result
}

// files are the group's files and its volumes' records, with how many bytes of each hold something.
func (d *damagedSite) files(t *testing.T) map[string]int64 {
	t.Helper()
	files := map[string]int64{}
	add := func(name string) {
		f, err := d.fs.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		files[name] = int64(len(bytes.TrimRight(b, "\x00")))
	}
	for _, name := range []string{core.MetaFile, checkpointName, changeMapFile} {
		add(path.Join(d.dir, name))
	}
	for _, id := range []string{"v0", "v1"} {
		add("/pool/volumes/" + id + "/volume.json")
	}
	segments, err := d.fs.ReadDir(path.Join(d.dir, core.JournalDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range segments {
		add(path.Join(d.dir, core.JournalDir, name))
	}
	return files
}

// damageSamples bounds how many places of one file are tried.
const damageSamples = 120

// Every file of a group, damaged at places all over it: what was flushed is there, or the damage is reported.
func TestDamageIsNeverSilent(t *testing.T) {
	d := makeDamagedSite(t)
	if d.open(t, path.Join(d.dir, core.MetaFile), func(vfs.File) error { return nil }) != intact {
		t.Fatal("the undamaged group does not open")
	}
	rng := seeded(t)
	for file, size := range d.files(t) {
		var count [2]int
		step := max(1, size/damageSamples)
		if testing.Short() {
			step = max(1, size/(damageSamples/10))
		}
		for off := int64(0); off < size; off += step {
			at, mask := min(size-1, off+rng.Int64N(step)), byte(1)<<rng.IntN(8)
			t.Run(fmt.Sprintf("flip %s at %d", path.Base(file), at), func(t *testing.T) {
				count[d.open(t, file, func(f vfs.File) error {
					b := make([]byte, 1)
					if _, err := f.ReadAt(b, at); err != nil {
						return err
					}
					_, err := f.WriteAt([]byte{b[0] ^ mask}, at)
					return err
				})]++
			})
		}
		for off := int64(0); off < size; off += 4 * step {
			at := max(1, min(size-1, off+rng.Int64N(4*step))) // to nothing: as if missing, see TestMissingFile
			t.Run(fmt.Sprintf("cut %s to %d", path.Base(file), at), func(t *testing.T) {
				count[d.open(t, file, func(f vfs.File) error { return f.Truncate(at) })]++
			})
		}
		t.Logf("%s, %d bytes: %d times intact, %d times reported", file, size, count[intact], count[reported])
		// Records are checked as a whole: no flip of one may pass.
		if strings.HasSuffix(file, ".json") && count[intact] > 0 {
			t.Errorf("%s: %d damages were not noticed", file, count[intact])
		}
		if t.Failed() {
			return
		}
	}
}

// A segment cut within the fields of its header is one that nothing else identifies, and still the one to be named.
// Free segments, which hold nothing, may be cut.
func TestCutSegmentHeader(t *testing.T) {
	d := makeDamagedSite(t)
	segments, err := d.fs.ReadDir(path.Join(d.dir, core.JournalDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{1, 63, 370, 511, 512, 4095} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			damaged := 0
			for _, name := range segments {
				if d.open(t, path.Join(d.dir, core.JournalDir, name),
					func(f vfs.File) error { return f.Truncate(size) }) == reported {
					damaged++
				}
			}
			if damaged == 0 {
				t.Errorf("each of %v cut to %d bytes passes for intact", segments, size)
			}
		})
	}
}

// A file that is gone is not taken for one that never was. See files_test.go for all files.
func TestMissingFile(t *testing.T) {
	for _, c := range []struct {
		name   string
		broken bool
	}{{core.MetaFile, true}, {checkpointName, true}, {changeMapFile, false}} {
		t.Run(c.name, func(t *testing.T) {
			d := makeDamagedSite(t)
			if err := d.fs.Remove(path.Join(d.dir, c.name)); err != nil {
				t.Fatal(err)
			}
			want := map[bool]outcome{true: reported, false: intact}[c.broken]
			if got := d.open(t, "/pool/pool.json", func(vfs.File) error { return nil }, c.name); got != want {
				t.Fatalf("outcome %d, want %d", got, want)
			}
		})
	}
}

// A change map that is damaged or gone does not stop the volumes; the peer gets everything.
func TestLostChangeMap(t *testing.T) {
	for _, remove := range []bool{false, true} {
		t.Run(fmt.Sprintf("removed=%v", remove), func(t *testing.T) {
			net, a, b := pair(t)
			g := a.createGroup("shop", "site-b", 1, 8<<20, nil)
			mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
			mustFlush(t, volumeOf(t, g, "v0"))
			caughtUp(t, g, b)
			net.Cut("site-a")
			for i := range int64(2000) { // twice the journal
				mustWrite(t, volumeOf(t, g, "v0"), i*4096, block(byte(i), 4096))
				if i%100 == 0 {
					mustFlush(t, volumeOf(t, g, "v0"))
				}
			}
			mustFlush(t, volumeOf(t, g, "v0"))
			eventually(t, "the journal was folded", func() bool { return g.Status().ChangeMapBytes > 0 })
			file := g.path(changeMapFile)
			a.kill()
			if remove {
				if err := a.fs.Remove(file); err != nil {
					t.Fatal(err)
				}
			} else {
				flipByte(t, a.fs, file, 20, 4)
			}
			a.open()
			net.Heal("site-a")
			g = a.group("shop")
			sameContent(t, g, caughtUp(t, g, b))
		})
	}
}

// A deletion that is interrupted anywhere leaves a group or none.
func TestInterruptedDeletion(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := s.createGroup("shop", "", 1, 1<<20, nil)
	dir := g.dir
	s.kill()
	if err := s.fs.Rename(dir, dir+deletingSuffix); err != nil {
		t.Fatal(err)
	}
	s.open()
	if len(s.site.Groups()) != 0 || len(s.site.Broken()) != 0 {
		t.Fatalf("%d groups, broken %v", len(s.site.Groups()), s.site.Broken())
	}
	if left, err := s.fs.ReadDir("/pool/groups"); err != nil || len(left) > 0 {
		t.Fatalf("%v is left, %v", left, err)
	}
	s.createGroup("shop", "", 0, 0, nil)
	if err := s.site.DeleteGroup("shop", false); err != nil {
		t.Fatal(err)
	}
	if left, err := s.fs.ReadDir("/pool/groups"); err != nil || len(left) > 0 {
		t.Fatalf("%v is left, %v", left, err)
	}
}
