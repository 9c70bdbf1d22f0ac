package replication

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
)

// members are the volumes of a group: the list in group.json, the records of the pool and the open images together.
type members struct {
	g *Group
	// mu keeps changes apart. It is held over what these take, never by the data path.
	mu sync.Mutex
	// list has the open members by their indices. It is replaced, never changed, so that data paths read it without a
	// lock.
	list atomic.Pointer[map[uint32]*Volume]
}

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

func newVolume(g *Group, m core.Member, image *blockdev.Image) *Volume {
	return &Volume{group: g, index: m.Index, id: m.VolumeID, image: image, overlay: overlay.New()}
}

// ID is the volume's identifier, the same at both sites.
func (v *Volume) ID() string { return v.id }

// Size implements blockdev.Device.
func (v *Volume) Size() int64 { return v.size.Load() }

// Volumes returns the members.
func (g *Group) Volumes() []*Volume { return g.members.all() }

// all is Group.Volumes.
func (ms *members) all() []*Volume {
	var list []*Volume
	for _, v := range *ms.list.Load() {
		list = append(list, v)
	}
	return list
}

// Volume returns the member with a volume id, or ErrNotFound.
func (g *Group) Volume(id string) (*Volume, error) { return g.members.find(id) }

// find is Group.Volume.
func (ms *members) find(id string) (*Volume, error) {
	for _, v := range *ms.list.Load() {
		if v.id == id {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%w: volume %s is not in group %s", ErrNotFound, id, ms.g.Name())
}

// touched is what records change in the images of members.
func (ms *members) touched(records []journal.Record) *changemap.Map {
	m := changemap.New()
	for i := range records {
		if h := &records[i].Header; touchesImage(h) && ms.at(h.Volume) != nil {
			m.Mark(h.Volume, h.Offset, int64(h.Length))
		}
	}
	return m
}

// Attach notes that a volume is in use, so that the group keeps its role. It fails with ErrNotPrimary where the group
// takes no writes, and where another site was promoted in its place. Attaching twice is one attachment.
func (g *Group) Attach(id string) (*Volume, error) { return g.members.attach(id, false) }

// Reattach is Attach for a volume that was in use when an earlier process of this site died, and still is. What was
// found out since about another site does not take it away from its application.
func (g *Group) Reattach(id string) (*Volume, error) { return g.members.attach(id, true) }

func (ms *members) attach(id string, again bool) (*Volume, error) {
	g := ms.g
	v, err := ms.find(id)
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
		return nil, fmt.Errorf("%w: group %s is secondary at %s; use it at its primary, or move it here: %s", ErrNotPrimary,
			m.Name, m.Site, core.Command{Site: m.Peer, Verb: core.CommandRelocate, Name: m.Name})
	case m.Role == core.RoleDemoted:
		return nil, fmt.Errorf("%w: group %s was demoted at %s; go on with %s", ErrNotPrimary, m.Name, m.Site,
			core.Command{Site: m.Peer, Verb: core.CommandPromote, Name: m.Name})
	case m.Closed():
		return nil, fmt.Errorf("%w: group %s takes no writes at %s, because %s is being demoted as a whole; go on with %s, "+
			"or take it back with %s", ErrNotPrimary, m.Name, m.Site, m.Shard.Group,
			core.Command{Site: m.Site, Verb: core.CommandDemote, Name: m.Name},
			core.Command{Site: m.Site, Verb: core.CommandPromote, Name: m.Name})
	case g.verification.blocksAttach():
		return nil, fmt.Errorf("%w: extents of group %s are being replaced by those of %s; wait until that ends (slipctl "+
			"group status %s)", core.ErrPrecondition, m.Name, m.Peer, m.Name)
	case m.Divergence != nil && m.Divergence.Supersedes() && !v.attached && !again:
		return nil, fmt.Errorf("%w: %s", ErrNotPrimary, m.Divergence.Text)
	}
	v.attached = true
	return v, nil
}

// Detach flushes the volume and notes that it is not in use.
func (g *Group) Detach(id string) error { return g.members.detach(id) }

// detach is Group.Detach.
func (ms *members) detach(id string) error {
	g := ms.g
	v, err := ms.find(id)
	if err != nil {
		return err
	}
	if err := g.log.commit(); err != nil {
		return err
	}
	g.mu.Lock()
	v.attached = false
	g.mu.Unlock()
	return nil
}

// attached returns the volumes that are in use.
func (ms *members) attached() []string {
	ms.g.mu.Lock()
	defer ms.g.mu.Unlock()
	var list []string
	for _, v := range *ms.list.Load() {
		if v.attached {
			list = append(list, v.id)
		}
	}
	slices.Sort(list)
	return list
}

// AddVolume makes a volume of the pool a member. If it has content, the peer needs a sync before it can be promoted
// again. Repeating it is not an error.
//
// The content is marked for the sync before the peer hears of the volume, so that no copy with an empty volume is ever
// taken for whole. A volume in use is handed over by switchTo, called when the member can take writes; what was written
// past the group until then is marked once more. Until that is done the group is in a sync that does not end: a write
// behind the exchange would else reach a copy that may be promoted and lacks the ones before it. An error leaves the
// sync like that until the addition is repeated or the volume removed; a restart of the site completes it, because the
// volume is then served through the group.
func (g *Group) AddVolume(rec *blockdev.VolumeRecord, switchTo func(*Volume) error) error {
	return g.members.add(rec, switchTo)
}

// add is Group.AddVolume.
func (ms *members) add(rec *blockdev.VolumeRecord, switchTo func(*Volume) error) error {
	g := ms.g
	if err := g.trials.decided(); err != nil {
		return err
	}
	if err := g.shard.left(); err != nil {
		return err
	}
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
	if known != nil && !known.State.Adding() && switchTo == nil {
		return ms.resize(rec.ID, rec.SizeBytes)
	}
	if err := g.CheckWritable(); err != nil {
		return err // before the volume is bound to a group that cannot take it
	}
	if err := member.Add(); err != nil {
		return err
	}
	if err := ms.upsert(member); err != nil {
		return err
	}
	v, err := ms.find(rec.ID)
	if err != nil {
		return err
	}
	if err := v.markContent(); err != nil {
		return err
	}
	if switchTo != nil { // before the peer hears of it
		if err := member.Join(); err != nil {
			return err
		}
		if _, err := g.step(core.MemberChanged{Member: member}, nil); err != nil {
			return err
		}
	}
	if err := ms.announce(member); err != nil {
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
	member.Settle()
	if err := ms.upsert(member); err != nil {
		return err
	}
	g.shipper.work.send()
	return nil
}

// joins reports whether a volume in use is being added, also where that failed half way.
func (ms *members) joins() bool {
	g := ms.g
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.core.Meta.Members, func(m core.Member) bool { return m.State == core.MemberJoining })
}

// needsSync reports whether there is something to sync, or will be: while a volume in use joins.
func (ms *members) needsSync() bool {
	// joins first: what an addition marks at its end is in the change set by the time that the volume does not join any
	// more.
	return ms.joins() || ms.g.changes.needsSync()
}

// awaitsJoining reports whether a volume that joins is all that keeps a sync from ending.
func (ms *members) awaitsJoining() bool { return ms.joins() && !ms.g.changes.needsSync() }

// markContent marks a whole volume for a sync, unless it is blank.
func (v *Volume) markContent() error {
	g := v.group
	hole, err := v.imageHoleUntil(0, v.size.Load())
	if err != nil || hole == v.size.Load() {
		return err
	}
	g.changes.mark(v.index, 0, v.size.Load())
	if err := g.shipper.saveChangeMap(); err != nil {
		return err
	}
	_, err = g.step(core.Folded{}, nil)
	g.shipper.work.send()
	return err
}

// Resize grows a member here and, in order, at the peer. Growing to less than it has is not an error and changes
// nothing.
func (g *Group) Resize(id string, sizeBytes int64) error { return g.members.resize(id, sizeBytes) }

// resize is Group.Resize.
func (ms *members) resize(id string, sizeBytes int64) error {
	if err := ms.g.trials.decided(); err != nil {
		return err
	}
	return ms.change(id, func(m *core.Member) bool {
		changed := sizeBytes > m.SizeBytes
		m.SizeBytes = max(m.SizeBytes, sizeBytes)
		return changed
	})
}

// RecordFormat puts a volume's format record into the group's order.
func (g *Group) RecordFormat(id string, format json.RawMessage) error {
	return g.members.recordFormat(id, format)
}

// recordFormat is Group.RecordFormat.
func (ms *members) recordFormat(id string, format json.RawMessage) error {
	return ms.change(id, func(m *core.Member) bool {
		changed := !sameJSON(m.Format, format)
		m.Format = format
		return changed
	})
}

// SetOrder puts another order of a member into its record and, in order, into that of its copy. The member must not
// be attached.
func (g *Group) SetOrder(id string, order blockdev.Order) error { return g.members.setOrder(id, order) }

// setOrder is Group.SetOrder.
func (ms *members) setOrder(id string, order blockdev.Order) error {
	return ms.change(id, func(m *core.Member) bool {
		changed := m.Order != string(order)
		m.Order = string(order)
		return changed
	})
}

// SetClaim puts what is known of a member's claim into its record and, in order, into that of its copy.
func (g *Group) SetClaim(id string, claim *blockdev.ClaimRecord) error {
	return g.members.setClaim(id, claim)
}

// setClaim is Group.SetClaim.
func (ms *members) setClaim(id string, claim *blockdev.ClaimRecord) error {
	text, err := json.Marshal(claim)
	if err != nil {
		return err
	}
	if len(text) > maxMemberJSONBytes {
		return fmt.Errorf("%w: volume %s: what is known of its claim has %s, the limit is %d", ErrInvalid, id,
			words.Count(len(text), "byte"), maxMemberJSONBytes)
	}
	if err := ms.g.CheckWritable(); err != nil {
		return err
	}
	return ms.change(id, func(m *core.Member) bool {
		changed := !sameJSON(m.Claim, text)
		m.Claim = text
		return changed
	})
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

// change changes a member durably here first, then tells the peer in order.
func (ms *members) change(id string, change func(*core.Member) bool) error {
	g := ms.g
	g.mu.Lock()
	current := g.core.Meta.Member(id)
	if current == nil {
		g.mu.Unlock()
		return fmt.Errorf("%w: volume %s is not in group %s", ErrNotFound, id, g.Name())
	}
	member := *current
	g.mu.Unlock()
	if !change(&member) && member.State != core.MemberUnannounced {
		return nil
	}
	// Until the peer is told, a repetition or the next open tells it.
	if err := member.Change(); err != nil {
		return err
	}
	if err := ms.upsert(member); err != nil {
		return err
	}
	if member.State == core.MemberAdding {
		return nil // the addition tells the peer, after it has marked the content
	}
	if err := ms.announce(member); err != nil {
		return err
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	return ms.markAnnouncedLocked(func(m *core.Member) bool {
		return m.Index == member.Index &&
			m.State == core.MemberUnannounced
	})
}

// upsert brings the pool, group.json and memory to a member's description, in this order. It is idempotent: a
// crash in between is mended by the repetition, which both ways into it (a retried call, a record sent again) bring.
func (ms *members) upsert(m core.Member) error {
	if m.Removed() {
		return ms.drop(m)
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if err := ms.checkOne(m); err != nil {
		return err
	}
	if err := ms.store(&m); err != nil {
		return err
	}
	if _, err := ms.g.step(core.MemberChanged{Member: m}, nil); err != nil {
		return err
	}
	return ms.open(m)
}

func (ms *members) checkOne(m core.Member) error {
	g := ms.g
	g.mu.Lock()
	next := core.Meta{Members: slices.Clone(g.core.Meta.Members)}
	g.mu.Unlock()
	next.Upsert(m)
	return ms.check(next.Members)
}

// check looks at a new list of members before anything is made from it.
func (ms *members) check(next []core.Member) error {
	g := ms.g
	g.mu.Lock()
	defer g.mu.Unlock()
	err := checkDescriptions(next) // first: what the other check says of them can be shown then
	if err == nil {
		err = core.CheckMembers(g.core.Meta.Bound(next), next)
	}
	if err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrInvalid, g.core.Meta.Name, err)
	}
	return nil
}

// open opens a member's image, or brings an open one to the member's size. One that was removed has none.
func (ms *members) open(m core.Member) error {
	g := ms.g
	if m.Removed() {
		return nil
	}
	if v := ms.at(m.Index); v != nil {
		return v.grow(m.SizeBytes)
	}
	image, err := g.cfg.Pool.OpenImage(m.VolumeID)
	if err != nil {
		return fmt.Errorf("group %s: %w", g.Name(), err)
	}
	v := newVolume(g, m, image)
	if err := v.grow(m.SizeBytes); err != nil {
		image.Close()
		return err
	}
	next := maps.Clone(*ms.list.Load())
	next[m.Index] = v
	ms.list.Store(&next)
	return nil
}

func (v *Volume) grow(sizeBytes int64) error {
	if sizeBytes > v.image.Size() {
		if err := v.image.Grow(sizeBytes); err != nil {
			return fmt.Errorf("volume %s: grow image to %s: %w", v.id, words.Count(sizeBytes, "byte"), err)
		}
	}
	if sizeBytes > v.size.Load() {
		v.size.Store(sizeBytes)
	}
	return nil
}

// forget closes a member's image. The caller holds members.mu, and applier.mu unless nothing is applied yet.
func (ms *members) forget(index uint32) {
	v := ms.at(index)
	if v == nil {
		return
	}
	next := maps.Clone(*ms.list.Load())
	delete(next, index)
	ms.list.Store(&next)
	if err := ms.g.cuts.forget(index); err != nil {
		klog.ErrorS(err, "Ending the tracking of changed blocks; the next start does it", "volume", v.id)
	}
	ms.g.changes.removeVolume(index)
	if err := v.image.Close(); err != nil {
		klog.ErrorS(err, "Closing an image", "volume", v.id)
	}
}
