package replication

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
)

// Volume is a member of a group as a block device: image + journal.
type Volume struct {
	group   *Group
	index   uint32
	id      string
	image   *blockdev.Image
	overlay *overlay.Map
	size    atomic.Int64
	// attached is guarded by group.mu.
	attached bool
}

var _ blockdev.Device = (*Volume)(nil)

// ID is the volume's identifier, the same at both sites.
func (v *Volume) ID() string { return v.id }

// Size implements blockdev.Device.
func (v *Volume) Size() int64 { return v.size.Load() }

// Volumes returns the members.
func (g *Group) Volumes() []*Volume {
	var list []*Volume
	for _, v := range *g.volumes.Load() {
		list = append(list, v)
	}
	return list
}

// Volume returns the member with a volume id, or ErrNotFound.
func (g *Group) Volume(id string) (*Volume, error) {
	for _, v := range *g.volumes.Load() {
		if v.id == id {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%w: volume %s is not in group %s", ErrNotFound, id, g.Name())
}

// Attach notes that a volume is in use, so that the group keeps its role. It fails with ErrNotPrimary where the group
// takes no writes, and where another site was promoted in its place. Attaching twice is one attachment.
func (g *Group) Attach(id string) (*Volume, error) { return g.attach(id, false) }

// Reattach is Attach for a volume that was in use when an earlier process of this site died, and still is. What was
// found out since about another site does not take it away from its application.
func (g *Group) Reattach(id string) (*Volume, error) { return g.attach(id, true) }

func (g *Group) attach(id string, again bool) (*Volume, error) {
	v, err := g.Volume(id)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	switch {
	case g.failure != nil:
		return nil, g.failure
	case m.Role == core.RoleSecondary:
		return nil, fmt.Errorf("%w: group %s is secondary at %s; promote it first", ErrNotPrimary, m.Name, m.Site)
	case m.Demoted:
		return nil, fmt.Errorf("%w: group %s was demoted at %s; promote it at %s", ErrNotPrimary, m.Name, m.Site, m.Peer)
	case m.Divergence != nil && m.Divergence.Supersedes() && !v.attached && !again:
		return nil, fmt.Errorf("%w: %s", ErrNotPrimary, m.Divergence.Text)
	}
	v.attached = true
	return v, nil
}

// Detach flushes the volume and notes that it is not in use.
func (g *Group) Detach(id string) error {
	v, err := g.Volume(id)
	if err != nil {
		return err
	}
	if err := g.commit(); err != nil {
		return err
	}
	g.mu.Lock()
	v.attached = false
	g.mu.Unlock()
	return nil
}

func (g *Group) attachedVolumes() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, v := range *g.volumes.Load() {
		if v.attached {
			n++
		}
	}
	return n
}

// AddVolume makes a volume of the pool a member. If it has content, the peer needs a sync before it can be promoted
// again. Repeating it is not an error.
//
// The content is marked for the sync before the peer hears of the volume, so that no copy with an empty volume is ever
// taken for whole. A volume in use is handed over by switchTo, called when the member can take writes; what was written
// past the group until then is marked once more.
func (g *Group) AddVolume(rec *blockdev.VolumeRecord, switchTo func(*Volume) error) error {
	g.mu.Lock()
	known := g.core.Meta.Member(rec.ID)
	member, err := memberOf(rec, g.core.Meta.NextIndex())
	if known != nil {
		member = *known
	}
	g.mu.Unlock()
	if err != nil {
		return err
	}
	if known != nil && !known.Unsynced && switchTo == nil {
		return g.Resize(rec.ID, rec.SizeBytes)
	}
	if !g.writable.Load() {
		return g.notWritable() // before the volume is bound to a group that cannot take it
	}
	member.Unsynced = true
	if err := g.upsertMember(member); err != nil {
		return err
	}
	v, err := g.Volume(rec.ID)
	if err != nil {
		return err
	}
	if err := v.markContent(); err != nil {
		return err
	}
	member.Unsynced = false
	if err := g.announce(member); err != nil {
		return err
	}
	if switchTo != nil {
		if err := switchTo(v); err != nil {
			return err
		}
		if err := v.markContent(); err != nil {
			return err
		}
	}
	return g.upsertMember(member)
}

// markContent marks a whole volume for a sync, unless it is blank.
func (v *Volume) markContent() error {
	g := v.group
	hole, err := v.imageHoleUntil(0, v.size.Load())
	if err != nil || hole == v.size.Load() {
		return err
	}
	g.mapMu.Lock()
	g.pending.Mark(v.index, 0, v.size.Load())
	g.mapMu.Unlock()
	if err := g.saveChangeMap(); err != nil {
		return err
	}
	_, err = g.step(core.Folded{}, nil)
	g.shipWork.send()
	return err
}

// RemoveVolume takes a member out of the group; what is in the journal for it is applied first, so that its image is
// whole on its own. The volume must not be attached.
func (g *Group) RemoveVolume(id string) error {
	v, err := g.Volume(id)
	if errors.Is(err, ErrNotFound) {
		return g.releaseVolume(id) // a crash may have come before that
	}
	g.mu.Lock()
	attached := v.attached
	member := *g.core.Meta.Member(id)
	g.mu.Unlock()
	if attached {
		return fmt.Errorf("%w: volume %s of group %s is attached; unstage it first", ErrInUse, id, g.Name())
	}
	if err := g.commit(); err != nil {
		return err
	}
	if err := g.applyAll(g.ctx); err != nil {
		return err
	}
	member.Removed = true
	if err := g.announce(member); err != nil {
		return err
	}
	if err := g.upsertMember(member); err != nil {
		return err
	}
	return g.releaseVolume(id)
}

// releaseVolume makes the pool's record of a volume that is no member say so. A secondary's copy stays bound: it is of
// use only to the group, should the volume come back.
func (g *Group) releaseVolume(id string) error {
	rec, err := g.cfg.Pool.Get(id)
	if errors.Is(err, blockdev.ErrNoVolume) {
		return nil
	}
	if err != nil || rec.Group != g.Name() || rec.Secondary {
		return err
	}
	_, err = g.cfg.Pool.Update(id, func(r *blockdev.VolumeRecord) error {
		r.Group, r.Remote = "", ""
		return nil
	})
	return err
}

// Resize grows a member here and, in order, at the peer. Growing to less than it has is not an error and changes
// nothing.
func (g *Group) Resize(id string, sizeBytes int64) error {
	return g.changeMember(id, func(m *core.Member) bool {
		changed := sizeBytes > m.SizeBytes
		m.SizeBytes = max(m.SizeBytes, sizeBytes)
		return changed
	})
}

// RecordFormat puts a volume's format record into the group's order.
func (g *Group) RecordFormat(id string, format json.RawMessage) error {
	return g.changeMember(id, func(m *core.Member) bool {
		changed := !sameJSON(m.Format, format)
		m.Format = format
		return changed
	})
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

// changeMember changes a member durably here first, then tells the peer in order.
func (g *Group) changeMember(id string, change func(*core.Member) bool) error {
	g.mu.Lock()
	current := g.core.Meta.Member(id)
	if current == nil {
		g.mu.Unlock()
		return fmt.Errorf("%w: volume %s is not in group %s", ErrNotFound, id, g.Name())
	}
	member := *current
	g.mu.Unlock()
	if !change(&member) {
		return nil
	}
	if err := g.upsertMember(member); err != nil {
		return err
	}
	return g.announce(member)
}

// announce appends a member's description to the journal and makes it durable.
func (g *Group) announce(m core.Member) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	h := journal.Header{Kind: journal.KindVolume, Volume: m.Index, Length: uint32(len(data))}
	if _, err := g.append(nil, []journal.Entry{{Header: h, Data: data}}); err != nil {
		return err
	}
	return g.commit()
}

// upsertMember brings the pool, group.json and memory to a member's description, in this order. It is idempotent: a
// crash in between is mended by the repetition, which both ways into it (a retried call, a record sent again) bring.
func (g *Group) upsertMember(m core.Member) error {
	g.mu.Lock()
	next := core.Meta{Members: slices.Clone(g.core.Meta.Members)}
	g.mu.Unlock()
	next.Upsert(m)
	if err := g.checkMembers(next.Members); err != nil {
		return err
	}
	if !m.Removed {
		if err := g.storeMember(m); err != nil {
			return err
		}
	}
	if _, err := g.step(core.MemberChanged{Member: m}, nil); err != nil {
		return err
	}
	return g.openMember(m)
}

// checkMembers looks at a new list of members before anything is made from it.
func (g *Group) checkMembers(next []core.Member) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := core.CheckMembers(g.core.Meta.Members, next); err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrInvalid, g.core.Meta.Name, err)
	}
	return nil
}

// replaceMembers is upsertMember for a sync's whole list.
func (g *Group) replaceMembers(members []core.Member) error {
	if err := g.checkMembers(members); err != nil {
		return err
	}
	for _, m := range members {
		if !m.Removed {
			if err := g.storeMember(m); err != nil {
				return err
			}
		}
	}
	if _, err := g.step(core.MembersReplaced{Members: members}, nil); err != nil {
		return err
	}
	listed := map[uint32]bool{}
	for _, m := range members {
		listed[m.Index] = true
		if err := g.openMember(m); err != nil {
			return err
		}
	}
	for index := range *g.volumes.Load() {
		if !listed[index] {
			g.forgetVolume(index)
		}
	}
	return nil
}

// storeMember makes the pool's volume what the member says: at a secondary it is created, at both sites it grows.
func (g *Group) storeMember(m core.Member) error {
	pool := g.cfg.Pool
	g.mu.Lock()
	secondary, group, peer := g.core.Meta.Role == core.RoleSecondary, g.core.Meta.Name, g.core.Meta.Peer
	g.mu.Unlock()
	var format *blockdev.FormatRecord
	if len(m.Format) > 0 {
		format = &blockdev.FormatRecord{}
		if err := json.Unmarshal(m.Format, format); err != nil {
			return fmt.Errorf("%w: volume %s: format record: %w", ErrInvalid, m.VolumeID, err)
		}
	}
	rec, err := pool.Get(m.VolumeID)
	if errors.Is(err, blockdev.ErrNoVolume) && secondary {
		rec, err = pool.Create(blockdev.VolumeRecord{
			ID: m.VolumeID, Name: m.Name, SizeBytes: m.SizeBytes, BlockSizeBytes: m.BlockSizeBytes, Thick: m.Thick,
			Replicable: true, Order: blockdev.Order(m.Order), Group: group, Remote: peer, FSType: m.FSType, Format: format, Secondary: true,
		})
	}
	if err != nil {
		return err
	}
	if secondary && rec.Group != group {
		return fmt.Errorf("%w: volume %s of this pool belongs to group %q, not to %s; delete it or give one of them another id",
			ErrExists, m.VolumeID, rec.Group, group)
	}
	if m.SizeBytes > rec.SizeBytes {
		if _, err := pool.Grow(m.VolumeID, m.SizeBytes); err != nil {
			return err
		}
	}
	_, err = pool.Update(m.VolumeID, func(r *blockdev.VolumeRecord) error {
		r.Group, r.Remote = group, peer
		if secondary {
			r.Secondary = true
			if format != nil {
				r.Format = format
			}
		}
		return nil
	})
	return err
}

// alignPool makes the pool's records say which role the group's volumes have here. The driver stages no secondary.
func (g *Group) alignPool() error {
	secondary := g.core.Meta.Role == core.RoleSecondary
	for _, m := range g.core.Meta.Members {
		if m.Removed {
			continue
		}
		_, err := g.cfg.Pool.Update(m.VolumeID, func(r *blockdev.VolumeRecord) error {
			r.Secondary = secondary
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// openMember opens a member's image, or brings an open one to the member's size.
func (g *Group) openMember(m core.Member) error {
	if m.Removed {
		g.forgetVolume(m.Index)
		return nil
	}
	if v := g.volume(m.Index); v != nil {
		return v.grow(m.SizeBytes)
	}
	image, err := g.cfg.Pool.OpenImage(m.VolumeID)
	if err != nil {
		return fmt.Errorf("group %s: %w", g.Name(), err)
	}
	v := &Volume{group: g, index: m.Index, id: m.VolumeID, image: image, overlay: overlay.New()}
	if err := v.grow(m.SizeBytes); err != nil {
		image.Close()
		return err
	}
	next := maps.Clone(*g.volumes.Load())
	next[m.Index] = v
	g.volumes.Store(&next)
	return nil
}

func (v *Volume) grow(sizeBytes int64) error {
	if sizeBytes > v.image.Size() {
		if err := v.image.Grow(sizeBytes); err != nil {
			return fmt.Errorf("volume %s: grow image to %d bytes: %w", v.id, sizeBytes, err)
		}
	}
	if sizeBytes > v.size.Load() {
		v.size.Store(sizeBytes)
	}
	return nil
}

func (g *Group) forgetVolume(index uint32) {
	v := g.volume(index)
	if v == nil {
		return
	}
	next := maps.Clone(*g.volumes.Load())
	delete(next, index)
	g.volumes.Store(&next)
	g.mapMu.Lock()
	g.pending.Drop(index)
	g.mapMu.Unlock()
	if err := v.image.Close(); err != nil {
		klog.ErrorS(err, "Closing an image", "volume", v.id)
	}
}

func memberOf(rec *blockdev.VolumeRecord, index uint32) (core.Member, error) {
	m := core.Member{
		Index: index, VolumeID: rec.ID, Name: rec.Name, SizeBytes: rec.SizeBytes, BlockSizeBytes: rec.BlockSizeBytes,
		Thick: rec.Thick, Order: string(rec.Order), FSType: rec.FSType,
	}
	if rec.Format != nil {
		format, err := json.Marshal(rec.Format)
		if err != nil {
			return m, err
		}
		m.Format = format
	}
	return m, nil
}
