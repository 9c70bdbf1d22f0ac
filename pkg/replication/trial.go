package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A trial is a promotion to a recovery point, until a person decides for it or against it (core.Trial):
//
//	open      the copy is preserved twice: as it is at the point, and as it is now. The rest of the journal is applied in
//	          between, which keeps what it changes of the first one.
//	restore   the images go back to the point, which keeps what that changes of the second one (rollback.go)
//	look      the group is primary on a timeline of its own; what apply changes is kept of the second one
//	commit    the second one is copied into snapshots, a tail (tails.go); then the trial is over
//	rollback  the images go back to the second one, and the group is the secondary that it was
//
// The second set is there from before the decision to open the point until after the one that ends the trial. So at
// every instant one decision makes the group what it held, and another one leaves it at the point.

// ownerTrial is the owner of the images of a point, while they are restored, and of what the site held.
const ownerTrial preservedOwner = "trial"

// trials opens points of a group and decides about them. It is safe for concurrent use.
type trials struct {
	g *Group
	// mu makes decisions one after another. It is taken before all other locks.
	mu sync.Mutex
}

// PromoteAt makes the group primary here as of a recovery point, undecided: CommitTrial or RollBackTrial decide. The
// group is another Group of the site afterwards; this one is closed. The time that it takes depends on how much the
// history holds past the point.
//
// Errors are core.ErrPrecondition with what to do first: a group that is not secondary, a point that is not there, a
// trial that is not decided. The history that there was has ended then.
func (g *Group) PromoteAt(ctx context.Context, p Point) (*core.Loss, error) {
	t := &g.trials
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.check(); err != nil {
		return nil, err
	}
	// A primary that redials meanwhile is turned away.
	defer g.streams.refuse()()
	loss, err := t.open(ctx, p)
	if err != nil {
		t.dropOthers()
		return nil, err
	}
	_, err = g.site.rollBack(g)
	return loss, err
}

// check refuses what core would refuse, before anything is changed.
func (t *trials) check() error {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	trial := t.g.core.Clone()
	none := &core.Base{}
	_, _, err := trial.Step(core.Promote{NewTimeline: "trial", Point: &core.AtPoint{Point: none, Held: none}})
	return err
}

// open decides for a point.
func (t *trials) open(ctx context.Context, p Point) (*core.Loss, error) {
	g := t.g
	if err := g.log.commit(); err != nil {
		return nil, err
	}
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	at, err := g.points.locate(p)
	if err != nil {
		return nil, err
	}
	pointTail, err := g.tail(at.Ordinal)
	if err != nil {
		return nil, err
	}
	undone, err := g.yields.countTail(ctx, at.Ordinal, nil)
	if err != nil {
		return nil, err
	}
	point, err := g.preserved.takeLocked(ctx, preserveRequest{owner: ownerTrial, full: preserveOrWait,
		position: at.place(g)})
	if err != nil {
		return nil, err
	}
	held, err := g.preserved.takeLocked(ctx, preserveRequest{owner: ownerTrial, full: preserveOrWait,
		position: g.log.durablePosition})
	if err != nil {
		return nil, err
	}
	heldTail, err := g.tail(held.record.Ordinal)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	decided := &core.AtPoint{UnixNanos: at.UnixNanos, Point: t.base(point, pointTail), Held: t.base(held, heldTail),
		Undone: core.Undone{Writes: undone.Writes, Bytes: undone.Bytes, FirstUnixNanos: undone.FirstUnixNanos,
			LastUnixNanos: undone.LastUnixNanos, Partial: undone.Partial}}
	e := core.Promote{Durable: g.journal.Durable(), Now: g.cfg.Clock(), NewTimeline: uuid.NewString(), Point: decided}
	if _, err := g.stepLocked(e, nil); err != nil {
		return nil, err
	}
	klog.InfoS("Group is opened at a point", "group", g.Name(), "ordinal", at.Ordinal, "held", held.record.Ordinal)
	return g.core.Meta.Loss, nil
}

// place is where the journal has a point, for preserveRequest.position.
func (l located) place(g *Group) func() (journal.Position, string, error) {
	return func() (journal.Position, string, error) { return l.end, g.core.Meta.Timeline(), nil }
}

// base describes a set. The caller holds mu.
func (t *trials) base(p *preserved, tail *core.Tail) *core.Base {
	m := &t.g.core.Meta
	return &core.Base{Set: p.record.ID, Ordinal: p.record.Ordinal, UnixNanos: p.record.UnixNanos,
		Timelines: slices.Clone(m.Timelines), Tail: tail, Horizon: t.g.checkpoint.horizon.Load(),
		Members: slices.Clone(m.Members)}
}

// dropOthers gives up the sets that group.json does not name: of a trial that is over, or was never decided for.
func (t *trials) dropOthers() {
	for _, p := range t.g.preserved.of(ownerTrial) {
		if t.names(p) {
			continue
		}
		if err := t.g.preserved.drop(p); err != nil {
			klog.ErrorS(err, "Images that were preserved for a point are not removed yet; the next start does it",
				"group", t.g.Name())
		}
	}
}

// names reports whether group.json names a set.
func (t *trials) names(p *preserved) bool {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	m := &t.g.core.Meta
	return m.Trial != nil && m.Trial.Held != nil && m.Trial.Held.Set == p.record.ID ||
		m.Base != nil && m.Base.Set == p.record.ID
}

// held is the set of what the site held; nil without a trial, or if it is lost.
func (t *trials) held() *preserved {
	g := t.g
	g.mu.Lock()
	trial := g.core.Meta.Trial
	g.mu.Unlock()
	if trial == nil || trial.Held == nil {
		return nil
	}
	for _, p := range g.preserved.of(ownerTrial) {
		if p.record.ID == trial.Held.Set {
			return p
		}
	}
	return nil
}

// opened is called when a group opens; back: a trial was taken back just now.
func (t *trials) opened(back bool) error {
	g := t.g
	if back {
		// The peer was sent nothing, so it lacks nothing. What a crash leaves in the map is sent once more some day.
		if err := g.changes.rewound(); err != nil {
			return err
		}
	}
	if trial := g.core.Meta.Trial; trial != nil && trial.Held != nil && t.held() == nil {
		klog.ErrorS(nil, "What the site held before a point was opened is lost: the group can stay at the point only",
			"group", g.Name(), "ordinal", trial.Held.Ordinal)
		if _, err := g.stepLocked(core.HeldLost{}, nil); err != nil {
			return err
		}
	}
	t.dropOthers()
	return nil
}

// Trial returns the promotion to a point that is not decided; nil without one.
func (g *Group) Trial() *core.Trial {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Trial
}

// decided refuses what could not be taken back with a trial.
func (t *trials) decided() error {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	if text := t.g.core.Meta.TrialText(); text != "" {
		return fmt.Errorf("%w: group %s: %s", core.ErrPrecondition, t.g.core.Meta.Name, text)
	}
	return nil
}

// CommitTrial decides for the point that the group was opened at. What the site held past it is kept as a tail before
// that, unless it is to be discarded. It returns the tail's identifier, which is empty if there is none. A group
// without a trial is a success, so it can be repeated, as after every error or crash.
func (g *Group) CommitTrial(ctx context.Context, discard bool) (tailID string, err error) {
	t := &g.trials
	t.mu.Lock()
	defer t.mu.Unlock()
	trial := g.Trial()
	if trial != nil && !discard {
		if tailID, err = t.keep(ctx, trial); err != nil {
			return "", err
		}
	}
	if _, err := g.step(core.TrialCommitted{}, nil); err != nil {
		return "", err
	}
	t.dropOthers()
	g.tailPolicy.work.send()
	if trial != nil {
		klog.InfoS("Group stays at the point that it was opened at", "group", g.Name(), "ordinal", trial.Ordinal,
			"tail", tailID)
	}
	g.shipper.linkWork.send()
	return tailID, nil
}

// keep makes a tail of what the site held past the point.
func (t *trials) keep(ctx context.Context, trial *core.Trial) (string, error) {
	g := t.g
	if trial.Held != nil && trial.Held.Ordinal == trial.Ordinal {
		return "", nil
	}
	p := t.held()
	if p == nil {
		return "", fmt.Errorf("%w: group %s: what %s held past ordinal %d is lost, so it cannot be kept; to go on without: "+
			"`slipctl group commit %[2]s --discard`", core.ErrPrecondition, g.Name(), g.cfg.Site, trial.Ordinal)
	}
	id := hashedTailID(g.ID(), "point", p.record.Timeline, trial.Held.Ordinal, trial.Ordinal)
	tail := blockdev.SnapshotTail{ID: id, ForkOrdinal: trial.Ordinal, Writes: trial.Undone.Writes,
		Bytes: trial.Undone.Bytes, FirstUnixNanos: trial.Undone.FirstUnixNanos, LastUnixNanos: trial.Undone.LastUnixNanos,
		Partial: trial.Undone.Partial}
	for _, image := range p.images {
		if err := t.keepImage(ctx, p, image, tail); err != nil {
			return "", fmt.Errorf("group %s: keep volume %s as %s held it at ordinal %d: %w; free space and repeat the "+
				"command, or go on without (--discard)", g.Name(), image.member.VolumeID, g.cfg.Site, trial.Held.Ordinal, err)
		}
	}
	return id, nil
}

// keepImage copies a preserved image into a snapshot, if that is not done yet.
func (t *trials) keepImage(ctx context.Context, p *preserved, image *preservedImage, tail blockdev.SnapshotTail) error {
	g, pool := t.g, t.g.cfg.Pool
	id := fmt.Sprintf("%s-%d", tail.ID, image.member.Index)
	have, err := pool.GetSnapshot(id)
	switch {
	case err == nil && have.State == blockdev.SnapshotReady:
		return nil
	case err == nil: // of a call that was interrupted
		err = pool.DeleteSnapshot(id)
	case errors.Is(err, blockdev.ErrNoSnapshot):
		err = nil
	}
	if err != nil {
		return err
	}
	rec, err := pool.Get(image.member.VolumeID)
	if err != nil {
		return err
	}
	cut := blockdev.SnapshotCut{GroupID: g.ID(), Group: g.Name(), Timeline: p.record.Timeline, Ordinal: p.record.Ordinal,
		UnixNanos: p.record.UnixNanos}
	_, err = pool.CreateSnapshot(blockdev.SnapshotRecord{
		ID: id, Name: fmt.Sprintf("%s of %s", tail.ID, rec.ID), SourceVolumeID: rec.ID, SizeBytes: image.Size(),
		BlockSizeBytes: rec.BlockSizeBytes, FSType: rec.FSType, Format: rec.Format, Thick: rec.Thick,
		Replicable: rec.Replicable, Order: rec.Order, Cut: cut, Tail: &tail, CreatedUnixNanos: g.cfg.Now().UnixNano(),
	})
	if err != nil {
		return err
	}
	path, err := pool.SnapshotImagePath(id)
	if err == nil {
		err = copyPreserved(ctx, g.cfg.FS, image, path)
	}
	if err == nil {
		err = p.check() // what was read counts only if the set still can be used
	}
	if err == nil {
		_, err = pool.UpdateSnapshot(id, func(r *blockdev.SnapshotRecord) error {
			r.State, r.Method = blockdev.SnapshotReady, blockdev.MethodCopy
			return nil
		})
	}
	if err != nil {
		return errors.Join(err, pool.DeleteSnapshot(id))
	}
	return nil
}

// copyPreserved writes what a volume had into a new file, durably, without its holes.
func copyPreserved(ctx context.Context, fsys vfs.FS, image *preservedImage, path string) error {
	f, err := fsys.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(image.Size()); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < image.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, end, err := image.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		start = max(start, off)
		data := buf[:min(end-start, int64(len(buf)))]
		if _, err := image.ReadAt(data, start); err != nil {
			return err
		}
		if !vfs.AllZero(data) {
			if _, err := f.WriteAt(data, start); err != nil {
				return err
			}
		}
		off = start + int64(len(data))
	}
	return f.Datasync()
}

// RollBackTrial decides against the point: what was written since is lost, and the group becomes the secondary that it
// was, with all that the site held. It is another Group of the site afterwards; this one is closed. A group without a
// trial is a success, so it can be repeated, as after every error or crash.
func (g *Group) RollBackTrial(ctx context.Context) error {
	g.trials.mu.Lock()
	defer g.trials.mu.Unlock()
	if g.Trial() == nil {
		_, err := g.step(core.TrialCommitted{}, nil) // says what else goes on
		return err
	}
	attached := g.members.attached()
	if len(attached) == 0 && len(g.views.all()) > 0 {
		// What views show has to be in the images: the journal goes.
		if err := g.applier.applyAll(ctx); err != nil {
			return err
		}
	}
	// No append may come between the decision and the end of the group.
	g.log.mu.Lock()
	_, err := g.step(core.TakeTrialBack{Attached: attached, Now: g.cfg.Now().UnixNano()}, nil)
	if err == nil {
		g.writable.Store(false)
	}
	g.log.mu.Unlock()
	if err != nil {
		return err
	}
	klog.InfoS("Group goes back to what it was before a point was opened", "group", g.Name())
	_, err = g.site.rollBack(g)
	return err
}
