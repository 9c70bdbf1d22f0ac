package replication

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// extentCopy keeps extents of an image as they were at one instant, in a file of its own, while the image changes.
//
// An extent is to do, written (it is in the file), or logged (and that is durable). A change of the image first makes
// the extents logged that it touches (preserve). So every extent that is to do is in the image as it was at the
// instant, also after a crash, and the copy can go on from the log.
//
// The file has each extent at its offset in the image, and is as large as the image was. What it does not have is a
// hole there.
type extentCopy struct {
	source    vfs.File // the image, for reading
	dest      vfs.File
	log       *changemap.Log
	sizeBytes int64

	mu sync.Mutex
	// todo and unlogged are extents of volume 0, as the log has them.
	todo, unlogged *changemap.Map
	// stopped: the copy is given up, and takes no more.
	stopped bool
	buf     []byte

	// syncMu is held from taking unlogged until that is in the log, or is to do again. It is taken before mu.
	syncMu sync.Mutex
}

// extentCopyPaths are the files of an extentCopy. The file and the log are in one directory.
type extentCopyPaths struct{ source, dest, log string }

// create makes the copy one of an image with nothing copied, durably, in place of what is in its files.
func (c *extentCopy) create(fsys vfs.FS, paths extentCopyPaths, sizeBytes int64) error {
	if err := fsys.Remove(paths.dest); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.sizeBytes, c.todo, c.unlogged = sizeBytes, changemap.New(), changemap.New()
	var err error
	if c.source, err = fsys.OpenReadOnly(paths.source); err != nil {
		return err
	}
	if c.dest, err = fsys.Create(paths.dest); err != nil {
		return err
	}
	if err := c.dest.Truncate(sizeBytes); err != nil {
		return err
	}
	if err := c.dest.Datasync(); err != nil {
		return err
	}
	c.todo.Mark(0, 0, sizeBytes)
	c.log, err = changemap.CreateLog(fsys, paths.log) // syncs the directory
	return err
}

// open goes on with a copy that a crash or a restart interrupted. fs.ErrNotExist: it was given up.
func (c *extentCopy) open(fsys vfs.FS, paths extentCopyPaths, sizeBytes int64) error {
	c.sizeBytes, c.todo, c.unlogged = sizeBytes, changemap.New(), changemap.New()
	log, copied, err := changemap.OpenLog(fsys, paths.log)
	if err != nil {
		return err
	}
	c.log = log
	if c.source, err = fsys.OpenReadOnly(paths.source); err != nil {
		return err
	}
	if c.dest, err = fsys.Open(paths.dest); err != nil {
		return err
	}
	size, err := c.dest.Size()
	if err == nil && size != sizeBytes {
		err = &recordfile.CorruptError{Path: c.dest.Name(), OffsetBytes: -1,
			Reason: fmt.Sprintf("it has %s, not %d", words.Count(size, "byte"), sizeBytes)}
	}
	c.todo.Mark(0, 0, sizeBytes)
	clearAll(c.todo, copied)
	return err
}

// clearAll takes the extents of volume 0 that are in one map out of another one.
func clearAll(m, gone *changemap.Map) {
	for at := (changemap.Cursor{}); ; {
		_, extent, n, ok := gone.NextRun(at, holeRunExtents)
		if !ok {
			return
		}
		m.ClearRun(0, extent, n)
		at.Extent = extent + n
	}
}

// close closes the files. It waits for a copy and a flush that run. One that comes later is an error, unless there is
// nothing to do.
func (c *extentCopy) close() {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil {
		_ = c.log.Close()
	}
	for _, f := range []vfs.File{c.source, c.dest} {
		if f != nil {
			_ = f.Close() // nothing was written that counts and is not synced
		}
	}
}

// stop gives the copy up. It waits for a flush that runs.
func (c *extentCopy) stop() {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
}

// preserve makes extents logged that are about to change in the image. With an error they must not change; it may be
// called again then.
//
// It waits for a flush that runs before it looks at what is to do: extents that the flush has, and fails to log, are to
// do again.
func (c *extentCopy) preserve(extents *changemap.Map) error {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	c.mu.Lock()
	var err error
	for at := (changemap.Cursor{}); err == nil; {
		_, extent, n, ok := extents.NextRun(at, changemap.MaxVolumeBytes/changemap.ExtentBytes)
		if !ok {
			break
		}
		err = c.copyTodo(extent, n)
		at.Extent = extent + n
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.flushLocked()
}

// copyTodo copies those of n extents that are to do. The caller holds mu.
func (c *extentCopy) copyTodo(extent, n uint64) error {
	if c.stopped {
		return nil
	}
	for end := extent + n; extent < end; {
		_, first, run, ok := c.todo.NextRun(changemap.Cursor{Extent: extent}, end-extent)
		if !ok || first >= end {
			return nil
		}
		run = min(run, end-first)
		if err := c.copyRun(int64(first)*changemap.ExtentBytes, int64(run)*changemap.ExtentBytes); err != nil {
			return err
		}
		c.todo.ClearRun(0, first, run)
		c.unlogged.Mark(0, int64(first)*changemap.ExtentBytes, int64(run)*changemap.ExtentBytes)
		extent = first + run
	}
	return nil
}

// copyRun copies what the image has in a range; what reads as zeros is a hole in the copy.
func (c *extentCopy) copyRun(off, n int64) error {
	end := min(off+n, c.sizeBytes)
	if c.buf == nil {
		c.buf = make([]byte, copyRunExtents*changemap.ExtentBytes)
	}
	for off < end {
		start, stop, err := c.source.NextData(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find data after %d: %w", off, err)
		}
		off = max(off, start)
		for stop = min(stop, end); off < stop; {
			p := c.buf[:min(stop-off, int64(len(c.buf)))]
			if k, err := c.source.ReadAt(p, off); k < len(p) {
				return fmt.Errorf("read %s at %d: %w", words.Count(len(p), "byte"), off, err)
			}
			if err := c.writeSparse(p, off); err != nil {
				return err
			}
			off += int64(len(p))
		}
	}
	return nil
}

func (c *extentCopy) writeSparse(p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), changemap.ExtentBytes)
		if !vfs.AllZero(p[:n]) {
			if _, err := c.dest.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// writeOut writes extents to the disk, so that the next flush, which apply may wait for, has little to write. What an
// error may have lost is copied again.
func (c *extentCopy) writeOut(extent, n uint64) error {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	c.mu.Lock()
	stopped := c.stopped
	c.mu.Unlock()
	if stopped {
		return nil
	}
	off := int64(extent) * changemap.ExtentBytes
	err := vfs.WriteOut(c.dest, off, min(int64(n)*changemap.ExtentBytes, c.sizeBytes-off))
	if err != nil {
		c.mu.Lock()
		c.todo.Merge(c.unlogged)
		c.unlogged = changemap.New()
		c.mu.Unlock()
	}
	return err
}

// flush makes what is written durable and logs it. What was not proven to be on the disk after an error is copied
// again: the image still has it, since apply changes it there only when it is logged.
func (c *extentCopy) flush() error {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	return c.flushLocked()
}

// flushLocked is flush for a caller that holds syncMu.
func (c *extentCopy) flushLocked() error {
	c.mu.Lock()
	batch, stopped := c.unlogged, c.stopped
	c.unlogged = changemap.New()
	c.mu.Unlock()
	if stopped || batch.Len() == 0 {
		return nil
	}
	err := c.dest.Datasync()
	if err == nil {
		err = c.log.Append(batch)
	}
	if err != nil {
		c.mu.Lock()
		c.todo.Merge(batch)
		c.mu.Unlock()
	}
	return err
}

// copyPaths are the files of a copy in a directory.
func copyPaths(dir, source, dest, log string) extentCopyPaths {
	return extentCopyPaths{source: source, dest: filepath.Join(dir, dest), log: filepath.Join(dir, log)}
}
