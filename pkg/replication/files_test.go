package replication

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// filesSite is a site with two groups, stopped, and what it was some time before.
type filesSite struct {
	now, before *vfs.MemFS
	// flushed is what each volume has to show.
	flushed map[string][]byte
	role    core.Role
	name    string // of the site
	ids     map[string]string
}

const filesVolumeBytes = 1 << 20

// makeFilesSite runs the groups "shop" and "other" at two sites and returns the one where they have the given role.
// Between before and now every file of the groups changed. With applied, nothing of the journal is left to be applied;
// with killed, the site's processes were killed, else they ended.
func makeFilesSite(t *testing.T, want core.Role, applied, killed bool) *filesSite {
	t.Helper()
	quiet := func(c *Config) { c.ApplyInterval, c.CommitInterval = time.Hour, time.Hour }
	net := link.NewNetwork(nil)
	a, b := newTestSite(t, net, "site-a", quiet), newTestSite(t, net, "site-b", quiet)
	d := &filesSite{flushed: map[string][]byte{}, role: want, ids: map[string]string{}}
	here := map[core.Role]*testSite{core.RolePrimary: a, core.RoleSecondary: b}[want]
	d.name = here.name
	volumes := map[string][]string{"shop": {"v0", "v1"}, "other": {"w0", "w1"}}
	round := func(n int) {
		for _, name := range []string{"shop", "other"} {
			g := a.group(name)
			for i := range 140 { // more than a segment of 256 KiB
				id, off := volumes[name][i%2], int64(i)*4096
				p := block(byte(n*50+i%50+1), 4096)
				mustWrite(t, volumeOf(t, g, id), off, p)
				copy(d.flushed[id][off:], p)
			}
			mustFlush(t, volumeOf(t, g, volumes[name][0]))
			there := caughtUp(t, g, b)
			for _, g := range []*Group{g, there} {
				if applied {
					if err := g.applier.applyAll(context.Background()); err != nil {
						t.Fatal(err)
					}
					if err := g.trimmer.trim(); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		// group.json, the change map, the file of cuts and the records of volumes change, too.
		for _, name := range []string{"shop", "other"} {
			for _, id := range volumes[name] {
				if _, err := a.pool.Update(id, func(r *blockdev.VolumeRecord) error {
					if n == 2 {
						r.Format = &blockdev.FormatRecord{State: blockdev.FormatFormatted, FSType: "ext4"}
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				if n == 2 {
					if err := a.group(name).RecordFormat(id, []byte(`{"state":"formatted","fsType":"ext4"}`)); err != nil {
						t.Fatal(err)
					}
				}
			}
			g := caughtUp(t, a.group(name), b)
			for _, g := range []*Group{a.group(name), g} {
				if err := g.shipper.saveChangeMap(); err != nil {
					t.Fatal(err)
				}
				g.cuts.mu.Lock()
				g.cuts.file.changed()
				err := g.cuts.saveLocked()
				g.cuts.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, name := range []string{"shop", "other"} {
		g, err := a.site.CreateGroup(GroupSpec{
			Name: name, Settings: core.Settings{Peer: "site-b", JournalSizeBytes: MinJournalBytes},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range volumes[name] {
			d.flushed[id] = make([]byte, filesVolumeBytes)
			if err := g.AddVolume(a.createVolume(id, filesVolumeBytes), nil); err != nil {
				t.Fatal(err)
			}
		}
		d.ids[name] = g.ID()
	}
	round(1)
	here.site.mu.Lock()
	here.site.noteGroupsLocked()
	here.site.mu.Unlock()
	d.before = here.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100})
	round(2)
	if killed {
		for _, g := range here.site.Groups() { // as the next pass of apply does
			if err := g.checkpoint.takeEnd(g.journal); err != nil {
				t.Fatal(err)
			}
		}
		here.site.mu.Lock() // as happens every minute
		here.site.noteGroupsLocked()
		here.site.mu.Unlock()
		here.kill()
	} else {
		net.Detach(here.name)
		if err := here.site.Close(); err != nil {
			t.Fatal(err)
		}
		here.pool.Close()
		here.site = nil
	}
	d.now = here.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100})
	return d
}

// open opens the site on a file system and checks it: the other group serves all that was flushed, and so does "shop",
// unless it is refused with an error that has one of the names.
func (d *filesSite) open(t *testing.T, fs *vfs.MemFS, names ...string) (refused error) {
	t.Helper()
	pool, err := blockdev.OpenPool(fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	site, err := Open(Config{FS: fs, Pool: pool, Site: d.name, ApplyInterval: time.Hour})
	if err != nil {
		t.Fatalf("one group keeps the site from opening: %v", err)
	}
	defer site.Kill()
	for _, name := range []string{"other", "shop"} {
		g, err := site.Group(name)
		if err != nil {
			broken := site.Broken()
			if name == "other" || len(broken) != 1 {
				t.Fatalf("group %s is not served; broken: %v", name, broken)
			}
			for dir, reason := range broken {
				if site.BrokenName(dir) != "shop" {
					t.Errorf("%s is said to be group %q", dir, site.BrokenName(dir))
				}
				refused = reason
			}
			if !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(refused.Error(), n) }) {
				t.Errorf("the error names none of %q: %v", names, refused)
			}
			if _, err := site.CreateGroup(GroupSpec{
				Name: "shop", Settings: core.Settings{JournalSizeBytes: MinJournalBytes},
			}); err == nil {
				t.Error("a group can be made in the place of one that cannot be opened")
			}
			continue
		}
		if role(g) != d.role || len(g.Volumes()) != 2 {
			t.Fatalf("group %s is %s with %d volumes", name, role(g), len(g.Volumes()))
		}
		for _, v := range g.Volumes() {
			if !bytes.Equal(content(t, v), d.flushed[v.ID()]) {
				t.Errorf("volume %s silently lacks what was flushed", v.ID())
			}
		}
	}
	return refused
}

// entries are all files and directories that the group has, and its volumes.
func (d *filesSite) entries(t *testing.T) (files, dirs []string) {
	t.Helper()
	dir := "/pool/groups/" + d.ids["shop"]
	dirs = []string{dir, path.Join(dir, core.JournalDir), "/pool/volumes/v0", "/pool/volumes/v1"}
	for _, dir := range dirs {
		names, err := d.now.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if file := path.Join(dir, name); !slices.Contains(dirs, file) {
				files = append(files, file)
			}
		}
	}
	for _, want := range []string{core.MetaFile, checkpointName, changeMapFile, cutsFile, "00000001.seg", "volume.json",
		"image"} {
		if !slices.ContainsFunc(files, func(f string) bool { return path.Base(f) == want }) {
			t.Fatalf("the group has no %s: %v", want, files)
		}
	}
	return files, dirs
}

// other is the same file of the other group.
func (d *filesSite) other(file string) string {
	file = strings.Replace(file, d.ids["shop"], d.ids["other"], 1)
	return strings.Replace(file, "/volumes/v", "/volumes/w", 1)
}

// copyTree copies a file or directory from one file system to another, as new files.
func copyTree(t *testing.T, to vfs.FS, target string, from vfs.FS, source string) {
	t.Helper()
	info, err := from.Stat(source)
	if err != nil {
		t.Fatal(err)
	}
	if err := to.RemoveAll(target); err != nil {
		t.Fatal(err)
	}
	if !info.IsDir() {
		overwrite(t, to, target, from, source)
		return
	}
	if err := to.MkdirAll(target); err != nil {
		t.Fatal(err)
	}
	names, err := from.ReadDir(source)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		copyTree(t, to, path.Join(target, name), from, path.Join(source, name))
	}
}

// overwrite copies a file's content into the file that is there, if one is.
func overwrite(t *testing.T, to vfs.FS, target string, from vfs.FS, source string) {
	t.Helper()
	data, err := vfs.ReadFile(from, source, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	f, err := to.Create(target)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
}

// has reports whether a file system has an entry.
func has(fs vfs.FS, name string) bool { _, err := fs.Stat(name); return err == nil }

// Every file and directory of a group, as primary and as secondary: removed, cut, replaced by an older one and by
// another group's. The group opens with everything that was flushed, or is refused with the file's name; the other
// group of the site serves.
func TestEveryFileIsKnown(t *testing.T) {
	for _, want := range []core.Role{core.RolePrimary, core.RoleSecondary} {
		for _, applied := range []bool{true, false} {
			for _, killed := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s,applied=%v,killed=%v", want, applied, killed), func(t *testing.T) {
					testFiles(t, makeFilesSite(t, want, applied, killed))
				})
			}
		}
	}
}

func testFiles(t *testing.T, d *filesSite) {
	if err := d.open(t, d.now.CrashClone(vfs.CrashConfig{})); err != nil {
		t.Fatalf("untouched: %v", err)
	}
	files, dirs := d.entries(t)
	count := map[string]int{}
	try := func(what, entry string, change func(fs *vfs.MemFS), names ...string) {
		t.Run(what+" "+strings.TrimPrefix(entry, "/pool/"), func(t *testing.T) {
			fs := d.now.CrashClone(vfs.CrashConfig{})
			change(fs)
			refused := d.open(t, fs, append(names, entry)...)
			count[fmt.Sprintf("%s: refused %v", what, refused != nil)]++
			if refused == nil {
				return
			}
			if again := d.open(t, fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100}), append(names, entry)...); again == nil {
				t.Error("at the second start the group opens") // the first one changed something
			}
		})
	}
	for _, entry := range append(slices.Clone(files), dirs...) {
		isDir := slices.Contains(dirs, entry)
		try("remove", entry, func(fs *vfs.MemFS) {
			if err := fs.RemoveAll(entry); err != nil {
				t.Fatal(err)
			}
		}, d.blame(entry)...)
		if isDir {
			try("empty", entry, func(fs *vfs.MemFS) {
				if err := fs.RemoveAll(entry); err != nil {
					t.Fatal(err)
				}
				if err := fs.MkdirAll(entry); err != nil {
					t.Fatal(err)
				}
			}, d.blame(entry)...)
		} else {
			size := fileSize(t, d.now, entry)
			for _, n := range []int64{0, 1, size / 2, size - 1} {
				try(fmt.Sprintf("cut to %d", n), entry, func(fs *vfs.MemFS) {
					f, err := fs.Open(entry)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					if err := f.Truncate(n); err != nil {
						t.Fatal(err)
					}
				}, d.blame(entry)...)
			}
		}
		if has(d.before, entry) {
			try("older", entry, func(fs *vfs.MemFS) { copyTree(t, fs, entry, d.before, entry) }, d.blame(entry)...)
			if !isDir {
				try("older, in place", entry, func(fs *vfs.MemFS) { overwrite(t, fs, entry, d.before, entry) }, d.blame(entry)...)
			}
		}
		if has(d.now, d.other(entry)) {
			try("other's", entry, func(fs *vfs.MemFS) { copyTree(t, fs, entry, d.now, d.other(entry)) }, d.blame(entry)...)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%s: %d", what, count[what])
	}
}

// blame is what an error may name in place of an entry: what is in a directory; the checkpoint, where a segment and it
// do not agree.
func (d *filesSite) blame(entry string) []string {
	switch {
	case strings.HasSuffix(entry, ".seg"):
		return []string{"checkpoint"}
	case path.Base(entry) == checkpointName:
		return []string{"the newest checkpoint"}
	}
	return nil
}

func fileSize(t *testing.T, fs vfs.FS, name string) int64 {
	t.Helper()
	info, err := fs.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
