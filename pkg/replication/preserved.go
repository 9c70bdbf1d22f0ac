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

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// Preserved images are members of a group as they were at one ordinal, kept while apply goes on, without copying them.
// Before apply changes an extent, it copies the extent aside, once, and makes that durable (extent_copy.go). So an
// extent is what was kept of it, or else what the image has.
//
//	take       preservedSets.take: apply goes exactly to one ordinal and stops; empty files are made; apply goes on
//	read       preserved.image, then preservedImage.ReadAt and NextData, beside a running apply
//	roll back  preserved.rollBack writes what was kept back into the images; it may be repeated, also after a crash
//	drop       preservedSets.drop
//	reopen     preservedSets.load finds those that were not dropped; of returns them by their owner
//
// Taking them costs no time and no space that depends on the sizes of the volumes. Each extent costs its space and two
// syncs when it is changed for the first time. It is the same on file systems that share blocks: a clone would cost
// less later, but there would be two ways to read and to roll back.
//
// Several can exist at once on one member. A member that leaves its group loses its images: what changes it from then
// on is not seen. What happens when there is no space to keep an extent is the owner's choice (preserveFull).
//
// On disk a set is a directory <pool>/preserved/<group id>/<set id>/, beside the images also where journals are
// elsewhere:
//
//	preserved.json   record file, kind "preserved": a set counts from the instant it is there, until it is removed
//	<index>.kept     extents of the member with that index
//	<index>.log      which these are
//
// A set that is damaged or incomplete is removed when the group opens, and its owner does not find it. One that cannot
// be read for another reason keeps the group closed.
const (
	preservedFile = "preserved.json"
	preservedKind = "preserved"
)

// preservedOwner says what a set is for. A set of an owner that does not know it any more is dropped by the owner.
type preservedOwner string

// preserveFull is what happens to a set when an extent cannot be kept, for lack of space or another error.
type preserveFull string

const (
	// preserveOrWait: apply fails, and tries again. The set stays whole.
	preserveOrWait preserveFull = "wait"
	// preserveOrLose: apply goes on, and the set is lost.
	preserveOrLose preserveFull = "lose"
)

// preservedRecord is the content of preserved.json.
type preservedRecord struct {
	ID        string            `json:"id"`
	GroupID   string            `json:"groupID"`
	Owner     preservedOwner    `json:"owner"`
	Full      preserveFull      `json:"full"`
	Ordinal   uint64            `json:"ordinal"`
	Timeline  string            `json:"timeline"`
	UnixNanos int64             `json:"unixNanos"` // of its taking
	Members   []preservedMember `json:"members"`
}

type preservedMember struct {
	Index     uint32 `json:"index"`
	VolumeID  string `json:"volumeID"`
	SizeBytes int64  `json:"sizeBytes"`
}

// preserved is a set of preserved images of one ordinal.
type preserved struct {
	s      *preservedSets
	record preservedRecord
	dir    string
	images []*preservedImage

	mu sync.Mutex
	// outcome says whether the set is what it should be; once it has failed, a restart does not find it.
	outcome keepOutcome
}

// errPreservedLost: a set of preserved images had to be given up; the text says why.
var errPreservedLost = errors.New("preserved images were given up")

// preserveRequest says which images are to be preserved.
type preserveRequest struct {
	owner preservedOwner
	full  preserveFull
	// volumes are the members; nil is all that are opened.
	volumes []string
	// position returns the place in the journal to preserve, and the timeline there. It is called with log.mu and the
	// group's mu held.
	position func() (journal.Position, string, error)
}

// create makes the files. The caller holds applier.mu, so no image changes meanwhile.
func (p *preserved) create() error {
	g := p.s.g
	parent, err := p.s.dir()
	if err != nil {
		return err
	}
	p.dir = filepath.Join(parent, p.record.ID)
	if err := g.cfg.FS.MkdirAll(p.dir); err != nil {
		return err
	}
	for _, m := range p.record.Members {
		paths, err := p.paths(m)
		if err != nil {
			return err
		}
		image := &preservedImage{member: m}
		p.images = append(p.images, image)
		if err := image.create(g.cfg.FS, paths, m.SizeBytes); err != nil {
			return fmt.Errorf("volume %s: %w", m.VolumeID, err)
		}
	}
	// In the list before the record is there: after a write that failed in part, a later start may find the record.
	p.s.mu.Lock()
	p.s.list = append(p.s.list, p)
	p.s.mu.Unlock()
	if err := recordfile.Write(g.cfg.FS, filepath.Join(p.dir, preservedFile), preservedKind, &p.record); err != nil {
		if gone := p.s.drop(p); gone != nil {
			err = errors.Join(err, gone)
		}
		return err
	}
	return nil
}

func (p *preserved) paths(m preservedMember) (extentCopyPaths, error) {
	source, err := p.s.g.cfg.Pool.ImagePath(m.VolumeID)
	return copyPaths(p.dir, source, fmt.Sprintf("%d.kept", m.Index), fmt.Sprintf("%d.log", m.Index)), err
}

// image returns the image of a volume; nil if the set has none.
func (p *preserved) image(volumeID string) *preservedImage {
	for _, image := range p.images {
		if image.member.VolumeID == volumeID {
			return image
		}
	}
	return nil
}

// check returns why the set cannot be used any more; nil if it can. A reader asks afterwards: what was read counts if
// the set still could be used.
func (p *preserved) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.outcome.reason
}

// keptBytes is how much was kept so far.
func (p *preserved) keptBytes() (n int64) {
	for _, image := range p.images {
		image.mu.Lock()
		n += max(0, image.sizeBytes-int64(image.todo.Bytes()))
		image.mu.Unlock()
	}
	return n
}

// preserve keeps extents of a volume that are about to change in its image. With an error they must not change.
func (p *preserved) preserve(volumeID string, extents *changemap.Map) error {
	image := p.image(volumeID)
	if image == nil {
		return nil
	}
	if why := p.check(); why != nil {
		return p.lose(why)
	}
	err := image.preserve(extents)
	if err == nil {
		return nil
	}
	need, _ := image.missing(extents)
	err = fmt.Errorf("keep %s of volume %s as they were at ordinal %d: %w", words.Count(need, "byte"),
		image.member.VolumeID, p.record.Ordinal, err)
	if p.record.Full == preserveOrWait {
		return err
	}
	return p.lose(err)
}

// lose gives the set up, durably: its images may change then. It may be repeated after an error.
func (p *preserved) lose(why error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.outcome.isFinal() {
		return nil
	}
	if p.outcome.fail(fmt.Errorf("%w: %w", errPreservedLost, why)) {
		klog.ErrorS(why, "Preserved images are given up", "group", p.s.g.Name(), "ordinal", p.record.Ordinal,
			"owner", p.record.Owner)
	}
	for _, image := range p.images {
		image.stop()
	}
	if err := p.removeFiles(); err != nil {
		return err
	}
	p.outcome.failureStored()
	return nil
}

// removeFiles makes the set one that is not there, durably. It takes no space, as the disk may be full.
func (p *preserved) removeFiles() error {
	fsys := p.s.g.cfg.FS
	if p.dir == "" {
		return nil
	}
	err := fsys.Remove(filepath.Join(p.dir, preservedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := fsys.SyncDir(p.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fsys.RemoveAll(p.dir)
}

func (p *preserved) close() {
	for _, image := range p.images {
		image.close()
	}
}

// rollBack makes a volume's image what it was at the ordinal. The caller holds applier.mu and sees to it that nothing
// is applied afterwards that was written past the ordinal. It may be repeated, also after a crash in the middle; the
// set stays. The image may be larger than it was then; what lies behind becomes zeros.
func (p *preserved) rollBack(ctx context.Context, volumeID string, image *blockdev.Image) error {
	kept := p.image(volumeID)
	if kept == nil {
		return fmt.Errorf("%w: volume %s was not preserved at ordinal %d", ErrNotFound, volumeID, p.record.Ordinal)
	}
	index := kept.member.Index
	if err := p.check(); err != nil {
		return err
	}
	err := kept.each(ctx, func(data []byte, off, n int64) error {
		touched := changemap.New()
		touched.Mark(index, off, n)
		if err := p.s.g.applier.beforeChange(touched, p); err != nil {
			return err
		}
		if data == nil {
			return image.Discard(off, n)
		}
		if _, err := image.WriteAt(data, off); err != nil {
			return err
		}
		return image.WriteOut(off, n) // the flush below shall not hold up those of the journals
	})
	if err == nil && image.Size() > kept.sizeBytes {
		err = p.discardBehind(index, image, kept.sizeBytes)
	}
	if err == nil {
		err = image.Flush()
	}
	if err == nil {
		err = p.s.g.cuts.logMarks()
	}
	if err != nil {
		return fmt.Errorf("volume %s: roll back to ordinal %d: %w", kept.member.VolumeID, p.record.Ordinal, err)
	}
	return nil
}

func (p *preserved) discardBehind(index uint32, image *blockdev.Image, off int64) error {
	for end := image.Size(); off < end; {
		n := min(end-off, maxRangeBytes)
		touched := changemap.New()
		touched.Mark(index, off, n)
		if err := p.s.g.applier.beforeChange(touched, p); err != nil {
			return err
		}
		if err := image.Discard(off, n); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// preservedImage is one member's image as it was.
type preservedImage struct {
	extentCopy
	member preservedMember
}

// Size is the member's size at the ordinal, in bytes.
func (i *preservedImage) Size() int64 { return i.sizeBytes }

// ReadAt reads what the member had at the ordinal. A range must lie within its size. It may be called beside a running
// apply; see preserved.check for a set that is given up meanwhile.
func (i *preservedImage) ReadAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), i.sizeBytes); err != nil {
		return 0, fmt.Errorf("preserved image of volume %s: read of %s at %d: %w", i.member.VolumeID,
			words.Count(len(p), "byte"), off, err)
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		piece := p[done:][:min(int64(len(p)-done), changemap.ExtentBytes-at%changemap.ExtentBytes)]
		if err := i.readPiece(piece, at); err != nil {
			return done, fmt.Errorf("preserved image of volume %s: read at %d: %w", i.member.VolumeID, at, err)
		}
		done += len(piece)
	}
	return len(p), nil
}

// readPiece reads a part of one extent. What the image had counts only if the extent was not kept meanwhile: apply
// changes the image afterwards.
func (i *preservedImage) readPiece(p []byte, off int64) error {
	extent := uint64(off) / changemap.ExtentBytes
	if !i.isKept(extent) {
		if n, err := i.source.ReadAt(p, off); n < len(p) {
			return err
		}
		if !i.isKept(extent) {
			return nil
		}
	}
	if n, err := i.dest.ReadAt(p, off); n < len(p) {
		return err
	}
	return nil
}

// missing is how many bytes the image would keep if extents of it changed.
func (i *preservedImage) missing(extents *changemap.Map) (bytes int64, err error) {
	left := extents.Clone()
	i.mu.Lock()
	kept := changemap.New()
	kept.Mark(0, 0, i.sizeBytes)
	clearAll(kept, i.todo)
	i.mu.Unlock()
	clearAll(left, kept)
	for at := (changemap.Cursor{}); ; {
		_, extent, n, ok := left.NextRun(at, holeRunExtents)
		if !ok {
			return bytes, nil
		}
		at.Extent = extent + n
		end := min(int64(extent+n)*changemap.ExtentBytes, i.sizeBytes)
		for off := int64(extent) * changemap.ExtentBytes; off < end; {
			start, stop, err := i.source.NextData(off)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return 0, err
			}
			bytes += max(0, min(stop, end)-max(start, off))
			off = max(stop, off+1)
		}
	}
}

func (i *preservedImage) isKept(extent uint64) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.todo.Has(0, extent)
}

// NextData returns a range at or after off outside of which there are only zeros up to its end, or io.EOF. Like that of
// vfs.File it may say too much.
func (i *preservedImage) NextData(off int64) (start, end int64, err error) {
	// The image first: what apply takes out of it afterwards is in the other file by then.
	start, end, err = i.source.NextData(off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	keptStart, keptEnd, keptErr := i.dest.NextData(off)
	if keptErr != nil && !errors.Is(keptErr, io.EOF) {
		return 0, 0, keptErr
	}
	if err != nil || keptErr == nil && keptStart < start {
		start, end, err = keptStart, keptEnd, keptErr
	}
	if err != nil || start >= i.sizeBytes {
		return 0, 0, io.EOF
	}
	return start, min(end, i.sizeBytes), nil
}

// each calls do for what was kept, in pieces. data is nil for a range of zeros, and valid until do returns.
func (i *preservedImage) each(ctx context.Context, do func(data []byte, off, n int64) error) error {
	kept := changemap.New()
	kept.Mark(0, 0, i.sizeBytes)
	i.mu.Lock()
	clearAll(kept, i.todo)
	i.mu.Unlock()
	buf := make([]byte, copyRunExtents*changemap.ExtentBytes)
	for at := (changemap.Cursor{}); ; {
		_, extent, n, ok := kept.NextRun(at, holeRunExtents)
		if !ok {
			return nil
		}
		at.Extent = extent + n
		end := min(int64(extent+n)*changemap.ExtentBytes, i.sizeBytes)
		for off := int64(extent) * changemap.ExtentBytes; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			start, stop, err := i.dest.NextData(off)
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("find data after %d: %w", off, err)
			}
			if err != nil {
				start, stop = end, end
			}
			start = min(max(start, off), end)
			if start > off {
				if err := do(nil, off, start-off); err != nil {
					return err
				}
			}
			off = start
			for stop = min(stop, end); off < stop; {
				p := buf[:min(stop-off, int64(len(buf)))]
				if k, err := i.dest.ReadAt(p, off); k < len(p) {
					return fmt.Errorf("read %s at %d: %w", words.Count(len(p), "byte"), off, err)
				}
				if err := do(p, off, int64(len(p))); err != nil {
					return err
				}
				off += int64(len(p))
			}
		}
	}
}
