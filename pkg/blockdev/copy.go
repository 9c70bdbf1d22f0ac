package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// CloneImage makes a file at target share the blocks that the file at source has at one instant between two of its
// writes: the first sourceBytes of them, followed by zeros up to targetBytes. It is durable on return. What was at
// target is replaced. Where the file system cannot share blocks the error is errors.ErrUnsupported, and target is an
// empty file.
func CloneImage(fsys vfs.FS, source, target string, sourceBytes, targetBytes int64) error {
	from, err := fsys.OpenReadOnly(source)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := fsys.Create(target)
	if err != nil {
		return err
	}
	defer to.Close()
	cloner, ok := to.(vfs.Cloner)
	if !ok {
		return fmt.Errorf("clone %s: %w", source, errors.ErrUnsupported)
	}
	if err := cloner.CloneFrom(from); err != nil {
		return err
	}
	size, err := to.Size()
	if err == nil && size < sourceBytes {
		err = fmt.Errorf("clone %s: %w: file has %d bytes, volume %d", source, ErrShortImage, size, sourceBytes)
	}
	// The source's file may have been made larger for a volume that is about to grow; that part is cut off, so that what
	// follows is zeros.
	for _, bytes := range []int64{sourceBytes, targetBytes} {
		if err == nil {
			err = to.Truncate(bytes)
		}
	}
	if err == nil {
		err = to.Datasync()
	}
	if err == nil {
		err = fsys.SyncDir(filepath.Dir(target))
	}
	return err
}

// cloneTestFiles are what SharesBlocks tries with.
var cloneTestFiles = []string{".clone-test", ".clone-test-target"}

// SharesBlocks reports whether files in a directory can share blocks (see CloneImage). It tries with two files of its
// own. Pool.Sweep removes the files of a process that was killed.
func SharesBlocks(fsys vfs.FS, dir string) (shares bool, err error) {
	source, target := filepath.Join(dir, cloneTestFiles[0]), filepath.Join(dir, cloneTestFiles[1])
	defer func() {
		for _, name := range []string{source, target} {
			if rerr := fsys.Remove(name); err == nil && rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = rerr
			}
		}
	}()
	from, err := fsys.Create(source)
	if err != nil {
		return false, err
	}
	defer from.Close()
	to, err := fsys.Create(target)
	if err != nil {
		return false, err
	}
	defer to.Close()
	cloner, ok := to.(vfs.Cloner)
	if !ok {
		return false, nil
	}
	err = cloner.CloneFrom(from)
	if errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return err == nil, err
}

const (
	copyChunkBytes = 1 << 20
	// copySyncBytes is after how many bytes written a copy makes them durable: as much as a crash costs again.
	copySyncBytes = 64 << 20
	// maxCopyRest bounds the rest after a chunk that took long, for whatever reason.
	maxCopyRest = time.Second
)

// ImageCopy copies an image that does not change meanwhile, without its holes, and can go on after a crash. Others use
// the disk at the same time, among them groups whose journals are synced for each write. So each chunk is written to
// the disk before the next one is copied, and the copy rests for as long as the chunk took: a sync of others finds at
// most one chunk before it, and half of the disk's time.
type ImageCopy struct {
	FS             vfs.FS
	Source, Target string
	// SourceBytes are copied; the target gets TargetBytes, which are not less, and zeros behind the copy.
	SourceBytes, TargetBytes int64
	// Thick reserves the target's space before anything is copied.
	Thick bool
	// CopiedBytes is how far an earlier run came, by what it told Progress. 0 begins anew.
	CopiedBytes int64
	// Progress is told, after each sync, up to where the copy is complete and durable; holes count. It is told 0 before a
	// copy that came further is begun anew: it must be durable on return, or a crash takes the new target for the old one.
	// An error ends the copy with that error. It may be nil.
	Progress func(copiedBytes int64) error

	syncBytes int64 // 0: copySyncBytes
}

// Run copies until the target is complete and durable, or ctx ends. An earlier run's target that is not there any
// more, or has another size, is begun anew. After an error the target is as far as Progress was told, with more or
// less behind it.
func (c *ImageCopy) Run(ctx context.Context) error {
	from, err := c.FS.OpenReadOnly(c.Source)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := c.target()
	if err != nil {
		return err
	}
	defer to.Close()
	return c.copy(ctx, from, to)
}

// target opens the target, or makes it.
func (c *ImageCopy) target() (vfs.File, error) {
	if c.CopiedBytes > 0 {
		to, err := c.begun()
		if to != nil || err != nil {
			return to, err
		}
		c.CopiedBytes = 0
		if c.Progress != nil {
			if err := c.Progress(0); err != nil {
				return nil, err
			}
		}
	}
	to, err := c.FS.Create(c.Target)
	if err != nil {
		return nil, err
	}
	err = to.Truncate(c.TargetBytes)
	if err == nil && c.Thick {
		err = to.Preallocate(0, c.TargetBytes)
	}
	if err == nil {
		err = to.Datasync()
	}
	if err == nil {
		err = c.FS.SyncDir(filepath.Dir(c.Target))
	}
	if err != nil {
		to.Close()
		return nil, err
	}
	return to, nil
}

// begun opens the target of an earlier run. It returns nil if there is none that can be continued.
func (c *ImageCopy) begun() (vfs.File, error) {
	to, err := c.FS.Open(c.Target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	size, err := to.Size()
	if err == nil && size == c.TargetBytes {
		return to, nil
	}
	to.Close()
	return nil, err
}

func (c *ImageCopy) copy(ctx context.Context, from, to vfs.File) error {
	buf := make([]byte, copyChunkBytes)
	if c.syncBytes == 0 {
		c.syncBytes = copySyncBytes
	}
	unsynced := int64(0)
	for off := c.CopiedBytes; off < c.SourceBytes; {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, end, err := from.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("find data of %s after %d: %w", c.Source, off, err)
		}
		off = max(off, start)
		began := time.Now()
		p := buf[:max(0, min(int64(len(buf)), end-off, c.SourceBytes-off))]
		if len(p) == 0 {
			break // behind what is copied
		}
		if n, err := from.ReadAt(p, off); n < len(p) {
			if errors.Is(err, io.EOF) {
				err = ErrShortImage
			}
			return fmt.Errorf("read %s at %d: %w", c.Source, off, err)
		}
		if !vfs.AllZero(p) {
			if _, err := to.WriteAt(p, off); err != nil {
				return err
			}
			if err := vfs.WriteOut(to, off, int64(len(p))); err != nil {
				return err
			}
			unsynced += int64(len(p))
			pause.For(ctx, min(time.Since(began), maxCopyRest)) // half of the disk is left to others
		}
		off += int64(len(p))
		if unsynced >= c.syncBytes {
			if err := c.syncAndReport(to, off); err != nil {
				return err
			}
			unsynced = 0
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.syncAndReport(to, c.SourceBytes)
}

// syncAndReport makes what is copied durable and tells.
func (c *ImageCopy) syncAndReport(to vfs.File, copiedBytes int64) error {
	if err := to.Datasync(); err != nil {
		return err
	}
	c.CopiedBytes = copiedBytes
	if c.Progress == nil {
		return nil
	}
	return c.Progress(copiedBytes)
}
