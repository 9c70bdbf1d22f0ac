package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// model is a MemFS with one directory, kept naively: the contents now, and as they were synced.
type model struct {
	files  map[string]*modelFile
	synced map[string]*modelFile // directory entries at the last SyncDir
}

type modelFile struct {
	data, synced []byte
	handle       File
}

func (f *modelFile) resize(n int64) {
	if n <= int64(len(f.data)) {
		f.data = f.data[:n:n]
		return
	}
	f.data = append(f.data[:len(f.data):len(f.data)], make([]byte, n-int64(len(f.data)))...)
}

// TestMemAgainstModel does random operations on a MemFS and on the model, and crashes it now and then, going on with
// what is left.
func TestMemAgainstModel(t *testing.T) {
	const maxBytes = 5 * pageBytes
	rapid.Check(t, func(t *rapid.T) {
		fsys := NewMem()
		m := model{files: map[string]*modelFile{}, synced: map[string]*modelFile{}}
		name := rapid.SampledFrom([]string{"/a", "/b", "/c"})
		offset := rapid.Int64Range(0, maxBytes)
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		file := func(t *rapid.T) *modelFile {
			f := m.files[name.Draw(t, "name")]
			if f == nil {
				t.Skip("no such file")
			}
			return f
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				n := name.Draw(t, "name")
				h, err := fsys.Create(n)
				must(err)
				f := m.files[n]
				if f == nil {
					f = &modelFile{}
					m.files[n] = f
				}
				f.data, f.handle = nil, h
			},
			"write": func(t *rapid.T) {
				f, off := file(t), offset.Draw(t, "off")
				p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, int(rapid.Int64Range(0, maxBytes).Draw(t, "n")))
				n, err := f.handle.WriteAt(p, off)
				must(err)
				if n != len(p) {
					t.Fatalf("wrote %d of %d", n, len(p))
				}
				if n > 0 {
					f.resize(max(int64(len(f.data)), off+int64(n)))
					f.data = bytes.Clone(f.data)
					copy(f.data[off:], p)
				}
			},
			"truncate": func(t *rapid.T) {
				f, n := file(t), offset.Draw(t, "n")
				must(f.handle.Truncate(n))
				f.resize(n)
			},
			"preallocate": func(t *rapid.T) {
				f, off, n := file(t), offset.Draw(t, "off"), offset.Draw(t, "n")
				must(f.handle.Preallocate(off, n))
				if n > 0 {
					f.resize(max(int64(len(f.data)), off+n))
				}
			},
			"zero": func(t *rapid.T) {
				f, off, n := file(t), offset.Draw(t, "off"), offset.Draw(t, "n")
				if rapid.Bool().Draw(t, "punch") {
					must(f.handle.PunchHole(off, n))
				} else {
					must(f.handle.ZeroRange(off, n))
				}
				f.data = bytes.Clone(f.data)
				size := int64(len(f.data))
				clear(f.data[min(off, size):min(off+n, size)])
			},
			"sync": func(t *rapid.T) {
				f := file(t)
				must(f.handle.Datasync())
				f.synced = bytes.Clone(f.data)
			},
			"sync dir": func(*rapid.T) {
				must(fsys.SyncDir("/"))
				m.synced = maps.Clone(m.files)
			},
			"remove": func(t *rapid.T) {
				n := name.Draw(t, "name")
				err := fsys.Remove(n)
				if (err == nil) != (m.files[n] != nil) {
					t.Fatalf("remove %s: %v", n, err)
				}
				delete(m.files, n)
			},
			"rename": func(t *rapid.T) {
				from, to := name.Draw(t, "from"), name.Draw(t, "to")
				err := fsys.Rename(from, to)
				if (err == nil) != (m.files[from] != nil) {
					t.Fatalf("rename %s %s: %v", from, to, err)
				}
				if f := m.files[from]; f != nil {
					delete(m.files, from)
					m.files[to] = f
				}
			},
			"crash": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "really") != 0 {
					t.Skip("not now")
				}
				lost := rapid.Bool().Draw(t, "lose all")
				percent := 100
				after := m.files
				if lost {
					percent, after = 0, m.synced
				}
				fsys = fsys.CrashClone(CrashConfig{UnsyncedPercent: percent})
				m.files = map[string]*modelFile{}
				for n, f := range after {
					h, err := fsys.Open(n)
					must(err)
					data := f.data
					if lost {
						data = f.synced
					}
					m.files[n] = &modelFile{data: data, synced: data, handle: h}
				}
				m.synced = maps.Clone(m.files)
			},
			"": func(t *rapid.T) { checkModel(t, fsys, m) },
		})
	})
}

func checkModel(t *rapid.T, fsys *MemFS, m model) {
	names, err := fsys.ReadDir("/")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for n := range m.files {
		want = append(want, n[1:])
	}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Fatalf("names %q, want %q", names, want)
	}
	var pages int64
	for n, f := range m.files {
		got, err := ReadFile(fsys, n, 1<<30)
		if err != nil || !bytes.Equal(got, f.data) {
			t.Fatalf("%s: %d bytes, %v; want %d bytes", n, len(got), err, len(f.data))
		}
		info, err := fsys.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		allocated, err := AllocatedBytes(info)
		if err != nil {
			t.Fatal(err)
		}
		pages += allocated / pageBytes
		checkExtents(t, f)
	}
	if openRemoved := fsys.pages - pages; openRemoved < 0 {
		t.Fatalf("%d pages counted, files have %d", fsys.pages, pages)
	}
}

// checkExtents: everything that is not zero lies in the extents of NextData.
func checkExtents(t *rapid.T, f *modelFile) {
	var at int64
	for {
		start, end, err := f.handle.NextData(at)
		if err == io.EOF {
			start, end = int64(len(f.data)), -1
		} else if err != nil {
			t.Fatal(err)
		}
		if hole := f.data[at:start]; !bytes.Equal(hole, make([]byte, len(hole))) {
			t.Fatalf("%s: NextData leaves out data in [%d, %d)", f.handle.Name(), at, start)
		}
		if end < 0 {
			return
		}
		at = end
	}
}

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestCrashPartial: at a chance between none and all, each sector of a file is what was synced or what was written, and
// every kind of outcome occurs.
func TestCrashPartial(t *testing.T) {
	rng := seeded(t)
	const pages = 64
	m := NewMem()
	f := create(t, m, "/a", strings.Repeat("s", pages*pageBytes))
	noErr(t, f.Datasync())
	noErr(t, m.SyncDir("/"))
	_, err := f.WriteAt(bytes.Repeat([]byte{'u'}, (pages+8)*pageBytes), 0)
	noErr(t, err)

	outcomes := map[string]int{}
	sizes := map[int]bool{}
	for range 20 {
		got, err := ReadFile(m.CrashClone(CrashConfig{UnsyncedPercent: 50, RNG: rng}), "/a", 1<<30)
		noErr(t, err)
		sizes[len(got)] = true
		if len(got) < pages*pageBytes || len(got) > (pages+8)*pageBytes {
			t.Fatalf("size %d after the crash", len(got))
		}
		for p := range pages {
			var old, fresh int
			for s := p * pageBytes; s < (p+1)*pageBytes; s += sectorBytes {
				switch sector := string(got[s : s+sectorBytes]); sector {
				case strings.Repeat("s", sectorBytes):
					old++
				case strings.Repeat("u", sectorBytes):
					fresh++
				default:
					t.Fatalf("sector at %d is neither old nor new: %q", s, sector)
				}
			}
			switch {
			case fresh == 0:
				outcomes["old"]++
			case old == 0:
				outcomes["new"]++
			default:
				outcomes["torn"]++
			}
		}
	}
	for _, kind := range []string{"old", "new", "torn"} {
		if outcomes[kind] == 0 {
			t.Errorf("no page was %s: %v", kind, outcomes)
		}
	}
	if len(sizes) < 3 {
		t.Errorf("only sizes %v occurred", sizes)
	}
	// The origin is as it was, and so is what was synced.
	got, err := ReadFile(m, "/a", 1<<30)
	noErr(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte{'u'}, (pages+8)*pageBytes)) {
		t.Error("cloning changed the origin")
	}
	wantContents(t, m.CrashClone(CrashConfig{}), "/a", strings.Repeat("s", pages*pageBytes))
}

// TestCrashSeed: the same seed on the same history leaves the same.
func TestCrashSeed(t *testing.T) {
	history := func() *MemFS {
		m := NewMem()
		for i := range 20 {
			f := create(t, m, fmt.Sprintf("/%d", i), strings.Repeat("x", 3*pageBytes))
			if i%2 == 0 {
				noErr(t, f.Datasync())
			}
		}
		return m
	}
	contents := func(m *MemFS) string {
		var b strings.Builder
		names, err := m.ReadDir("/")
		noErr(t, err)
		for _, n := range names {
			data, err := ReadFile(m, "/"+n, 1<<30)
			noErr(t, err)
			fmt.Fprintf(&b, "%s %q\n", n, data)
		}
		return b.String()
	}
	cfg := func() CrashConfig {
		return CrashConfig{UnsyncedPercent: 50, RNG: rand.New(rand.NewPCG(1, 2))}
	}
	first, second := history().CrashClone(cfg()), history().CrashClone(cfg())
	if contents(first) != contents(second) {
		t.Error("two crashes with the same seed differ")
	}
}

func TestCrashDirectories(t *testing.T) {
	rng := seeded(t)
	names := func(m *MemFS, dir string) string {
		n, err := m.ReadDir(dir)
		noErr(t, err)
		return strings.Join(n, " ")
	}
	for _, tc := range []struct {
		name string
		do   func(m *MemFS)
		want []string // what "/d" may hold; each must occur
	}{
		{"create", func(m *MemFS) { create(t, m, "/d/new", "") }, []string{"new old", "old"}},
		{"remove", func(m *MemFS) { noErr(t, m.Remove("/d/old")) }, []string{"", "old"}},
		{"rename", func(m *MemFS) { noErr(t, m.Rename("/d/old", "/d/new")) }, []string{"new", "old"}},
		{"rename of the new", func(m *MemFS) {
			create(t, m, "/d/tmp", "")
			noErr(t, m.Rename("/d/tmp", "/d/new"))
		}, []string{"old", "old tmp", "new old"}},
		{"rename across, target synced", func(m *MemFS) {
			create(t, m, "/tmp", "")
			noErr(t, m.Rename("/tmp", "/d/new"))
			noErr(t, m.SyncDir("/d"))
		}, []string{"new old"}},
		{"rename across, source synced", func(m *MemFS) {
			noErr(t, m.Rename("/d/old", "/old"))
			noErr(t, m.SyncDir("/"))
		}, []string{""}},
		{"new directory", func(m *MemFS) { noErr(t, m.MkdirAll("/d/sub/sub")) }, []string{"old sub"}},
		{"tree removed, not synced", func(m *MemFS) {
			noErr(t, m.MkdirAll("/d/sub"))
			create(t, m, "/d/sub/x", "")
			noErr(t, m.RemoveAll("/d/sub"))
		}, []string{"old", "old sub"}},
		{"tree removed, synced", func(m *MemFS) {
			noErr(t, m.MkdirAll("/d/sub/sub"))
			create(t, m, "/d/sub/sub/x", "")
			noErr(t, m.RemoveAll("/d/sub"))
			noErr(t, m.SyncDir("/d"))
			if len(m.pending) != 0 {
				t.Errorf("%d operations pending in directories that are gone", len(m.pending))
			}
		}, []string{"old"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := memWithDir(t, "/d")
			create(t, m, "/d/old", "")
			noErr(t, m.SyncDir("/d"))
			tc.do(m)
			got := map[string]bool{}
			for range 100 {
				got[names(m.CrashClone(CrashConfig{UnsyncedPercent: 50, RNG: rng}), "/d")] = true
			}
			if g := slices.Sorted(maps.Keys(got)); !slices.Equal(g, slices.Sorted(slices.Values(tc.want))) {
				t.Errorf("the directory was %q, want %q", g, tc.want)
			}
		})
	}
}

// TestCrashWriteFileAtomic: a crash at any point leaves the old or the new contents.
func TestCrashWriteFileAtomic(t *testing.T) {
	rng := seeded(t)
	old, fresh := strings.Repeat("o", 9000), strings.Repeat("n", 10000)
	m := NewMem()
	noErr(t, WriteFileAtomic(m, "/a", []byte(old)))
	var crashed []*MemFS
	failing := NewErrFS(m, func(Op, string) error {
		for _, percent := range []int{0, 50, 50, 50, 100} {
			crashed = append(crashed, m.CrashClone(CrashConfig{UnsyncedPercent: percent, RNG: rng}))
		}
		return nil
	})
	noErr(t, WriteFileAtomic(failing, "/a", []byte(fresh)))
	seen := map[string]bool{}
	for i, c := range crashed {
		got, err := ReadFile(c, "/a", 1<<30)
		noErr(t, err)
		if string(got) != old && string(got) != fresh {
			t.Errorf("crash %d left %d bytes that are neither", i, len(got))
		}
		seen[string(got)] = true
	}
	if len(crashed) == 0 || len(seen) != 2 {
		t.Errorf("%d crashes left %d contents", len(crashed), len(seen))
	}
	wantContents(t, m.CrashClone(CrashConfig{}), "/a", fresh)
}

// TestCrashIsAnInstant clones while two files are written in turn; b is never ahead of a, whatever the instant.
func TestCrashIsAnInstant(t *testing.T) {
	m := NewMem()
	a, b := create(t, m, "/a", "\x00"), create(t, m, "/b", "\x00")
	noErr(t, m.SyncDir("/"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 1; ; i++ {
			for _, f := range []File{a, b} {
				if _, err := f.WriteAt([]byte{byte(i >> 16), byte(i >> 8), byte(i)}, 0); err != nil {
					t.Error(err)
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	value := func(c *MemFS, name string) int {
		data, err := ReadFile(c, name, 1<<30)
		noErr(t, err)
		data = append(data, 0, 0, 0)
		return int(data[0])<<16 | int(data[1])<<8 | int(data[2])
	}
	for range 500 {
		c := m.CrashClone(CrashConfig{UnsyncedPercent: 100})
		if va, vb := value(c, "/a"), value(c, "/b"); va != vb && va != vb+1 {
			t.Errorf("a at %d, b at %d", va, vb)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestMemCapacity(t *testing.T) {
	m := NewMem()
	m.SetCapacity(4 * pageBytes)
	f := create(t, m, "/a", "")
	noErr(t, f.Preallocate(0, 3*pageBytes))
	_, err := f.WriteAt(make([]byte, 3*pageBytes), 0)
	noErr(t, err)
	n, err := f.WriteAt(make([]byte, 2*pageBytes), 3*pageBytes)
	wantErr(t, err, syscall.ENOSPC)
	if n != pageBytes {
		t.Errorf("wrote %d bytes into the last page", n)
	}
	wantErr(t, f.Preallocate(0, 5*pageBytes), syscall.ENOSPC)
	wantErr(t, f.Preallocate(1<<30, 1), syscall.ENOSPC)
	if total, free, err := m.Space("/"); total != 4*pageBytes || free != 0 || err != nil {
		t.Errorf("Space = %d, %d, %v", total, free, err)
	}
	// A clone is as full, and a rewrite needs no space.
	c := m.CrashClone(CrashConfig{UnsyncedPercent: 100})
	g := create(t, c, "/b", "")
	_, err = g.WriteAt([]byte("x"), 0)
	wantErr(t, err, syscall.ENOSPC)
	_, err = f.WriteAt(bytes.Repeat([]byte{1}, 4*pageBytes), 0)
	noErr(t, err)
	noErr(t, f.ZeroRange(10, 2*pageBytes))

	// Space comes back by punching, truncating, and removing, the last once no handle is open.
	free := func(want int64) {
		t.Helper()
		if _, got, err := m.Space("/"); got != want*pageBytes || err != nil {
			t.Errorf("%d bytes free, want %d pages; %v", got, want, err)
		}
	}
	noErr(t, f.PunchHole(0, pageBytes))
	free(1)
	noErr(t, f.Truncate(2*pageBytes))
	free(3)
	noErr(t, m.Remove("/a"))
	free(3)
	noErr(t, f.Close())
	free(4)
	m.SetCapacity(0)
	h := create(t, m, "/h", "")
	noErr(t, h.Preallocate(0, 1<<20))
}

func TestErrFS(t *testing.T) {
	boom := errors.New("boom")
	var fail Op
	m := NewMem()
	e := NewErrFS(m, func(op Op, _ string) error {
		if op == fail {
			return boom
		}
		return nil
	})
	f, err := e.Create("/a")
	noErr(t, err)
	defer f.Close()
	w := f.(WriteVer)
	calls := []struct {
		op   Op
		call func() error
	}{
		{OpCreate, func() error { _, err := e.Create("/b"); return err }},
		{OpOpen, func() error { _, err := e.Open("/a"); return err }},
		{OpOpen, func() error { _, err := e.OpenReadOnly("/a"); return err }},
		{OpRemove, func() error { return e.Remove("/a") }},
		{OpRemoveAll, func() error { return e.RemoveAll("/a") }},
		{OpRename, func() error { return e.Rename("/a", "/b") }},
		{OpMkdirAll, func() error { return e.MkdirAll("/d") }},
		{OpReadDir, func() error { _, err := e.ReadDir("/"); return err }},
		{OpStat, func() error { _, err := e.Stat("/a"); return err }},
		{OpSyncDir, func() error { return e.SyncDir("/") }},
		{OpSpace, func() error { _, _, err := e.(SpaceReporter).Space("/"); return err }},
		{OpRead, func() error { _, err := f.ReadAt(nil, 0); return err }},
		{OpWrite, func() error { _, err := f.WriteAt([]byte("x"), 0); return err }},
		{OpWrite, func() error { _, err := w.WritevAt([][]byte{[]byte("x")}, 0); return err }},
		{OpSize, func() error { _, err := f.Size(); return err }},
		{OpDatasync, f.Datasync},
		{OpTruncate, func() error { return f.Truncate(10) }},
		{OpPreallocate, func() error { return f.Preallocate(0, 10) }},
		{OpPunchHole, func() error { return f.PunchHole(0, 10) }},
		{OpZeroRange, func() error { return f.ZeroRange(0, 10) }},
		{OpNextData, func() error { _, _, err := f.NextData(0); return err }},
	}
	for _, c := range calls {
		fail = c.op
		wantErr(t, c.call(), boom)
	}
	// None of them was done.
	fail = ""
	wantNames(t, m, "/", "a")
	wantContents(t, m, "/a", "")
}

func BenchmarkCrashClone(b *testing.B) {
	m := NewMem()
	f := create(b, m, "/a", "")
	_, err := f.WriteAt(make([]byte, 16<<20), 0)
	noErr(b, err)
	noErr(b, f.Datasync())
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		_, err := f.WriteAt(make([]byte, 64<<10), rng.Int64N(15<<20))
		noErr(b, err)
		m.CrashClone(CrashConfig{UnsyncedPercent: 50, RNG: rng})
	}
}
