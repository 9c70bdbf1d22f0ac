package replication

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A tail is what this site had written past a fork when it gave way: a snapshot of each member at the last ordinal.
// Snapshots of tails are like all others of the pool: volumes are made from them, and they outlive their group.

// TailInfo is a tail that is kept.
type TailInfo struct {
	blockdev.SnapshotTail
	Cut       blockdev.SnapshotCut
	Snapshots []*blockdev.SnapshotRecord
}

// tailID is the identifier of what a group gives up: the same for each repetition.
func tailID(groupID string, y *core.Yield) string {
	return hashedTailID(groupID, y.Timeline, y.Head)
}

// hashedTailID is an identifier that follows from what tells a tail from others.
func hashedTailID(groupID string, of ...any) string {
	text := groupID
	for _, part := range of {
		text += fmt.Sprintf("/%v", part)
	}
	sum := sha256.Sum256([]byte(text))
	return "tail-" + hex.EncodeToString(sum[:8])
}

// tailCount says how much a site wrote past a fork on its timeline. Without any write the times are 0.
type tailCount struct {
	Timeline                      string
	Fork, Last                    uint64
	Writes, Bytes                 uint64
	FirstUnixNanos, LastUnixNanos int64
	// Partial: Writes and Bytes are of the newest records alone.
	Partial bool
}

// countTail counts what this old primary wrote past the fork, for the loss report (guarantee G7). Ordinals are always
// exact; writes, bytes and times are those of the records that the journal still holds, and Partial says whether that
// is all. What these records touched goes into ranges, if it is not nil.
func (ys *yields) countTail(ctx context.Context, fork uint64, ranges *rangeSet) (*tailCount, error) {
	g := ys.g
	head := g.journal.Head()
	g.mu.Lock()
	tail := &tailCount{Timeline: g.core.Meta.Timeline(), Fork: fork, Last: max(head, fork), Partial: head > fork}
	g.mu.Unlock()
	if err := g.log.commit(); err != nil {
		return nil, err
	}
	pos, ok, err := g.journal.PositionOf(fork)
	if err != nil {
		return nil, err
	}
	if !ok {
		segments := g.journal.Segments()
		if len(segments) == 0 {
			return tail, nil
		}
		pos = segments[0].Begin
	}
	cursor := g.journal.NewCursor(pos)
	defer cursor.Close()
	setBack := false
	for ctx.Err() == nil {
		records, err := cursor.Next(applyChunkBytes)
		if err != nil {
			return nil, err
		}
		for i := range records {
			h := &records[i].Header
			if h.Ordinal <= fork || h.Ordinal > head || !h.Kind.TakesOrdinal() {
				continue
			}
			if ranges != nil && touchesImage(h) {
				ranges.add(h.Volume, h.Offset, int64(h.Length))
			}
			if tail.FirstUnixNanos == 0 {
				tail.FirstUnixNanos = h.UnixNanos
				tail.Partial = h.Ordinal > fork+1
			}
			setBack = setBack || h.UnixNanos < tail.LastUnixNanos
			tail.LastUnixNanos = h.UnixNanos
			if h.Kind == journal.KindWrite {
				tail.Writes++
				tail.Bytes += uint64(h.Length)
			}
		}
		if len(records) == 0 {
			break
		}
	}
	if setBack {
		tail.FirstUnixNanos, tail.LastUnixNanos = 0, 0
	}
	return tail, ctx.Err()
}

// keepTail takes the snapshots of a tail, and returns when they are complete.
func (ys *yields) keepTail(ctx context.Context, tail blockdev.SnapshotTail, y *core.Yield) error {
	g := ys.g
	var targets []CutTarget
	for _, v := range ys.keptVolumes() {
		id := fmt.Sprintf("%s-%d", tail.ID, v.index)
		if err := ys.createTailSnapshot(id, v, tail, y); err != nil {
			return fmt.Errorf("group %s: snapshot %s of volume %s: %w", g.Name(), id, v.id, err)
		}
		targets = append(targets, CutTarget{VolumeID: v.id, SnapshotID: id})
	}
	if len(targets) == 0 {
		return nil
	}
	cut, err := g.Cut(ctx, targets)
	if err != nil {
		return err
	}
	if cut.Ordinal != y.Head {
		return fmt.Errorf("group %s: its snapshots are at ordinal %d, what it wrote ends at %d",
			g.Name(), cut.Ordinal, y.Head)
	}
	for _, t := range targets {
		if err := ys.awaitSnapshot(ctx, t.SnapshotID); err != nil {
			return err
		}
	}
	return nil
}

// keptVolumes are the members that snapshots are taken of. One that is only just joining is whole outside of the group.
func (ys *yields) keptVolumes() []*Volume {
	g := ys.g
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []*Volume
	for _, v := range *g.members.list.Load() {
		if m := g.core.Meta.At(v.index); m != nil && !m.Removed() && !m.State.Adding() {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b *Volume) int { return cmp.Compare(a.index, b.index) })
	return list
}

// createTailSnapshot makes the record of a snapshot. One that failed is made again.
func (ys *yields) createTailSnapshot(id string, v *Volume, tail blockdev.SnapshotTail, y *core.Yield) error {
	g := ys.g
	pool := g.cfg.Pool
	have, err := pool.GetSnapshot(id)
	if err == nil && have.State != blockdev.SnapshotFailed {
		return nil
	}
	if err == nil {
		if err = g.ReleaseCut(id); err == nil {
			err = pool.DeleteSnapshot(id)
		}
	}
	if err != nil && !errors.Is(err, blockdev.ErrNoSnapshot) {
		return err
	}
	rec, err := pool.Get(v.id)
	if err != nil {
		return err
	}
	_, err = pool.CreateSnapshot(blockdev.SnapshotRecord{
		ID: id, Name: fmt.Sprintf("%s of %s", tail.ID, v.id), SourceVolumeID: v.id, SizeBytes: v.size.Load(),
		BlockSizeBytes: rec.BlockSizeBytes, FSType: rec.FSType, Format: rec.Format, Thick: rec.Thick,
		Replicable: rec.Replicable, Order: rec.Order, Cut: blockdev.SnapshotCut{Group: g.Name()}, Tail: &tail,
		CreatedUnixNanos: g.cfg.Now().UnixNano(),
	})
	return err
}

// awaitSnapshot waits until a snapshot is complete: before that the writes that it keeps must not be undone.
func (ys *yields) awaitSnapshot(ctx context.Context, id string) error {
	g := ys.g
	for {
		rec, err := g.cfg.Pool.GetSnapshot(id)
		switch {
		case err != nil:
			return err
		case rec.State == blockdev.SnapshotReady:
			return nil
		case rec.State == blockdev.SnapshotFailed:
			return fmt.Errorf("group %s: snapshot %s of volume %s failed, so the writes past the fork are not kept: %s; then "+
				"repeat %s", g.Name(), id, rec.SourceVolumeID, rec.FailReason,
				core.Command{Site: g.cfg.Site, Verb: core.CommandYield, Name: g.Name()})
		}
		if !pause.For(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
		if g.ctx.Err() != nil {
			return ErrClosed
		}
	}
}

// Tails returns the tails that are kept at this site, the newest first. With a group only that one's, also if the group
// does not exist any more. Records that cannot be read are left out.
func (s *Site) Tails(group string) ([]*TailInfo, error) {
	recs, err := s.cfg.Pool.ListSnapshots()
	if err != nil && len(recs) == 0 {
		return nil, err
	}
	if err != nil {
		klog.ErrorS(err, "Some records of snapshots cannot be read: tails may be missing from the list")
	}
	byID := map[string]*TailInfo{}
	var list []*TailInfo
	for _, rec := range recs {
		if rec.Tail == nil || group != "" && rec.Cut.Group != group {
			continue
		}
		t := byID[rec.Tail.ID]
		if t == nil {
			t = &TailInfo{SnapshotTail: *rec.Tail, Cut: rec.Cut}
			byID[t.ID] = t
			list = append(list, t)
		}
		if rec.Cut.Ordinal > 0 {
			t.Cut = rec.Cut
		}
		t.Snapshots = append(t.Snapshots, rec)
	}
	slices.SortFunc(list, func(a, b *TailInfo) int {
		return cmp.Or(cmp.Compare(b.Cut.UnixNanos, a.Cut.UnixNanos), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// DeleteTail deletes the snapshots of a tail. One that is not there is ErrNotFound; one that its group is still
// taking is a core.ErrPrecondition. Repeating it after an error goes on.
func (s *Site) DeleteTail(id string) error {
	list, err := s.Tails("")
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(t *TailInfo) bool { return t.ID == id })
	if i < 0 {
		return fmt.Errorf("%w: tail %q is not kept at %s; `slipctl group tails` shows those that are", ErrNotFound, id,
			s.cfg.Site)
	}
	for _, g := range s.Groups() {
		if y := g.yields.current(); y != nil && tailID(g.ID(), y) == id && g.yields.undoes() == nil {
			return fmt.Errorf("%w: tail %s is what group %s is just giving up; wait until it follows its peer",
				core.ErrPrecondition, id, g.Name())
		}
	}
	return s.deleteTail(list[i])
}

func (s *Site) deleteTail(t *TailInfo) error {
	for _, rec := range t.Snapshots {
		for _, g := range s.Groups() {
			if err := g.ReleaseCut(rec.ID); err != nil {
				return err
			}
		}
		if err := s.cfg.Pool.DeleteSnapshot(rec.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	klog.InfoS("Tail deleted", "tail", t.ID, "group", t.Cut.Group, "ordinal", t.Cut.Ordinal)
	return nil
}
