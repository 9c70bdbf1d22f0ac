package vfs

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// MemFS is a file system in memory. It remembers what was synced and what was not, so that CrashClone can return what a
// power loss would have left. Files are sparse: memory is taken for pages that were written.
//
// Names are taken as absolute, "." is the root. ModTime is always zero, so that nothing depends on it by accident.
type MemFS struct {
	// mu makes every operation atomic, and CrashClone an instant between two of them. Reads share it.
	mu   sync.RWMutex
	root *inode
	// pending are the directory operations since their directory's last SyncDir, oldest first.
	pending       []dirOp
	nextInode     uint64
	pages         int64 // allocated, over all files
	capacityPages int64 // 0: unlimited
	inodes        int64 // of files and directories that have a name or a handle
	inodeLimit    int64 // 0: unlimited
	reflink       bool
}

var _ FS = (*MemFS)(nil)

// NewMem returns an empty file system without a capacity limit, which cannot reflink until SetReflink.
func NewMem() *MemFS {
	m := &MemFS{}
	m.root = m.newDir()
	return m
}

// inode is a file or a directory, whatever its names. Guarded by MemFS.mu.
type inode struct {
	number uint64
	links  int // names; a directory has at most one
	opens  int

	// Directories only.
	dir      bool
	children map[string]*inode
	synced   map[string]*inode // children as of the last SyncDir

	// Files only; see mem_file.go.
	fileState
}

// dirOp is a change of one entry, or a rename, which changes two as one.
type dirOp struct {
	dir    *inode
	name   string
	before *inode // what the entry was; nil for none
	after  *inode // what it became; nil for none

	// A rename's source entry, which held after. fromDir is nil for other operations.
	fromDir  *inode
	fromName string
	// exchange: before gets the source entry.
	exchange bool
}

func (op dirOp) touches(dirs map[*inode]bool) bool {
	return dirs[op.dir] || (op.fromDir != nil && dirs[op.fromDir])
}

// apply makes the change on the directories' children as entries returns them.
func (op dirOp) apply(entries func(*inode) map[string]*inode) {
	switch {
	case op.exchange:
		entries(op.fromDir)[op.fromName] = op.before
	case op.fromDir != nil:
		delete(entries(op.fromDir), op.fromName)
	}
	if op.after == nil {
		delete(entries(op.dir), op.name)
		return
	}
	entries(op.dir)[op.name] = op.after
}

func (m *MemFS) newDir() *inode {
	m.nextInode++
	m.inodes++
	return &inode{number: m.nextInode, dir: true, children: map[string]*inode{}, synced: map[string]*inode{}}
}

func (m *MemFS) newFile() *inode {
	m.nextInode++
	m.inodes++
	return &inode{number: m.nextInode}
}

// log makes a directory operation visible and remembers it as not yet durable. Callers hold mu.
func (m *MemFS) log(op dirOp) {
	op.apply(func(dir *inode) map[string]*inode { return dir.children })
	m.pending = append(m.pending, op)
	if op.fromDir == nil && op.after != nil {
		op.after.links++
	}
	if op.before != nil && !op.exchange {
		op.before.links--
		m.release(op.before)
	}
}

// release gives the inode and the space of a file back once it has neither name nor handle. Its pages stay for
// CrashClone: the entry that names it may not have been removed durably.
func (m *MemFS) release(ino *inode) {
	if ino.links == 0 && ino.opens == 0 {
		m.inodes--
		m.pages -= int64(ino.live.Len())
	}
}

// inodeFree reports whether another file or directory can be made.
func (m *MemFS) inodeFree() bool { return m.inodeLimit == 0 || m.inodes < m.inodeLimit }

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func splitPath(name string) []string {
	clean := filepath.Clean("/" + name)
	if clean == "/" {
		return nil
	}
	return strings.Split(clean[1:], "/")
}

// lookup finds an inode. Callers hold mu.
func (m *MemFS) lookup(name string) (*inode, error) {
	ino := m.root
	for _, part := range splitPath(name) {
		if !ino.dir {
			return nil, syscall.ENOTDIR
		}
		next, ok := ino.children[part]
		if !ok {
			return nil, syscall.ENOENT
		}
		ino = next
	}
	return ino, nil
}

// parent finds the directory that holds or would hold name, and name's last element. Callers hold mu.
func (m *MemFS) parent(name string) (*inode, string, error) {
	parts := splitPath(name)
	if len(parts) == 0 {
		return nil, "", syscall.EBUSY // the root has no entry to change
	}
	dir, err := m.lookup(strings.Join(parts[:len(parts)-1], "/"))
	if err != nil {
		return nil, "", err
	}
	if !dir.dir {
		return nil, "", syscall.ENOTDIR
	}
	return dir, parts[len(parts)-1], nil
}

// Create implements FS.
func (m *MemFS) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	ino := dir.children[base]
	switch {
	case ino == nil && !m.inodeFree():
		return nil, pathError("open", name, syscall.ENOSPC)
	case ino == nil:
		ino = m.newFile()
		m.log(dirOp{dir: dir, name: base, after: ino})
	case ino.dir:
		return nil, pathError("open", name, syscall.EISDIR)
	default:
		m.truncate(ino, 0)
	}
	return m.handle(ino, name, false), nil
}

// Open implements FS.
func (m *MemFS) Open(name string) (File, error) { return m.open(name, false) }

// OpenReadOnly implements FS.
func (m *MemFS) OpenReadOnly(name string) (File, error) { return m.open(name, true) }

func (m *MemFS) open(name string, readOnly bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ino, err := m.lookup(name)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	if ino.dir {
		return nil, notRegular(name, fs.ModeDir)
	}
	return m.handle(ino, name, readOnly), nil
}

// handle opens a file. Callers hold mu.
func (m *MemFS) handle(ino *inode, name string, readOnly bool) File {
	ino.opens++
	return &memFile{fs: m, ino: ino, name: name, readOnly: readOnly}
}

// Remove implements FS.
func (m *MemFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err != nil {
		return pathError("remove", name, err)
	}
	ino := dir.children[base]
	switch {
	case ino == nil:
		return pathError("remove", name, syscall.ENOENT)
	case ino.dir && len(ino.children) > 0:
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	m.log(dirOp{dir: dir, name: base, before: ino})
	return nil
}

// RemoveAll implements FS. It is one instant here, unlike on a real file system; a crash can still leave any part of
// it.
func (m *MemFS) RemoveAll(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err == syscall.ENOENT {
		return nil
	}
	if err != nil {
		return pathError("unlinkat", name, err)
	}
	if ino := dir.children[base]; ino != nil {
		m.removeTree(dir, base, ino)
	}
	return nil
}

func (m *MemFS) removeTree(dir *inode, base string, ino *inode) {
	for _, name := range slices.Sorted(maps.Keys(ino.children)) {
		m.removeTree(ino, name, ino.children[name])
	}
	m.log(dirOp{dir: dir, name: base, before: ino})
}

// Rename implements FS.
func (m *MemFS) Rename(oldname, newname string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	fail := func(err error) error {
		return &linkError{"rename", oldname, newname, err}
	}
	fromDir, fromBase, err := m.parent(oldname)
	if err != nil {
		return fail(err)
	}
	ino := fromDir.children[fromBase]
	if ino == nil {
		return fail(syscall.ENOENT)
	}
	dir, base, err := m.parent(newname)
	if err != nil {
		return fail(err)
	}
	target := dir.children[base]
	if target == ino {
		return nil
	}
	oldPath, newPath := filepath.Clean("/"+oldname), filepath.Clean("/"+newname)
	switch {
	case strings.HasPrefix(newPath, oldPath+"/"):
		return fail(syscall.EINVAL)
	case target == nil:
	case target.dir && !ino.dir:
		// What Linux and the os package say for it.
		return fail(fs.ErrExist)
	case !target.dir && ino.dir:
		return fail(syscall.ENOTDIR)
	case target.dir && len(target.children) > 0:
		return fail(syscall.ENOTEMPTY)
	}
	m.log(dirOp{dir: dir, name: base, before: target, after: ino, fromDir: fromDir, fromName: fromBase})
	return nil
}

// Exchange implements Exchanger, for files.
func (m *MemFS) Exchange(a, b string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var dirs, inodes [2]*inode
	var bases [2]string
	for i, name := range []string{a, b} {
		dir, base, err := m.parent(name)
		if err != nil {
			return &linkError{"exchange", a, b, err}
		}
		dirs[i], bases[i], inodes[i] = dir, base, dir.children[base]
		if inodes[i] == nil {
			return &linkError{"exchange", a, b, syscall.ENOENT}
		}
		if inodes[i].dir {
			return &linkError{"exchange", a, b, errors.ErrUnsupported}
		}
	}
	if inodes[0] != inodes[1] {
		m.log(dirOp{dir: dirs[1], name: bases[1], before: inodes[1], after: inodes[0], fromDir: dirs[0],
			fromName: bases[0], exchange: true})
	}
	return nil
}

// linkError is os.LinkError, which this file avoids the os package for.
type linkError struct {
	op, oldname, newname string
	err                  error
}

func (e *linkError) Error() string {
	return e.op + " " + e.oldname + " " + e.newname + ": " + e.err.Error()
}

func (e *linkError) Unwrap() error { return e.err }

// MkdirAll implements FS.
func (m *MemFS) MkdirAll(name string) error { return mkdirAll(m, name, m.mkdir) }

func (m *MemFS) mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err != nil {
		return pathError("mkdir", name, err)
	}
	if dir.children[base] != nil {
		return pathError("mkdir", name, syscall.EEXIST)
	}
	if !m.inodeFree() {
		return pathError("mkdir", name, syscall.ENOSPC)
	}
	m.log(dirOp{dir: dir, name: base, after: m.newDir()})
	return nil
}

// ReadDir implements FS.
func (m *MemFS) ReadDir(name string) ([]string, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ino, err := m.lookup(name)
	if err == nil && !ino.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return slices.Sorted(maps.Keys(ino.children)), nil
}

// SyncDir implements FS. It also makes durable what its entries' operations were based on in other directories (a file
// renamed into this one was created in another), as a journaling file system would.
func (m *MemFS) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, err := m.lookup(name)
	if err == nil && !dir.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return pathError("sync", name, err)
	}
	dirs := map[*inode]bool{dir: true}
	gone := map[*inode]bool{} // directories whose removal becomes durable: what is pending in them is of no account
	commit := make([]bool, len(m.pending))
	forget := make([]bool, len(m.pending))
	for i, op := range slices.Backward(m.pending) {
		commit[i] = op.touches(dirs)
		forget[i] = gone[op.dir] && (op.fromDir == nil || gone[op.fromDir])
		if commit[i] && op.fromDir != nil {
			dirs[op.dir], dirs[op.fromDir] = true, true
		}
		if (commit[i] || forget[i]) && op.before != nil && op.before.dir && !op.exchange {
			gone[op.before] = true
		}
	}
	rest := m.pending[:0]
	for i, op := range m.pending {
		switch {
		case commit[i]:
			op.apply(func(dir *inode) map[string]*inode { return dir.synced })
		case !forget[i]:
			rest = append(rest, op)
		}
	}
	clear(m.pending[len(rest):])
	m.pending = rest
	return nil
}

// Stat implements FS.
func (m *MemFS) Stat(name string) (fs.FileInfo, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ino, err := m.lookup(name)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	info := memInfo{name: filepath.Base(name), dir: ino.dir, size: ino.size}
	info.stat = syscall.Stat_t{Ino: ino.number, Size: ino.size, Blocks: int64(ino.live.Len()) * (pageBytes / 512)}
	return info, nil
}

type memInfo struct {
	name string
	dir  bool
	size int64
	stat syscall.Stat_t
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.dir }
func (i memInfo) Sys() any           { return &i.stat }
func (i memInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
