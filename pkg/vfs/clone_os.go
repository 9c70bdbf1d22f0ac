package vfs

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

var _ Cloner = (*osFile)(nil)

// CloneFrom implements Cloner with FICLONE. The kernel holds writers of src off for its duration and writes src's dirty
// pages out first, so what it copies is one instant of src.
func (f *osFile) CloneFrom(src File) error {
	// FICLONE leaves what lies behind the origin's end.
	if err := f.Truncate(0); err != nil {
		return err
	}
	from, ok := src.(*osFile)
	if !ok {
		return &fs.PathError{Op: "clone", Path: f.Name(), Err: errors.ErrUnsupported}
	}
	err := from.control("clone", func(srcFD int) error {
		return f.control("clone", func(fd int) error { return unix.IoctlFileClone(fd, srcFD) })
	})
	switch {
	case err == nil:
		return nil
	case notSupported(err), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL):
		// EINVAL: on some file systems two files with different settings cannot share space.
		return fmt.Errorf("%w (%v)", &fs.PathError{Op: "clone", Path: f.Name(), Err: errors.ErrUnsupported}, err)
	}
	return err
}
