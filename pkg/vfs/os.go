package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OS is the operating system's file system. Files are created with mode 0600 and directories with 0700: other
// users must not read a pool.
var OS FS = osFS{}

type osFS struct{}

// fallocate is replaced by tests to act as a file system without it.
var fallocate = unix.Fallocate

func (osFS) Create(name string) (File, error) {
	return openOS(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func (osFS) Open(name string) (File, error) { return openOS(name, os.O_RDWR) }

func (osFS) OpenReadOnly(name string) (File, error) { return openOS(name, os.O_RDONLY) }

func openOS(name string, flags int) (File, error) {
	f, err := OpenRegular(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f}, nil
}

func (osFS) Remove(name string) error             { return os.Remove(name) }
func (osFS) RemoveAll(name string) error          { return os.RemoveAll(name) }
func (osFS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }
func (osFS) Stat(name string) (fs.FileInfo, error) {
	return os.Stat(name)
}

// renameat2 is replaced by tests to act as a file system that cannot exchange files.
var renameat2 = unix.Renameat2

// Exchange implements Exchanger.
func (osFS) Exchange(a, b string) error {
	err := retryEINTR(func() error { return renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) })
	if notSupported(err) || errors.Is(err, unix.EINVAL) {
		err = errors.ErrUnsupported
	}
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	return nil
}

func (osFS) MkdirAll(name string) error { return mkdirAll(osFS{}, name, mkdirOS) }

func mkdirOS(name string) error { return os.Mkdir(name, 0o700) }

// mkdirAll is os.MkdirAll that syncs each parent in which it created an entry.
func mkdirAll(fsys FS, name string, mkdir func(string) error) error {
	name = filepath.Clean(name)
	info, err := fsys.Stat(name)
	if err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := mkdirAll(fsys, parent, mkdir); err != nil {
			return err
		}
	}
	// Another process may create it at the same time; its entry is then synced twice, which does no harm.
	if err := mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsys.SyncDir(parent)
}

func (osFS) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// Space implements SpaceReporter with statfs(2). Available is what an unprivileged process could still write.
func (osFS) Space(name string) (totalBytes, availableBytes int64, err error) {
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Statfs(name, &st) }); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(st.Blocks) * st.Frsize, int64(st.Bavail) * st.Frsize, nil
}

// Inodes implements InodeReporter with statfs(2).
func (osFS) Inodes(name string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Statfs(name, &st) }); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(st.Files), int64(st.Ffree), nil
}

// retryEINTR repeats a system call that a signal interrupted. The runtime's preemption signals are installed with
// SA_RESTART, but not every call can be restarted (fallocate on a large range is one).
func retryEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// osFile goes through os.File so that Close waits for calls in progress and no call meets a reused descriptor.
type osFile struct{ f *os.File }

func (f *osFile) ReadAt(p []byte, off int64) (int, error)  { return f.f.ReadAt(p, off) }
func (f *osFile) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }
func (f *osFile) Close() error                             { return f.f.Close() }
func (f *osFile) Name() string                             { return f.f.Name() }
func (f *osFile) Truncate(size int64) error                { return f.f.Truncate(size) }

// Fd returns the descriptor, valid until Close. It is for ioctls; reading and writing go through the methods.
func (f *osFile) Fd() uintptr { return f.f.Fd() }

func (f *osFile) Size() (int64, error) {
	info, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// control runs a system call on the descriptor, repeated while interrupted.
func (f *osFile) control(op string, call func(fd int) error) error {
	conn, err := f.f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = conn.Control(func(fd uintptr) {
		callErr = retryEINTR(func() error { return call(int(fd)) })
	})
	switch {
	case err != nil:
		err = fs.ErrClosed // the only reason for not getting at the descriptor, in an error of its own
	case callErr != nil:
		err = callErr
	default:
		return nil
	}
	return &fs.PathError{Op: op, Path: f.f.Name(), Err: err}
}

func (f *osFile) Datasync() error { return f.control("fdatasync", unix.Fdatasync) }

// StartWriteback implements WritebackStarter. SYNC_FILE_RANGE_WRITE alone takes no error away from a later fdatasync.
func (f *osFile) StartWriteback(off, n int64) {
	_ = f.control("sync_file_range", func(fd int) error {
		return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// WriteOut implements WriteOuter.
func (f *osFile) WriteOut(off, n int64) error {
	return f.control("sync_file_range", func(fd int) error {
		return unix.SyncFileRange(fd, off, n,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	})
}

func (f *osFile) fallocate(op string, mode uint32, off, n int64) error {
	return f.control(op, func(fd int) error { return fallocate(fd, mode, off, n) })
}

func notSupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// Preallocate falls back to writing zeros into the holes of the range where the file system has no fallocate. The
// caller must then not write to the range at the same time.
func (f *osFile) Preallocate(off, n int64) error {
	if err := checkRange("preallocate", f.Name(), off, n); err != nil || n == 0 {
		return err
	}
	err := f.fallocate("fallocate", 0, off, n)
	if !notSupported(err) {
		return err
	}
	for end := off + n; off < end; {
		dataStart, dataEnd, err := f.NextData(off)
		if err == io.EOF {
			dataStart, dataEnd = end, end
		} else if err != nil {
			return err
		}
		if err := writeZeros(f, off, min(dataStart, end)-off); err != nil {
			return err
		}
		off = dataEnd
	}
	return nil
}

// PunchHole falls back to writing zeros: the space is not given back, but the range reads as promised.
func (f *osFile) PunchHole(off, n int64) error {
	n, err := f.clamp("punch hole", off, n)
	if err != nil || n == 0 {
		return err
	}
	err = f.fallocate("punch hole", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if notSupported(err) {
		return writeZeros(f, off, n)
	}
	return err
}

func (f *osFile) ZeroRange(off, n int64) error {
	n, err := f.clamp("zero range", off, n)
	if err != nil || n == 0 {
		return err
	}
	err = f.fallocate("zero range", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if notSupported(err) {
		return writeZeros(f, off, n)
	}
	return err
}

// clamp cuts a range at the end of the file, so that the fallbacks change its size as little as fallocate does.
func (f *osFile) clamp(op string, off, n int64) (int64, error) {
	if err := checkRange(op, f.Name(), off, n); err != nil {
		return 0, err
	}
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	return max(min(n, size-off), 0), nil
}

func (f *osFile) NextData(off int64) (start, end int64, err error) {
	err = f.control("seek data", func(fd int) error {
		var err error
		if start, err = unix.Seek(fd, off, unix.SEEK_DATA); err != nil {
			return err
		}
		end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		return err
	})
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF // no data behind off, or the file was cut between the two calls
	}
	return start, end, err
}

// ReadReadyAt implements ReadyReader with preadv2(2) and RWF_NOWAIT. File systems without that are never ready.
func (f *osFile) ReadReadyAt(p []byte, off int64) bool {
	n, err := unix.Preadv2(int(f.f.Fd()), [][]byte{p}, off, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}

// maxIovecs is IOV_MAX: the kernel refuses more buffers in one call.
const maxIovecs = 1024

// WritevAt implements WriteVer with pwritev(2). Like WriteAt it returns short only with an error.
func (f *osFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	var total int
	rest := bufs
	skip := 0 // bytes of rest[0] that are written
	scratch := make([][]byte, 0, min(len(bufs), maxIovecs))
	for {
		for len(rest) > 0 && skip == len(rest[0]) {
			rest, skip = rest[1:], 0
		}
		if len(rest) == 0 {
			return total, nil
		}
		scratch = append(scratch[:0], rest[:min(len(rest), maxIovecs)]...)
		scratch[0] = scratch[0][skip:]
		var n int
		err := f.control("pwritev", func(fd int) error {
			var err error
			n, err = unix.Pwritev(fd, scratch, off+int64(total))
			return err
		})
		if err == nil && n == 0 {
			err = &fs.PathError{Op: "pwritev", Path: f.Name(), Err: io.ErrUnexpectedEOF}
		}
		if err != nil {
			return total, err
		}
		total += n
		for n > 0 {
			left := len(rest[0]) - skip
			if n < left {
				skip += n
				break
			}
			n -= left
			rest, skip = rest[1:], 0
		}
	}
}
