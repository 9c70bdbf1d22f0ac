package replication

import (
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// copies binds volumes of this site to a group of which it is secondary, as the primary announces its members.
type copies struct{ g *Group }

// takeAdmitted is takeMember for one that this site has room for.
func (cp *copies) takeAdmitted(m core.Member) error {
	g := cp.g
	if cp.leftBefore(m) {
		return nil
	}
	if err := g.members.checkOne(m); err != nil {
		return err
	}
	g.site.quotaMu.Lock()
	defer g.site.quotaMu.Unlock()
	if err := cp.admit([]core.Member{m}); err != nil {
		return err
	}
	return cp.take(m)
}

// replaceAdmitted begins a sync with its list of members: nothing has changed, and the copy counts as before, if it is
// one that this site does not take. base is what it was.
func (cp *copies) replaceAdmitted(members []core.Member, base *core.Base) error {
	g := cp.g
	if err := g.members.check(members); err != nil {
		return err
	}
	g.site.quotaMu.Lock()
	defer g.site.quotaMu.Unlock()
	if err := cp.admit(members); err != nil {
		return err
	}
	if _, err := g.step(core.SyncBeginReceived{Base: base}, nil); err != nil {
		return err
	}
	return cp.replace(members)
}

// take brings a secondary to a member's description as its primary announced it.
func (cp *copies) take(m core.Member) error {
	removed := m.Removed()
	m, err := cp.claim(m.Described()) // what the peer has to do about it is no business of this site
	if err != nil {
		return err
	}
	if err := cp.g.members.upsert(m); err != nil {
		return err
	}
	if removed {
		cp.deleteRemoved(m)
	}
	return nil
}

// claim makes a copy of this pool free for a member that the primary announced, and returns the member as it counts
// here.
//
// A copy belongs to the group that the volume joined last. Members and records count how often a volume joined a group
// at its primary.
//
//   - Both counts are equal: nothing has changed.
//   - The member's count is higher: the volume has left the group that the copy was bound to. The stream of that group
//     may not say so yet, or never, if the group is deleted there. The copy leaves that group here, too, and is
//     emptied: the new group copies it from the beginning.
//   - The record's count is higher: the announcement is stale, and the volume is in another group by now. The member
//     counts as removed.
//
// A volume that this site is primary of, or that another peer's is, is never taken.
func (cp *copies) claim(m core.Member) (core.Member, error) {
	g := cp.g
	rec, err := g.cfg.Pool.Get(m.VolumeID)
	if errors.Is(err, blockdev.ErrNoVolume) || m.Removed() {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	g.mu.Lock()
	name, peer := g.core.Meta.Name, g.core.Meta.Peer
	g.mu.Unlock()
	switch {
	case rec.Group == name && rec.Joins == m.Joins:
		return m, nil
	case !rec.Secondary || rec.Remote != peer:
		return m, fmt.Errorf("%w: volume %s of this pool is not a copy of %s's volume; delete it or give one of them "+
			"another id",
			ErrExists, m.VolumeID, peer)
	case rec.Joins > m.Joins:
		m.Drop()
		return m, nil
	case rec.Joins == m.Joins && rec.Group != "":
		return m, fmt.Errorf("%w: volume %s of this pool belongs to group %q, not to %s; delete it or give one of them "+
			"another id",
			ErrExists, m.VolumeID, rec.Group, name)
	}
	if rec.Group != "" {
		holder, err := g.site.Group(rec.Group)
		if err == nil && holder != g && holder.resync.has(m.VolumeID) {
			return m, fmt.Errorf("%w: volume %s is a part of what group %s at %s can be promoted as until its sync ends; "+
				"group %s gets it then", ErrInUse, m.VolumeID, rec.Group, g.cfg.Site, name)
		}
		if err == nil {
			err = holder.copies.yield(m.VolumeID, peer)
		}
		// A group that is not open may need the copy as it is: its own records come first.
		if err != nil && !errors.Is(err, ErrNotFound) {
			return m, err
		}
	}
	klog.InfoS("A copy goes on to another group, from nothing", "volume", m.VolumeID, "from", rec.Group, "to", name)
	return m, cp.emptyImage(m.VolumeID)
}

// yield takes a volume out of this group's copy because the peer says that it is in another one.
func (cp *copies) yield(volumeID, peer string) error {
	g := cp.g
	g.mu.Lock()
	var member *core.Member
	if m := g.core.Meta.Member(volumeID); m != nil {
		c := *m
		member = &c
	}
	ours := g.core.Meta.Role == core.RoleSecondary && g.core.Meta.Peer == peer
	g.mu.Unlock()
	switch {
	case !ours:
		return fmt.Errorf("%w: volume %s is in group %s here, which does not follow %s", ErrExists, volumeID, g.Name(), peer)
	case member == nil:
		return g.members.freeRecord(volumeID)
	}
	member.Drop()
	return g.members.drop(*member)
}

// removed reports whether an index belonged to a volume that has left. Records of it may still be on their way.
func (cp *copies) removed(index uint32) bool {
	g := cp.g
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.core.Meta.At(index)
	return m != nil && m.Removed()
}

// leftBefore reports whether a description is older than what this site knows: its member has left the group. The list
// of a sync's manifest is ahead of the stream, which still has the records of members that came and left meanwhile. One
// of them would bring back a member for good, whose volume may be another member by now.
func (cp *copies) leftBefore(m core.Member) bool {
	g := cp.g
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.core.Meta.At(m.Index)
	return known != nil && known.Removed() && known.VolumeID == m.VolumeID && !m.Removed()
}

// replace is takeMember for a sync's whole list.
func (cp *copies) replace(members []core.Member) error {
	g := cp.g
	if err := g.members.check(members); err != nil {
		return err
	}
	for i := range members {
		removed := members[i].Removed()
		var err error
		if members[i], err = cp.claim(members[i].Described()); err != nil {
			return err
		}
		if m := members[i]; m.Removed() && cp.isVolume(m.Index, m.VolumeID) {
			if err := g.members.drop(m); err != nil {
				return err
			}
		}
		if removed {
			cp.deleteRemoved(members[i])
		}
	}
	if err := cp.dropUnlisted(members); err != nil {
		return err
	}
	g.members.mu.Lock()
	defer g.members.mu.Unlock()
	for i, m := range members {
		if v := g.members.at(m.Index); v != nil && !m.Removed() && v.size.Load() > m.SizeBytes {
			if err := cp.shrink(v, m); err != nil {
				return err
			}
		}
		if !m.Removed() {
			if err := g.members.store(&members[i]); err != nil {
				return err
			}
		}
	}
	if _, err := g.step(core.MembersReplaced{Members: members}, nil); err != nil {
		return err
	}
	for _, m := range members {
		if err := g.members.open(m); err != nil {
			return err
		}
	}
	return nil
}

// isVolume reports whether a volume is the member with an index.
func (cp *copies) isVolume(index uint32, id string) bool {
	v := cp.g.members.at(index)
	return v != nil && v.id == id
}

// dropUnlisted takes out the members that the primary does not know: its disk was put back to before they joined, or
// they joined at this site past a fork, before it gave way. Their indices can be given to other volumes, so their
// records are applied, and leave the journal soon.
func (cp *copies) dropUnlisted(members []core.Member) error {
	g := cp.g
	listed := map[uint32]string{}
	for _, m := range members {
		listed[m.Index] = m.VolumeID
	}
	dropped := false
	for index, v := range *g.members.list.Load() {
		if listed[index] == v.id {
			continue
		}
		g.mu.Lock()
		m := *g.core.Meta.At(index)
		g.mu.Unlock()
		m.Drop()
		if err := g.members.drop(m); err != nil {
			return err
		}
		if g.yields.undoes() != nil {
			if err := cp.disown(m.VolumeID); err != nil {
				return err
			}
		}
		dropped = true
	}
	if !dropped {
		return nil
	}
	defer g.trimmer.work.send()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rollJournal()
}

// disown makes a volume of this site, which the peer never heard of, one without a group again.
func (cp *copies) disown(volumeID string) error {
	_, err := cp.g.cfg.Pool.Update(volumeID, func(r *blockdev.VolumeRecord) error {
		r.Secondary, r.Remote = false, ""
		return nil
	})
	klog.InfoS("A volume that joined the group past the fork is in no group any more", "group", cp.g.Name(),
		"volume", volumeID)
	return err
}

// shrink makes a copy smaller, because its primary's disk was put back to before the volume grew. What is past
// the new end becomes zeros, as it will be at the primary when the volume grows again. The image file keeps its length.
// The caller holds members.mu.
func (cp *copies) shrink(v *Volume, m core.Member) error {
	g := cp.g
	if err := g.log.commit(); err != nil {
		return err
	}
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	if err := g.applier.applyLocked(g.ctx); err != nil {
		return err
	}
	for end := v.size.Load(); end > m.SizeBytes; {
		n := min(end-m.SizeBytes, maxRangeBytes)
		end -= n
		touched := changemap.New()
		touched.Mark(v.index, end, n)
		if err := g.applier.beforeChange(touched, nil); err != nil {
			return fmt.Errorf("volume %s: shrink to %s: %w", v.id, words.Count(m.SizeBytes, "byte"), err)
		}
		if err := v.image.Discard(end, n); err != nil {
			return fmt.Errorf("volume %s: shrink to %s: %w", v.id, words.Count(m.SizeBytes, "byte"), err)
		}
	}
	if err := v.image.Flush(); err != nil {
		return err
	}
	if err := g.cuts.logMarks(); err != nil {
		return err
	}
	v.size.Store(m.SizeBytes)
	return g.cfg.Pool.Shrink(m.VolumeID, m.SizeBytes)
}

// freeStrays frees volumes whose record names a group of which they are no member: one that a crash kept from
// joining, or from being released after it had left. group.json decides.
func (s *Site) freeStrays() error {
	recs, err := s.cfg.Pool.List()
	if err != nil {
		klog.ErrorS(err, "Some volume records cannot be read", "pool", s.cfg.Pool.Dir())
	}
	var errs []error
	for _, rec := range recs {
		if g := s.groups[rec.Group]; g != nil {
			if err := g.members.freeRecord(rec.ID); err != nil {
				errs = append(errs, fmt.Errorf("volume %s: %w", rec.ID, err))
			}
		}
	}
	return errors.Join(errs...)
}
