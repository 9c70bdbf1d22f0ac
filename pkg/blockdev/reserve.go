package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// What gives space back must not need any. Records are replaced in space that they have (vfs.WriteFileAtomic). For
// the rest, such as the block that a directory needs for an entry more, a pool keeps a few files that hold nothing,
// and removes one when such a call would fail without. They are made again as soon as there is space.
//
// Making volumes and snapshots, and growing them, never takes from the reserve.

const (
	reserveDirName   = "reserve"
	reserveFiles     = 8
	maxReserveBytes  = 64 << 10 // of one file
	reserveShare     = 256      // of the file system: the reserve takes at most one part in so many
	reserveAlignment = 4096
)

// reserve is the reserve of one directory: the pool's, or that of its journals.
type reserve struct {
	fs  vfs.FS
	dir string
}

func (r *reserve) path(i int) string { return filepath.Join(r.dir, fmt.Sprint(i)) }

// fill makes what is missing of the reserve, as far as there is space. Errors are ignored: the next call tries again.
func (r *reserve) fill() {
	size := int64(maxReserveBytes)
	if s, ok := r.fs.(vfs.SpaceReporter); ok {
		if total, _, err := s.Space(filepath.Dir(r.dir)); err == nil {
			size = max(min(size, total/reserveShare/reserveFiles), reserveAlignment)
		}
	}
	size -= size % reserveAlignment
	for i := range reserveFiles {
		if _, err := r.fs.Stat(r.path(i)); err == nil {
			continue
		}
		if err := r.make(i, size); err != nil {
			if !vfs.NoSpace(err) {
				klog.ErrorS(err, "The space that is kept for giving space back cannot be reserved", "dir", r.dir)
			}
			return
		}
	}
}

func (r *reserve) make(i int, size int64) error {
	if err := r.fs.MkdirAll(r.dir); err != nil {
		return err
	}
	f, err := r.fs.Create(r.path(i))
	if err != nil {
		return err
	}
	err = f.Preallocate(0, size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = r.fs.Remove(r.path(i))
	}
	return err
}

// spend removes one file, and reports false if there is none left. A file system makes freed blocks available with
// the next commit of its own journal, and the sync of the directory waits for that commit.
func (r *reserve) spend() bool {
	for i := reserveFiles - 1; i >= 0; i-- {
		if err := r.fs.Remove(r.path(i)); err == nil {
			return r.fs.SyncDir(r.dir) == nil
		}
	}
	return false
}

// use runs an operation. While it fails because there is no space, use gives up a file of the reserve and runs it
// again, so the operation must be repeatable. Afterwards the files are made again, as far as there is space.
func (r *reserve) use(operation func() error) error {
	err := operation()
	if !vfs.NoSpace(err) {
		return err
	}
	for vfs.NoSpace(err) && r.spend() {
		err = operation()
	}
	r.fill()
	return err
}

// heldBytes is what the reserve takes.
func (r *reserve) heldBytes() (total int64, err error) {
	for i := range reserveFiles {
		info, err := r.fs.Stat(r.path(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := vfs.AllocatedBytes(info)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func (p *Pool) reserve() *reserve {
	return &reserve{fs: p.fs, dir: filepath.Join(p.dir, reserveDirName)}
}

// groupsReserve is the reserve for what groups write: the pool's, or one of their own where the journals have a
// directory of their own.
func (p *Pool) groupsReserve() *reserve {
	return &reserve{fs: p.fs, dir: filepath.Join(filepath.Dir(p.GroupsDir()), reserveDirName)}
}

// WithReserve runs an operation on files of groups that gives space back, or is needed for that. If the disk
// has no space for it, it may use the pool's reserve, and is then called again. Other operations must not use it.
func (p *Pool) WithReserve(operation func() error) error { return p.groupsReserve().use(operation) }

// FillReserve makes again what was used of the reserve, as far as there is space.
func (p *Pool) FillReserve() {
	p.reserve().fill()
	if r := p.groupsReserve(); r.dir != p.reserve().dir {
		r.fill()
	}
}

// ReserveBytes is what the reserve takes of the pool's file system, see Space.
func (p *Pool) ReserveBytes() (int64, error) { return p.reserve().heldBytes() }
