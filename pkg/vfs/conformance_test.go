package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// withoutFallocate makes the OS act as a file system without fallocate until the test ends.
func withoutFallocate(t *testing.T) {
	fallocate = func(int, uint32, int64, int64) error { return unix.EOPNOTSUPP }
	t.Cleanup(func() { fallocate = unix.Fallocate })
}

// withoutExchange makes the OS act as a file system that cannot exchange files until the test ends.
func withoutExchange(t *testing.T) {
	renameat2 = func(int, string, int, string, uint) error { return unix.EINVAL }
	t.Cleanup(func() { renameat2 = unix.Renameat2 })
}

// TestConformance runs every case on every implementation.
func TestConformance(t *testing.T) {
	systems := []struct {
		name string
		open func(t *testing.T) (FS, string)
	}{
		{"os", func(t *testing.T) (FS, string) { return OS, t.TempDir() }},
		{"os without fallocate", func(t *testing.T) (FS, string) { withoutFallocate(t); return OS, t.TempDir() }},
		{"os without exchange", func(t *testing.T) (FS, string) { withoutExchange(t); return OS, t.TempDir() }},
		{"mem", func(t *testing.T) (FS, string) { return memWithDir(t, "/dir"), "/dir" }},
		{"err", func(t *testing.T) (FS, string) {
			return NewErrFS(memWithDir(t, "/dir"), func(Op, string) error { return nil }), "/dir"
		}},
	}
	cases := []struct {
		name string
		run  func(t *testing.T, fsys FS, dir string)
	}{
		{"names", testNames},
		{"directories", testDirectories},
		{"rename", testRename},
		{"read and write", testReadWrite},
		{"vectored write", testWritev},
		{"sparse", testSparse},
		{"preallocate", testPreallocate},
		{"punch and zero", testPunchAndZero},
		{"read only", testReadOnly},
		{"closed", testClosed},
		{"write file atomically", testWriteFileAtomic},
		{"exchange", testExchange},
		{"invalid ranges", testInvalidRanges},
	}
	for _, sys := range systems {
		for _, c := range cases {
			t.Run(sys.name+"/"+c.name, func(t *testing.T) {
				fsys, dir := sys.open(t)
				c.run(t, fsys, dir)
			})
		}
	}
}

func memWithDir(t testing.TB, dir string) *MemFS {
	t.Helper()
	m := NewMem()
	noErr(t, m.MkdirAll(dir))
	return m
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// create makes a file with contents and closes it at the end of the test.
func create(t testing.TB, fsys FS, name, contents string) File {
	t.Helper()
	f, err := fsys.Create(name)
	noErr(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.WriteAt([]byte(contents), 0)
	noErr(t, err)
	return f
}

func wantContents(t testing.TB, fsys FS, name, want string) {
	t.Helper()
	got, err := ReadFile(fsys, name, 1<<30)
	noErr(t, err)
	if string(got) != want {
		t.Fatalf("%s holds %q, want %q", name, got, want)
	}
}

func wantNames(t testing.TB, fsys FS, dir string, want ...string) {
	t.Helper()
	got, err := fsys.ReadDir(dir)
	noErr(t, err)
	if d := cmp.Diff(append([]string{}, want...), append([]string{}, got...)); d != "" {
		t.Fatalf("names in %s (-want +got):\n%s", dir, d)
	}
}

func testNames(t *testing.T, fsys FS, dir string) {
	a := filepath.Join(dir, "a")
	for _, open := range []func(string) (File, error){fsys.Open, fsys.OpenReadOnly} {
		_, err := open(a)
		wantErr(t, err, fs.ErrNotExist)
	}
	_, err := fsys.Stat(a)
	wantErr(t, err, fs.ErrNotExist)
	wantErr(t, fsys.Remove(a), fs.ErrNotExist)
	noErr(t, fsys.RemoveAll(a))
	_, err = fsys.Create(filepath.Join(dir, "missing", "a"))
	wantErr(t, err, fs.ErrNotExist)

	f := create(t, fsys, a, "hello")
	if f.Name() != a {
		t.Errorf("Name is %q, want %q", f.Name(), a)
	}
	info, err := fsys.Stat(a)
	noErr(t, err)
	if info.Name() != "a" || info.Size() != 5 || info.IsDir() || !info.Mode().IsRegular() {
		t.Errorf("Stat says name %q, size %d, mode %v", info.Name(), info.Size(), info.Mode())
	}
	// Creating again truncates, also for who has it open.
	create(t, fsys, a, "by")
	wantContents(t, fsys, a, "by")
	if size, err := f.Size(); err != nil || size != 2 {
		t.Errorf("first handle sees size %d, error %v", size, err)
	}
	// A removed file stays usable through its handles.
	noErr(t, fsys.Remove(a))
	_, err = f.WriteAt([]byte("!"), 2)
	noErr(t, err)
	buf := make([]byte, 3)
	_, err = f.ReadAt(buf, 0)
	noErr(t, err)
	if string(buf) != "by!" {
		t.Errorf("removed file holds %q", buf)
	}
	noErr(t, fsys.SyncDir(dir))
}

func testDirectories(t *testing.T, fsys FS, dir string) {
	deep := filepath.Join(dir, "x", "y", "z")
	noErr(t, fsys.MkdirAll(deep))
	noErr(t, fsys.MkdirAll(deep))
	create(t, fsys, filepath.Join(deep, "b"), "")
	create(t, fsys, filepath.Join(deep, "a"), "")
	wantNames(t, fsys, deep, "a", "b")
	wantNames(t, fsys, dir, "x")
	info, err := fsys.Stat(deep)
	noErr(t, err)
	if !info.IsDir() || !info.Mode().IsDir() {
		t.Errorf("%s is not a directory: %v", deep, info.Mode())
	}
	wantErr(t, fsys.Remove(deep), syscall.ENOTEMPTY)
	wantErr(t, fsys.MkdirAll(filepath.Join(deep, "a")), syscall.ENOTDIR)
	wantErr(t, fsys.MkdirAll(filepath.Join(deep, "a", "c")), syscall.ENOTDIR)
	_, err = fsys.Create(deep)
	wantErr(t, err, syscall.EISDIR)
	_, err = fsys.ReadDir(filepath.Join(dir, "nothing"))
	wantErr(t, err, fs.ErrNotExist)
	wantErr(t, fsys.SyncDir(filepath.Join(dir, "nothing")), fs.ErrNotExist)
	_, err = fsys.ReadDir(filepath.Join(deep, "a"))
	wantErr(t, err, syscall.ENOTDIR)

	noErr(t, fsys.RemoveAll(filepath.Join(dir, "x")))
	wantNames(t, fsys, dir)
	noErr(t, fsys.MkdirAll(filepath.Join(dir, "empty")))
	noErr(t, fsys.Remove(filepath.Join(dir, "empty")))
	wantNames(t, fsys, dir)
}

func testRename(t *testing.T, fsys FS, dir string) {
	path := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	wantErr(t, fsys.Rename(path("a"), path("b")), fs.ErrNotExist)
	create(t, fsys, path("a"), "a")
	create(t, fsys, path("b"), "b")
	noErr(t, fsys.Rename(path("a"), path("b")))
	wantNames(t, fsys, dir, "b")
	wantContents(t, fsys, path("b"), "a")
	noErr(t, fsys.Rename(path("b"), path("b")))

	noErr(t, fsys.MkdirAll(path("d", "e")))
	noErr(t, fsys.Rename(path("b"), path("d", "e", "f")))
	noErr(t, fsys.Rename(path("d"), path("moved")))
	wantContents(t, fsys, path("moved", "e", "f"), "a")
	wantErr(t, fsys.Rename(path("moved"), path("moved", "e", "g")), syscall.EINVAL)
	create(t, fsys, path("file"), "")
	wantErr(t, fsys.Rename(path("moved"), path("file")), syscall.ENOTDIR)
	wantErr(t, fsys.Rename(path("file"), path("moved")), fs.ErrExist)
	noErr(t, fsys.MkdirAll(path("full", "x")))
	wantErr(t, fsys.Rename(path("moved"), path("full")), fs.ErrExist) // ENOTEMPTY counts as ErrExist
}

func testReadWrite(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "a"), "")
	data := make([]byte, 3*4096+100)
	for i := range data {
		data[i] = byte(i*7 + i/251)
	}
	n, err := f.WriteAt(data, 1000)
	if n != len(data) || err != nil {
		t.Fatalf("WriteAt = %d, %v", n, err)
	}
	noErr(t, f.Datasync())
	want := append(make([]byte, 1000), data...)
	got := make([]byte, len(want))
	n, err = f.ReadAt(got, 0)
	if n != len(want) || err != nil || !bytes.Equal(got, want) {
		t.Fatalf("ReadAt = %d, %v, equal %v", n, err, bytes.Equal(got, want))
	}
	n, err = f.ReadAt(got[:200], int64(len(want))-50)
	if n != 50 || err != io.EOF {
		t.Fatalf("ReadAt over the end = %d, %v", n, err)
	}
	n, err = f.ReadAt(got[:1], int64(len(want))+5000)
	if n != 0 || err != io.EOF {
		t.Fatalf("ReadAt behind the end = %d, %v", n, err)
	}
	// What is cut off does not come back.
	noErr(t, f.Truncate(1010))
	noErr(t, f.Truncate(9000))
	clear(want[1010:])
	_, err = f.ReadAt(got[:9000], 0)
	noErr(t, err)
	if !bytes.Equal(got[:9000], want[:9000]) {
		t.Fatal("truncated data is back after growing")
	}
}

func testWritev(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "a"), "")
	w := f.(WriteVer)
	var bufs [][]byte
	var want []byte
	for i := range 2500 { // more than one system call takes
		b := bytes.Repeat([]byte{byte(i)}, i%7) // some are empty
		bufs = append(bufs, b)
		want = append(want, b...)
	}
	n, err := w.WritevAt(bufs, 10)
	if n != len(want) || err != nil {
		t.Fatalf("WritevAt = %d, %v, want %d", n, err, len(want))
	}
	wantContents(t, fsys, f.Name(), string(make([]byte, 10))+string(want))
	for _, empty := range [][][]byte{nil, {{}, {}}} {
		if n, err := w.WritevAt(empty, 1<<20); n != 0 || err != nil {
			t.Fatalf("WritevAt of nothing = %d, %v", n, err)
		}
	}
}

func testSparse(t *testing.T, fsys FS, dir string) {
	const size = 64 << 20
	f := create(t, fsys, filepath.Join(dir, "a"), "")
	noErr(t, f.Truncate(size))
	if _, _, err := f.NextData(0); err != io.EOF {
		t.Fatalf("NextData of a hole: %v", err)
	}
	if _, _, err := f.NextData(size); err != io.EOF {
		t.Fatalf("NextData at the end: %v", err)
	}
	page := bytes.Repeat([]byte{1}, 4096)
	for _, off := range []int64{8 << 20, 8<<20 + 4096, 32 << 20} {
		_, err := f.WriteAt(page, off)
		noErr(t, err)
	}
	noErr(t, f.Datasync())
	var got [][2]int64
	for off := int64(0); ; {
		start, end, err := f.NextData(off)
		if err == io.EOF {
			break
		}
		noErr(t, err)
		got = append(got, [2]int64{start, end})
		off = end
	}
	want := [][2]int64{{8 << 20, 8<<20 + 8192}, {32 << 20, 32<<20 + 4096}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("extents (-want +got):\n%s", d)
	}
	info, err := fsys.Stat(f.Name())
	noErr(t, err)
	allocated, err := AllocatedBytes(info)
	noErr(t, err)
	if allocated < 3*4096 || allocated >= 1<<20 {
		t.Errorf("%d bytes allocated for 3 pages", allocated)
	}
}

func testPreallocate(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "a"), "hello")
	const size = 1 << 20
	noErr(t, f.Preallocate(0, size))
	if got, err := f.Size(); got != size || err != nil {
		t.Fatalf("Size = %d, %v", got, err)
	}
	wantContents(t, fsys, f.Name(), "hello"+string(make([]byte, size-5)))
	info, err := fsys.Stat(f.Name())
	noErr(t, err)
	if allocated, err := AllocatedBytes(info); err != nil || allocated < size {
		t.Errorf("%d bytes allocated, %v", allocated, err)
	}
	noErr(t, f.Preallocate(100, 0))
	// Holes inside the file are filled as well, and what lies around them stays.
	noErr(t, f.PunchHole(8192, 8192))
	_, err = f.WriteAt([]byte("world"), 16384)
	noErr(t, err)
	noErr(t, f.Preallocate(4096, 16384))
	want := make([]byte, size)
	copy(want, "hello")
	copy(want[16384:], "world")
	wantContents(t, fsys, f.Name(), string(want))
}

func testPunchAndZero(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "a"), "")
	const size = 16 * 4096
	ones := bytes.Repeat([]byte{1}, size)
	for _, op := range []struct {
		name string
		do   func(off, n int64) error
	}{{"punch", f.PunchHole}, {"zero", f.ZeroRange}} {
		for _, r := range [][2]int64{
			{0, size}, {4096, 4096}, {100, 200}, {4000, 200}, {5000, 20000}, {8192, 100}, {4196, 3996}, {4095, 4098},
			{size - 10, 10}, {size - 10, 5000}, {size + 10, 10}, {7, 0},
		} {
			_, err := f.WriteAt(ones, 0)
			noErr(t, err)
			noErr(t, op.do(r[0], r[1]))
			want := bytes.Clone(ones)
			clear(want[min(r[0], size):min(r[0]+r[1], size)])
			got, err := ReadFile(fsys, f.Name(), 1<<30)
			noErr(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%s [%d, +%d): wrong contents, %d bytes", op.name, r[0], r[1], len(got))
			}
		}
	}
}

func testReadOnly(t *testing.T, fsys FS, dir string) {
	create(t, fsys, filepath.Join(dir, "a"), "hello")
	f, err := fsys.OpenReadOnly(filepath.Join(dir, "a"))
	noErr(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("x"), 0)
	wantErr(t, err, syscall.EBADF)
	for name, err := range map[string]error{
		"truncate": f.Truncate(0), "preallocate": f.Preallocate(0, 10), "punch": f.PunchHole(0, 1), "zero": f.ZeroRange(0, 1),
	} {
		if err == nil {
			t.Errorf("%s worked on a read-only handle", name)
		}
	}
	wantContents(t, fsys, f.Name(), "hello")
}

func testClosed(t *testing.T, fsys FS, dir string) {
	f, err := fsys.Create(filepath.Join(dir, "a"))
	noErr(t, err)
	noErr(t, f.Close())
	_, err = f.ReadAt(make([]byte, 1), 0)
	wantErr(t, err, fs.ErrClosed)
	_, err = f.WriteAt(make([]byte, 1), 0)
	wantErr(t, err, fs.ErrClosed)
	for name, err := range map[string]error{
		"close": f.Close(), "datasync": f.Datasync(), "truncate": f.Truncate(0), "preallocate": f.Preallocate(0, 1),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s on a closed file: %v", name, err)
		}
	}
}

func testWriteFileAtomic(t *testing.T, fsys FS, dir string) {
	name := filepath.Join(dir, "a")
	create(t, fsys, name+TempSuffix, "left behind by a crash, and longer")
	for _, contents := range []string{"one", "", "three"} {
		noErr(t, WriteFileAtomic(fsys, name, []byte(contents)))
		wantContents(t, fsys, name, contents)
		wantNames(t, fsys, dir, "a", "a"+TempSuffix)
	}
	noErr(t, RemoveAtomic(fsys, name))
	noErr(t, RemoveAtomic(fsys, name))
	wantNames(t, fsys, dir)
	wantErr(t, WriteFileAtomic(fsys, filepath.Join(dir, "no", "a"), nil), fs.ErrNotExist)
}

func testExchange(t *testing.T, fsys FS, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	open := create(t, fsys, a, "a")
	x := fsys.(Exchanger)
	if err := x.Exchange(a, b); err == nil {
		t.Error("exchanged with a file that is not there")
	}
	create(t, fsys, b, "b")
	err := x.Exchange(a, b)
	if errors.Is(err, errors.ErrUnsupported) {
		wantContents(t, fsys, a, "a")
		return
	}
	noErr(t, err)
	wantContents(t, fsys, a, "b")
	wantContents(t, fsys, b, "a")
	_, err = open.WriteAt([]byte("A"), 0)
	noErr(t, err)
	wantContents(t, fsys, b, "A")
	noErr(t, x.Exchange(a, a))
	wantContents(t, fsys, a, "b")
}

func testInvalidRanges(t *testing.T, fsys FS, dir string) {
	f := create(t, fsys, filepath.Join(dir, "a"), "hello")
	const big = 1<<63 - 1
	for name, err := range map[string]error{
		"preallocate negative": f.Preallocate(-1, 1), "preallocate overflow": f.Preallocate(1, big),
		"punch negative": f.PunchHole(-1, 1), "punch overflow": f.PunchHole(1, big),
		"zero negative": f.ZeroRange(0, -1), "zero overflow": f.ZeroRange(2, big), "truncate": f.Truncate(-1),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := f.WriteAt([]byte("x"), -1); err == nil {
		t.Error("write at a negative offset: no error")
	}
	if _, err := f.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("read at a negative offset: no error")
	}
	wantContents(t, fsys, f.Name(), "hello")
}
