package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// A sync of a copy that was whole is one transaction. Before the first record of the sync, the secondary preserves the
// images of all members (preserved.go) and writes to group.json what the copy is at that instant: core.Base. From then
// on the copy can be promoted as it was, until the end of the sync is durable. An interrupted sync that continues, and
// a full copy in its place, keep the first base.
//
// Members that leave during the sync stay in the base: their records in the pool name the group until the sync ends,
// and nothing changes their images. rollback.go makes a base what the group is.

// ownerResync is the owner of the base's images. Each group has at most one such set that group.json names.
const ownerResync preservedOwner = "resync"

// resyncBase is what the copy was before the sync that runs. group.json says which images it has.
type resyncBase struct{ g *Group }

// preserve preserves the copy if the next event begins a sync of a whole one; see core.NeedsBase. It returns nil if
// there is nothing to preserve.
func (rb *resyncBase) preserve(ctx context.Context, session, sync bool) (*core.Base, error) {
	g := rb.g
	g.mu.Lock()
	needs, kept := g.core.NeedsBase(session, sync), g.core.Meta.Base != nil
	g.mu.Unlock()
	switch {
	case !needs:
		return nil, nil
	case g.shard.isCopy():
		return g.shard.beginSync(ctx)
	case kept:
		return nil, nil
	}
	horizon := g.checkpoint.horizon.Load()
	p, err := g.preserved.take(ctx, preserveRequest{owner: ownerResync, full: preserveOrWait,
		position: g.log.durablePosition})
	if err != nil {
		return nil, fmt.Errorf("keep the copy as it is before a sync: %w", err)
	}
	tail, err := g.tail(p.record.Ordinal)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	return &core.Base{
		Set: p.record.ID, Ordinal: p.record.Ordinal, UnixNanos: p.record.UnixNanos, Timelines: slices.Clone(m.Timelines),
		Tail: tail, Horizon: horizon, Members: slices.Clone(m.Members),
	}, nil
}

// current is what the copy was before the sync that runs, and its images; nil without one.
func (rb *resyncBase) current() (*core.Base, *preserved) {
	g := rb.g
	g.mu.Lock()
	b := g.core.Meta.Base
	g.mu.Unlock()
	if b == nil {
		return nil, nil
	}
	for _, owner := range []preservedOwner{ownerResync, ownerTrial} {
		for _, p := range g.preserved.of(owner) {
			if p.record.ID == b.Set {
				return b, p
			}
		}
	}
	return b, nil
}

// has reports whether a volume belongs to the copy as it was before the sync that runs.
func (rb *resyncBase) has(volumeID string) bool {
	g := rb.g
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Base.Has(volumeID)
}

// dropOthers gives up the images of bases that group.json does not name: of a sync that has ended, or never began.
func (rb *resyncBase) dropOthers() error {
	_, current := rb.current()
	var errs []error
	for _, p := range rb.g.preserved.of(ownerResync) {
		if p != current {
			errs = append(errs, rb.g.preserved.drop(p))
		}
	}
	return errors.Join(errs...)
}

// notBegun takes back what preserve did for a sync that did not begin.
func (rb *resyncBase) notBegun() error {
	if rb.g.shard.isCopy() {
		rb.g.shard.anew()
	}
	return rb.dropOthers()
}

// syncEnded is called when the end of a sync is durable. The members that left during it are released. What fails is
// done by the next open.
func (rb *resyncBase) syncEnded(before *core.Base) {
	g := rb.g
	if err := rb.dropOthers(); err != nil {
		klog.ErrorS(err, "The state before a sync is not removed yet; the next start does it", "group", g.Name())
	}
	if before == nil {
		return
	}
	for _, m := range before.Members {
		if m.Removed() {
			continue
		}
		if err := g.members.freeRecord(m.VolumeID); err != nil {
			klog.ErrorS(err, "A volume that left its group is not released yet; the next start does it", "group", g.Name(),
				"volume", m.VolumeID)
			continue
		}
		g.mu.Lock()
		now := g.core.Meta.At(m.Index)
		left := now == nil || now.Removed()
		g.mu.Unlock()
		if left {
			g.copies.deleteRemoved(m)
		}
	}
}

// check is called when a group opens. A base without its images is none: the copy cannot be promoted then, before
// the sync ends.
func (rb *resyncBase) check() error {
	g := rb.g
	b, p := rb.current()
	if b != nil && p == nil {
		klog.ErrorS(nil, "The state before the sync is lost: the copy cannot be promoted until the sync ends",
			"group", g.Name(), "ordinal", b.Ordinal)
		g.core.Meta.Base = nil
		if err := g.saveMeta(); err != nil {
			return err
		}
	}
	return rb.dropOthers()
}

// emptyImage makes an image one of zeros. What a set keeps of it is kept before.
func (cp *copies) emptyImage(volumeID string) error {
	g := cp.g
	image, err := g.cfg.Pool.OpenImage(volumeID)
	if err != nil {
		return err
	}
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	all := changemap.New()
	all.Mark(0, 0, image.Size())
	err = g.cuts.keep(volumeID, all)
	if err == nil {
		err = g.preserved.keep(volumeID, all, nil)
	}
	if err == nil {
		err = image.Discard(0, image.Size())
	}
	if err == nil {
		err = image.Flush()
	}
	return errors.Join(err, image.Close())
}

// keepBytes is how much space the base may take for records that have arrived: extents that they change and that are
// not kept yet.
func (rb *resyncBase) keepBytes(records []link.Record) (bytes int64, err error) {
	_, p := rb.current()
	if p == nil {
		return 0, nil
	}
	touched := changemap.New()
	for i := range records {
		if h := &records[i].Header; touchesImage(h) {
			touched.Mark(h.Volume, h.Offset, int64(h.Length))
		}
	}
	for _, v := range rb.g.Volumes() {
		image := p.image(v.id)
		if image == nil {
			continue
		}
		n, err := image.missing(touched.Volume(v.index))
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	return bytes, nil
}
