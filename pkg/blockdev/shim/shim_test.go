package shim_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

const mib = 1 << 20

// modes runs f for both modes.
func modes(t *testing.T, f func(t *testing.T, mode shim.Mode)) {
	for _, m := range []shim.Mode{shim.ModeFlush, shim.ModeAck} {
		t.Run(m.String(), func(t *testing.T) { f(t, m) })
	}
}

func newRand(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func fillRandom(r *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}

// TestDeviceOverLoop compares random operations on the loop device with a model, and what reached the served device
// after a flush with the same model.
func TestDeviceOverLoop(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		const size = 16 * mib
		r := newRand(t)
		dev := newMemDevice(size)
		srv := mount(t, mode, dev)
		_, loop := attachLoop(t, srv.Path(), size, mode)
		model := make([]byte, size)
		for range 400 {
			off := r.Int64N(size/4096) * 4096
			n := min((1+r.Int64N(64))*4096, size-off)
			switch r.IntN(10) {
			case 0:
				if err := loop.Discard(off, n); err != nil {
					t.Fatal(err)
				}
				clear(model[off : off+n])
			case 1:
				if err := loop.Zero(off, n); err != nil {
					t.Fatal(err)
				}
				clear(model[off : off+n])
			case 2:
				if err := loop.Flush(); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(dev.snapshot(), model) {
					t.Fatal("after a flush the device differs from what was written")
				}
			case 3, 4, 5:
				p := make([]byte, n)
				if _, err := loop.ReadAt(p, off); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p, model[off:off+n]) {
					t.Fatalf("read at %d of %d bytes differs", off, n)
				}
			default:
				p := make([]byte, n)
				fillRandom(r, p)
				if _, err := loop.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
				copy(model[off:], p)
			}
		}
		if err := loop.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dev.snapshot(), model) {
			t.Fatal("at the end the device differs from what was written")
		}
		if dev.flushCount() == 0 {
			t.Fatal("no flush reached the device")
		}
	})
}

// TestFileSystemOverLoop makes a file system, fills it, unmounts it, checks it from a fresh loop device.
func TestFileSystemOverLoop(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		requireAll(t)
		mkfs := testenv.RequireTool(t, "mkfs.ext4")
		fsck := testenv.RequireTool(t, "e2fsck")
		const size = 64 * mib
		r := newRand(t)
		srv := mount(t, mode, newMemDevice(size))
		name, _ := attachLoop(t, srv.Path(), size, mode)
		run(t, mkfs, "-q", name)
		dir := t.TempDir()
		content := make([]byte, 20*mib)
		fillRandom(r, content)
		withMount(t, name, dir, func() {
			if err := os.WriteFile(filepath.Join(dir, "f"), content, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		run(t, fsck, "-fn", name)
		other, _ := attachLoop(t, srv.Path(), size, mode)
		withMount(t, other, dir, func() {
			got, err := os.ReadFile(filepath.Join(dir, "f"))
			if err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(got) != sha256.Sum256(content) {
				t.Fatal("the file's content changed")
			}
		})
	})
}

func withMount(t *testing.T, dev, dir string, f func()) {
	t.Helper()
	if err := unix.Mount(dev, dir, "ext4", 0, "discard"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}()
	f()
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestFile checks the file itself: size, what lies behind the device, what is refused.
func TestFile(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		const size = 2*mib + 512 // does not end on a page
		dev := newMemDevice(size)
		srv := mount(t, mode, dev)
		f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if fi, err := f.Stat(); err != nil || fi.Size() != shim.FileSize || fi.Mode().Perm() != 0o600 {
			t.Fatalf("stat: %v %v", fi, err)
		}
		names, err := os.ReadDir(filepath.Dir(srv.Path()))
		if err != nil || len(names) != 1 || names[0].Name() != shim.FileName {
			t.Fatalf("directory: %v %v", names, err)
		}
		if _, err := os.Stat(srv.Path() + "x"); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("stat of another name: %v", err)
		}
		for _, op := range []struct {
			name string
			err  error
		}{
			{"truncate", f.Truncate(size)},
			{"chmod", f.Chmod(0o666)},
			{"create", func() error { _, err := os.Create(srv.Path() + "x"); return err }()},
			{"remove", os.Remove(srv.Path())},
		} {
			if op.err == nil {
				t.Errorf("%s was not refused", op.name)
			}
		}
		if err := os.Chtimes(srv.Path(), time.Time{}, time.Unix(1700000000, 0)); err != nil {
			t.Errorf("chtimes: %v", err)
		}

		// The last page, of which the device has 512 bytes, is written as a whole by writeback.
		p := bytes.Repeat([]byte{7}, 4096)
		clear(p[512:])
		if _, err := f.WriteAt(p, 2*mib); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if got := dev.snapshot()[2*mib:]; !bytes.Equal(got, p[:512]) {
			t.Fatal("the last sector was not written")
		}
		zeros := make([]byte, 64<<10)
		got := bytes.Repeat([]byte{1}, len(zeros))
		if _, err := f.ReadAt(got, 4*mib); err != nil || !bytes.Equal(got, zeros) {
			t.Fatalf("behind the device there are not zeros: %v", err)
		}
		// Writes behind it fail, at once or, with a writeback cache, at the next fsync.
		_, err = f.WriteAt(p, 3*mib)
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			t.Fatal("a write behind the device was accepted and synced")
		}
	})
}

// TestErrors checks that a device's errors reach the loop device's user, and that it works again afterwards.
func TestErrors(t *testing.T) {
	const size = 4 * mib
	var fail atomic.Value // error
	fail.Store(errNone)
	dev := newMemDevice(size)
	dev.fail = func(shim.Op) error {
		if err := fail.Load().(error); err != errNone {
			return err
		}
		return nil
	}
	srv := mount(t, shim.ModeAck, dev)
	f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 4096)
	ops := map[string]func() error{
		"read":    func() error { _, err := f.ReadAt(p, 0); return err },
		"write":   func() error { _, err := f.WriteAt(p, 0); return err },
		"flush":   f.Sync,
		"discard": func() error { return fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE) },
		"zero":    func() error { return fallocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE) },
	}
	for _, c := range []struct{ device, want error }{
		{fmt.Errorf("journal: %w", unix.ENOSPC), unix.ENOSPC},
		{errors.New("disk on fire"), unix.EIO},
		{unix.EROFS, unix.EIO},
		{blockdev.ErrOutOfRange, unix.EFBIG},
		{errNone, nil},
	} {
		fail.Store(fmt.Errorf("%w", c.device))
		if c.device == errNone {
			fail.Store(errNone)
		}
		for name, op := range ops {
			if err := op(); !errors.Is(err, c.want) {
				t.Errorf("%s with the device's error %v: got %v, want %v", name, c.device, err, c.want)
			}
		}
	}
}

var errNone = fmt.Errorf("%w", errors.New("none"))

func fallocate(f *os.File, mode uint32) error {
	return unix.Fallocate(int(f.Fd()), mode, 0, 4096)
}

// TestFlushDoesNotBlock holds a flush, and then writes, in the device, and checks that others are served meanwhile.
func TestFlushDoesNotBlock(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		dev := newMemDevice(4 * mib)
		entered := make(chan shim.Op, 100)
		var held atomic.Int32 // the operation to hold, -1 none
		held.Store(-1)
		var release atomic.Pointer[chan struct{}]
		dev.gate = func(op shim.Op) {
			if int32(op) == held.Load() {
				entered <- op
				<-*release.Load()
			}
		}
		srv := mount(t, mode, dev)
		f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, op := range []shim.Op{shim.OpFlush, shim.OpWrite} {
			end := make(chan struct{})
			release.Store(&end)
			held.Store(int32(op))
			var wg sync.WaitGroup
			n := 1
			if op == shim.OpWrite && mode == shim.ModeAck {
				n = 5 // more than the readers that are there without need; direct writes run in parallel
			}
			for i := range n {
				wg.Go(func() {
					if op == shim.OpWrite {
						if _, err := f.WriteAt(make([]byte, 4096), int64(i)*4096); err != nil {
							t.Error(err)
						}
					}
					if err := f.Sync(); err != nil {
						t.Error(err)
					}
				})
			}
			<-entered // writes that came together may follow one another
			// A read that the page cache cannot answer, by another open file: served although all the above wait.
			g, err := os.Open(srv.Path())
			if err != nil {
				t.Fatal(err)
			}
			for i := range 8 {
				if _, err := g.ReadAt(make([]byte, 4096), 2*mib+int64(op)*mib+int64(i)*128<<10); err != nil {
					t.Error(err)
				}
			}
			held.Store(-1)
			close(end)
			wg.Wait()
			g.Close() // close(2) of a FUSE file waits for writeback, so not before
		}
	})
}

// TestSwap exchanges the device under load. Both share their content, as the two must.
func TestSwap(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		const size = 8 * mib
		r := newRand(t)
		content := newMemDevice(size)
		var inUse [2]atomic.Int64
		devs := [2]*countingDevice{{content, &inUse[0]}, {content, &inUse[1]}}
		srv := mount(t, mode, devs[0])
		_, loop := attachLoop(t, srv.Path(), size, mode)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		model := make([]byte, size)
		for w := range 4 {
			rw := rand.New(rand.NewPCG(r.Uint64(), 0))
			wg.Go(func() {
				base := int64(w) * size / 4
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					off := base + rw.Int64N(size/4/4096)*4096
					fillRandom(rw, model[off:off+4096])
					if _, err := loop.WriteAt(model[off:off+4096], off); err != nil {
						t.Error(err)
						return
					}
					if i%50 == 0 {
						if err := loop.Flush(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		for i := range 200 {
			next := (i + 1) % 2
			srv.Swap(devs[next])
			if n := inUse[1-next].Load(); n != 0 {
				t.Errorf("%d calls of the old device are in flight after Swap", n)
			}
			time.Sleep(time.Millisecond)
		}
		close(stop)
		wg.Wait()
		if err := loop.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content.snapshot(), model) {
			t.Fatal("content differs")
		}
	})
}

// countingDevice counts calls in flight.
type countingDevice struct {
	blockdev.Device
	inFlight *atomic.Int64
}

func (d *countingDevice) ReadAt(p []byte, off int64) (int, error) {
	d.inFlight.Add(1)
	defer d.inFlight.Add(-1)
	return d.Device.ReadAt(p, off)
}

func (d *countingDevice) WriteAt(p []byte, off int64) (int, error) {
	d.inFlight.Add(1)
	defer d.inFlight.Add(-1)
	return d.Device.WriteAt(p, off)
}

func (d *countingDevice) Flush() error {
	d.inFlight.Add(1)
	defer d.inFlight.Add(-1)
	return d.Device.Flush()
}

// TestCloseAdopt hands a connection from one server to the next within the process, many times, under load.
func TestCloseAdopt(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		const size = 8 * mib
		r := newRand(t)
		dev := newMemDevice(size)
		current := mountVar(t, mode, dev)
		srv := *current
		st := srv.State()
		cfg := shim.Config{VolumeID: st.VolumeID}
		_, loop := attachLoop(t, srv.Path(), size, mode)
		model := make([]byte, size)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 4 {
			rw := rand.New(rand.NewPCG(r.Uint64(), 0))
			wg.Go(func() {
				base := int64(w) * size / 4
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					off := base + rw.Int64N(size/4/4096)*4096
					fillRandom(rw, model[off:off+4096])
					if _, err := loop.WriteAt(model[off:off+4096], off); err != nil {
						t.Error(err)
						return
					}
					if i%20 == 0 {
						if err := loop.Flush(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		for range 30 {
			dup := dupFile(t, srv.FD())
			if err := srv.Close(); err != nil {
				t.Fatal(err)
			}
			<-srv.Done()
			if err := srv.Err(); err != nil {
				t.Fatal(err)
			}
			if err := srv.Close(); err != nil {
				t.Fatalf("second Close: %v", err)
			}
			time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
			next, err := shim.Adopt(dup, st, cfg, dev)
			if err != nil {
				t.Fatal(err)
			}
			srv, *current = next, next
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
		}
		close(stop)
		wg.Wait()
		if err := loop.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dev.snapshot(), model) {
			t.Error("content differs")
		}
	})
}

func dupFile(t *testing.T, f *os.File) *os.File {
	t.Helper()
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	cerr := conn.Control(func(raw uintptr) { fd, err = unix.FcntlInt(raw, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "dup")
}

// TestEnds checks the ways in which serving ends and what Err says about them.
func TestEnds(t *testing.T) {
	t.Run("busy", func(t *testing.T) {
		srv := mount(t, shim.ModeFlush, newMemDevice(mib))
		f, err := os.Open(srv.Path())
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.Unmount(); !errors.Is(err, unix.EBUSY) {
			t.Fatalf("unmount with an open file: %v", err)
		}
		if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
			t.Fatalf("not served after a refused unmount: %v", err)
		}
		f.Close()
		if err := srv.Unmount(); err != nil {
			t.Fatal(err)
		}
		if err := srv.Err(); err != nil {
			t.Fatal(err)
		}
		if err := srv.Close(); err != nil {
			t.Fatalf("close after unmount: %v", err)
		}
	})
	t.Run("mounted elsewhere", func(t *testing.T) {
		shim.SetElsewhere(t, 200*time.Millisecond, 500*time.Millisecond)
		dev := newMemDevice(mib)
		srv := mount(t, shim.ModeFlush, dev)
		// A namespace of its own, with copies of all mounts that nothing here takes away again.
		other := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 60")
		out, err := other.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = other.Process.Kill()
			_ = other.Wait()
		})
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte{7}, 4096)
		if _, err := f.WriteAt(data, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := srv.Unmount(); !errors.Is(err, shim.ErrMountedElsewhere) {
			t.Fatalf("unmount while another namespace has the mount: %v", err)
		}
		select {
		case <-srv.Done():
			t.Fatal("not served any more, though another namespace may write back")
		default:
		}
		for err = shim.ErrMountedElsewhere; errors.Is(err, shim.ErrMountedElsewhere); {
			err = srv.Unmount()
		}
		if err != nil {
			t.Fatal(err)
		}
		<-srv.Done()
		if !bytes.Equal(dev.snapshot()[:4096], data) {
			t.Error("what was written before the unmount is not on the device")
		}
	})
	t.Run("abort", func(t *testing.T) {
		srv := mount(t, shim.ModeAck, newMemDevice(mib))
		f, err := os.Open(srv.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		srv.Abort()
		<-srv.Done()
		if err := srv.Err(); !errors.Is(err, shim.ErrAborted) {
			t.Fatalf("Err after an abort: %v", err)
		}
		if _, err := f.ReadAt(make([]byte, 4096), 0); err == nil {
			t.Fatal("an aborted connection answers")
		}
	})
	t.Run("adopt what is unmounted", func(t *testing.T) {
		srv := mount(t, shim.ModeFlush, newMemDevice(mib))
		dup := dupFile(t, srv.FD())
		defer dup.Close()
		if err := srv.Unmount(); err != nil {
			t.Fatal(err)
		}
		_, err := shim.Adopt(dup, srv.State(), shim.Config{VolumeID: srv.State().VolumeID}, newMemDevice(mib))
		if !errors.Is(err, shim.ErrUnmounted) {
			t.Fatalf("adopt: %v", err)
		}
		if _, err := shim.Adopt(dup, srv.State(), shim.Config{VolumeID: "other"}, newMemDevice(mib)); err == nil {
			t.Fatal("adopted the state of another volume")
		}
	})
	t.Run("mount over a dead mount", func(t *testing.T) {
		srv := mount(t, shim.ModeFlush, newMemDevice(mib))
		st := srv.State()
		f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// Dirty pages that no process will take: detaching must not wait for them.
		if _, err := f.WriteAt(make([]byte, mib), 0); err != nil {
			t.Fatal(err)
		}
		keep := dupFile(t, srv.FD())
		defer keep.Close()
		if err := srv.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := shim.Mount(shim.Config{MountPoint: st.MountPoint, VolumeID: "another"}, newMemDevice(mib)); err == nil {
			t.Fatal("replaced the mount of another volume")
		}
		dev := newMemDevice(mib)
		copy(dev.data, "fresh")
		next, err := shim.Mount(shim.Config{MountPoint: st.MountPoint, VolumeID: st.VolumeID}, dev)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 5)
		g, err := os.Open(next.Path())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(g, p); err != nil || string(p) != "fresh" {
			t.Fatalf("read %q: %v", p, err)
		}
		g.Close()
		if err := next.Unmount(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestMountRefuses checks what Mount does not take, without leaving anything behind.
func TestMountRefuses(t *testing.T) {
	requireAll(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]shim.Config{
		"relative path":     {MountPoint: "mnt", VolumeID: "v"},
		"root":              {MountPoint: "/", VolumeID: "v"},
		"other file system": {MountPoint: "/proc", VolumeID: "v"},
		"file":              {MountPoint: file, VolumeID: "v"},
		"no volume id":      {MountPoint: filepath.Join(dir, "mnt"), VolumeID: ""},
		"id with space":     {MountPoint: filepath.Join(dir, "mnt"), VolumeID: "a b"},
		"unknown mode":      {MountPoint: filepath.Join(dir, "mnt"), VolumeID: "v", Mode: 7},
	} {
		if s, err := shim.Mount(cfg, newMemDevice(mib)); err == nil {
			t.Errorf("%s: mounted", name)
			_ = s.Unmount()
		}
	}
}

// TestTune sets the limits of a mount's backing device and reads them back.
func TestTune(t *testing.T) {
	srv := mount(t, shim.ModeFlush, newMemDevice(mib))
	dev := srv.State().Device
	if _, err := os.Stat("/sys/class/bdi/" + dev + "/max_bytes"); err != nil {
		t.Skipf("the kernel has no max_bytes: %v", err)
	}
	if err := shim.TuneBDI(dev, 64*mib); err != nil {
		t.Fatal(err)
	}
	var got int64
	b, err := os.ReadFile("/sys/class/bdi/" + dev + "/max_bytes")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &got); err != nil || got > 65*mib || got < 60*mib {
		t.Fatalf("max_bytes is %s", b)
	}
	for _, bad := range []string{"", "../x", "1", "0:999999"} {
		if err := shim.TuneBDI(bad, mib); err == nil {
			t.Errorf("tuned %q", bad)
		}
	}
	if err := shim.TuneBDI(dev, 0); err == nil {
		t.Error("took a limit of 0")
	}
}

// TestObserve checks that calls of the device are reported once each.
func TestObserve(t *testing.T) {
	var counts [5]atomic.Int64
	srv := mount(t, shim.ModeAck, newMemDevice(mib), func(c *shim.Config) {
		c.Observe = func(op shim.Op, d time.Duration, err error) {
			if err == nil && d >= 0 {
				counts[op].Add(1)
			}
		}
	})
	f, err := os.OpenFile(srv.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 4096)
	for i, op := range []func() error{
		func() error { _, err := f.ReadAt(p, 0); return err },
		func() error { _, err := f.WriteAt(p, 0); return err },
		f.Sync,
		func() error { return fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE) },
		func() error { return fallocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE) },
	} {
		if err := op(); err != nil {
			t.Fatal(err)
		}
		if n := counts[i].Load(); n != 1 {
			t.Errorf("%s was observed %d times", shim.Op(i), n)
		}
	}
	if err := fallocate(f, 0); err != nil {
		t.Errorf("plain fallocate: %v", err)
	}
}

// TestProtect checks that the process is protected or that the reason is said.
func TestProtect(t *testing.T) {
	err := shim.ProtectServingProcess()
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	t.Logf("result: %v", err)
}
