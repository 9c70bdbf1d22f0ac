package vfs

import (
	"errors"
	"syscall"
)

var _ Cloner = (*memFile)(nil)

// CloneFrom implements Cloner. It is one instant; what of it a crash leaves before the Datasync is as for any write.
func (f *memFile) CloneFrom(src File) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("clone", true); err != nil {
		return err
	}
	from, ok := src.(*memFile)
	if ok && from.fs == f.fs {
		if err := from.check("clone", false); err != nil {
			return err
		}
		if from.ino == f.ino {
			return pathError("clone", f.name, syscall.EINVAL)
		}
	}
	f.fs.truncate(f.ino, 0)
	if !ok || from.fs != f.fs || !f.fs.reflink {
		return pathError("clone", f.name, errors.ErrUnsupported)
	}
	s := &f.ino.fileState
	full := false
	from.ino.live.Ascend(0, func(i int64, pg *page) bool {
		if !f.fs.room() {
			full = true
			return false
		}
		s.keep(i, nil)
		fresh := &zeroPage // preallocated space stays that
		if pg != &zeroPage {
			fresh = new(page)
			*fresh = *pg
		}
		s.live.Set(i, fresh)
		f.fs.pages++
		return true
	})
	if full {
		f.fs.truncate(f.ino, 0)
		return pathError("clone", f.name, syscall.ENOSPC)
	}
	s.size = from.ino.size
	return nil
}
