package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A site that wrote past a fork gives way like this:
//
//	stop     no more writes are taken; core.Yield says which ordinals are given up
//	keep     a snapshot of each member at the last ordinal, complete before anything is undone
//	note     the ranges that the writes past the fork touched go into a file
//	offer    the peer calls as a primary; the Welcome offers the fork as the last ordinal, and the ranges
//	rewind   the peer agrees; the journal begins anew behind the fork
//	undo     a sync: the peer's content of the ranges, and the peer's own writes since the fork
//
// A crash anywhere is continued by a repetition of the call, from "offer" on by itself. Until "rewind" a forced
// promotion takes it back.

// yieldFile holds the ranges that a site which gives way wrote past the fork, from "note" on until the sync ends.
const (
	yieldFile = "yield.json"
	yieldKind = "yield"
)

type yieldRecord struct {
	GroupID string `json:"groupID"`
	PoolID  string `json:"poolID"`
	YieldID string `json:"yieldID"`
	Ranges  []byte `json:"ranges"` // as encodeRanges has it
}

// yields give the group's own writes past a fork up. Who changes what is given up holds handover.mu.
type yields struct{ g *Group }

// YieldPlan is what a site gives up, or would.
type YieldPlan struct {
	// Yield is the state; its Stage is empty where nothing was begun, and the plan says what would be.
	Yield core.Yield
	// Tail counts the writes.
	Tail blockdev.SnapshotTail
	// VolumeIDs are kept as snapshots of SizeBytes together.
	VolumeIDs []string
	SizeBytes int64
}

// current is the yield that is not done; nil without one.
func (ys *yields) current() *core.Yield {
	g := ys.g
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Yielding()
}

// undoes is the yield whose snapshots are complete and that is being undone; nil without one.
func (ys *yields) undoes() *core.Yield {
	if y := ys.current(); y != nil && (y.Stage == core.YieldRewinding || y.Stage == core.YieldUndoing) {
		return y
	}
	return nil
}

// PlanYield says what Yield would give up, without changing anything; nil where this site wrote nothing past the fork.
// Errors are those of Yield.
func (g *Group) PlanYield(ctx context.Context) (*YieldPlan, error) { return g.yields.plan(ctx) }

// plan is Group.PlanYield.
func (ys *yields) plan(ctx context.Context) (*YieldPlan, error) {
	g := ys.g
	if err := g.log.commit(); err != nil {
		return nil, err
	}
	attached := g.members.attached()
	g.mu.Lock()
	trial := g.core.Clone()
	_, _, err := trial.Step(core.YieldRequest{ID: "trial", Durable: g.journal.Durable(), Attached: attached})
	begun := g.core.Meta.Yielding() != nil
	g.mu.Unlock()
	y := trial.Meta.Yield
	if err != nil || y == nil {
		return nil, err
	}
	plan := &YieldPlan{Yield: *y}
	if !begun && y.Stage != core.YieldDone {
		plan.Yield.Stage = "" // a yield that was done before undoes nothing again, and stays done
	}
	if y.Stage != core.YieldKeeping {
		return plan, nil
	}
	count, err := ys.countTail(ctx, y.Fork, nil)
	if err != nil {
		return nil, err
	}
	plan.Tail = ys.snapshotTail(count, y)
	for _, v := range ys.keptVolumes() {
		plan.VolumeIDs = append(plan.VolumeIDs, v.id)
		plan.SizeBytes += v.size.Load()
	}
	return plan, nil
}

// Yield gives way to the peer after a fork; see above. It returns when the writes past the fork are kept; the peer's
// next call makes this site its secondary. nil: this site wrote nothing past the fork, and follows.
//
// Errors are core.ErrPrecondition where nothing was changed: nothing to yield, volumes attached, or a peer that is not
// known to be primary. After any other error, or a crash, a repetition goes on; a forced promotion takes it back.
func (g *Group) Yield(ctx context.Context) (*core.Yield, error) { return g.yields.begin(ctx) }

// begin is Group.Yield.
func (ys *yields) begin(ctx context.Context) (*core.Yield, error) {
	g := ys.g
	g.handover.mu.Lock()
	defer g.handover.mu.Unlock()
	_, err := g.stopWrites(func(durable uint64, tail *core.Tail, attached []string) core.Event {
		return core.YieldRequest{ID: uuid.NewString(), Durable: durable, Tail: tail, Attached: attached}
	})
	if err != nil {
		return nil, err
	}
	y := ys.current()
	if y != nil && y.Stage == core.YieldKeeping {
		if err := ys.keep(ctx, y); err != nil {
			return nil, err
		}
	}
	g.shipper.linkWork.send() // asks the peer to call
	return ys.current(), nil
}

// keep makes the snapshots, and notes the ranges.
func (ys *yields) keep(ctx context.Context, y *core.Yield) error {
	g := ys.g
	var touched rangeSet
	count, err := ys.countTail(ctx, y.Fork, &touched)
	if err != nil {
		return err
	}
	g.mu.Lock()
	whole := g.core.Promotable()
	g.mu.Unlock()
	if whole && y.Head > y.Fork { // else there is no instant to keep, or nothing
		if err := ys.keepTail(ctx, ys.snapshotTail(count, y), y); err != nil {
			return err
		}
	}
	kept := core.YieldKept{}
	if kept.Tail, err = g.tail(y.Fork); err != nil {
		return err
	}
	if kept.Reason = ys.rangesMissing(y.Fork); kept.Reason != "" {
		kept.All = true
	} else if kept.TailBytes, err = ys.storeRanges(y, &touched); err != nil {
		return err
	}
	if _, err := g.step(kept, nil); err != nil {
		return err
	}
	klog.InfoS("Writes past the fork are kept", "group", g.Name(), "fork", y.Fork, "head", y.Head, "writes",
		count.Writes,
		"bytes", count.Bytes, "all", kept.All)
	return nil
}

func (ys *yields) snapshotTail(count *tailCount, y *core.Yield) blockdev.SnapshotTail {
	return blockdev.SnapshotTail{
		ID: tailID(ys.g.ID(), y), ForkOrdinal: y.Fork, Writes: count.Writes, Bytes: count.Bytes,
		FirstUnixNanos: count.FirstUnixNanos, LastUnixNanos: count.LastUnixNanos, Partial: count.Partial,
	}
}

// rangesMissing says why the ranges that writes past an ordinal touched are not all in the journal and in the change
// map; "" if they are.
func (ys *yields) rangesMissing(fork uint64) string {
	g := ys.g
	if g.log.retained() <= fork+1 {
		return ""
	}
	g.mu.Lock()
	forgotten := max(g.core.Meta.Forgotten, g.changes.forgottenThrough())
	g.mu.Unlock()
	if g.checkpoint.read().ReleasedAcked > fork || forgotten > fork {
		return fmt.Sprintf("writes of %s past the fork had reached its peer and have left the journal, but the peer does "+
			"not have them", g.cfg.Site)
	}
	return ""
}

// storeRanges writes the file of ranges, and returns what they cover.
func (ys *yields) storeRanges(y *core.Yield, touched *rangeSet) (uint64, error) {
	g := ys.g
	for _, r := range g.changes.runs() {
		touched.add(r.volume, r.off, r.n)
	}
	g.mu.Lock()
	for _, m := range g.core.Meta.Members {
		if m.Removed() || m.State.Adding() {
			// If the peer still has it as a member, it comes back with nothing in it.
			touched.add(m.Index, 0, m.SizeBytes)
		}
	}
	g.mu.Unlock()
	list := touched.ranges()
	record := yieldRecord{GroupID: g.ID(), PoolID: g.cfg.Pool.ID(), YieldID: y.ID, Ranges: encodeRanges(list,
		byteRange{})}
	err := g.cfg.Pool.WithReserve(func() error {
		return recordfile.Write(g.cfg.FS, g.path(yieldFile), yieldKind, &record)
	})
	return rangeBytes(list), err
}

// loadRanges reads the file of ranges of a yield.
func (ys *yields) loadRanges(yieldID string) ([]byteRange, error) {
	g := ys.g
	var record yieldRecord
	name := g.path(yieldFile)
	if err := recordfile.Read(g.cfg.FS, name, yieldKind, &record); err != nil {
		return nil, err
	}
	if record.GroupID != g.ID() || record.PoolID != g.cfg.Pool.ID() || record.YieldID != yieldID {
		return nil, stale(name, "it is of yield %s of group %s", record.YieldID, record.GroupID)
	}
	list, err := decodeRanges(nil, record.Ranges, maxTailRanges)
	if err != nil {
		return nil, stale(name, "%v", err)
	}
	return list, nil
}

// dropRanges removes the file of ranges when nothing needs it any more.
func (ys *yields) dropRanges() error {
	if ys.current() != nil {
		return nil
	}
	err := ys.g.cfg.FS.Remove(ys.g.path(yieldFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// resume goes on with what a crash interrupted, before the group is used.
func (ys *yields) resume() error {
	g := ys.g
	y := g.core.Meta.Yielding()
	if y == nil {
		return ys.dropRanges()
	}
	if y.Stage == core.YieldRewinding {
		if err := g.applier.applyLocked(context.Background()); err != nil {
			return err
		}
		if err := ys.rewind(y.Fork); err != nil {
			return err
		}
		if _, err := g.stepLocked(core.Rewound{}, nil); err != nil {
			return err
		}
	}
	if y.All || y.Stage == core.YieldKeeping {
		return nil
	}
	if _, err := ys.loadRanges(y.ID); err != nil {
		if !isLost(err) {
			return g.unopened("the list of writes past the fork", err)
		}
		klog.ErrorS(err, "The ranges of writes past the fork are lost; the peer copies everything", "group", g.Name())
		_, err = g.stepLocked(core.RangesLost{
			Reason: fmt.Sprintf("the list of what %s wrote past the fork is lost", g.cfg.Site)}, nil)
		return err
	}
	return nil
}

// follows has core decide whether this site follows a caller that it has welcomed. Where the site gives way, its
// journal is rewound before anything else happens.
func (ys *yields) follows(e core.SessionReceived) (core.Decision, error) {
	g := ys.g
	y := ys.current()
	if y == nil || y.Stage != core.YieldReady {
		return g.step(e, nil)
	}
	if err := g.log.commit(); err != nil {
		return nil, err
	}
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	if err := g.applier.applyLocked(g.ctx); err != nil {
		return nil, err
	}
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	if head := g.journal.Head(); head != y.Head || g.checkpoint.read().Applied != g.journal.DurableEnd() {
		return nil, fmt.Errorf("group %s: its journal is at ordinal %d and not all in the images, what it keeps ends at "+
			"%d; take the yield back with %s, and begin it anew", g.Name(), head, y.Head,
			core.Command{Site: g.cfg.Site, Verb: core.CommandForce, Name: g.Name()})
	}
	decision, err := g.step(e, nil)
	if err != nil {
		return nil, err
	}
	if y = ys.undoes(); y == nil || y.Stage != core.YieldRewinding {
		return decision, nil
	}
	if err := ys.rewind(y.Fork); err != nil {
		g.fail(err) // what is on disk is continued by the next open
		return nil, err
	}
	if _, err := g.step(core.Rewound{}, nil); err != nil {
		return nil, err
	}
	return decision, nil
}

// rewind empties the journal and makes an ordinal its last one. All of the journal is in the images. The caller holds
// applier.mu and log.mu, or is alone.
func (ys *yields) rewind(to uint64) error {
	g := ys.g
	if err := g.journal.Sync(); err != nil {
		return err
	}
	begin := g.journal.NextBegin()
	tail := core.Tail{}
	if t, err := g.tail(to); err != nil {
		return err
	} else if t != nil {
		tail = *t
	}
	err := g.checkpoint.changeAnd(func(c *checkpoint) {
		c.Applied, c.AppliedOrdinal, c.OldestSegment = begin, to, begin.Segment
		c.DurableOrdinal, c.Mark, c.ReleasedAcked, c.Tail = to, journal.Mark{}, to, tail
	}, func() error { return g.journal.Rewind(to) })
	if err != nil {
		return err
	}
	if err := g.changes.rewound(); err != nil {
		klog.ErrorS(err, "The change map stays on disk as it was; a later sync copies more than it has to", "group", g.Name())
	}
	g.log.queued = nil
	g.shard.marks.rewind(to)
	g.points.reach.extend(begin, to)
	klog.InfoS("Journal begins anew", "group", g.Name(), "after", to)
	return nil
}

// noteCopied tells core what content came.
func (r *receiver) noteCopied() error {
	n := r.copied
	r.copied = 0
	if r.g.yields.current() == nil {
		return nil
	}
	_, err := r.g.step(core.Received{Bytes: n}, nil)
	return err
}
