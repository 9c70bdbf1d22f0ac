package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	// copyRunExtents is how much is copied at once, and so how long a pass of apply waits for the copier at most.
	copyRunExtents = 16
	// copySyncBytes is after how many copied bytes the copier makes them durable.
	copySyncBytes = 32 << 20
)

// copiedFile is the log of the extents that a snapshot's image has for good. A snapshot that should have one and does
// not has failed.
const copiedFile = "copied"

// imageCopy is a snapshot that is being copied from its volume's image while apply goes on changing that.
//
// An extent is to do, written (it is in the snapshot's image), or logged (and that is durable). A change of
// the image first makes the extents logged that it touches. So every extent that is to do is in the image as it was
// at the cut, also after a crash, and copying can go on from the log.
type imageCopy struct {
	target cutTarget
	fs     vfs.FS
	dir    string // of the snapshot
	source vfs.File
	image  vfs.File
	log    *changemap.Log

	mu sync.Mutex
	// todo and unlogged are extents of volume 0, as the log has them.
	todo, unlogged *changemap.Map
	outcome        copyOutcome
	buf            []byte

	// syncMu is held from taking unlogged until that is in the log.
	syncMu sync.Mutex
}

// createCopy begins a copy with nothing copied, durably, in place of one that was begun before and never counted.
func createCopy(fsys vfs.FS, dir, sourcePath string, target cutTarget) (_ *imageCopy, err error) {
	path := filepath.Join(dir, blockdev.ImageFile)
	if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c := &imageCopy{target: target, fs: fsys, dir: dir, todo: changemap.New(), unlogged: changemap.New()}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.source, err = fsys.OpenReadOnly(sourcePath); err != nil {
		return nil, err
	}
	if c.image, err = fsys.Create(path); err != nil {
		return nil, err
	}
	if err := c.image.Truncate(target.SizeBytes); err != nil {
		return nil, err
	}
	if err := c.image.Datasync(); err != nil {
		return nil, err
	}
	c.todo.Mark(0, 0, target.SizeBytes)
	c.log, err = changemap.CreateLog(fsys, filepath.Join(dir, copiedFile)) // syncs the directory
	return c, err
}

// openCopy goes on with a copy that a crash or a restart interrupted. fs.ErrNotExist: it had failed.
func openCopy(fsys vfs.FS, dir, sourcePath string, target cutTarget) (_ *imageCopy, err error) {
	c := &imageCopy{target: target, fs: fsys, dir: dir, todo: changemap.New(), unlogged: changemap.New()}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	var copied *changemap.Map
	if c.log, copied, err = changemap.OpenLog(fsys, filepath.Join(dir, copiedFile)); err != nil {
		return nil, err
	}
	if c.source, err = fsys.OpenReadOnly(sourcePath); err != nil {
		return nil, err
	}
	if c.image, err = fsys.Open(filepath.Join(dir, blockdev.ImageFile)); err != nil {
		return nil, err
	}
	size, err := c.image.Size()
	if err == nil && size != target.SizeBytes {
		err = fmt.Errorf("%s has %d bytes, not %d", c.image.Name(), size, target.SizeBytes)
	}
	c.todo.Mark(0, 0, target.SizeBytes)
	at := changemap.Cursor{}
	for {
		_, extent, n, ok := copied.NextRun(at, holeRunExtents)
		if !ok {
			break
		}
		c.todo.ClearRun(0, extent, n)
		at.Extent = extent + n
	}
	return c, err
}

func (c *imageCopy) close() {
	if c.log != nil {
		_ = c.log.Close()
	}
	for _, f := range []vfs.File{c.source, c.image} {
		if f != nil {
			_ = f.Close() // nothing was written that counts and is not synced
		}
	}
}

// progress is how many bytes are dealt with, and whether the copy has failed.
func (c *imageCopy) progress() (doneBytes int64, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.target.SizeBytes-int64(c.todo.Bytes())), c.outcome.reason
}

// preserve makes extents logged that are about to change in the image. With an error they must not change.
func (c *imageCopy) preserve(extents *changemap.Map) error {
	c.mu.Lock()
	var err error
	if !c.outcome.hasFailed() {
		at := changemap.Cursor{}
		for err == nil {
			_, extent, n, ok := extents.NextRun(at, changemap.MaxVolumeBytes/changemap.ExtentBytes)
			if !ok {
				break
			}
			err = c.copyTodo(extent, n)
			at.Extent = extent + n
		}
	}
	c.mu.Unlock()
	if err == nil {
		err = c.flush() // which waits for a flush that runs
	}
	if err != nil {
		c.fail(err)
	}
	return c.storeFailure()
}

// step copies the next run. done is true when all is copied and durable.
func (c *imageCopy) step(ctx context.Context) (done bool, err error) {
	c.mu.Lock()
	if c.outcome.hasFailed() {
		c.mu.Unlock()
		return true, c.storeFailure()
	}
	_, extent, n, more := c.todo.NextRun(changemap.Cursor{}, holeRunExtents)
	if more {
		if n, err = c.runLength(extent, n); err == nil {
			err = c.copyTodo(extent, n)
		}
	}
	sync := !more || c.unlogged.Bytes() >= copySyncBytes
	c.mu.Unlock()
	if err == nil && sync && ctx.Err() == nil {
		err = c.flush()
	}
	if err != nil {
		c.fail(err)
		return true, c.storeFailure()
	}
	if more || ctx.Err() != nil {
		return false, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcome.complete() // refused if the copy was given up meanwhile
	return true, nil
}

// complete reports whether there is nothing more to do: the copy is whole, or has failed for good.
func (c *imageCopy) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outcome.isFinal()
}

// retire ends a copy whose snapshot's record says how it ended. Apply may still have it: it finds nothing to do.
func (c *imageCopy) retire() {
	c.close()
	if err := c.fs.Remove(filepath.Join(c.dir, copiedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "Removing a snapshot's log of copied extents; it goes with the snapshot",
			"snapshot", c.target.SnapshotID)
	}
}

// runLength cuts a run to what is copied at once: extents without content all together, others a few at a time.
func (c *imageCopy) runLength(extent, n uint64) (uint64, error) {
	off := int64(extent) * changemap.ExtentBytes
	start, _, err := c.source.NextData(off)
	switch {
	case errors.Is(err, io.EOF):
		return n, nil
	case err != nil:
		return 0, fmt.Errorf("find data after %d: %w", off, err)
	}
	if hole := uint64(max(0, start-off)) / changemap.ExtentBytes; hole > 0 {
		return min(n, hole), nil
	}
	return min(n, copyRunExtents), nil
}

// copyTodo copies those of n extents that are to do. The caller holds mu.
func (c *imageCopy) copyTodo(extent, n uint64) error {
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

// copyRun copies what the image has in a range; what reads as zeros is a hole in the snapshot.
func (c *imageCopy) copyRun(off, n int64) error {
	end := min(off+n, c.target.SizeBytes)
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
				return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
			}
			if err := c.writeSparse(p, off); err != nil {
				return err
			}
			off += int64(len(p))
		}
	}
	return nil
}

func (c *imageCopy) writeSparse(p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), changemap.ExtentBytes)
		if !vfs.AllZero(p[:n]) {
			if _, err := c.image.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// flush makes what is written durable and logs it.
func (c *imageCopy) flush() error {
	c.syncMu.Lock()
	defer c.syncMu.Unlock()
	c.mu.Lock()
	batch, failed := c.unlogged, c.outcome.hasFailed()
	c.unlogged = changemap.New()
	c.mu.Unlock()
	if failed || batch.Len() == 0 {
		return nil
	}
	if err := c.image.Datasync(); err != nil {
		return err
	}
	return c.log.Append(batch)
}

// fail gives the copy up: for an error, or because it is not wanted any more. One that is complete stays so.
func (c *imageCopy) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcome.fail(err)
}

// storeFailure makes a failure durable, by removing the log. The image may change only then: a copy that went on after
// a restart would copy the change. It takes no space, as the disk may be full, and gives the image's space back.
func (c *imageCopy) storeFailure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outcome.state != copyFailing {
		return nil
	}
	_ = c.image.Truncate(0)
	err := c.fs.Remove(filepath.Join(c.dir, copiedFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = c.fs.SyncDir(c.dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the snapshot may have been deleted meanwhile
		return fmt.Errorf("snapshot %s: its copy failed (%w), and so did noting that: %w", c.target.SnapshotID,
			c.outcome.reason, err)
	}
	c.outcome.failureStored()
	return nil
}
