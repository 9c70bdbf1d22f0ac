package vfs

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// UnfitError says that what has a file's name cannot be that file: a FIFO, a device, a link, a directory, or a file
// that is larger than the file ever gets. Nothing was read from it or written to it.
type UnfitError struct {
	Path   string
	Reason string
	// Err is what the system calls it, if it has a name for it.
	Err error
}

func (e *UnfitError) Error() string { return e.Path + ": " + e.Reason }

func (e *UnfitError) Unwrap() error { return e.Err }

// notRegular returns an UnfitError for what is no regular file.
func notRegular(name string, mode fs.FileMode) error {
	if mode.IsRegular() {
		return nil
	}
	unfit := &UnfitError{Path: name, Reason: fmt.Sprintf("it is %s, not a regular file", Kind(mode))}
	switch {
	case mode.IsDir():
		unfit.Err = unix.EISDIR
	case mode&fs.ModeSymlink != 0:
		unfit.Err = unix.ELOOP
	}
	return unfit
}

// Kind says in words what a file's mode says it is.
func Kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a regular file"
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "a special file"
}

// OpenRegular is os.OpenFile for a regular file of the operating system. It does not follow a link that has the file's
// name (its directory may be reached through links), does not wait for the other end of a FIFO, and opens no device,
// which could act on being opened. For all of these the error is an *UnfitError.
func OpenRegular(name string, flags int, perm fs.FileMode) (*os.File, error) {
	if info, err := os.Lstat(name); err == nil {
		if err := notRegular(name, info.Mode()); err != nil {
			return nil, err
		}
	}
	fd := -1
	err := retryEINTR(func() (err error) {
		fd, err = unix.Open(name, flags|NoSurprises, uint32(perm.Perm()))
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return AsRegular(fd, name)
}

// NoSurprises are the flags of open(2) for a descriptor that is given to AsRegular.
const NoSurprises = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_LARGEFILE

// AsRegular makes an open file of a descriptor that was opened with NoSurprises, or closes it and returns an
// *UnfitError if it is not of a regular file.
func AsRegular(fd int, name string) (*os.File, error) {
	err := unix.SetNonblock(fd, false) // before os.NewFile, which would register it with the poller
	if err != nil {
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "fcntl", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err == nil {
		err = notRegular(name, info.Mode())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Lstater is implemented by file systems that have links.
type Lstater interface {
	// Lstat is Stat that does not follow a link.
	Lstat(name string) (fs.FileInfo, error)
}

// Lstat is Lstater's method, or Stat for a file system without links.
func Lstat(fsys FS, name string) (fs.FileInfo, error) {
	if l, ok := fsys.(Lstater); ok {
		return l.Lstat(name)
	}
	return fsys.Stat(name)
}

// Lstat implements Lstater.
func (osFS) Lstat(name string) (fs.FileInfo, error) { return os.Lstat(name) }

// Lstat implements Lstater.
func (e *errFS) Lstat(name string) (fs.FileInfo, error) {
	if err := e.before(OpStat, name); err != nil {
		return nil, err
	}
	return Lstat(e.inner, name)
}

// CheckDir returns an *UnfitError if a name is there and is not a directory; a link to one is none.
func CheckDir(fsys FS, name string) error {
	info, err := Lstat(fsys, name)
	if err == nil && !info.IsDir() {
		err = &UnfitError{Path: name, Reason: fmt.Sprintf("it is %s, not a directory", Kind(info.Mode())), Err: unix.ENOTDIR}
	}
	return err
}
