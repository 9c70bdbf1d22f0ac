package replication

import (
	"errors"
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// takeAdmitted is takeMember for one that this site has room for.
func (g *Group) takeAdmitted(m core.Member) error {
	if g.leftBefore(m) {
		return nil
	}
	if err := g.checkMember(m); err != nil {
		return err
	}
	g.site.quotaMu.Lock()
	defer g.site.quotaMu.Unlock()
	if err := g.admit([]core.Member{m}); err != nil {
		return err
	}
	return g.takeMember(m)
}

// replaceAdmitted begins a sync with its list of members: nothing has changed, and the copy counts as before, if it is
// one that this site does not take. base is what it was.
func (g *Group) replaceAdmitted(members []core.Member, base *core.Base) error {
	if err := g.checkMembers(members); err != nil {
		return err
	}
	g.site.quotaMu.Lock()
	defer g.site.quotaMu.Unlock()
	if err := g.admit(members); err != nil {
		return err
	}
	if _, err := g.step(core.SyncBeginReceived{Base: base}, nil); err != nil {
		return err
	}
	return g.replaceMembers(members)
}

// takeMember brings a secondary to a member's description as its primary announced it.
func (g *Group) takeMember(m core.Member) error {
	removed := m.Removed()
	m, err := g.claim(m.Described()) // what the peer has to do about it is no business of this site
	if err != nil {
		return err
	}
	if err := g.upsertMember(m); err != nil {
		return err
	}
	if removed {
		g.deleteRemoved(m)
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
func (g *Group) claim(m core.Member) (core.Member, error) {
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
			err = holder.yield(m.VolumeID, peer)
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return m, err
		}
	}
	klog.InfoS("A copy goes on to another group, from nothing", "volume", m.VolumeID, "from", rec.Group, "to", name)
	return m, g.emptyImage(m.VolumeID)
}

// yield takes a volume out of this group's copy because the peer says that it is in another one.
func (g *Group) yield(volumeID, peer string) error {
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
		return g.releaseVolume(volumeID)
	}
	member.Drop()
	return g.dropMember(*member)
}

// removedMember reports whether an index belonged to a volume that has left. Records of it may still be on their way.
func (g *Group) removedMember(index uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.core.Meta.At(index)
	return m != nil && m.Removed()
}

// leftBefore reports whether a description is older than what this site knows: its member has left the group. The list
// of a sync's manifest is ahead of the stream, which still has the records of members that came and left meanwhile. One
// of them would bring back a member for good, whose volume may be another member by now.
func (g *Group) leftBefore(m core.Member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.core.Meta.At(m.Index)
	return known != nil && known.Removed() && known.VolumeID == m.VolumeID && !m.Removed()
}

// replaceMembers is takeMember for a sync's whole list.
func (g *Group) replaceMembers(members []core.Member) error {
	if err := g.checkMembers(members); err != nil {
		return err
	}
	for i := range members {
		removed := members[i].Removed()
		var err error
		if members[i], err = g.claim(members[i].Described()); err != nil {
			return err
		}
		if m := members[i]; m.Removed() && g.isVolume(m.Index, m.VolumeID) {
			if err := g.dropMember(m); err != nil {
				return err
			}
		}
		if removed {
			g.deleteRemoved(members[i])
		}
	}
	if err := g.dropUnlisted(members); err != nil {
		return err
	}
	g.membersMu.Lock()
	defer g.membersMu.Unlock()
	for i, m := range members {
		if v := g.volume(m.Index); v != nil && !m.Removed() && v.size.Load() > m.SizeBytes {
			if err := g.shrinkMember(v, m); err != nil {
				return err
			}
		}
		if !m.Removed() {
			if err := g.storeMember(&members[i]); err != nil {
				return err
			}
		}
	}
	if _, err := g.step(core.MembersReplaced{Members: members}, nil); err != nil {
		return err
	}
	for _, m := range members {
		if err := g.openMember(m); err != nil {
			return err
		}
	}
	return nil
}

// isVolume reports whether a volume is the member with an index.
func (g *Group) isVolume(index uint32, id string) bool {
	v := g.volume(index)
	return v != nil && v.id == id
}

// dropUnlisted takes out the members that the primary does not know: its disk was put back to before they joined, or
// they joined at this site past a fork, before it gave way. Their indices can be given to other volumes, so their
// records are applied, and leave the journal soon.
func (g *Group) dropUnlisted(members []core.Member) error {
	listed := map[uint32]string{}
	for _, m := range members {
		listed[m.Index] = m.VolumeID
	}
	dropped := false
	for index, v := range *g.volumes.Load() {
		if listed[index] == v.id {
			continue
		}
		g.mu.Lock()
		m := *g.core.Meta.At(index)
		g.mu.Unlock()
		m.Drop()
		if err := g.dropMember(m); err != nil {
			return err
		}
		if g.yields.undoes() != nil {
			if err := g.disown(m.VolumeID); err != nil {
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
func (g *Group) disown(volumeID string) error {
	_, err := g.cfg.Pool.Update(volumeID, func(r *blockdev.VolumeRecord) error {
		r.Secondary, r.Remote = false, ""
		return nil
	})
	klog.InfoS("A volume that joined the group past the fork is in no group any more", "group", g.Name(),
		"volume", volumeID)
	return err
}

// shrinkMember makes a copy smaller, because its primary's disk was put back to before the volume grew. What is past
// the new end becomes zeros, as it will be at the primary when the volume grows again. The image file keeps its length.
// The caller holds membersMu.
func (g *Group) shrinkMember(v *Volume, m core.Member) error {
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
		hole := journal.Record{Header: journal.Header{Kind: journal.KindHole, Volume: v.index, Offset: end,
			Length: uint32(n)}}
		if err := g.applier.beforeApply([]journal.Record{hole}); err != nil {
			return fmt.Errorf("volume %s: shrink to %d bytes: %w", v.id, m.SizeBytes, err)
		}
		if err := v.image.Discard(end, n); err != nil {
			return fmt.Errorf("volume %s: shrink to %d bytes: %w", v.id, m.SizeBytes, err)
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

// storeMember makes the pool's volume what the member says: at a secondary it is created, at both sites it grows. The
// member gets the identity of its image.
func (g *Group) storeMember(m *core.Member) error {
	pool := g.cfg.Pool
	g.mu.Lock()
	secondary, group, peer := g.core.Meta.Role == core.RoleSecondary, g.core.Meta.Name, g.core.Meta.Peer
	g.mu.Unlock()
	described, err := describe(*m)
	if err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrInvalid, group, err)
	}
	format, claim := described.Format, described.Claim
	rec, err := pool.Get(m.VolumeID)
	if errors.Is(err, blockdev.ErrNoVolume) && secondary {
		described.Group, described.Remote, described.Secondary, described.Claim = group, peer, true, nil
		rec, err = pool.Create(*described)
	}
	if err != nil {
		return err
	}
	if m.SizeBytes > rec.SizeBytes {
		if _, err := pool.Grow(m.VolumeID, m.SizeBytes); err != nil {
			return err
		}
	}
	_, err = pool.Update(m.VolumeID, func(r *blockdev.VolumeRecord) error {
		r.Group, r.Left = group, nil
		r.Secondary, r.Remote = g.roleForPool()
		r.Joins = max(r.Joins, m.Joins)
		if secondary {
			if format != nil || m.Joins > rec.Joins {
				r.Format = format
			}
			if m.Order != "" {
				r.Order = blockdev.Order(m.Order)
			}
			if claim != nil {
				r.Claim = claim
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.Image, _, err = g.imageIdentity(m.VolumeID)
	return err
}

// roleForPool is what the records of the group's volumes say of its role and peer. It must be called with the records
// locked: then the last writer writes the newest role, whatever changes the role meanwhile. So the pool's lock comes
// before mu.
func (g *Group) roleForPool() (secondary bool, peer string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Role == core.RoleSecondary, g.core.Meta.Peer
}

// alignPool makes the pool's records say which role the group's volumes have here, and which peer. The driver stages no
// secondary. It is called after each change of the role or the peer, without holding mu.
func (g *Group) alignPool() error {
	g.mu.Lock()
	members, name := slices.Clone(g.core.Meta.Members), g.core.Meta.Name
	g.mu.Unlock()
	for _, m := range members {
		if m.Removed() {
			continue
		}
		_, err := g.cfg.Pool.Update(m.VolumeID, func(r *blockdev.VolumeRecord) error {
			if r.Group == name { // else it has left meanwhile
				r.Secondary, r.Remote = g.roleForPool()
				r.Unwanted = r.Unwanted && !g.writable.Load()
			}
			return nil
		})
		if errors.Is(err, blockdev.ErrNoVolume) && g.removedMember(m.Index) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// releaseStrays frees volumes whose record names a group of which they are no member: one that a crash kept from
// joining, or from being released after it had left. group.json decides.
func (s *Site) releaseStrays() error {
	recs, err := s.cfg.Pool.List()
	if err != nil {
		klog.ErrorS(err, "Some volume records cannot be read", "pool", s.cfg.Pool.Dir())
	}
	var errs []error
	for _, rec := range recs {
		if g := s.groups[rec.Group]; g != nil {
			if err := g.releaseVolume(rec.ID); err != nil {
				errs = append(errs, fmt.Errorf("volume %s: %w", rec.ID, err))
			}
		}
	}
	return errors.Join(errs...)
}
