package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Errors of a group's operations. Those with a reason wrap these; nothing was changed when they are returned.
var (
	// ErrNotPrimary: the group takes no writes here; promote it, or write at its primary.
	ErrNotPrimary = errors.New("group is not primary here")
	// ErrFailed: the group stopped after an I/O error that it cannot continue behind; the text says which. Reopen it.
	ErrFailed = errors.New("group failed")
	// ErrClosed: the group was closed.
	ErrClosed = errors.New("group is closed")
	// ErrNotFound: no such group or volume.
	ErrNotFound = errors.New("not found")
	// ErrNotOpen: there is such a group here, and it could not be opened; the text says why, and what can be done. What
	// its journal has and its volumes' images have not is not known.
	ErrNotOpen = errors.New("group is not open")
	// ErrExists: it exists with other properties.
	ErrExists = errors.New("already exists")
	// ErrInUse: volumes are attached.
	ErrInUse = errors.New("in use")
	// ErrInvalid: the request cannot be right.
	ErrInvalid = errors.New("invalid")
)

// Group is a consistency group at one site. See the package comment for its locks.
type Group struct {
	site *Site
	cfg  *Config
	dir  string
	// name and id are those of the Meta, and never change.
	name, id string

	// mu guards core, its Meta, the failure and which volumes are attached.
	mu      sync.Mutex
	core    *core.Group
	failure error
	streams streams

	// members are the volumes, copies binds those of a secondary.
	members  members
	copies   copies
	writable atomic.Bool

	journal *journal.Journal
	// log is the journal as it is written, clock when.
	log   groupLog
	clock *writeClock

	checkpoint *checkpointFile
	applier    applier
	trimmer    trimmer
	tailPolicy tailPolicy
	// peerHeard is when the last message of the peer arrived, or when this process opened the group.
	peerHeard atomic.Pointer[clocks.Instant]
	// noRoom is why the last stream of the peer ended, if that was for lack of space; nil since it continues.
	noRoom atomic.Pointer[error]

	shipper shipper
	// changes is what the peer lacks besides records of the journal.
	changes *changeSet

	// verification compares both sites; see verify.go.
	verification *verification

	// preserved are sets of images at one ordinal; see preserved.go.
	preserved preservedSets
	// cuts are the snapshots of members; see cut.go.
	cuts *cuts
	// views are the group at other ordinals; see view.go.
	views *views
	// shard is what concerns other nodes; see shard.go.
	shard *Shard
	// points are the ordinals at which a view can be; bookmarks name some, history keeps them.
	points    recoveryPoints
	bookmarks bookmarks
	history   historyKeeper

	// yields give writes past a fork up, handover moves the role; resync is what a copy was before a sync.
	yields   yields
	handover handover
	resync   resyncBase
	// trials opens points, until it is decided about them.
	trials trials

	settings groupSettings

	remembered rememberedFile
	// difference is of the peer's wall clock and this site's.
	difference clocks.Difference

	stats groupStats

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// signal wakes the one goroutine that owns some work. Several signals before the goroutine takes one count as one. Who
// sends never waits.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) send() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// broadcast wakes every goroutine that waits. The zero value is ready for use.
type broadcast struct {
	mu   sync.Mutex
	next chan struct{}
}

// wait returns a channel that the next send closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

const (
	checkpointName = "checkpoint"
	changeMapFile  = "changemap"
)

func (g *Group) path(name string) string { return filepath.Join(g.dir, name) }

// Name is the group's name, the same at both sites.
func (g *Group) Name() string { return g.name }

// ID is the group's identifier, the same at both sites.
func (g *Group) ID() string { return g.id }

// start begins the group's background work.
func (g *Group) start() {
	g.hearPeer() // this process cannot say that the peer is silent before it has listened
	g.ctx, g.stop = context.WithCancel(context.Background())
	for _, loop := range []func(context.Context){g.applier.loop, g.trimmer.loop, g.log.commitLoop, g.shipper.loop,
		g.cuts.loop, g.verification.loop,
		g.tailPolicy.loop} {
		g.wg.Add(1)
		go func() {
			defer g.wg.Done()
			loop(g.ctx)
		}()
	}
	go g.shard.continuePromotion()
}

// hearPeer notes that a message of the peer arrived.
func (g *Group) hearPeer() {
	now := g.cfg.Clock()
	g.peerHeard.Store(&now)
}

// Close ends the group's work and syncs its journal. What is not applied stays in the journal; the next open goes on
// from there. Volumes return ErrClosed from then on.
func (g *Group) Close() error {
	err := g.halt()
	if syncErr := g.journal.Sync(); err == nil {
		err = syncErr
	}
	if err == nil {
		err = g.checkpoint.takeEnd(g.journal)
	}
	g.shipper.saveChangeMap()
	g.remembered.save(false)
	return errors.Join(err, g.closeFiles())
}

// Kill ends the group as a kill of its process would: nothing is synced or saved. Tests only.
func (g *Group) Kill() { _ = g.halt(); _ = g.closeFiles() }

func (g *Group) halt() error {
	g.writable.Store(false)
	g.stop()
	g.shard.end()
	g.streams.endIncoming()
	g.wg.Wait()
	return nil
}

func (g *Group) closeFiles() error {
	g.cuts.close()
	g.preserved.close()
	g.views.close()
	errs := []error{g.journal.Close(), g.checkpoint.close()}
	for _, v := range *g.members.list.Load() {
		errs = append(errs, v.image.Close())
	}
	return errors.Join(errs...)
}

// fail stops writes after an error that cannot be continued behind. Reads go on.
func (g *Group) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failure != nil {
		return
	}
	g.failure = fmt.Errorf("%w: %w", ErrFailed, err)
	g.writable.Store(false)
	klog.ErrorS(err, "Group failed: it takes no more writes until the replicator is restarted", "group", g.core.Meta.Name)
	g.log.room.send()
}

// step feeds core, carries out the effects, and returns the decision for the caller to act on. markAll carries out
// MarkAll; it is nil for events that have no such effect.
func (g *Group) step(e core.Event, markAll func() error) (core.Decision, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stepLocked(e, markAll)
}

func (g *Group) stepLocked(e core.Event, markAll func() error) (core.Decision, error) {
	if g.failure != nil {
		return nil, g.failure
	}
	before := g.core.Clone()
	decision, effects, err := g.core.Step(e)
	if err != nil {
		return nil, err
	}
	for _, effect := range effects {
		switch effect.(type) {
		case core.MarkAll:
			err = markAll()
		case core.Persist:
			err = g.saveMeta()
		case core.RollJournal:
			err = g.rollJournal()
		}
		if err != nil && vfs.NoSpace(err) && g.metaIsStored(&before.Meta) {
			*g.core = *before // as if nothing had happened: who asked for it asks again
			return nil, fmt.Errorf("group %s: %w; free space on the file system of %s", before.Meta.Name, err, g.dir)
		}
		if err != nil {
			// Memory and disk disagree now, and neither may be acted on.
			g.failure = fmt.Errorf("%w: %w", ErrFailed, err)
			g.writable.Store(false)
			g.log.room.send()
			return nil, g.failure
		}
	}
	if m := &g.core.Meta; m.Role.Ships() && m.Sync == core.SyncDone && g.core.Answered() {
		g.clock.has(g.core.Acked())
	}
	g.writable.Store(g.core.Writable())
	return decision, nil
}

// metaIsStored reports whether group.json says what m does.
func (g *Group) metaIsStored(m *core.Meta) bool {
	want, err := recordfile.Encode(core.MetaKind, m)
	if err != nil {
		return false
	}
	stored, err := loadMeta(g.cfg.FS, g.path(core.MetaFile)) // decoded: an earlier release orders the keys otherwise
	if err != nil {
		return false
	}
	have, err := recordfile.Encode(core.MetaKind, &stored)
	return err == nil && bytes.Equal(want, have)
}

func (g *Group) rollJournal() error {
	id, err := parseID(g.core.Meta.Timeline())
	if err != nil {
		return err
	}
	return g.journal.Roll(id)
}

// at returns the member with an index, or nil.
func (ms *members) at(index uint32) *Volume { return (*ms.list.Load())[index] }
