package vfs

import (
	"io"
	"io/fs"
	"syscall"

	"github.com/tidwall/btree"
)

const (
	pageBytes   = 4096
	sectorBytes = 512
)

type page [pageBytes]byte

// zeroPage stands for every page that is allocated but was never written. It is shared: writable replaces it.
var zeroPage page

// fileState is a file's contents.
//
// A page is immutable from the moment it is synced: the first write behind that replaces it and keeps the old one in
// unsynced. So clones share pages with their origin, a sync costs nothing but clearing unsynced, and a page is modified
// in place only while it belongs to one file system.
type fileState struct {
	size       int64
	syncedSize int64
	live       btree.Map[int64, *page] // by page number; no entry is a hole
	// unsynced holds, for each page that changed since the last Datasync, what it was then; nil for a hole.
	unsynced map[int64]*page
}

// keep remembers the synced contents of a page that is about to change.
func (s *fileState) keep(i int64, current *page) {
	if _, ok := s.unsynced[i]; ok {
		return
	}
	if s.unsynced == nil {
		s.unsynced = map[int64]*page{}
	}
	s.unsynced[i] = current
}

// room reports whether a file system may allocate another page.
func (m *MemFS) room() bool { return m.capacityPages == 0 || m.pages < m.capacityPages }

// writable returns a page to be modified in place, or nil when it has to be allocated and there is no space.
func (m *MemFS) writable(s *fileState, i int64) *page {
	current, _ := s.live.Get(i)
	if current == nil && !m.room() {
		return nil
	}
	_, dirty := s.unsynced[i]
	if dirty && current != nil && current != &zeroPage {
		return current
	}
	s.keep(i, current)
	fresh := new(page)
	if current == nil {
		m.pages++
	} else {
		*fresh = *current
	}
	s.live.Set(i, fresh)
	return fresh
}

// write copies p in, page by page, and returns how much there was space for.
func (m *MemFS) write(s *fileState, p []byte, off int64) int {
	var n int
	for n < len(p) {
		pg := m.writable(s, off/pageBytes)
		if pg == nil {
			break
		}
		k := copy(pg[off%pageBytes:], p[n:])
		n, off = n+k, off+int64(k)
		s.size = max(s.size, off)
	}
	return n
}

// read copies out; the range lies inside the file.
func (s *fileState) read(p []byte, off int64) {
	for len(p) > 0 {
		var k int
		if pg, ok := s.live.Get(off / pageBytes); ok {
			k = copy(p, pg[off%pageBytes:])
		} else {
			k = int(min(int64(len(p)), pageBytes-off%pageBytes))
			clear(p[:k])
		}
		p, off = p[k:], off+int64(k)
	}
}

// free turns the pages [first, end) into holes.
func (m *MemFS) free(s *fileState, first, end int64) {
	var gone []int64
	s.live.Ascend(first, func(i int64, _ *page) bool {
		if i >= end {
			return false
		}
		gone = append(gone, i)
		return true
	})
	for _, i := range gone {
		pg, _ := s.live.Delete(i)
		s.keep(i, pg)
		m.pages--
	}
}

// zero makes bytes of one page zeros without allocating: a hole stays one.
func (m *MemFS) zeroPart(s *fileState, off, n int64) {
	i := off / pageBytes
	if _, ok := s.live.Get(i); !ok || n == 0 {
		return
	}
	pg := m.writable(s, i)
	clear(pg[off%pageBytes : off%pageBytes+n])
}

func (m *MemFS) truncate(ino *inode, size int64) {
	s := &ino.fileState
	if size < s.size {
		m.free(s, (size+pageBytes-1)/pageBytes, 1<<62)
		if tail := size % pageBytes; tail != 0 {
			m.zeroPart(s, size, pageBytes-tail)
		}
	}
	s.size = size
}

// splitPages cuts [off, off+n) into a part before the first page boundary, whole pages [first, end), and a part behind.
func splitPages(off, n int64) (headBytes, first, end, tailBytes int64) {
	first = (off + pageBytes - 1) / pageBytes
	end = (off + n) / pageBytes
	if end < first { // within one page
		return n, first, first, 0
	}
	return first*pageBytes - off, first, end, off + n - end*pageBytes
}

// memFile is an open file of a MemFS.
type memFile struct {
	fs       *MemFS
	ino      *inode
	name     string
	readOnly bool
	closed   bool // guarded by fs.mu
}

var (
	_ File     = (*memFile)(nil)
	_ WriteVer = (*memFile)(nil)
)

// check returns why an operation cannot be done on this handle. Callers hold fs.mu.
func (f *memFile) check(op string, writes bool) error {
	if f.closed {
		return pathError(op, f.name, fs.ErrClosed)
	}
	if writes && f.readOnly {
		return pathError(op, f.name, syscall.EBADF)
	}
	return nil
}

func (f *memFile) Name() string { return f.name }

func (f *memFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("close", false); err != nil {
		return err
	}
	f.closed = true
	f.ino.opens--
	f.fs.release(f.ino)
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.fs.mu.RLock()
	defer f.fs.mu.RUnlock()
	if err := f.check("stat", false); err != nil {
		return 0, err
	}
	return f.ino.size, nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.RLock()
	defer f.fs.mu.RUnlock()
	if err := f.check("read", false); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathError("read", f.name, syscall.EINVAL)
	}
	if len(p) == 0 {
		return 0, nil
	}
	n := min(int64(len(p)), max(f.ino.size-off, 0))
	f.ino.read(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	return f.WritevAt([][]byte{p}, off)
}

// WritevAt implements WriteVer. The buffers are written as one instant, as far as there is space.
func (f *memFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.check("write", true)
	if err == nil {
		err = checkRange("write", f.name, off, 0)
	}
	if err != nil {
		return 0, err
	}
	var total int
	for _, p := range bufs {
		n := f.fs.write(&f.ino.fileState, p, off+int64(total))
		total += n
		if n < len(p) {
			return total, pathError("write", f.name, syscall.ENOSPC)
		}
	}
	return total, nil
}

func (f *memFile) Datasync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("fdatasync", false); err != nil {
		return err
	}
	clear(f.ino.unsynced)
	f.ino.syncedSize = f.ino.size
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.check("truncate", true)
	if err == nil {
		err = checkRange("truncate", f.name, size, 0)
	}
	if err != nil {
		return err
	}
	f.fs.truncate(f.ino, size)
	return nil
}

// allocate gives the holes among the pages [first, end) space, or none of them.
func (f *memFile) allocate(op string, first, end int64) error {
	m, s := f.fs, &f.ino.fileState
	need := end - first
	s.live.Ascend(first, func(i int64, _ *page) bool {
		if i < end {
			need--
		}
		return i < end
	})
	if m.capacityPages != 0 && m.pages+need > m.capacityPages {
		return pathError(op, f.name, syscall.ENOSPC)
	}
	for i := first; i < end && need > 0; i++ {
		if _, ok := s.live.Get(i); !ok {
			s.keep(i, nil)
			s.live.Set(i, &zeroPage)
			m.pages++
			need--
		}
	}
	return nil
}

func (f *memFile) Preallocate(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.check("fallocate", true)
	if err == nil {
		err = checkRange("fallocate", f.name, off, n)
	}
	if err != nil || n == 0 {
		return err
	}
	if err := f.allocate("fallocate", off/pageBytes, (off+n+pageBytes-1)/pageBytes); err != nil {
		return err
	}
	f.ino.size = max(f.ino.size, off+n)
	return nil
}

// beginZeroing checks a range and cuts it at the end of the file. Callers hold fs.mu.
func (f *memFile) beginZeroing(op string, off, n int64) (int64, error) {
	err := f.check(op, true)
	if err == nil {
		err = checkRange(op, f.name, off, n)
	}
	return max(min(n, f.ino.size-off), 0), err
}

func (f *memFile) PunchHole(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.beginZeroing("punch hole", off, n)
	if err != nil || n == 0 {
		return err
	}
	head, first, end, tail := splitPages(off, n)
	f.fs.zeroPart(&f.ino.fileState, off, head)
	f.fs.free(&f.ino.fileState, first, end)
	f.fs.zeroPart(&f.ino.fileState, end*pageBytes, tail)
	return nil
}

func (f *memFile) ZeroRange(off, n int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.beginZeroing("zero range", off, n)
	if err != nil || n == 0 {
		return err
	}
	if err := f.allocate("zero range", off/pageBytes, (off+n+pageBytes-1)/pageBytes); err != nil {
		return err
	}
	s := &f.ino.fileState
	head, first, end, tail := splitPages(off, n)
	f.fs.zeroPart(s, off, head)
	for i := first; i < end; i++ {
		if pg, _ := s.live.Get(i); pg != &zeroPage {
			s.keep(i, pg)
			s.live.Set(i, &zeroPage)
		}
	}
	f.fs.zeroPart(s, end*pageBytes, tail)
	return nil
}

func (f *memFile) NextData(off int64) (start, end int64, err error) {
	f.fs.mu.RLock()
	defer f.fs.mu.RUnlock()
	if err := f.check("seek data", false); err != nil {
		return 0, 0, err
	}
	if off < 0 {
		return 0, 0, pathError("seek data", f.name, syscall.EINVAL)
	}
	end = -1
	f.ino.live.Ascend(off/pageBytes, func(i int64, pg *page) bool {
		switch {
		case pg == &zeroPage: // preallocated: a hole to ext4 and xfs as well
			return end < 0
		case end < 0:
			start, end = i*pageBytes, (i+1)*pageBytes
			return true
		case i*pageBytes != end:
			return false
		}
		end += pageBytes
		return true
	})
	start, end = max(start, off), min(end, f.ino.size)
	if end <= start {
		return 0, 0, io.EOF
	}
	return start, end, nil
}
