package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	// copyRunExtents is how much is copied and written to the disk at once, and so how long a pass of apply waits for
	// the copier at most, and what a sync of the journal finds before it on the disk.
	copyRunExtents = 16
	// copySyncBytes is after how many copied bytes the copier makes them durable.
	copySyncBytes = 32 << 20
)

// copiedFile is the log of the extents that a snapshot's image has for good. A snapshot that should have one and does
// not has failed.
const copiedFile = "copied"

// imageCopy is a snapshot that is being copied from its volume's image while apply goes on changing that.
type imageCopy struct {
	extentCopy
	target  cutTarget
	fs      vfs.FS
	dir     string      // of the snapshot
	outcome keepOutcome // guarded by mu
}

// createCopy begins a copy with nothing copied, durably, in place of one that was begun before and never counted.
func createCopy(fsys vfs.FS, dir, sourcePath string, target cutTarget) (*imageCopy, error) {
	c := &imageCopy{target: target, fs: fsys, dir: dir}
	err := c.create(fsys, copyPaths(dir, sourcePath, blockdev.ImageFile, copiedFile), target.SizeBytes)
	if err != nil {
		c.close()
	}
	return c, err
}

// openCopy goes on with a copy that a crash or a restart interrupted. fs.ErrNotExist: it had failed.
func openCopy(fsys vfs.FS, dir, sourcePath string, target cutTarget) (*imageCopy, error) {
	c := &imageCopy{target: target, fs: fsys, dir: dir}
	err := c.open(fsys, copyPaths(dir, sourcePath, blockdev.ImageFile, copiedFile), target.SizeBytes)
	if err != nil {
		c.close()
	}
	return c, err
}

// progress is how many bytes are dealt with, and whether the copy has failed.
func (c *imageCopy) progress() (doneBytes int64, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.target.SizeBytes-int64(c.todo.Bytes())), c.outcome.reason
}

// preserve makes extents logged that are about to change in the image, or gives the copy up. With an error they must
// not change.
func (c *imageCopy) preserve(extents *changemap.Map) error {
	if err := c.extentCopy.preserve(extents); err != nil {
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
	if err == nil && more && n <= copyRunExtents && ctx.Err() == nil { // a longer run is a hole
		err = c.writeOut(extent, n)
	}
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

// fail gives the copy up: for an error, or because it is not wanted any more. One that is complete stays so.
func (c *imageCopy) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outcome.fail(err) {
		c.stopped = true
	}
}

// storeFailure makes a failure durable, by removing the log. The image may change only then: a copy that went on after
// a restart would copy the change. It takes no space, as the disk may be full, and gives the image's space back.
func (c *imageCopy) storeFailure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outcome.state != keepFailing {
		return nil
	}
	_ = c.dest.Truncate(0)
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
