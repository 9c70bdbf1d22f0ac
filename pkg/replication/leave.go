package replication

import (
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	// leaveBacklogBytes is how little may be unapplied in the group when the writers of a leaving volume are stopped: what
	// the last pass applies while they wait.
	leaveBacklogBytes = 4 << 20
	// leavePasses bounds the passes before that, for a group that is written to faster than it applies.
	leavePasses = 8
)

// RemoveVolume takes a member out of the group and leaves its image whole on its own. Repeating it is not an error.
//
// A volume in use needs exclusive, which stops its I/O, calls leave, and lets the I/O go on: to the image if leave
// returned nil, else to the group. It is nil for a volume that must not be in use (ErrInUse). While I/O is stopped
// little is done: most of the journal is applied before.
//
// What decides is group.json, where the member is marked as removed: a crash before that leaves a member, one behind it
// a volume without a group, which the next open completes.
func (g *Group) RemoveVolume(id string, exclusive func(leave func() error) error) error {
	return g.members.remove(id, exclusive)
}

// remove is Group.RemoveVolume.
func (ms *members) remove(id string, exclusive func(leave func() error) error) error {
	g := ms.g
	v, err := ms.find(id)
	if errors.Is(err, ErrNotFound) {
		return ms.freeRecord(id) // a crash may have come before that
	}
	g.mu.Lock()
	attached := v.attached
	g.mu.Unlock()
	if attached && exclusive == nil {
		return fmt.Errorf("%w: volume %s of group %s is attached; unstage it first", ErrInUse, id, g.Name())
	}
	if err := g.trials.decided(); err != nil {
		return err
	}
	if err := g.CheckWritable(); err != nil {
		return err
	}
	if exclusive == nil {
		exclusive = func(leave func() error) error { return leave() }
	}
	for range leavePasses {
		if err := g.log.commit(); err != nil {
			return err
		}
		if err := g.applier.applyPatiently(g.ctx); err != nil {
			return err
		}
		if ms.unappliedBytes() <= leaveBacklogBytes {
			break
		}
	}
	if err := exclusive(func() error { return ms.takeOut(v) }); err != nil {
		return err
	}
	ms.markAnnounced()
	return ms.freeRecord(id)
}

// unappliedBytes is what the journal has and the images have not.
func (ms *members) unappliedBytes() (n int64) {
	for _, v := range *ms.list.Load() {
		n += v.overlay.Bytes()
	}
	return n
}

// takeOut takes a volume out of the group. Nothing may write to it meanwhile. After an error it is still a member.
func (ms *members) takeOut(v *Volume) error {
	g := ms.g
	if err := g.log.commit(); err != nil {
		return err
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	// Outside of the group nothing keeps what a snapshot has still to copy.
	if copies := g.cuts.copiesOf(v.id); len(copies) > 0 {
		return fmt.Errorf("%w: volume %s of group %s is being copied to snapshot %s; wait until that is complete, or "+
			"delete the snapshot",
			ErrInUse, v.id, g.Name(), copies[0])
	}
	if view := g.views.showing(v.id); view != nil {
		return fmt.Errorf("%w: volume %s of group %s is shown by view %s; delete the view (slipctl view delete)", ErrInUse,
			v.id, g.Name(), view.rec.Name)
	}
	if err := g.applier.applyLocked(g.ctx); err != nil {
		return err
	}
	if n := v.overlay.Bytes(); n > 0 {
		return fmt.Errorf("group %s: volume %s was written to while it left: %s missing in its image; try again",
			g.Name(), v.id, words.Count(n, "byte"))
	}
	g.mu.Lock()
	member := *g.core.Meta.At(v.index)
	g.mu.Unlock()
	if err := member.Leave(); err != nil {
		return err
	}
	if err := g.preserved.lose(v.id, errMemberGone); err != nil {
		return err
	}
	if _, err := g.step(core.MemberChanged{Member: member}, nil); err != nil {
		return err
	}
	ms.forget(v.index)
	// The peer hears of it before anything that is written after the volume's first write past the group: at the latest
	// with the next record, should the journal have no room now.
	if err := ms.announceLater(member); err != nil && !errors.Is(err, journal.ErrFull) {
		klog.ErrorS(err, "The removal of a volume is not in the journal yet; it comes with the next write", "group", g.Name(),
			"volume", v.id)
	}
	klog.InfoS("Volume left its group", "group", g.Name(), "volume", v.id)
	return nil
}

// memberRecord is a member's description for the journal.
func memberRecord(m core.Member) (journal.Entry, error) {
	data, err := json.Marshal(m.Described())
	return journal.Entry{Header: journal.Header{Kind: journal.KindVolume, Volume: m.Index, Length: uint32(len(data))},
		Data: data}, err
}

// announce appends a member's description to the journal and makes it durable.
func (ms *members) announce(m core.Member) error {
	entry, err := memberRecord(m)
	if err != nil {
		return err
	}
	if _, err := ms.g.log.append(nil, []journal.Entry{entry}); err != nil {
		return err
	}
	return ms.g.log.commit()
}

// announceLater is announce for a caller who must not wait for room: the record comes before every record that
// is appended from now on, but may not be in the journal yet.
func (ms *members) announceLater(m core.Member) error {
	g := ms.g
	entry, err := memberRecord(m)
	if err != nil {
		return err
	}
	entry.Header.UnixNanos = g.cfg.Now().UnixNano()
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	g.log.queued = append(g.log.queued, entry)
	if err := g.CheckWritable(); err != nil {
		return err
	}
	return g.log.appendQueued()
}

// markAnnounced notes which members' descriptions are in the journal. What it cannot note now is announced once more at
// the next open, which does no harm.
func (ms *members) markAnnounced() {
	g := ms.g
	if err := g.log.commit(); err != nil {
		return
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	g.log.mu.Lock()
	queued := len(g.log.queued)
	g.log.mu.Unlock()
	if queued > 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := ms.markAnnouncedLocked(func(m *core.Member) bool { return m.Removed() }); err != nil {
		klog.ErrorS(err, "The removal of a volume could not be noted as announced", "group", g.core.Meta.Name)
	}
}

// markAnnouncedLocked settles the members that which picks. The caller holds mu.
func (ms *members) markAnnouncedLocked(which func(*core.Member) bool) error {
	for _, m := range ms.g.core.Meta.Members {
		if m.State.Settled() || !which(&m) {
			continue
		}
		m.Settle()
		if _, err := ms.g.stepLocked(core.MemberChanged{Member: m}, nil); err != nil {
			return err
		}
	}
	return nil
}

// resume goes on with what a crash interrupted: members whose content is not marked for the peer yet, and
// descriptions that may not be in the journal. The group is not in use yet.
func (ms *members) resume() error {
	g := ms.g
	writable := g.core.Writable()
	for _, m := range g.core.Meta.Members {
		if m.State.Adding() {
			if err := ms.at(m.Index).markContent(); err != nil {
				return err
			}
		}
		if !writable || m.State.Settled() {
			continue
		}
		entry, err := memberRecord(m)
		if err != nil {
			return err
		}
		entry.Header.UnixNanos = g.cfg.Now().UnixNano()
		g.log.queued = append(g.log.queued, entry)
	}
	if len(g.log.queued) == 0 {
		return nil
	}
	err := g.log.appendQueued()
	if errors.Is(err, journal.ErrFull) || vfs.NoSpace(err) {
		return nil // with the next record; the marks stay
	}
	if err == nil {
		err = g.journal.Sync()
	}
	if err == nil {
		err = ms.markAnnouncedLocked(func(*core.Member) bool { return true })
	}
	return err
}

// errMemberGone ends copies of a volume that the primary took out of the group: what changes its image from then on,
// another group perhaps, does not know of them, and the primary is not kept waiting for them.
var errMemberGone = errors.New("its volume was taken out of the group while it was copied; delete it")

// drop takes a member out because its primary did. What is here of it goes into its image first, so that the copy
// which is released is what the volume was when it left.
func (ms *members) drop(m core.Member) error {
	g := ms.g
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if v := ms.at(m.Index); v != nil {
		if err := g.log.commit(); err != nil {
			return err
		}
		g.applier.mu.Lock()
		defer g.applier.mu.Unlock()
		if err := g.applier.applyLocked(g.ctx); err != nil {
			return err
		}
		if err := g.cuts.failCopies(m.VolumeID, errMemberGone); err != nil {
			return err
		}
		if err := g.preserved.lose(m.VolumeID, errMemberGone); err != nil {
			return err
		}
		if err := g.views.failAll(m.VolumeID, errViewMember); err != nil {
			return err
		}
	}
	if err := ms.checkOne(m); err != nil {
		return err
	}
	if _, err := g.step(core.MemberChanged{Member: m}, nil); err != nil {
		return err
	}
	ms.forget(m.Index)
	return ms.freeRecord(m.VolumeID)
}

// freeRecord makes the pool's record of a volume that is no member say so, unless the volume is a part of what the
// copy was before the sync that runs. A copy stays a copy, of no group: the
// same peer may put it into another one (see claim).
func (ms *members) freeRecord(id string) error {
	g := ms.g
	g.mu.Lock()
	live, name := g.core.Meta.Member(id) != nil || g.core.Meta.Base.Has(id), g.core.Meta.Name
	g.mu.Unlock()
	rec, err := g.cfg.Pool.Get(id)
	if errors.Is(err, blockdev.ErrNoVolume) {
		return nil
	}
	if err != nil || live || rec.Group != name {
		return err
	}
	_, err = g.cfg.Pool.Update(id, func(r *blockdev.VolumeRecord) error {
		if r.Group != name {
			return nil
		}
		if r.Secondary {
			r.Left = &blockdev.LeftRecord{Peer: r.Remote, Group: name, UnixNanos: g.cfg.Now().UnixNano()}
		} else {
			r.Remote = ""
		}
		r.Group = ""
		return nil
	})
	return err
}
