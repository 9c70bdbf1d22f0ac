package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// sinceFile is the log of the extents that changed in a member since a snapshot, its last one.
func (c *cuts) sinceFile(snapshotID string) string { return c.g.path(sincePrefix + snapshotID) }

const sincePrefix = "since-"

// track is what changed in a member since its last snapshot.
//
// Records are marked when they are applied, and logged before the checkpoint moves past them; recovery applies again
// what is behind the checkpoint, and marks it again. So the log never lacks what is applied for good. It may have
// extents from before the snapshot, or twice: both only make a later set larger.
type track struct {
	trackRecord
	log *changemap.Log
	// known has every extent that was marked; fresh those of them that are not logged yet.
	known, fresh *changemap.Map
}

// trackRecord is the durable part: which snapshot is a member's last one. It is the content of the file of cuts.
type trackRecord struct {
	Index      uint32 `json:"index"`
	VolumeID   string `json:"volumeID"`
	SnapshotID string `json:"snapshotID"`
}

// createTrack begins with a set of extents, durably; nil for none.
func (c *cuts) createTrack(r trackRecord, since *changemap.Map) (*track, error) {
	if since == nil {
		since = changemap.New()
	}
	log, err := changemap.CreateLog(c.g.cfg.FS, c.sinceFile(r.SnapshotID))
	if err != nil {
		return nil, err
	}
	if err := log.Append(since); err != nil {
		log.Close()
		return nil, err
	}
	return &track{trackRecord: r, log: log, known: since.Clone(), fresh: changemap.New()}, nil
}

// openTrack goes on with tracking. ErrNotFound: its volume is no member any more.
func (c *cuts) openTrack(r trackRecord) (*track, error) {
	if _, err := c.g.cfg.Pool.GetSnapshot(r.SnapshotID); err != nil {
		return nil, err
	}
	if v := c.g.members.at(r.Index); v == nil || v.id != r.VolumeID {
		return nil, fmt.Errorf("%w: volume %s is not member %d of group %s", ErrNotFound, r.VolumeID, r.Index, c.g.Name())
	}
	log, known, err := changemap.OpenLog(c.g.cfg.FS, c.sinceFile(r.SnapshotID))
	if err != nil {
		return nil, err
	}
	return &track{trackRecord: r, log: log, known: known, fresh: changemap.New()}, nil
}

// mark notes that a range is about to change.
func (t *track) mark(off, n int64) {
	if n <= 0 {
		return
	}
	end := uint64(off+n-1)/changemap.ExtentBytes + 1
	for e := uint64(off) / changemap.ExtentBytes; e < end; e++ {
		if !t.known.Has(0, e) {
			t.known.MarkExtent(0, e)
			t.fresh.MarkExtent(0, e)
		}
	}
}

// logMarks makes durable what was marked, for the checkpoint that follows. Where that fails the tracking ends, durably,
// by taking the log away: the next snapshot has no parent then. That needs no space on a disk that may be full.
func (c *cuts) logMarks() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for index, t := range c.tracks {
		if t.fresh.Len() == 0 {
			continue
		}
		err := t.log.Append(t.fresh)
		if err == nil {
			t.fresh = changemap.New()
			continue
		}
		klog.ErrorS(err, "Tracking of changed blocks ends: the next snapshot has no parent", "group", c.g.Name(),
			"volume", t.VolumeID)
		if err := c.g.cfg.FS.Remove(c.sinceFile(t.SnapshotID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("end the tracking of changed blocks of volume %s: %w", t.VolumeID, err)
		}
		if err := c.g.cfg.FS.SyncDir(c.g.dir); err != nil {
			return fmt.Errorf("end the tracking of changed blocks of volume %s: %w", t.VolumeID, err)
		}
		_ = t.log.Close()
		delete(c.tracks, index)
		c.file.changed()
	}
	return nil
}

// beforeApply is called with the records that are about to be applied: it marks what they change, and keeps what they
// overwrite for snapshots that do not have it yet.
func (c *cuts) beforeApply(records []journal.Record) error {
	c.mu.Lock()
	if c.file == cutsFileUnknown {
		if err := c.saveLocked(); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	idle := len(c.tracks) == 0 && len(c.copies) == 0
	c.mu.Unlock()
	if idle {
		return nil
	}
	return c.beforeChange(c.g.members.touched(records))
}

// beforeChange is called with the extents of members, by their indices, that are about to change in the images. It
// notes them for the tracking of changed blocks, and has them copied into all snapshots that lack them.
func (c *cuts) beforeChange(touched *changemap.Map) error {
	c.mu.Lock()
	copies := slices.Clone(c.copies)
	for at := (changemap.Cursor{}); ; {
		index, extent, n, ok := touched.NextRun(at, holeRunExtents)
		if !ok {
			break
		}
		if t := c.tracks[index]; t != nil {
			t.mark(int64(extent)*changemap.ExtentBytes, int64(n)*changemap.ExtentBytes)
		}
		at = changemap.Cursor{Volume: index, Extent: extent + n}
	}
	c.mu.Unlock()
	if len(copies) == 0 {
		return nil
	}
	for _, v := range c.g.Volumes() {
		extents := touched.Volume(v.index)
		if extents.Len() == 0 {
			continue
		}
		if err := copyInto(copies, v.id, extents); err != nil {
			return err
		}
	}
	return nil
}

// keep is beforeChange for a volume that need not be a member, and whose changes are not tracked then.
func (c *cuts) keep(volumeID string, extents *changemap.Map) error {
	c.mu.Lock()
	copies := slices.Clone(c.copies)
	c.mu.Unlock()
	return copyInto(copies, volumeID, extents)
}

// copyInto has the snapshots of a volume take extents of it.
func copyInto(copies []*imageCopy, volumeID string, extents *changemap.Map) error {
	for _, running := range copies {
		if running.target.VolumeID != volumeID {
			continue
		}
		if err := running.preserve(extents); err != nil {
			return err
		}
	}
	return nil
}

// rebase takes a snapshot that is about to be deleted out of the tracking: what changed since it becomes what changed
// since its parent. Without a parent, or without knowing what changed between the two, tracking ends. The caller holds
// opMu.
func (c *cuts) rebase(snapshotID, parent string) error {
	// Apply may not mark meanwhile: the log changes.
	c.g.applier.mu.Lock()
	defer c.g.applier.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	var t, next *track
	for _, known := range c.tracks {
		if known.SnapshotID == snapshotID {
			t = known
		}
	}
	if t == nil {
		return nil
	}
	index := t.Index
	if parent != "" {
		own, err := changes.Load(c.g.cfg.FS, c.g.cfg.Pool, t.SnapshotID)
		switch {
		case err == nil:
			own.Merge(t.known)
			next, err = c.createTrack(trackRecord{Index: index, VolumeID: t.VolumeID, SnapshotID: parent}, own)
			if err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, changemap.ErrCorrupt):
			return err
		}
	}
	old := t.SnapshotID
	_ = t.log.Close()
	delete(c.tracks, index)
	if next != nil {
		c.tracks[index] = next
	}
	c.file.changed()
	if err := c.saveLocked(); err != nil {
		return err
	}
	c.removeSince(old)
	return nil
}

// removeSince takes away a log that the file of cuts does not name any more. If that fails, the next start does it.
func (c *cuts) removeSince(snapshotID string) {
	if err := c.g.cfg.FS.Remove(c.sinceFile(snapshotID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "Removing a log of changed blocks; the next start does it", "group", c.g.Name(),
			"snapshot", snapshotID)
	}
}

// forget ends the tracking of a member that leaves the group: what changes it from here on is not seen.
func (c *cuts) forget(index uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tracks[index]
	if t == nil {
		return nil
	}
	_ = t.log.Close()
	delete(c.tracks, index)
	c.file.changed()
	if err := c.saveLocked(); err != nil {
		return err
	}
	c.removeSince(t.SnapshotID)
	return nil
}

// sweepSince removes logs that no track has.
func (c *cuts) sweepSince() error {
	names, err := c.g.cfg.FS.ReadDir(c.g.dir)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, t := range c.tracks {
		live[filepath.Base(c.sinceFile(t.SnapshotID))] = true
	}
	for _, name := range names {
		if strings.HasPrefix(name, sincePrefix) && name != sincePrefix && !live[name] {
			if err := c.g.cfg.FS.Remove(c.g.path(name)); err != nil {
				return err
			}
		}
	}
	return nil
}
