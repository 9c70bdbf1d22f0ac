package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// loopDir returns a directory whose loop devices are all detached when the test ends, and are an error if it left any.
func loopDir(t *testing.T) string {
	t.Helper()
	testenv.RequireLoop(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		left := detachAll(t, dir)
		if len(left) > 0 && !t.Failed() {
			t.Errorf("devices left attached: %+v", left)
		}
	})
	return dir
}

// detachAll detaches the devices on files in a directory and returns them.
func detachAll(t *testing.T, dir string) []LoopInfo {
	t.Helper()
	found, err := FindLoops(func(p string) bool { return strings.HasPrefix(p, dir+"/") })
	if err != nil {
		t.Error(err)
	}
	for _, i := range found {
		if err := DetachLoopOf(i.Device, i.BackingPath); err != nil {
			t.Error(err)
		}
	}
	return found
}

// findLoop returns the device that is attached to a file by its path.
func findLoop(path string) (LoopInfo, bool, error) {
	found, err := FindLoops(func(p string) bool { return p == path })
	if err != nil || len(found) == 0 || found[0].Deleted {
		return LoopInfo{}, false, err
	}
	return found[0], true, nil
}

// impatient shortens the waits for devices that stay busy.
func impatient(t *testing.T) {
	exclusive, detach := exclusivePatience, detachPatience
	exclusivePatience, detachPatience = 100*time.Millisecond, 300*time.Millisecond
	t.Cleanup(func() { exclusivePatience, detachPatience = exclusive, detach })
}

func newBacking(t *testing.T, dir, name string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	noErr(t, os.MkdirAll(filepath.Dir(path), 0o700))
	img, err := CreateImage(vfs.OS, path, size, false)
	noErr(t, err)
	noErr(t, img.Close())
	return path
}

func attach(t *testing.T, cfg LoopConfig) string {
	t.Helper()
	dev, err := AttachLoop(cfg)
	noErr(t, err)
	return dev
}

// attachedTo returns the devices on files in a directory, as name of the file to devices.
func attachedTo(t *testing.T, dir string) map[string][]string {
	t.Helper()
	found, err := FindLoops(func(p string) bool { return strings.HasPrefix(p, dir+"/") })
	noErr(t, err)
	m := map[string][]string{}
	for _, i := range found {
		m[strings.TrimPrefix(i.BackingPath, dir+"/")] = append(m[strings.TrimPrefix(i.BackingPath, dir+"/")], i.Device)
	}
	return m
}

func TestLoopAttach(t *testing.T) {
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 8<<20)
	for _, cfg := range []LoopConfig{
		{BackingPath: path},
		{BackingPath: path, SizeLimitBytes: 4 << 20, BlockSizeBytes: 4096},
		{BackingPath: path, BlockSizeBytes: 4096, DirectIO: true},
		{BackingPath: path, ReadOnly: true},
	} {
		dev := attach(t, cfg)
		info, ok, err := findLoop(path)
		noErr(t, err)
		want := LoopInfo{Device: dev, Number: info.Number, BackingPath: path, SizeLimitBytes: cfg.SizeLimitBytes,
			BlockSizeBytes: max(cfg.BlockSizeBytes, 512), DirectIO: cfg.DirectIO, ReadOnly: cfg.ReadOnly}
		if !ok || info != want {
			t.Errorf("attached %+v: found %+v, want %+v", cfg, info, want)
		}
		f, err := os.Open(dev)
		noErr(t, err)
		size, err := blockDeviceSize(f)
		noErr(t, err)
		noErr(t, f.Close())
		wantSize := cfg.SizeLimitBytes
		if wantSize == 0 {
			wantSize = 8 << 20 // the file's
		}
		if size != wantSize {
			t.Errorf("attached %+v: device has %d bytes, want %d", cfg, size, wantSize)
		}
		noErr(t, DetachLoop(dev))
		noErr(t, DetachLoop(dev)) // detached already
		if left := attachedTo(t, dir); len(left) != 0 {
			t.Fatalf("still attached: %v", left)
		}
	}
	noErr(t, DetachLoop("/dev/loop999999"))
}

func TestLoopAttachRefuses(t *testing.T) {
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 1<<20)
	_, err := AttachLoop(LoopConfig{BackingPath: path, SizeLimitBytes: 2 << 20})
	if !errors.Is(err, ErrShortImage) {
		t.Errorf("device larger than its file: %v", err)
	}
	_, err = AttachLoop(LoopConfig{BackingPath: filepath.Join(dir, "missing")})
	wantErrText(t, err, "missing")
	_, err = AttachLoop(LoopConfig{BackingPath: path, BlockSizeBytes: 1000})
	wantErrText(t, err, path)
	// Nothing stays attached.
	if left := attachedTo(t, dir); len(left) != 0 {
		t.Errorf("attached after errors: %v", left)
	}
}

// TestLoopDirectIORefused: on a file system whose direct I/O needs larger blocks than asked for, or has none, the
// kernel falls back without a word.
func TestLoopDirectIORefused(t *testing.T) {
	testenv.RequireLoop(t)
	// A file system on a device of 4096-byte blocks cannot take direct I/O in blocks of 512.
	testenv.RequireTool(t, "mkfs.ext4")
	dir := loopDir(t)
	lower := attach(t, LoopConfig{BackingPath: newBacking(t, dir, "v/image", 16<<20), BlockSizeBytes: 4096})
	defer func() { noErr(t, DetachLoop(lower)) }()
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", lower).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mounted := t.TempDir()
	noErr(t, unix.Mount(lower, mounted, "ext4", 0, ""))
	defer func() { noErr(t, unix.Unmount(mounted, 0)) }()
	image := newBacking(t, mounted, "w/image", 4<<20)
	dev, err := AttachLoop(LoopConfig{BackingPath: image, BlockSizeBytes: 512, DirectIO: true})
	if err == nil {
		noErr(t, DetachLoop(dev))
		t.Fatal("attached, with direct I/O in blocks smaller than the device's below")
	}
	wantErrText(t, err, image, "direct I/O")
	if _, ok, err := findLoop(image); ok || err != nil {
		t.Errorf("still attached: %v, %v", ok, err)
	}
}

func TestSetLoopSize(t *testing.T) {
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 1<<20)
	dev := attach(t, LoopConfig{BackingPath: path, SizeLimitBytes: 1 << 20, BlockSizeBytes: 4096, DirectIO: true})
	d, err := OpenLoopDevice(dev)
	noErr(t, err)
	want := bytes.Repeat([]byte{7}, 1<<20)
	_, err = d.WriteAt(want, 0)
	noErr(t, err)

	err = SetLoopSize(dev, 2<<20)
	if !errors.Is(err, ErrShortImage) {
		t.Errorf("growing beyond the file: %v", err)
	}
	img, err := OpenImage(vfs.OS, path)
	noErr(t, err)
	noErr(t, img.Grow(2<<20))
	noErr(t, SetLoopSize(dev, 2<<20)) // while it is open and has dirty pages
	noErr(t, SetLoopSize(dev, 2<<20))
	if d.Size() != 2<<20 {
		t.Errorf("device has %d bytes", d.Size())
	}
	_, err = d.WriteAt([]byte("end."), 2<<20-4)
	noErr(t, err)
	noErr(t, d.Flush())
	noErr(t, d.Close())
	got := make([]byte, 2<<20)
	_, err = img.ReadAt(got, 0)
	noErr(t, err)
	noErr(t, img.Close())
	if !bytes.Equal(got[:1<<20], want) || string(got[2<<20-4:]) != "end." {
		t.Error("data is not what was written")
	}
	info, ok, err := findLoop(path)
	noErr(t, err)
	if !ok || info.SizeLimitBytes != 2<<20 || !info.DirectIO || info.BlockSizeBytes != 4096 || info.AutoClear {
		t.Errorf("the device's settings have become %+v", info)
	}
	noErr(t, DetachLoop(dev))
}

// TestMountedLoop grows a device under a mounted file system, and does not detach it.
func TestMountedLoop(t *testing.T) {
	testenv.RequireLoop(t)
	mkfs := testenv.RequireTool(t, "mkfs.ext4")
	impatient(t)
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 8<<20)
	dev := attach(t, LoopConfig{BackingPath: path, SizeLimitBytes: 8 << 20})
	if out, err := exec.Command(mkfs, "-q", dev).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mountPoint := filepath.Join(dir, "mnt")
	noErr(t, os.Mkdir(mountPoint, 0o700))
	noErr(t, unix.Mount(dev, mountPoint, "ext4", 0, ""))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			_ = unix.Unmount(mountPoint, unix.MNT_DETACH)
		}
	})
	file := filepath.Join(mountPoint, "file")
	noErr(t, os.WriteFile(file, bytes.Repeat([]byte{9}, 1<<20), 0o600)) // dirty when the size changes

	img, err := OpenImage(vfs.OS, path)
	noErr(t, err)
	noErr(t, img.Grow(16<<20))
	noErr(t, img.Close())
	noErr(t, SetLoopSize(dev, 16<<20))
	if err := DetachLoop(dev); !errors.Is(err, unix.EBUSY) {
		t.Errorf("detached a mounted device: %v", err)
	}
	got, err := os.ReadFile(file)
	noErr(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte{9}, 1<<20)) {
		t.Error("the file has changed")
	}
	noErr(t, unix.Unmount(mountPoint, 0))
	mounted = false
	noErr(t, DetachLoop(dev))
}

// TestDetachBusyLoop: a device in use is an error, stays, and does not go later by itself.
func TestDetachBusyLoop(t *testing.T) {
	impatient(t)
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 1<<20)
	dev := attach(t, LoopConfig{BackingPath: path})
	for name, flags := range map[string]int{"open": os.O_RDONLY, "exclusive, as a mount": os.O_RDONLY | unix.O_EXCL} {
		user, err := os.OpenFile(dev, flags, 0)
		noErr(t, err)
		err = DetachLoop(dev)
		if !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s: detached: %v", name, err)
		}
		noErr(t, user.Close())
		info, ok, err := findLoop(path)
		noErr(t, err)
		if !ok || info.AutoClear || info.Device != dev {
			t.Errorf("%s: device is gone or will go: %+v", name, info)
		}
	}
	noErr(t, DetachLoopOf(dev, filepath.Join(dir, "another")))
	if len(attachedTo(t, dir)) != 1 {
		t.Error("a device of another file was detached")
	}
	noErr(t, DetachLoopOf(dev, path))
}

// TestReadLoopWhileDetached reads a device's attributes while it is attached and detached over and over: they are
// there, or the device is not attached, and nothing else. sysfs fails a read of an attribute that goes while it is
// open with ENODEV.
func TestReadLoopWhileDetached(t *testing.T) {
	config := LoopConfig{
		BackingPath: newBacking(t, loopDir(t), "v/image", 256<<10), SizeLimitBytes: 256 << 10, BlockSizeBytes: 4096,
	}
	dev, err := AttachLoop(config)
	noErr(t, err)
	noErr(t, DetachLoopOf(dev, config.BackingPath))
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for !done.Load() {
				if _, err := readLoop(filepath.Base(dev)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 200 {
		again, err := AttachLoop(config) // the lowest free one: as a rule the same
		if err == nil {
			err = DetachLoopOf(again, config.BackingPath)
		}
		if err != nil {
			t.Error(err)
			break
		}
	}
	done.Store(true)
	readers.Wait()
}

// TestLoopLeak attaches and detaches many devices at once, as several processes would. Every device shows its own file,
// some are abandoned as a crash between attaching and writing it down does, and are found again.
func TestLoopLeak(t *testing.T) {
	dir := loopDir(t)
	const workers, rounds = 6, 10
	var mu sync.Mutex
	abandoned := map[string]string{} // path to device
	var wg sync.WaitGroup
	for w := range workers {
		paths := make([]string, rounds)
		for r := range rounds {
			paths[r] = newBacking(t, dir, fmt.Sprintf("v-%d-%d/image", w, r), 256<<10)
		}
		wg.Go(func() {
			for r, path := range paths {
				dev, err := AttachLoop(LoopConfig{BackingPath: path, SizeLimitBytes: 256 << 10, BlockSizeBytes: 4096})
				if err != nil {
					t.Error(err)
					return
				}
				if err := writeThrough(dev, path); err != nil {
					t.Error(err)
				}
				if r%5 == 4 {
					mu.Lock()
					abandoned[path] = dev
					mu.Unlock()
					continue
				}
				if err := DetachLoopOf(dev, path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	left := attachedTo(t, dir)
	if len(left) != len(abandoned) {
		t.Errorf("%d devices attached, %d abandoned: %v", len(left), len(abandoned), left)
	}
	detached := detachAll(t, dir)
	for _, i := range detached {
		if abandoned[i.BackingPath] != i.Device {
			t.Errorf("detached %+v, which was not abandoned", i)
		}
	}
	if len(detached) != workers*rounds/5 {
		t.Errorf("detached %d, want %d", len(detached), workers*rounds/5)
	}
	if left := attachedTo(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// writeThrough writes its path to a device and looks for it in the file.
func writeThrough(dev, path string) error {
	d, err := OpenLoopDevice(dev)
	if err != nil {
		return err
	}
	mark := make([]byte, 4096)
	copy(mark, path)
	_, err = d.WriteAt(mark, 4096)
	err = errors.Join(err, d.Flush(), d.Close())
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 4096); err != nil {
		return err
	}
	if !bytes.Equal(got, mark) {
		return fmt.Errorf("%s, attached to %s, wrote to another file", dev, path)
	}
	return nil
}
