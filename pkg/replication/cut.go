package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// A cut is a snapshot of volumes of a group at one ordinal: image + journal, with the journal applied up to there.
//
//	fix     the journal is made durable; where it ends then is the cut: whatever was flushed before is in it
//	apply   apply goes exactly to the cut and stops. Writers go on: their records wait in the journal as they always do
//	image   each image is now the volume at the cut. Where the file system can, it is cloned; elsewhere a copy is begun
//	commit  the file of cuts is replaced: from this instant on the cut is taken, before it no part of it is
//	copy    apply goes on at once; before it changes an extent that is not copied yet, it copies that extent
//
// Nothing is frozen. Only apply waits for a copy, and only for the extents that it is going to change.
//
// A crash before the commit leaves files in snapshots whose records say "creating"; the cut is taken anew when it is
// asked for again. One after it leaves a cut that the next start completes: the file of cuts has all that the records
// have to say, and each copy's log the extents that need not be copied again (cut_copy.go). The images are not changed
// past the cut before the commit is durable, since apply waits for it.
//
// cut_state.go has the file of cuts and the loop that copies, cut_track.go what changed between snapshots.

// CutTarget is a volume and the snapshot of it that is to be taken. The snapshot's record is in the pool.
type CutTarget struct{ VolumeID, SnapshotID string }

// Cut takes snapshots of members at one ordinal, and returns it; see CutGroup in sidecar.proto, whose contract this is.
// With an error nothing was taken, unless the records of the snapshots could not be written: then the repetition
// returns the cut.
func (g *Group) Cut(ctx context.Context, targets []CutTarget) (blockdev.SnapshotCut, error) {
	return g.cuts.cut(ctx, targets, epoch.ID{})
}

// CutAt is Cut at the boundary of an epoch, for a shard that is kept there (Shard.FixEpoch).
func (g *Group) CutAt(ctx context.Context, targets []CutTarget, at epoch.ID) (blockdev.SnapshotCut, error) {
	return g.cuts.cut(ctx, targets, at)
}

// cut is Group.Cut, and with an epoch Group.CutAt.
func (c *cuts) cut(ctx context.Context, targets []CutTarget, at epoch.ID) (blockdev.SnapshotCut, error) {
	g := c.g
	c.opMu.Lock()
	defer c.opMu.Unlock()
	if c.ended {
		return blockdev.SnapshotCut{}, ErrClosed
	}
	wanted, err := c.wanted(targets)
	if err != nil {
		return blockdev.SnapshotCut{}, err
	}
	taken, err := planCut(g.Name(), wanted)
	if err != nil {
		return blockdev.SnapshotCut{}, err
	}
	if taken == nil {
		if taken, err = c.take(ctx, wanted, at); err != nil {
			return blockdev.SnapshotCut{}, err
		}
		klog.InfoS("Cut taken", "group", g.Name(), "ordinal", taken.Ordinal, "volumes", len(targets))
	}
	if err := c.updateRecords(); err != nil {
		return blockdev.SnapshotCut{}, err
	}
	c.work.send()
	return *taken, nil
}

// wantedCut is a target with what is known about its snapshot.
type wantedCut struct {
	CutTarget
	rec *blockdev.SnapshotRecord
	// listed is the cut that the file of cuts has for it; nil without one.
	listed *blockdev.SnapshotCut
}

// wanted looks the targets' snapshots up.
func (c *cuts) wanted(targets []CutTarget) ([]wantedCut, error) {
	var list []wantedCut
	for _, t := range targets {
		rec, err := c.g.cfg.Pool.GetSnapshot(t.SnapshotID)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", t.SnapshotID, err)
		}
		w := wantedCut{CutTarget: t, rec: rec}
		c.mu.Lock()
		for i := range c.targets {
			if known := c.targets[i]; known.SnapshotID == t.SnapshotID && known.RecordUnixNanos == rec.CreatedUnixNanos {
				w.listed = &known.Cut
			}
		}
		c.mu.Unlock()
		list = append(list, w)
	}
	return list, nil
}

// planCut decides what a request for a cut is: a new one (nil), the repetition of one that was taken, or wrong.
func planCut(group string, wanted []wantedCut) (*blockdev.SnapshotCut, error) {
	if len(wanted) == 0 {
		return nil, fmt.Errorf("%w: group %s: a cut of no volume", ErrInvalid, group)
	}
	volumes, snapshots := map[string]bool{}, map[string]bool{}
	var first *blockdev.SnapshotCut
	for i, w := range wanted {
		if volumes[w.VolumeID] || snapshots[w.SnapshotID] {
			return nil, fmt.Errorf("%w: group %s: volume %s or snapshot %s is named twice in one cut", ErrInvalid, group,
				w.VolumeID, w.SnapshotID)
		}
		volumes[w.VolumeID], snapshots[w.SnapshotID] = true, true
		if w.rec.SourceVolumeID != w.VolumeID {
			return nil, fmt.Errorf("%w: snapshot %s is of volume %s, not of %s", ErrInvalid, w.SnapshotID, w.rec.SourceVolumeID,
				w.VolumeID)
		}
		taken := w.listed
		if taken == nil && w.rec.Cut.GroupID != "" {
			taken = &w.rec.Cut
		}
		if taken == nil && w.rec.State != blockdev.SnapshotCreating {
			return nil, fmt.Errorf("%w: snapshot %s is %s and was not taken by a cut; delete it", core.ErrPrecondition,
				w.SnapshotID, w.rec.State)
		}
		if i == 0 {
			first = taken
		}
		switch {
		case (first == nil) != (taken == nil):
			return nil, fmt.Errorf("%w: of snapshots %s and %s only one was taken; delete it and begin anew",
				core.ErrPrecondition,
				wanted[0].SnapshotID, w.SnapshotID)
		case taken != nil && *taken != *first:
			return nil, fmt.Errorf("%w: snapshot %s was taken at ordinal %d, %s at %d; delete them and begin anew",
				core.ErrPrecondition,
				wanted[0].SnapshotID, first.Ordinal, w.SnapshotID, taken.Ordinal)
		}
	}
	return first, nil
}

// take takes a cut. The caller holds opMu.
func (c *cuts) take(ctx context.Context, wanted []wantedCut, at epoch.ID) (*blockdev.SnapshotCut, error) {
	g := c.g
	if err := g.log.commit(); err != nil {
		return nil, err
	}
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	// With applier.mu held no member leaves.
	var volumes []*Volume
	for _, w := range wanted {
		v, err := c.cuttable(w.VolumeID)
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, v)
	}
	limit, timeline, err := g.log.instant()
	if err != nil {
		return nil, err
	}
	if !at.IsZero() {
		if limit, err = g.shard.cutPosition(at); err != nil {
			return nil, err
		}
	}
	if err := g.applier.applyExactly(ctx, limit); err != nil {
		return nil, err
	}
	cut := &blockdev.SnapshotCut{GroupID: g.ID(), Group: g.Name(), Timeline: timeline, UnixNanos: g.cfg.Now().UnixNano()}
	cut.Ordinal = g.checkpoint.read().AppliedOrdinal
	if !at.IsZero() {
		cut.Epoch = at.String()
	}

	next := &uncommitted{c: c}
	for i, w := range wanted {
		if err := next.add(w, volumes[i], *cut); err != nil {
			next.abandon()
			return nil, fmt.Errorf("group %s: snapshot %s of volume %s: %w", g.Name(), w.SnapshotID, w.VolumeID, err)
		}
	}
	if err := next.commit(); err != nil {
		next.abandon()
		return nil, err
	}
	return cut, nil
}

// cuttable returns a member of which a snapshot can be taken.
func (c *cuts) cuttable(volumeID string) (*Volume, error) {
	g := c.g
	v, err := g.Volume(volumeID)
	if err != nil {
		return nil, fmt.Errorf("%w: volume %s is not in group %s", core.ErrPrecondition, volumeID, g.Name())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failure != nil {
		return nil, g.failure
	}
	// It may still be written to past the group.
	if m := g.core.Meta.Member(volumeID); m == nil || m.State.Adding() {
		return nil, fmt.Errorf("%w: volume %s is only just joining group %s; add it to the group again, or wait for that",
			core.ErrPrecondition,
			volumeID, g.core.Meta.Name)
	}
	return v, nil
}

// uncommitted is a cut that is being taken.
type uncommitted struct {
	c       *cuts
	targets []cutTarget
	copies  []*imageCopy
	tracks  []*track
}

// add makes what a snapshot has to be before the cut is committed: its image or the beginning of one, what changed
// since its parent, and an empty log of what changes from now on. All of it is durable.
func (u *uncommitted) add(w wantedCut, v *Volume, cut blockdev.SnapshotCut) error {
	g := u.c.g
	u.c.mu.Lock()
	parent, since := u.c.tracks[v.index].marked()
	u.c.mu.Unlock()
	if parent != "" {
		if err := changes.Save(g.cfg.FS, g.cfg.Pool, w.SnapshotID, since); err != nil {
			return err
		}
	}
	target := cutTarget{
		SnapshotID: w.SnapshotID, VolumeID: v.id, Cut: cut, SizeBytes: v.size.Load(), ParentID: parent,
		RecordUnixNanos: w.rec.CreatedUnixNanos,
		Method:          blockdev.MethodReflink,
	}
	dir, err := g.cfg.Pool.SnapshotDir(w.SnapshotID)
	if err != nil {
		return err
	}
	cloned, err := g.cuts.cloneImage(v, dir, target.SizeBytes)
	if err != nil {
		return err
	}
	if !cloned {
		target.Method = blockdev.MethodCopy
		running, err := createCopy(g.cfg.FS, dir, v.image.Path(), target)
		if err != nil {
			return err
		}
		u.copies = append(u.copies, running)
	}
	t, err := g.cuts.createTrack(trackRecord{Index: v.index, VolumeID: v.id, SnapshotID: w.SnapshotID}, nil)
	if err != nil {
		return err
	}
	u.tracks = append(u.tracks, t)
	u.targets = append(u.targets, target)
	return nil
}

// commit makes the cut the group's, on disk and then in memory. The caller holds applier.mu, so nothing was changed
// past it.
func (u *uncommitted) commit() error {
	c := u.c
	c.mu.Lock()
	defer c.mu.Unlock()
	old := map[uint32]*track{}
	for _, t := range u.tracks {
		old[t.Index] = c.tracks[t.Index]
		c.tracks[t.Index] = t
	}
	s := c.stateLocked()
	s.Targets = append(s.Targets, u.targets...)
	if err := c.writeLocked(s); err != nil {
		for index, t := range old {
			if c.tracks[index] = t; t == nil {
				delete(c.tracks, index)
			}
		}
		return err
	}
	c.targets = append(c.targets, u.targets...)
	c.copies = append(c.copies, u.copies...)
	for _, t := range old {
		if t != nil {
			_ = t.log.Close()
			c.removeSince(t.SnapshotID)
		}
	}
	return nil
}

// abandon gives up what was made; the files go when the cut is asked for again, or with their snapshots.
func (u *uncommitted) abandon() {
	for _, running := range u.copies {
		running.close()
	}
	for _, t := range u.tracks {
		_ = t.log.Close()
		u.c.removeSince(t.SnapshotID)
	}
}

// ReleaseCut ends what the group does for a snapshot that is about to be deleted: its copy, and its part in the
// tracking of changed blocks. One that the group does not know of is not an error. It may be repeated.
func (g *Group) ReleaseCut(snapshotID string) error { return g.cuts.remove(snapshotID) }

// remove is Group.ReleaseCut.
func (c *cuts) remove(snapshotID string) error {
	g := c.g
	c.opMu.Lock()
	defer c.opMu.Unlock()
	c.mu.Lock()
	running := c.copyOf(snapshotID)
	c.mu.Unlock()
	if running != nil {
		running.fail(errReleased)
		if err := running.storeFailure(); err != nil {
			return err
		}
	}
	// The record is to say what it was taken from, and to name its parent, before that is needed.
	if err := c.updateRecords(); err != nil {
		return err
	}
	parent := ""
	rec, err := g.cfg.Pool.GetSnapshot(snapshotID)
	switch {
	case err == nil:
		parent = rec.ParentID
	case !errors.Is(err, fs.ErrNotExist):
		klog.ErrorS(err, "Changed blocks are tracked anew: the record of the snapshot to be deleted cannot be read",
			"group", g.Name(), "snapshot", snapshotID)
	}
	return c.rebase(snapshotID, parent)
}

var errReleased = errors.New("it is being deleted")

// copiesOf returns the snapshots of a volume that are being copied.
func (c *cuts) copiesOf(volumeID string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, running := range c.copies {
		if running.target.VolumeID == volumeID {
			list = append(list, running.target.SnapshotID)
		}
	}
	return list
}

// failCopies fails every copy of a volume, or of all with an empty id, durably: the image leaves the group's care. The
// records follow.
func (c *cuts) failCopies(volumeID string, why error) error {
	c.mu.Lock()
	copies := slices.Clone(c.copies)
	c.mu.Unlock()
	for _, running := range copies {
		if volumeID != "" && running.target.VolumeID != volumeID {
			continue
		}
		running.fail(why)
		if err := running.storeFailure(); err != nil {
			return err
		}
	}
	c.work.send()
	return nil
}

// abandon fails every copy and says so in the records: the group is about to go.
func (c *cuts) abandon(why error) error {
	c.opMu.Lock()
	defer c.opMu.Unlock()
	if err := c.failCopies("", why); err != nil {
		return err
	}
	return c.updateRecords()
}

// CutStatus is a snapshot that is being copied.
type CutStatus struct {
	SnapshotID, VolumeID string
	Ordinal              uint64
	// DoneBytes of TotalBytes are dealt with. What the volume has no content for counts as done when it is found out.
	DoneBytes, TotalBytes int64
	// Failed is why the copy failed; nil while it runs.
	Failed error
}

// Cuts returns the snapshots of the group that are being copied.
func (g *Group) Cuts() []CutStatus { return g.cuts.held() }

// held is Group.Cuts.
func (c *cuts) held() []CutStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []CutStatus
	for _, running := range c.copies {
		target := running.target
		done, failed := running.progress()
		list = append(list, CutStatus{
			SnapshotID: target.SnapshotID, VolumeID: target.VolumeID, Ordinal: target.Cut.Ordinal,
			DoneBytes: done, TotalBytes: target.SizeBytes, Failed: failed,
		})
	}
	return list
}

// cloneImage makes a snapshot's image share the blocks of the volume's, durably. It reports false where the file system
// cannot.
func (c *cuts) cloneImage(v *Volume, dir string, sizeBytes int64) (cloned bool, err error) {
	err = blockdev.CloneImage(c.g.cfg.FS, v.image.Path(), filepath.Join(dir, blockdev.ImageFile), sizeBytes, sizeBytes)
	if errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return err == nil, err
}
