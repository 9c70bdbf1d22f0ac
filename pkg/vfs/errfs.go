package vfs

import (
	"errors"
	"io/fs"
)

// Op is an operation on a file system or file, as ErrFS reports it.
type Op string

const (
	OpCreate      Op = "create"
	OpOpen        Op = "open" // Open and OpenReadOnly
	OpRemove      Op = "remove"
	OpRemoveAll   Op = "remove all"
	OpRename      Op = "rename" // also Exchange; reported with the new name
	OpMkdirAll    Op = "mkdir all"
	OpReadDir     Op = "read dir"
	OpStat        Op = "stat"
	OpSyncDir     Op = "sync dir"
	OpRead        Op = "read"
	OpWrite       Op = "write" // WriteAt and WritevAt
	OpSize        Op = "size"
	OpDatasync    Op = "datasync"
	OpWriteOut    Op = "write out"
	OpTruncate    Op = "truncate"
	OpPreallocate Op = "preallocate"
	OpPunchHole   Op = "punch hole"
	OpZeroRange   Op = "zero range"
	OpNextData    Op = "next data"
	OpExtents     Op = "extents"
	OpSpace       Op = "space" // Space and Inodes
	OpClone       Op = "clone" // reported with the name of the file that is written
)

// NewErrFS returns inner with inject called before each operation, with the name as the caller gave it; a file's
// operations come with the name it was opened by. When inject returns an error the operation is not done and fails with
// a *fs.PathError that wraps it. Inject may sleep or block to delay an operation, and is called concurrently when the
// file system is used so. Close is never failed: what a caller could do about it is nothing.
func NewErrFS(inner FS, inject func(op Op, name string) error) FS {
	return &errFS{inner: inner, inject: inject}
}

type errFS struct {
	inner  FS
	inject func(Op, string) error
}

// Base returns the file system below all wrappers: what is decided by where files really are is decided by it.
func Base(fsys FS) FS {
	for {
		e, ok := fsys.(*errFS)
		if !ok {
			return fsys
		}
		fsys = e.inner
	}
}

func (e *errFS) before(op Op, name string) error {
	if err := e.inject(op, name); err != nil {
		return &fs.PathError{Op: string(op), Path: name, Err: err}
	}
	return nil
}

func (e *errFS) file(f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &errFile{fs: e, inner: f}, nil
}

func (e *errFS) Create(name string) (File, error) {
	if err := e.before(OpCreate, name); err != nil {
		return nil, err
	}
	return e.file(e.inner.Create(name))
}

func (e *errFS) Open(name string) (File, error) {
	if err := e.before(OpOpen, name); err != nil {
		return nil, err
	}
	return e.file(e.inner.Open(name))
}

func (e *errFS) OpenReadOnly(name string) (File, error) {
	if err := e.before(OpOpen, name); err != nil {
		return nil, err
	}
	return e.file(e.inner.OpenReadOnly(name))
}

func (e *errFS) Remove(name string) error {
	if err := e.before(OpRemove, name); err != nil {
		return err
	}
	return e.inner.Remove(name)
}

func (e *errFS) RemoveAll(name string) error {
	if err := e.before(OpRemoveAll, name); err != nil {
		return err
	}
	return e.inner.RemoveAll(name)
}

func (e *errFS) Rename(oldname, newname string) error {
	if err := e.before(OpRename, newname); err != nil {
		return err
	}
	return e.inner.Rename(oldname, newname)
}

// Exchange implements Exchanger when the inner file system does.
func (e *errFS) Exchange(a, b string) error {
	if err := e.before(OpRename, b); err != nil {
		return err
	}
	x, ok := e.inner.(Exchanger)
	if !ok {
		return &fs.PathError{Op: "exchange", Path: b, Err: errors.ErrUnsupported}
	}
	return x.Exchange(a, b)
}

func (e *errFS) MkdirAll(name string) error {
	if err := e.before(OpMkdirAll, name); err != nil {
		return err
	}
	return e.inner.MkdirAll(name)
}

func (e *errFS) ReadDir(name string) ([]string, error) {
	if err := e.before(OpReadDir, name); err != nil {
		return nil, err
	}
	return e.inner.ReadDir(name)
}

func (e *errFS) Stat(name string) (fs.FileInfo, error) {
	if err := e.before(OpStat, name); err != nil {
		return nil, err
	}
	return e.inner.Stat(name)
}

func (e *errFS) SyncDir(name string) error {
	if err := e.before(OpSyncDir, name); err != nil {
		return err
	}
	return e.inner.SyncDir(name)
}

// Space implements SpaceReporter when the inner file system does.
func (e *errFS) Space(name string) (totalBytes, availableBytes int64, err error) {
	if err := e.before(OpSpace, name); err != nil {
		return 0, 0, err
	}
	s, ok := e.inner.(SpaceReporter)
	if !ok {
		return 0, 0, &fs.PathError{Op: string(OpSpace), Path: name, Err: errors.ErrUnsupported}
	}
	return s.Space(name)
}

// Inodes implements InodeReporter when the inner file system does.
func (e *errFS) Inodes(name string) (total, free int64, err error) {
	if err := e.before(OpSpace, name); err != nil {
		return 0, 0, err
	}
	r, ok := e.inner.(InodeReporter)
	if !ok {
		return 0, 0, &fs.PathError{Op: string(OpSpace), Path: name, Err: errors.ErrUnsupported}
	}
	return r.Inodes(name)
}

// MayShareBlocks implements SharedSpaceReporter when the inner file system does.
func (e *errFS) MayShareBlocks(name string) bool {
	s, ok := e.inner.(SharedSpaceReporter)
	return !ok || s.MayShareBlocks(name)
}

// AllocatedTogether implements SharedSpaceReporter when the inner file system does.
func (e *errFS) AllocatedTogether(names []string) (int64, error) {
	for _, name := range names {
		if err := e.before(OpStat, name); err != nil {
			return 0, err
		}
	}
	s, ok := e.inner.(SharedSpaceReporter)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return s.AllocatedTogether(names)
}

type errFile struct {
	fs    *errFS
	inner File
}

var _ WriteVer = (*errFile)(nil)

func (f *errFile) Name() string { return f.inner.Name() }
func (f *errFile) Close() error { return f.inner.Close() }

func (f *errFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(OpRead, f.Name()); err != nil {
		return 0, err
	}
	return f.inner.ReadAt(p, off)
}

func (f *errFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.before(OpWrite, f.Name()); err != nil {
		return 0, err
	}
	return f.inner.WriteAt(p, off)
}

func (f *errFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	if err := f.fs.before(OpWrite, f.Name()); err != nil {
		return 0, err
	}
	if w, ok := f.inner.(WriteVer); ok {
		return w.WritevAt(bufs, off)
	}
	var total int
	for _, p := range bufs {
		n, err := f.inner.WriteAt(p, off+int64(total))
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (f *errFile) Size() (int64, error) {
	if err := f.fs.before(OpSize, f.Name()); err != nil {
		return 0, err
	}
	return f.inner.Size()
}

func (f *errFile) Datasync() error {
	if err := f.fs.before(OpDatasync, f.Name()); err != nil {
		return err
	}
	return f.inner.Datasync()
}

// WriteOut implements WriteOuter: it does nothing if the inner file does not.
func (f *errFile) WriteOut(off, n int64) error {
	if err := f.fs.before(OpWriteOut, f.Name()); err != nil {
		return err
	}
	return WriteOut(f.inner, off, n)
}

func (f *errFile) Truncate(size int64) error {
	if err := f.fs.before(OpTruncate, f.Name()); err != nil {
		return err
	}
	return f.inner.Truncate(size)
}

func (f *errFile) Preallocate(off, n int64) error {
	if err := f.fs.before(OpPreallocate, f.Name()); err != nil {
		return err
	}
	return f.inner.Preallocate(off, n)
}

func (f *errFile) PunchHole(off, n int64) error {
	if err := f.fs.before(OpPunchHole, f.Name()); err != nil {
		return err
	}
	return f.inner.PunchHole(off, n)
}

func (f *errFile) ZeroRange(off, n int64) error {
	if err := f.fs.before(OpZeroRange, f.Name()); err != nil {
		return err
	}
	return f.inner.ZeroRange(off, n)
}

func (f *errFile) NextData(off int64) (start, end int64, err error) {
	if err := f.fs.before(OpNextData, f.Name()); err != nil {
		return 0, 0, err
	}
	return f.inner.NextData(off)
}

// CloneFrom implements Cloner when the inner file does.
func (f *errFile) CloneFrom(src File) error {
	if err := f.fs.before(OpClone, f.Name()); err != nil {
		return err
	}
	if wrapped, ok := src.(*errFile); ok {
		src = wrapped.inner
	}
	c, ok := f.inner.(Cloner)
	if !ok {
		return &fs.PathError{Op: string(OpClone), Path: f.Name(), Err: errors.ErrUnsupported}
	}
	return c.CloneFrom(src)
}

// Extents implements ExtentLister when the inner file does.
func (f *errFile) Extents(off int64) ([]Extent, error) {
	if err := f.fs.before(OpExtents, f.Name()); err != nil {
		return nil, err
	}
	l, ok := f.inner.(ExtentLister)
	if !ok {
		return nil, &fs.PathError{Op: string(OpExtents), Path: f.Name(), Err: errors.ErrUnsupported}
	}
	return l.Extents(off)
}
