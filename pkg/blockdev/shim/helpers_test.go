package shim_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

// helperEnv makes the test binary a process that serves a volume, as JSON of helperConfig.
const helperEnv = "SHIM_TEST_SERVE"

func TestMain(m *testing.M) {
	if cfg := os.Getenv(helperEnv); cfg != "" {
		if err := serveHelper(cfg); err != nil {
			fmt.Fprintln(os.Stderr, "helper:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// helperConfig is what a serving process is told.
type helperConfig struct {
	KeeperSocket string // empty: no keeper
	MountPoint   string
	Mode         shim.Mode
	VolumeID     string
	ImagePath    string // empty: memory
	SizeBytes    int64
	MaxReaders   int
	MaxDirty     int64
	Limits       shim.Limits
}

// serveHelper is the least that a replicator does: adopt what the keeper has, or mount, tell the keeper, serve.
func serveHelper(text string) error {
	var cfg helperConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	var dev blockdev.Device = newMemDevice(cfg.SizeBytes)
	if cfg.ImagePath != "" {
		fd, err := openFileDevice(cfg.ImagePath, cfg.SizeBytes)
		if err != nil {
			return err
		}
		dev = fd
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	sc := shim.Config{MountPoint: cfg.MountPoint, Mode: cfg.Mode, VolumeID: cfg.VolumeID, MaxReaders: cfg.MaxReaders,
		Limits: cfg.Limits}
	var srv *shim.Server
	var holder *keeper.Holder
	if cfg.KeeperSocket != "" {
		holder = keeper.NewHolder(cfg.KeeperSocket)
		defer holder.Close()
		entries, err := holder.Fetch(ctx)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Name != cfg.VolumeID {
				e.File.Close()
				continue
			}
			st, err := shim.ParseState(e.Meta)
			if err != nil {
				return err
			}
			if srv, err = shim.Adopt(e.File, st, sc, dev); err != nil {
				return err
			}
		}
	}
	if srv == nil {
		var err error
		if srv, err = shim.Mount(sc, dev); err != nil {
			return err
		}
	}
	if holder != nil {
		meta, err := srv.State().Marshal()
		if err != nil {
			return err
		}
		if err := holder.Add(ctx, cfg.VolumeID, meta, srv.FD()); err != nil {
			return err
		}
	}
	if cfg.MaxDirty > 0 {
		if err := shim.TuneBDI(srv.State().Device, cfg.MaxDirty); err != nil {
			return err
		}
	}
	st, _ := json.Marshal(srv.State())
	fmt.Printf("serving %s\n", st)
	select {
	case <-srv.Done():
		return srv.Err()
	case <-ctx.Done():
		return srv.Close()
	}
}

// memDevice is a Device in memory with knobs for tests.
type memDevice struct {
	mu      sync.RWMutex
	data    []byte
	flushes int

	// gate, if not nil, is called before each operation, without the lock.
	gate func(op shim.Op)
	// fail, if not nil, decides about an operation's error.
	fail func(op shim.Op) error
}

func newMemDevice(size int64) *memDevice { return &memDevice{data: make([]byte, size)} }

func (d *memDevice) enter(op shim.Op, off, n int64) error {
	if d.gate != nil {
		d.gate(op)
	}
	if d.fail != nil {
		if err := d.fail(op); err != nil {
			return err
		}
	}
	return blockdev.CheckRange(off, n, int64(len(d.data)))
}

func (d *memDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter(shim.OpRead, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return copy(p, d.data[off:]), nil
}

func (d *memDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.enter(shim.OpWrite, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[off:], p), nil
}

func (d *memDevice) clear(op shim.Op, off, n int64) error {
	if err := d.enter(op, off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	return nil
}

func (d *memDevice) Discard(off, n int64) error { return d.clear(shim.OpDiscard, off, n) }
func (d *memDevice) Zero(off, n int64) error    { return d.clear(shim.OpZero, off, n) }

func (d *memDevice) Flush() error {
	if err := d.enter(shim.OpFlush, 0, 0); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	return nil
}

func (d *memDevice) Size() int64 { return int64(len(d.data)) }

func (d *memDevice) snapshot() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return append([]byte(nil), d.data...)
}

func (d *memDevice) flushCount() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.flushes
}

// fileDevice is a Device over a file: what it holds survives its process.
type fileDevice struct {
	f    *os.File
	size int64
}

func openFileDevice(path string, size int64) (*fileDevice, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &fileDevice{f: f, size: size}, f.Truncate(size)
}

func (d *fileDevice) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d *fileDevice) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d *fileDevice) Discard(off, n int64) error {
	return unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}
func (d *fileDevice) Zero(off, n int64) error {
	return unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_ZERO_RANGE, off, n)
}
func (d *fileDevice) Flush() error { return unix.Fdatasync(int(d.f.Fd())) }
func (d *fileDevice) Size() int64  { return d.size }

// requireAll skips unless FUSE and loop devices can be used.
func requireAll(t *testing.T) {
	t.Helper()
	testenv.RequireFUSE(t)
	testenv.RequireLoop(t)
}

// guard detaches and aborts whatever is left mounted at mp: at the end of the test, and when it takes so long that it
// seems to hang. A test that used a mount of its own process and timed out could otherwise not even be killed.
func guard(t *testing.T, mp string, timeout time.Duration) {
	t.Helper()
	timer := time.AfterFunc(timeout, func() {
		fmt.Fprintf(os.Stderr, "%s: took longer than %v, aborting its connection\n", t.Name(), timeout)
		_ = unix.Unmount(mp, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	})
	t.Cleanup(func() {
		timer.Stop()
		for unix.Unmount(mp, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	})
}

// mount serves dev at a mount point of the test.
func mount(t *testing.T, mode shim.Mode, dev blockdev.Device, change ...func(*shim.Config)) *shim.Server {
	t.Helper()
	return *mountVar(t, mode, dev, change...)
}

// mountVar is mount for a test that changes servers: what is behind the pointer at the end of the test is unmounted.
func mountVar(t *testing.T, mode shim.Mode, dev blockdev.Device, change ...func(*shim.Config)) **shim.Server {
	t.Helper()
	requireAll(t)
	mp := filepath.Join(t.TempDir(), "mnt")
	guard(t, mp, 90*time.Second)
	cfg := shim.Config{MountPoint: mp, Mode: mode, VolumeID: "vol-" + filepath.Base(t.TempDir())}
	for _, f := range change {
		f(&cfg)
	}
	s, err := shim.Mount(cfg, dev)
	if err != nil {
		t.Fatal(err)
	}
	current := &s
	t.Cleanup(func() {
		s := *current
		select {
		case <-s.Done():
			return
		default:
		}
		if err := s.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			s.Abort()
		}
		<-s.Done()
	})
	return current
}

// attachLoop attaches a loop device to path with a size limit, opens it as a Device and undoes both at the end of the
// test.
func attachLoop(t *testing.T, path string, size int64, mode shim.Mode) (string, *blockdev.LoopDevice) {
	t.Helper()
	name, err := blockdev.AttachLoop(blockdev.LoopConfig{BackingPath: path, SizeLimitBytes: size, BlockSizeBytes: 4096,
		DirectIO: mode == shim.ModeAck})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Not by name alone: a test may have detached it already, and the name be another test's by now.
		if err := blockdev.DetachLoopOf(name, path); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	d, err := blockdev.OpenLoopDevice(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return name, d
}
