package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
)

// cutsFile says which cuts of the group are taken and not yet wholly in their snapshots' records, and which members'
// changes are tracked. A record file, kind "cuts"; replacing it is the instant a cut comes into being.
const (
	cutsFile = "cuts.json"
	cutsKind = "cuts"
)

// cutTarget is a snapshot of a cut that was taken.
type cutTarget struct {
	SnapshotID string                  `json:"snapshotID"`
	VolumeID   string                  `json:"volumeID"`
	Cut        blockdev.SnapshotCut    `json:"cut"`
	SizeBytes  int64                   `json:"sizeBytes"`
	Method     blockdev.SnapshotMethod `json:"method"`
	ParentID   string                  `json:"parentID,omitempty"`
	// RecordUnixNanos is when the snapshot's record was created, which tells it from a later one with the same id.
	RecordUnixNanos int64 `json:"recordUnixNanos"`
}

// cutState is the content of the file of cuts.
type cutState struct {
	Generation uint64        `json:"generation"`
	GroupID    string        `json:"groupID,omitempty"`
	PoolID     string        `json:"poolID,omitempty"`
	Targets    []cutTarget   `json:"targets,omitempty"`
	Tracks     []trackRecord `json:"tracks,omitempty"`
}

// cuts are a group's snapshots as far as the group has to do with them. Lock order: opMu, applier.mu, mu, those of
// extentCopy.
type cuts struct {
	g *Group
	// opMu makes cuts, releases and the bringing up to date of records one after another.
	opMu sync.Mutex
	// ended: the group is closed, or about to be deleted; it takes no more cuts. Guarded by opMu.
	ended bool
	work  signal

	// mu guards what follows, and the file of cuts. copies is only added to with applier.mu held.
	mu         sync.Mutex
	generation uint64
	targets    []cutTarget
	tracks     map[uint32]*track
	copies     []*imageCopy
	file       cutsFileState
}

func newCuts(g *Group) *cuts { return &cuts{g: g, work: newSignal(), tracks: map[uint32]*track{}} }

// stateLocked is what belongs into the file.
func (c *cuts) stateLocked() cutState {
	s := cutState{GroupID: c.g.ID(), PoolID: c.g.cfg.Pool.ID(), Targets: slices.Clone(c.targets)}
	for _, t := range c.tracks {
		s.Tracks = append(s.Tracks, t.trackRecord)
	}
	slices.SortFunc(s.Tracks, func(a, b trackRecord) int { return int(a.Index) - int(b.Index) })
	return s
}

// saveLocked brings the file up to date, if it is not.
func (c *cuts) saveLocked() error {
	if c.file == cutsFileSaved {
		return nil
	}
	return c.writeLocked(c.stateLocked())
}

// writeLocked replaces the file. After an error it is as it was, unless its state is unknown then.
func (c *cuts) writeLocked(s cutState) error {
	fsys, name := c.g.cfg.FS, c.g.path(cutsFile)
	generation, err := c.g.checkpoint.replaceFile(fileCuts, c.generation, func(generation uint64) error {
		s.Generation = generation
		return c.g.cfg.Pool.WithReserve(func() error { return recordfile.Write(fsys, name, cutsKind, &s) })
	})
	if err == nil {
		c.generation = generation
		c.file.written()
		return nil
	}
	var there cutState
	readErr := recordfile.Read(fsys, name, cutsKind, &there)
	if c.generation == 0 && errors.Is(readErr, fs.ErrNotExist) {
		readErr = nil
	}
	c.file.writeFailed(readErr == nil && there.Generation == c.generation)
	c.generation = max(c.generation, there.Generation)
	return fmt.Errorf("group %s: cuts: %w", c.g.Name(), err)
}

// load takes up what the last process left: copies go on, and tracking does. It is called before anything is applied.
// A file that is damaged, gone, an older copy or another group's costs snapshots that are being copied, and the
// knowledge of what changed; it does not keep the group from opening.
func (c *cuts) load() error {
	g := c.g
	var s cutState
	name, known := g.path(cutsFile), g.checkpoint.read().Files[fileCuts]
	err := recordfile.Read(g.cfg.FS, name, cutsKind, &s)
	earlier := known == 0 && s.GroupID == ""
	switch {
	case errors.Is(err, fs.ErrNotExist) && known > 0:
		err = stale(name, "it is missing")
	case errors.Is(err, fs.ErrNotExist) || err == nil && earlier:
		err = nil
	case err == nil && (s.GroupID != g.ID() || s.PoolID != g.cfg.Pool.ID()):
		err = stale(name, "it is that of group %s in pool %s", s.GroupID, s.PoolID)
	case err == nil:
		if err = g.checkpoint.checkGeneration(fileCuts, s.Generation); err != nil && s.Generation > known {
			return err // the checkpoint is what is old
		}
	}
	switch {
	case isLost(err):
		klog.ErrorS(err, "The file of cuts is lost: snapshots being copied fail, and the next ones have no parents",
			"group", g.Name())
		s = cutState{Generation: known}
		c.file.changed()
	case err != nil:
		return err
	}
	c.generation = s.Generation
	for _, target := range s.Targets {
		rec, err := g.cfg.Pool.GetSnapshot(target.SnapshotID)
		if err != nil && !isLost(err) {
			return g.unopened("snapshot "+target.SnapshotID, err)
		}
		if err != nil || rec.CreatedUnixNanos != target.RecordUnixNanos {
			klog.InfoS("A snapshot is gone", "group", g.Name(), "snapshot", target.SnapshotID, "reason", err)
			c.file.changed()
			continue
		}
		c.targets = append(c.targets, target)
		if target.Method != blockdev.MethodCopy || rec.State == blockdev.SnapshotReady ||
			rec.State == blockdev.SnapshotFailed {
			continue
		}
		running, err := c.resumeCopy(target)
		if err != nil && !isLost(err) && !errors.Is(err, ErrNotFound) {
			return g.unopened("the copy of snapshot "+target.SnapshotID, err)
		}
		if err != nil {
			klog.ErrorS(err, "The copy of a snapshot cannot go on", "group", g.Name(), "snapshot", target.SnapshotID)
			continue // updateRecords finds it without a copy
		}
		c.copies = append(c.copies, running)
	}
	for _, r := range s.Tracks {
		t, err := c.openTrack(r)
		if err != nil && !isLost(err) && !errors.Is(err, ErrNotFound) {
			return g.unopened("what changed since snapshot "+r.SnapshotID, err)
		}
		if err != nil {
			klog.InfoS("Changed blocks of a volume are not known any more: its next snapshot has no parent", "group", g.Name(),
				"volume", r.VolumeID, "reason", err)
			c.file.changed()
			continue
		}
		c.tracks[r.Index] = t
	}
	return c.sweepSince()
}

// resumeCopy goes on with the copy of a snapshot. ErrNotFound: its volume is no member any more.
func (c *cuts) resumeCopy(target cutTarget) (*imageCopy, error) {
	g := c.g
	if _, err := g.Volume(target.VolumeID); err != nil {
		return nil, err
	}
	dir, err := g.cfg.Pool.SnapshotDir(target.SnapshotID)
	if err != nil {
		return nil, err
	}
	source, err := g.cfg.Pool.ImagePath(target.VolumeID)
	if err != nil {
		return nil, err
	}
	return openCopy(g.cfg.FS, dir, source, target)
}

// copyOf returns the running copy for a snapshot, or nil.
func (c *cuts) copyOf(snapshotID string) *imageCopy {
	for _, running := range c.copies {
		if running.target.SnapshotID == snapshotID {
			return running
		}
	}
	return nil
}

// updateRecords brings the snapshots' records to what the group knows, and forgets what is in them for good. The caller
// holds opMu.
func (c *cuts) updateRecords() error {
	c.mu.Lock()
	targets := slices.Clone(c.targets)
	c.mu.Unlock()
	var errs []error
	for _, target := range targets {
		c.mu.Lock()
		running := c.copyOf(target.SnapshotID)
		c.mu.Unlock()
		final, err := c.updateRecord(target, running)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if final {
			c.drop(target.SnapshotID)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(append(errs, c.saveLocked())...)
}

// outcome is the state that a snapshot's record has to have.
func (t *cutTarget) outcome(running *imageCopy) (state blockdev.SnapshotState, copied int64, reason string) {
	if t.Method != blockdev.MethodCopy {
		return blockdev.SnapshotReady, t.SizeBytes, ""
	}
	if running == nil {
		return blockdev.SnapshotFailed, 0, "its copy could not go on after a restart"
	}
	done, failed := running.progress()
	switch {
	case failed != nil:
		return blockdev.SnapshotFailed, 0, failed.Error()
	case running.complete():
		return blockdev.SnapshotReady, done, ""
	}
	return blockdev.SnapshotCopying, done, ""
}

func (c *cuts) updateRecord(target cutTarget, running *imageCopy) (final bool, err error) {
	state, copied, reason := target.outcome(running)
	rec, err := c.g.cfg.Pool.UpdateSnapshot(target.SnapshotID, func(r *blockdev.SnapshotRecord) error {
		if r.CreatedUnixNanos != target.RecordUnixNanos {
			return fs.ErrNotExist
		}
		if r.State == blockdev.SnapshotCreating {
			// Once: the parent may change when snapshots are deleted.
			r.Cut, r.ParentID, r.SizeBytes, r.Method = target.Cut, target.ParentID, target.SizeBytes, target.Method
		}
		if r.State != blockdev.SnapshotReady && r.State != blockdev.SnapshotFailed {
			r.State, r.CopiedBytes, r.FailReason = state, copied, reason
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		if running != nil {
			running.fail(err)
			return true, running.storeFailure()
		}
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return rec.State == blockdev.SnapshotReady || rec.State == blockdev.SnapshotFailed, nil
}

// drop forgets a snapshot whose record says all.
func (c *cuts) drop(snapshotID string) {
	c.mu.Lock()
	running := c.copyOf(snapshotID)
	c.targets = slices.DeleteFunc(c.targets, func(t cutTarget) bool { return t.SnapshotID == snapshotID })
	c.copies = slices.DeleteFunc(c.copies, func(r *imageCopy) bool { return r == running })
	c.file.changed()
	c.mu.Unlock()
	if running != nil {
		running.retire()
	}
}

// failOrphans makes snapshots failed that say they are being copied by a group, and no group knows of: what a lost file
// of cuts leaves, or a group that was deleted.
func (s *Site) failOrphans() {
	list, err := s.cfg.Pool.ListSnapshots()
	if err != nil {
		klog.ErrorS(err, "Looking for interrupted snapshots; those that cannot be read are left alone")
	}
	copied := map[string]bool{}
	for _, g := range s.Groups() {
		g.cuts.mu.Lock()
		for _, t := range g.cuts.targets {
			copied[t.SnapshotID] = true
		}
		g.cuts.mu.Unlock()
	}
	for _, rec := range list {
		dir, err := s.cfg.Pool.GroupDir(rec.Cut.GroupID)
		if rec.State != blockdev.SnapshotCopying || err != nil || copied[rec.ID] || s.broken[dir] != nil {
			continue
		}
		_, err = s.cfg.Pool.UpdateSnapshot(rec.ID, func(r *blockdev.SnapshotRecord) error {
			r.State, r.FailReason = blockdev.SnapshotFailed, "its group does not know of it any more; delete it"
			return nil
		})
		if err != nil {
			klog.ErrorS(err, "Marking an interrupted snapshot as failed; the next start does it again", "snapshot", rec.ID)
		}
	}
}

// loop copies, one snapshot after the other, and brings the records up to date.
func (c *cuts) loop(ctx context.Context) {
	unsettled := true
	for ctx.Err() == nil {
		if unsettled {
			c.opMu.Lock()
			err := c.updateRecords()
			c.opMu.Unlock()
			if err != nil {
				klog.ErrorS(err, "Bringing snapshots' records up to date failed; it is tried again", "group", c.g.Name())
				pause.For(ctx, c.g.cfg.ApplyInterval)
			}
			unsettled = err != nil
		}
		next := c.next()
		if next == nil {
			if !unsettled {
				select {
				case <-ctx.Done():
				case <-c.work:
					unsettled = true
				}
			}
			continue
		}
		done, err := c.pacedStep(ctx, next)
		if err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Copying a snapshot failed; that is noted as soon as it can be", "group", c.g.Name(),
				"snapshot", next.target.SnapshotID)
			pause.For(ctx, c.g.cfg.ApplyInterval)
		}
		unsettled = unsettled || done
	}
}

// pacedStep copies a run and rests for as long as that took: half of the disk is left to those who wait for it.
func (c *cuts) pacedStep(ctx context.Context, running *imageCopy) (done bool, err error) {
	began := c.g.cfg.Now()
	done, err = running.step(ctx)
	if took := c.g.cfg.Now().Sub(began); !done && err == nil && took > 0 {
		pause.For(ctx, min(took, maxCopyRest))
	}
	return done, err
}

// maxCopyRest bounds the rest after a run that took long, for whatever reason.
const maxCopyRest = time.Second

// next is a copy that has something to do.
func (c *cuts) next() *imageCopy {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, running := range c.copies {
		if !running.complete() {
			return running
		}
	}
	return nil
}

// suspend keeps new cuts out until the function it returns is called.
func (c *cuts) suspend() (resume func()) {
	c.opMu.Lock()
	defer c.opMu.Unlock()
	c.ended = true
	return func() {
		c.opMu.Lock()
		defer c.opMu.Unlock()
		c.ended = c.g.ctx.Err() != nil
	}
}

// close waits for a cut that is being taken, and closes the files; what is on disk is what the next process goes on
// from.
func (c *cuts) close() {
	c.opMu.Lock()
	defer c.opMu.Unlock()
	c.ended = true
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, running := range c.copies {
		running.close()
	}
	for _, t := range c.tracks {
		_ = t.log.Close()
	}
	c.copies, c.tracks = nil, map[uint32]*track{}
}

// marked returns a copy of what changed in a member since its last snapshot, and which that is.
func (t *track) marked() (parent string, since *changemap.Map) {
	if t == nil {
		return "", nil
	}
	return t.SnapshotID, t.known.Clone()
}

// cutsFileState is how the file of cuts compares with the cuts in memory.
//
//	saved -> behind              something changed in memory
//	saved, behind -> unknown     a write failed, and the file cannot be read or has something else
//	any -> saved                 the file was written
type cutsFileState int

const (
	// cutsFileSaved: the file has what is in memory.
	cutsFileSaved cutsFileState = iota
	// cutsFileBehind: the file is to be written when there is an occasion.
	cutsFileBehind
	// cutsFileUnknown: a failed write may have left a cut in the file that was not taken. Until the file is written again,
	// nothing may change an image.
	cutsFileUnknown
)

func (s cutsFileState) String() string {
	switch s {
	case cutsFileSaved:
		return "saved"
	case cutsFileBehind:
		return "behind"
	case cutsFileUnknown:
		return "unknown"
	}
	return fmt.Sprintf("cutsFileState(%d)", int(s))
}

// changed notes that something changed in memory. An unknown file stays unknown.
func (s *cutsFileState) changed() { *s = max(*s, cutsFileBehind) }

// written notes that the file was written.
func (s *cutsFileState) written() { *s = cutsFileSaved }

// writeFailed notes that a write failed; intact says that the file is as it was before.
func (s *cutsFileState) writeFailed(intact bool) {
	if !intact {
		*s = cutsFileUnknown
	}
}
