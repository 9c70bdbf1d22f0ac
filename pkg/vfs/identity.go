package vfs

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Identifier is implemented by file systems that can tell a file from another one that took its name.
type Identifier interface {
	// Identity names the file or directory itself: it stays the same over writes, renames, mounts and reboots, and a
	// copy has another one, also one that got the inode's number. It is empty where the file system does not know.
	Identity(name string) (string, error)
}

// Identity is Identifier's method, or empty for a file system that has none.
func Identity(fsys FS, name string) (string, error) {
	if i, ok := fsys.(Identifier); ok {
		return i.Identity(name)
	}
	return "", nil
}

// Identity implements Identifier by inode number and time of birth: numbers are given again to new files.
func (osFS) Identity(name string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", &fs.PathError{Op: "statx", Path: name, Err: err}
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return "", nil
	}
	return fmt.Sprintf("%x-%x.%x", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}

// Identity implements Identifier. Numbers of inodes are not given twice here.
func (m *MemFS) Identity(name string) (string, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ino, err := m.lookup(name)
	if err != nil {
		return "", pathError("statx", name, err)
	}
	return fmt.Sprintf("%x", ino.number), nil
}

// Identity implements Identifier when the inner file system does.
func (e *errFS) Identity(name string) (string, error) {
	if err := e.before(OpStat, name); err != nil {
		return "", err
	}
	return Identity(e.inner, name)
}
