package replication

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// ViewVolume is a volume of a view: a block device of a fixed size.
//
// The view's own file has extents of 64 KiB at their offsets in the volume. An extent is shared (read through index and
// image) or owned (read from the file alone), and never becomes shared again. A reader of a shared extent looks again
// afterwards whether it still is: apply makes an extent owned before it changes the image.
type ViewVolume struct {
	blockdev.ViewVolume
	view *View
	base *Volume
	// index has the records up to the view's place that are not applied.
	index *overlay.Map
	file  *blockdev.Image
	log   *changemap.Log

	// ownMu is held while extents become owned: from reading what they hold until that is durable.
	ownMu sync.Mutex
	// mu guards owned and filled: extents of volume 0, as the log has them. A write to the file holds it for reading. It
	// is taken after ownMu.
	mu sync.RWMutex
	// filled are the extents for which the file holds something. Those of them that are not owned are garbage of an
	// attempt that failed.
	owned, filled *changemap.Map
	closed        bool
}

var (
	_ blockdev.Device      = (*ViewVolume)(nil)
	_ blockdev.BatchWriter = (*ViewVolume)(nil)
)

func newViewVolume(v *View, m blockdev.ViewVolume) *ViewVolume {
	return &ViewVolume{ViewVolume: m, view: v, index: overlay.New(), owned: changemap.New(), filled: changemap.New()}
}

// create makes the files, durably but for the entries of the directory, which is renamed later.
func (m *ViewVolume) create(dir string) error {
	fsys := m.view.g.cfg.FS
	file, err := blockdev.CreateImage(fsys, filepath.Join(dir, m.ImageName()), m.SizeBytes, false)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	log, err := changemap.CreateLog(fsys, filepath.Join(dir, m.LogName()))
	if err != nil {
		return err
	}
	return log.Close()
}

func (m *ViewVolume) open(dir string) error {
	g := m.view.g
	if m.base = g.members.at(m.Index); m.base == nil || m.base.id != m.VolumeID {
		return errViewMember
	}
	var err error
	if m.log, m.owned, err = changemap.OpenLog(g.cfg.FS, filepath.Join(dir, m.LogName())); err != nil {
		return err
	}
	path := filepath.Join(dir, m.ImageName())
	if m.file, err = blockdev.OpenImage(g.cfg.FS, path, blockdev.ExpectSize(m.SizeBytes)); err != nil {
		return err
	}
	for off := int64(0); off < m.SizeBytes; {
		start, end, err := m.file.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		m.filled.Mark(0, start, end-start)
		off = end
	}
	m.view.mu.Lock()
	m.view.filled += int64(m.filled.Len())
	m.view.mu.Unlock()
	return nil
}

// close waits for I/O that runs, and closes the files. What was written and not flushed stays in the page cache.
func (m *ViewVolume) close() {
	m.ownMu.Lock()
	defer m.ownMu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	if m.log != nil {
		_ = m.log.Close()
	}
	if m.file != nil {
		_ = m.file.Close()
	}
}

// removeLog makes the volume's extents count no more. The caller syncs the directory.
func (m *ViewVolume) removeLog(dir string) error {
	err := m.view.g.cfg.FS.Remove(filepath.Join(dir, m.LogName()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// giveBack frees what the file takes. It may fail: the space goes with the view, then.
func (m *ViewVolume) giveBack(dir string) {
	if f, err := m.view.g.cfg.FS.Open(filepath.Join(dir, m.ImageName())); err == nil {
		_ = errors.Join(f.Truncate(0), f.Close())
	}
}

// indexRecord notes a record that the view shows and the image may lack.
func (m *ViewVolume) indexRecord(h journal.Header, loc journal.Location) {
	if h.Offset < m.SizeBytes { // it may have been smaller when the view was opened, or is smaller by now
		h.Length = uint32(min(int64(h.Length), m.SizeBytes-h.Offset))
		indexInto(m.index, h, loc)
	}
}

// Size implements blockdev.Device.
func (m *ViewVolume) Size() int64 { return m.SizeBytes }

func (m *ViewVolume) check(off, n int64) error {
	if err := blockdev.CheckRange(off, n, m.SizeBytes); err != nil {
		return fmt.Errorf("view %s: volume %s: %s at %d: %w", m.view.rec.Name, m.VolumeID, words.Count(n, "byte"), off,
			err)
	}
	return m.view.usable()
}

// ReadAt implements blockdev.Device.
func (m *ViewVolume) ReadAt(p []byte, off int64) (int, error) {
	if err := m.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		n, owned := m.run(at, int64(len(p)-done))
		piece := p[done:][:n]
		var err error
		if owned {
			_, err = m.readOwned(piece, at)
		} else {
			err = m.readShared(piece, at)
			if still, own := m.run(at, n); own || still < n {
				continue // apply or a write took an extent meanwhile
			}
		}
		if failed := m.view.usable(); failed != nil {
			err = failed // what was read may be from after the view's end
		}
		if err != nil {
			return done, fmt.Errorf("view %s: volume %s: read of %s at %d: %w", m.view.rec.Name, m.VolumeID,
				words.Count(n, "byte"), at, err)
		}
		done += int(n)
	}
	return len(p), nil
}

func (m *ViewVolume) readOwned(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return 0, ErrClosed
	}
	return m.file.ReadAt(p, off)
}

// readShared reads the index first, else the image. A record that was applied in between, and whose segment was
// released, is in the image.
func (m *ViewVolume) readShared(p []byte, off int64) error {
	const tries = 100 // while apply overtakes
	var err error
	for range tries {
		err = m.base.readPieces(p, off, m.index.Lookup(off, int64(len(p)), nil))
		if !errors.Is(err, journal.ErrReleased) {
			break
		}
	}
	return err
}

// run returns how many of the n bytes at off have the same owner, and whether that is the view.
func (m *ViewVolume) run(off, n int64) (length int64, owned bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	first := uint64(off) / changemap.ExtentBytes
	owned = m.owned.Has(0, first)
	for e := first + 1; int64(e)*changemap.ExtentBytes < off+n; e++ {
		if m.owned.Has(0, e) != owned {
			return int64(e)*changemap.ExtentBytes - off, owned
		}
	}
	return n, owned
}

// part returns the extents of a map that are the volume's, as those of volume 0.
func (m *ViewVolume) part(touched *changemap.Map) *changemap.Map {
	own := changemap.New()
	for at := (changemap.Cursor{Volume: m.Index}); ; {
		index, extent, n, ok := touched.NextRun(at, holeRunExtents)
		if !ok || index != m.Index || int64(extent)*changemap.ExtentBytes >= m.SizeBytes {
			return own
		}
		own.Mark(0, int64(extent)*changemap.ExtentBytes, min(int64(n)*changemap.ExtentBytes,
			m.SizeBytes-int64(extent)*changemap.ExtentBytes))
		at.Extent = extent + n
	}
}

// own makes extents the view's: the file has what the view shows there, and the log says so, durably. With an error
// none of them became the view's, and an image must not change there.
func (m *ViewVolume) own(extents *changemap.Map) error {
	m.ownMu.Lock()
	defer m.ownMu.Unlock()
	m.mu.RLock()
	closed, todo := m.closed, without(extents, m.owned)
	m.mu.RUnlock()
	switch {
	case closed:
		return ErrClosed
	case todo.Len() == 0:
		return nil
	}
	var err error
	buf := make([]byte, changemap.ExtentBytes)
	eachExtent(todo, func(e uint64) {
		if err == nil {
			off := int64(e) * changemap.ExtentBytes
			err = m.copyExtent(buf[:min(int64(len(buf)), m.SizeBytes-off)], off, e)
		}
	})
	if err == nil {
		err = m.file.Flush()
	}
	if err != nil {
		return err
	}
	if err := m.log.Append(todo); err != nil {
		return m.view.logFailed(err)
	}
	m.mu.Lock()
	m.owned.Merge(todo)
	m.mu.Unlock()
	return nil
}

// copyExtent puts what the view shows of a shared extent into the file. The caller holds ownMu.
func (m *ViewVolume) copyExtent(p []byte, off int64, extent uint64) error {
	if err := m.readShared(p, off); err != nil {
		return err
	}
	m.mu.RLock()
	filled := m.filled.Has(0, extent)
	m.mu.RUnlock()
	if vfs.AllZero(p) {
		if filled { // by an attempt that failed
			return m.file.Discard(off, int64(len(p)))
		}
		return nil
	}
	if err := m.charge(extent, filled); err != nil {
		return err
	}
	_, err := m.file.WriteAt(p, off)
	return err
}

// charge notes that the file holds something for an extent.
func (m *ViewVolume) charge(extent uint64, filled bool) error {
	if filled {
		return nil
	}
	if err := m.view.fill(1); err != nil {
		return err
	}
	m.mu.Lock()
	m.filled.MarkExtent(0, extent)
	m.mu.Unlock()
	return nil
}

// without returns the extents of volume 0 of one map that are not in another one.
func without(m, gone *changemap.Map) *changemap.Map {
	rest := changemap.New()
	for at := (changemap.Cursor{}); ; {
		_, extent, n, ok := m.NextRun(at, holeRunExtents)
		if !ok {
			return rest
		}
		at.Extent = extent + n
		rest.Mark(0, int64(extent)*changemap.ExtentBytes, int64(n)*changemap.ExtentBytes)
		for in := (changemap.Cursor{Extent: extent}); ; {
			_, first, run, ok := gone.NextRun(in, holeRunExtents)
			if !ok || first >= extent+n {
				break
			}
			rest.ClearRun(0, first, min(run, extent+n-first))
			in.Extent = first + run
		}
	}
}

// eachExtent calls do for each extent of volume 0.
func eachExtent(m *changemap.Map, do func(extent uint64)) {
	for at := (changemap.Cursor{}); ; at.Extent++ {
		_, extent, ok := m.Next(at)
		if !ok {
			return
		}
		at.Extent = extent
		do(extent)
	}
}

// logFailed ends a view whose log cannot be appended to any more.
func (v *View) logFailed(err error) error { return errors.Join(err, v.fail(err)) }

// WriteAt implements blockdev.Device.
func (m *ViewVolume) WriteAt(p []byte, off int64) (int, error) {
	done, err := m.WriteBatch([]blockdev.Write{{Data: p, Off: off}})
	if done == 0 {
		return 0, err
	}
	return len(p), nil
}

// WriteBatch implements blockdev.BatchWriter. The view takes the extents of all writes at once, with one sync.
func (m *ViewVolume) WriteBatch(writes []blockdev.Write) (int, error) {
	if !m.view.rec.Writable {
		return 0, fmt.Errorf("view %s: volume %s: %w", m.view.rec.Name, m.VolumeID, ErrReadOnly)
	}
	extents := changemap.New()
	for i, w := range writes {
		if err := m.check(w.Off, int64(len(w.Data))); err != nil {
			if i > 0 {
				writes = writes[:i] // the next call has the error
				break
			}
			return 0, err
		}
		extents.Mark(0, w.Off, int64(len(w.Data)))
	}
	if err := m.prepare(extents); err != nil {
		return 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return 0, ErrClosed
	}
	for i, w := range writes {
		if _, err := m.file.WriteAt(w.Data, w.Off); err != nil {
			return i, err
		}
	}
	return len(writes), nil
}

// prepare makes extents owned and charged for writes.
func (m *ViewVolume) prepare(extents *changemap.Map) (err error) {
	if err := m.own(extents); err != nil {
		return err
	}
	eachExtent(extents, func(e uint64) {
		if err == nil {
			m.mu.RLock()
			filled := m.filled.Has(0, e)
			m.mu.RUnlock()
			err = m.charge(e, filled)
		}
	})
	return err
}

// Discard implements blockdev.Device. It gives back what the view holds there.
func (m *ViewVolume) Discard(off, n int64) error {
	if !m.view.rec.Writable {
		return fmt.Errorf("view %s: volume %s: %w", m.view.rec.Name, m.VolumeID, ErrReadOnly)
	}
	if err := m.check(off, n); err != nil || n == 0 {
		return err
	}
	whole := (off + changemap.ExtentBytes - 1) / changemap.ExtentBytes * changemap.ExtentBytes
	end := (off + n) / changemap.ExtentBytes * changemap.ExtentBytes
	if off+n == m.SizeBytes {
		end = m.SizeBytes // also where the last extent is not a whole one
	}
	if whole >= end {
		return m.zeroPart(off, n)
	}
	if err := m.zeroPart(off, whole-off); err != nil {
		return err
	}
	if err := m.discardWhole(whole, end-whole); err != nil {
		return err
	}
	return m.zeroPart(end, off+n-end)
}

// zeroPart makes a part of an extent, or of two, zeros.
func (m *ViewVolume) zeroPart(off, n int64) error {
	if n == 0 {
		return nil
	}
	extents := changemap.New()
	extents.Mark(0, off, n)
	if err := m.own(extents); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return ErrClosed
	}
	return m.file.Discard(off, n)
}

// discardWhole makes whole extents the view's, with nothing in them.
func (m *ViewVolume) discardWhole(off, n int64) error {
	m.ownMu.Lock()
	defer m.ownMu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if err := m.file.Discard(off, n); err != nil {
		return err
	}
	extents := changemap.New()
	extents.Mark(0, off, n)
	todo := without(extents, m.owned)
	if todo.Len() > 0 {
		// Garbage must not come back in place of the zeros that the log promises.
		if err := m.file.Flush(); err != nil {
			return err
		}
		if err := m.log.Append(todo); err != nil {
			return m.view.logFailed(err)
		}
		m.owned.Merge(todo)
	}
	before := m.filled.Len()
	m.filled = without(m.filled, extents)
	return m.view.fill(int64(m.filled.Len()) - int64(before))
}

// Zero implements blockdev.Device.
func (m *ViewVolume) Zero(off, n int64) error { return m.Discard(off, n) }

// Flush implements blockdev.Device.
func (m *ViewVolume) Flush() error {
	if err := m.view.usable(); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return ErrClosed
	}
	return m.file.Flush()
}
