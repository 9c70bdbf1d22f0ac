package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// ErrAborted is what Err returns after the connection was aborted, by Abort or through
// /sys/fs/fuse/connections/<n>/abort. Users of the volume got I/O errors; unmount and mount it again.
var ErrAborted = errors.New("FUSE connection aborted")

// ErrUnmounted is what Mount and Adopt return for a descriptor whose mount is gone. Nothing is served; mount again.
var ErrUnmounted = errors.New("FUSE connection belongs to no mount any more")

// ErrMountedElsewhere is what Server.Unmount returns while another mount namespace still has a copy of the mount.
var ErrMountedElsewhere = errors.New("another mount namespace, a container's perhaps, still has the mount")

// A mount that is gone from here counts as unused once elsewherePatience has passed: by then the
// kernel has written all dirty pages, which it does after 30 s unless told otherwise. endWait is how long Unmount
// waits for the end at a time.
var (
	endWait           = 10 * time.Second
	elsewherePatience = time.Minute
)

const (
	defaultMaxReaders = 16
	minMaxReaders     = 2

	// maxBackground bounds the asynchronous requests (writeback, readahead, asynchronous direct I/O) in flight. The
	// kernel's default of 12 is below the depth that a database uses; more than a few dozen only moves the queue.
	maxBackground = 64

	// timeGranNsec makes the kernel keep timestamps in whole seconds. With finer ones each write dirties the inode, and
	// each fsync is preceded by a SETATTR that carries a new mtime here and back: a second round trip per flush for a
	// value that no program reads.
	timeGranNsec = 1e9
)

// Config says what to serve and where.
type Config struct {
	// MountPoint is an absolute path. It is created if it does not exist. Adopt takes the one in State.
	MountPoint string
	// Mode is chosen at Mount; Adopt takes the one in State.
	Mode Mode
	// VolumeID is the mount's source in mountinfo and names the volume in logs and errors. Adopt refuses a State of
	// another volume.
	VolumeID string
	// MaxReaders bounds the threads that serve the volume at the same time, and with them the requests that may block in
	// the Device. 0 means 16; less than 2 is taken as 2, since a flush must not stop writes from being served.
	MaxReaders int
	// Observe, if not nil, is told of every call of the Device. It runs in the thread that serves and must not block.
	Observe func(op Op, d time.Duration, err error)
	// Limits bound the volume's I/O until SetLimits changes them.
	Limits Limits
}

// Op is a call of the Device, for Config.Observe.
type Op uint8

// The calls of a Device.
const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpDiscard
	OpZero
)

// String returns the operation's name in lower case, fit for a metric's label.
func (op Op) String() string {
	switch op {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpDiscard:
		return "discard"
	case OpZero:
		return "zero"
	}
	return fmt.Sprintf("Op(%d)", uint8(op))
}

// Server serves one Device on one FUSE connection. Make it with Mount or Adopt.
type Server struct {
	state      State
	maxReaders int
	observe    func(op Op, d time.Duration, err error)

	dev *os.File
	fd  int // dev's descriptor, valid until serving ends

	// deviceMu is held for reading around each call of device, so that Swap waits for the calls in flight.
	deviceMu sync.RWMutex
	device   blockdev.Device

	readers   readerPool  // of ModeFlush
	share     volumeShare // of ModeAck
	limiter   *limiter
	unflushed atomic.Uint64 // writes since the last flush
	mtime     atomic.Int64  // Unix nanoseconds, what SETATTR set last

	errorLog *rate.Limiter

	unmountMu   sync.Mutex
	unmountedAt time.Time // when Unmount first found the mount gone; guarded by unmountMu

	doneOnce sync.Once
	done     chan struct{}
	errMu    sync.Mutex
	err      error // guarded by errMu
}

// Mount mounts a FUSE file system at cfg.MountPoint and serves dev on it. When it returns, the file exists and I/O to
// it is answered.
//
// If a mount of this volume is found at the mount point it is taken for dead, aborted and detached: ask the keeper for
// its descriptor first, and call Adopt if it has one.
//
// On an error nothing is left mounted.
func Mount(cfg Config, dev blockdev.Device) (*Server, error) {
	if err := checkVolumeID(cfg.VolumeID); err != nil {
		return nil, err
	}
	if cfg.Mode > ModeAck {
		return nil, fmt.Errorf("mount volume %q: unknown mode %d", cfg.VolumeID, uint8(cfg.Mode))
	}
	path, err := prepareMountPoint(cfg.MountPoint, cfg.VolumeID)
	if err != nil {
		return nil, err
	}
	f, err := mountFUSE(path, cfg.VolumeID)
	if err != nil {
		return nil, err
	}
	st := State{
		VolumeID:      cfg.VolumeID,
		MountPoint:    path,
		Mode:          cfg.Mode,
		MaxWriteBytes: maxWriteBytes,
		FileSizeBytes: FileSize,
	}
	fail := func(err error) (*Server, error) {
		// The connection dies with its last descriptor; until then a detach might wait for it.
		f.Close()
		if uerr := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); uerr != nil {
			klog.ErrorS(uerr, "Cannot unmount after a failed mount", "volume", cfg.VolumeID, "mountPoint", path)
		}
		return nil, fmt.Errorf("mount volume %q at %q: %w", cfg.VolumeID, path, err)
	}
	if err := negotiate(int(f.Fd()), &st); err != nil {
		return fail(err)
	}
	m, err := topMount(path)
	if err != nil {
		return fail(err)
	}
	if m == nil || m.FSType != FSType || m.Source != cfg.VolumeID {
		return fail(errors.New("the mount is not in /proc/self/mountinfo: another program changed the mount point at " +
			"the same time"))
	}
	st.Device = deviceOf(m)
	if err := st.validate(); err != nil {
		return fail(err)
	}
	s := newServer(f, st, cfg, dev)
	if err := s.start(); err != nil {
		return fail(err)
	}
	if err := s.pollOnce(); err != nil {
		// The readers own the descriptor now.
		if uerr := unix.Unmount(path, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); uerr != nil {
			klog.ErrorS(uerr, "Cannot unmount after a failed mount", "volume", cfg.VolumeID, "mountPoint", path)
		}
		_ = s.Close()
		return nil, fmt.Errorf("mount volume %q at %q: %w", cfg.VolumeID, path, err)
	}
	klog.InfoS("Serving volume", "volume", st.VolumeID, "mountPoint", st.MountPoint, "mode", st.Mode, "device", st.Device,
		"protocolMinor", st.ProtoMinor)
	return s, nil
}

// pollOnce lets the kernel find out that the file cannot be polled, which it then remembers for the connection's
// life.
//
// Otherwise the first Go program that opens the file with package os finds out: os.Open registers what it opens with
// epoll, which asks the file system, which asks this server, while the runtime's poller is locked and a scheduler
// slot is held. In the serving process, with few slots, that is a deadlock; in another one, which may be the
// keeper's, everything stops until this server answers, and it may just have been killed.
//
// It is the one place where the serving process uses its own mount, for three requests that are answered at once from
// memory, before another process knows of the mount. Were the process killed between reading and answering one of them,
// its end would wait for the abort that the next Mount begins with.
func (s *Server) pollOnce() error {
	fd, err := unix.Open(s.Path(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open the file once: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil && err != unix.EINTR {
		return fmt.Errorf("poll the file once: %w", err)
	}
	return nil
}

// Adopt serves dev on a connection that another Server, in this process or in one that died, served before. The other
// one must have ended: call Adopt only when no other Server can be reading from the descriptor.
//
// It never touches the mount. cfg's MountPoint and Mode are ignored, st says what was negotiated. Requests that were in
// flight are sent again by the kernel, so that each may have been executed already.
//
// fd belongs to the Server from a successful return on; after an error it is the caller's. ErrUnmounted says that there
// is no mount behind it any more.
func Adopt(fd *os.File, st State, cfg Config, dev blockdev.Device) (*Server, error) {
	if err := st.validate(); err != nil {
		return nil, err
	}
	if cfg.VolumeID != st.VolumeID {
		return nil, fmt.Errorf("adopt volume %q: the state is that of volume %q", cfg.VolumeID, st.VolumeID)
	}
	raw := int(fd.Fd())
	// A resend on a connection that ended succeeds and does nothing; poll says what it is.
	fds := []unix.PollFd{{Fd: int32(raw), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil && err != unix.EINTR {
		return nil, fmt.Errorf("adopt volume %q: %w", st.VolumeID, err)
	}
	if fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
		return nil, fmt.Errorf("adopt volume %q: %w", st.VolumeID, ErrUnmounted)
	}
	if err := requestResend(raw); err != nil {
		switch {
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOTCONN):
			return nil, fmt.Errorf("adopt volume %q: %w", st.VolumeID, ErrUnmounted)
		}
		return nil, fmt.Errorf("adopt volume %q: ask the kernel to resend requests: %w", st.VolumeID, err)
	}
	s := newServer(fd, st, cfg, dev)
	if err := s.start(); err != nil {
		return nil, fmt.Errorf("adopt volume %q: %w", st.VolumeID, err)
	}
	klog.InfoS("Serving adopted volume", "volume", st.VolumeID, "mountPoint", st.MountPoint, "mode", st.Mode, "device",
		st.Device)
	return s, nil
}

// requestResend asks the kernel to queue what was read and not answered again (FUSE_NOTIFY_RESEND, kernel 6.9).
func requestResend(fd int) error {
	var notify [outHeaderSize]byte
	putOutHeader(notify[:], outHeaderSize, notifyResend, 0)
	_, err := writeFD(fd, notify[:])
	return err
}

// start begins to serve.
func (s *Server) start() error {
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return fmt.Errorf("make /dev/fuse non-blocking: %w", err)
	}
	if s.state.Mode == ModeAck {
		return serveShared(s)
	}
	return s.readers.start(s)
}

func newServer(f *os.File, st State, cfg Config, dev blockdev.Device) *Server {
	n := cfg.MaxReaders
	if n == 0 {
		n = defaultMaxReaders
	}
	s := &Server{
		state:      st,
		maxReaders: max(n, minMaxReaders),
		observe:    cfg.Observe,
		dev:        f,
		fd:         -1,
		device:     dev,
		errorLog:   rate.NewLimiter(rate.Every(time.Second), 10),
		done:       make(chan struct{}),
	}
	if f != nil {
		s.fd = int(f.Fd())
	}
	s.limiter = newLimiter(s, cfg.Limits)
	return s
}

// Path returns the file that a loop device is attached to. The serving process must not open it.
func (s *Server) Path() string { return filepath.Join(s.state.MountPoint, FileName) }

// State returns what Adopt needs in another process.
func (s *Server) State() State { return s.state }

// FD returns the /dev/fuse descriptor for the keeper to duplicate (keeper.Holder does). It belongs to the Server, which
// closes it when serving ends: do not close it, do not read from it, and use its SyscallConn rather than its Fd.
func (s *Server) FD() *os.File { return s.dev }

// Device returns the Device that is served.
func (s *Server) Device() blockdev.Device {
	s.deviceMu.RLock()
	defer s.deviceMu.RUnlock()
	return s.device
}

// Swap exchanges the Device. It returns when no call of the old one is in flight and none will come; requests that
// arrive meanwhile wait for the new one. The caller closes the old one. Both must hold the same content, or the page
// cache's idea of it is wrong.
func (s *Server) Swap(dev blockdev.Device) {
	s.deviceMu.Lock()
	s.device = dev
	s.deviceMu.Unlock()
}

// Exchange is Swap for a Device that cannot be made while the old one is in use: next is called when no call of the
// old one is in flight, and requests wait until it returns. After an error of next the old one goes on.
func (s *Server) Exchange(next func() (blockdev.Device, error)) error {
	s.deviceMu.Lock()
	defer s.deviceMu.Unlock()
	dev, err := next()
	if err == nil {
		s.device = dev
	}
	return err
}

// Unmount unmounts the file system and waits until serving has ended. EBUSY, a loop device or process has the file
// open, leaves everything as it was: I/O is served on. See the package comment and the function Unmount about which
// process should do this.
//
// A mount namespace that was made as a copy, as container runtimes and unshare do, may hold the file system after
// that. Waiting for its end could take forever, so ErrMountedElsewhere is returned after some seconds, served on,
// and to be called again: a call that begins a minute after the first one ends the connection by force.
func (s *Server) Unmount() error {
	if err := Unmount(s.state.MountPoint); err != nil {
		return err
	}
	s.unmountMu.Lock()
	defer s.unmountMu.Unlock()
	if s.unmountedAt.IsZero() {
		s.unmountedAt = time.Now()
	}
	// Of when the call begins, so that the first one never ends it, however late its timer is.
	patient := time.Since(s.unmountedAt) < elsewherePatience
	timer := time.NewTimer(endWait)
	defer timer.Stop()
	select {
	case <-s.done:
		return s.Err()
	case <-timer.C:
	}
	if patient {
		return fmt.Errorf("volume %q: unmounted, but %w; call again", s.state.VolumeID, ErrMountedElsewhere)
	}
	klog.InfoS("Ending a connection whose mount only other namespaces have", "volume", s.state.VolumeID, "mountPoint",
		s.state.MountPoint)
	if err := Abort(s.state.Device); err != nil {
		return fmt.Errorf("volume %q: unmounted, but %w: %w", s.state.VolumeID, ErrMountedElsewhere, err)
	}
	<-s.done
	if err := s.Err(); !errors.Is(err, ErrAborted) {
		return err
	}
	return nil
}

// Close stops serving without unmounting. Requests in flight are finished and answered first; new ones wait in the
// kernel for the next Adopt. It closes the Server's own descriptor and no other: if no other process holds a
// duplicate, the connection ends and waiting I/O fails.
//
// It waits for Device calls in flight, as long as they take. A second Close waits for the first.
func (s *Server) Close() error {
	if s.state.Mode == ModeAck {
		s.share.pool.stopVolume(s)
		<-s.done
		return nil
	}
	if err := s.readers.stop(s); err != nil {
		return fmt.Errorf("close volume %q: %w", s.state.VolumeID, err)
	}
	return nil
}

// Abort ends the connection: I/O that waits and all that comes later fails. Serving ends with ErrAborted.
func (s *Server) Abort() {
	if err := Abort(s.state.Device); err != nil {
		klog.ErrorS(err, "Cannot abort", "volume", s.state.VolumeID)
	}
}

// Done is closed when serving has ended: after Close, after an unmount by any program, or for the reason in Err.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err returns why serving has ended: nil while it has not, after Close and after an unmount.
func (s *Server) Err() error {
	s.errMu.Lock()
	defer s.errMu.Unlock()
	return s.err
}

func (s *Server) fail(err error) {
	s.errMu.Lock()
	defer s.errMu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("volume %q: %w", s.state.VolumeID, err)
	}
}

// finish runs when no reader serves the volume any more.
func (s *Server) finish() {
	s.doneOnce.Do(func() {
		s.dev.Close()
		if s.state.Mode == ModeFlush {
			_ = unix.Close(s.readers.stopFD)
		}
		if err := s.Err(); err != nil {
			klog.ErrorS(err, "Volume is not served any more", "mountPoint", s.state.MountPoint)
		} else {
			klog.InfoS("Volume is not served any more", "volume", s.state.VolumeID, "mountPoint", s.state.MountPoint)
		}
		close(s.done)
	})
}

// negotiate answers INIT, which the kernel queued when the file system was mounted, and fills in what was agreed.
func negotiate(fd int, st *State) error {
	buf := make([]byte, pageSize+st.MaxWriteBytes)
	n, err := readFD(fd, buf)
	if err != nil {
		return fmt.Errorf("read INIT: %w", err)
	}
	h, body, ok := parseInHeader(buf[:n])
	if !ok || h.opcode != opInit {
		return fmt.Errorf("the first request has opcode %d, want INIT", h.opcode)
	}
	in, ok := parseInitIn(body)
	if !ok {
		return fmt.Errorf("INIT has %d bytes", len(body))
	}
	if in.major != protoMajor || in.minor < minKernelMinor || in.flags&initHasResend == 0 {
		return fmt.Errorf("the kernel speaks FUSE protocol %d.%d and cannot resend requests: kernel 6.9 or newer is needed",
			in.major, in.minor)
	}
	// With the writeback cache the kernel keeps the size of the file itself. Without it each write has the kernel ask the
	// server for the size the next time, and a loop device whose question fails has a size of 0 from then on: see
	// SetLoopSize in package blockdev. In ModeAck the file is open for direct I/O, so nothing is cached.
	want := uint64(initAsyncRead | initBigWrites | initAsyncDIO | initParallelDirops | initAbortError | initMaxPages |
		initExt | initHasResend | initWritebackCache)
	flags := want & in.flags
	if missing := want &^ in.flags; missing&(initMaxPages|initWritebackCache) != 0 {
		return fmt.Errorf("the kernel lacks FUSE features %#x", missing)
	}
	st.Flags = flags
	st.ProtoMinor = min(in.minor, protoMinor)
	var out [outHeaderSize + initOutSize]byte
	putOutHeader(out[:], len(out), 0, h.unique)
	putInitOut(out[outHeaderSize:], st.ProtoMinor, in.maxReadahead, flags, st.MaxWriteBytes)
	if _, err := writeFD(fd, out[:]); err != nil {
		return fmt.Errorf("answer INIT: %w", err)
	}
	return nil
}

func readFD(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func writeFD(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Write(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}
