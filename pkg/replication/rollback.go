package replication

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A promotion in the middle of a sync makes the group what it was before the sync (resync_base.go). A trial makes it
// what it was at a point, or before that (trial.go). Both take these steps. Each of them can be repeated, and a crash
// between two of them is continued by the next start:
//
//	decide   group.json says that the copy rolls back (core.CopyRollingBack). The group is closed.
//	restore  the kept extents go back into the images; group.json says so (core.ImagesRestored)
//	discard  the volumes' records become those of the base; the checkpoint says that the journal begins behind all of its
//	         segments, and that the images are at the base's ordinal
//	promote  group.json says that the group is primary, on a timeline that forks at that ordinal, or that it is the
//	         secondary that it was (core.RolledBack)
//
// Restoring takes as long as the kept extents are many. Until then the group counts as one that cannot be opened, and
// other groups serve. The last two steps are part of opening the group.

// errRollingBack: the group is being promoted in the middle of a sync or to a point, or such a promotion is taken back.
// It opens when its images are restored.
var errRollingBack = errors.New("the group rolls back")

// rollBack makes a group what its core has decided, and returns it, open. It waits for as long as there is progress.
func (s *Site) rollBack(g *Group) (*Group, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if s.groups[g.Name()] == g {
		delete(s.groups, g.Name())
		if err := g.Close(); err != nil {
			klog.ErrorS(err, "Closing a group whose journal is discarded", "group", g.Name())
		}
		s.broken[g.dir], s.brokenNames[g.dir] = g.resync.rollingBack(), g.Name()
	}
	s.mu.Unlock()
	for {
		settled := s.reopener.settled.wait()
		s.reopener.work.send()
		s.mu.Lock()
		opened, why, closed := s.groups[g.Name()], s.broken[g.dir], s.closed
		s.mu.Unlock()
		switch {
		case opened != nil:
			return opened, nil
		case closed:
			return nil, ErrClosed
		case !errors.Is(why, errRollingBack):
			return nil, fmt.Errorf("group %s: what it becomes is decided, and goes on when this is resolved: %w", g.Name(), why)
		}
		<-settled
	}
}

// rollingBackError is errRollingBack with what the group is.
type rollingBackError struct{ meta core.Meta }

func (e *rollingBackError) Error() string {
	return errRollingBack.Error() + ": " + e.meta.RollingBack()
}

func (e *rollingBackError) Is(target error) bool { return target == errRollingBack }

func (rb *resyncBase) rollingBack() error { return &rollingBackError{rb.g.core.Meta} }

// RollingBackStatus is the status of a group that is not open because its images are being restored, from its error in
// Site.Broken; nil for other errors. The group opens by itself. Its role is the one that it had before; its volumes are
// those that it opens with.
func RollingBackStatus(err error) *Status {
	var e *rollingBackError
	if !errors.As(err, &e) {
		return nil
	}
	m := &e.meta
	s := &Status{
		Name: m.Name, GroupID: m.GroupID, Settings: m.Settings, Role: m.Role.Side(), State: core.StateConnecting,
		StateReason: m.RollingBack(), Promotable: true, Timeline: m.Timeline(), Loss: m.Loss, Yield: m.Yield, Trial: m.Trial,
		HeadOrdinal: m.Base.Ordinal, DurableOrdinal: m.Base.Ordinal, RollingBack: true,
	}
	for _, member := range m.Base.Members {
		if !member.Removed() {
			s.Volumes = append(s.Volumes, VolumeStatus{VolumeID: member.VolumeID, SizeBytes: member.SizeBytes})
		}
	}
	s.describeVolumes(m.Base.Members)
	return s
}

// restoreImages does the second step for a group that is not open.
func (s *Site) restoreImages(ctx context.Context, dir string) error {
	g := newGroup(s, dir)
	if err := g.openFiles(); err != nil {
		return err
	}
	defer g.checkpoint.close()
	m := &g.core.Meta
	if m.Copy != core.CopyRollingBack || m.Base.RollBack.Restored {
		return nil
	}
	volumes := map[uint32]*Volume{}
	g.members.list.Store(&volumes)
	defer func() {
		for _, v := range volumes {
			v.image.Close()
		}
	}()
	for _, member := range m.Base.Members {
		if member.Removed() {
			continue
		}
		path, err := g.cfg.Pool.ImagePath(member.VolumeID)
		if err != nil {
			return err
		}
		image, err := blockdev.OpenImage(g.cfg.FS, path, blockdev.Thick(member.Thick)) // as large as it ever was
		if err != nil {
			return err
		}
		volumes[member.Index] = newVolume(g, member, image)
	}
	defer g.cuts.close()
	defer g.preserved.close()
	defer g.views.close()
	if err := g.cuts.load(); err != nil {
		return err
	}
	if err := g.preserved.load(); err != nil {
		return err
	}
	// All views are of before the sync or the decision, so what they show is in the images and in their own files.
	if err := g.views.load(); err != nil {
		return err
	}
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	_, base := g.resync.current()
	if base == nil {
		return stale(g.path(core.MetaFile), "the images of set %s, which it names, are missing or damaged", m.Base.Set)
	}
	for _, v := range volumes {
		if err := base.rollBack(ctx, v.id, v.image); err != nil {
			return fmt.Errorf("group %s: %w", g.Name(), err)
		}
	}
	_, err := g.step(core.ImagesRestored{}, nil)
	return err
}

// finish does the last two steps for a group that is being opened, before its members and its journal are. It reports
// whether a trial was taken back.
func (rb *resyncBase) finish() (back bool, err error) {
	g := rb.g
	m := &g.core.Meta
	if m.Copy != core.CopyRollingBack {
		return false, nil
	}
	base := m.Base
	if !base.RollBack.Restored {
		return false, rb.rollingBack()
	}
	for _, member := range base.Members {
		if member.Removed() {
			continue
		}
		if err := rb.restoreRecord(member); err != nil {
			return false, fmt.Errorf("group %s: %w", m.Name, err)
		}
	}
	next, err := journal.NextSequence(g.cfg.FS, g.path(core.JournalDir))
	if err != nil {
		return false, fmt.Errorf("group %s: %w", m.Name, err)
	}
	g.checkpoint.horizon.Store(base.Horizon)
	err = g.checkpoint.change(func(c *checkpoint) {
		c.OldestSegment = max(c.OldestSegment, next)
		c.Applied, c.AppliedOrdinal, c.Reach = journal.Position{}, base.Ordinal, journal.Position{}
		c.DurableOrdinal, c.Mark = base.Ordinal, journal.Mark{}
		c.ReleasedAcked = base.Ordinal // whatever the journal had before is in the images alone
		c.Horizon = base.Horizon
	})
	if err != nil {
		return false, err
	}
	if _, err := g.stepLocked(core.RolledBack{Now: g.cfg.Clock()}, nil); err != nil {
		return false, err
	}
	klog.InfoS("Group rolled back", "group", m.Name, "ordinal", base.Ordinal, "role", m.Role, "timeline", m.Timeline())
	return base.RollBack.Back, nil
}

// restoreRecord makes the record of a volume say what the base does.
func (rb *resyncBase) restoreRecord(member core.Member) error {
	g := rb.g
	described, err := describe(member)
	if err != nil {
		return err
	}
	if err := g.cfg.Pool.Shrink(member.VolumeID, member.SizeBytes); err != nil {
		return err
	}
	_, err = g.cfg.Pool.Update(member.VolumeID, func(r *blockdev.VolumeRecord) error {
		r.Group, r.SizeBytes, r.Format = g.core.Meta.Name, max(r.SizeBytes, member.SizeBytes), described.Format
		r.Left, r.Remote, r.Secondary = nil, g.core.Meta.Peer, true // until the pool is aligned with the role
		if described.Order != "" {
			r.Order = described.Order
		}
		if described.Claim != nil {
			r.Claim = described.Claim
		}
		return nil
	})
	return err
}
