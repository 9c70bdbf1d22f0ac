package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// params are what a round is drawn from.
type params struct {
	seed  uint64
	exact bool
	// overflow: bursts are larger than the journal, so that it is folded and the peer needs resyncs.
	overflow bool
	// storm: see memstorm.go; rollback: it ends in one, see memrollback.go.
	storm, rollback bool
	// reflink: the sites' file systems can clone files, so that snapshots need no copying.
	reflink bool

	blocks         []int // of each volume
	filled         []bool
	journalBytes   int64
	policy         core.Policy
	writers        int
	maxBlocks      int // of a write
	flushEvery     int // operations
	hotPercent     int
	discardPercent int
	events         int
	pace           pace
}

func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

func drawParams(seed uint64, rng *rand.Rand) params {
	p := params{
		seed: seed, exact: rng.IntN(4) != 0, overflow: rng.IntN(4) == 0, reflink: rng.IntN(4) == 0,
		journalBytes: replication.MinJournalBytes, policy: core.PolicyTrack,
		writers: 1 + rng.IntN(4), maxBlocks: pick(rng, 1, 4, 16), flushEvery: pick(rng, 1, 4, 16, 64),
		hotPercent: pick(rng, 0, 50, 95), discardPercent: pick(rng, 0, 3, 10), events: 3 + rng.IntN(6),
		pace: pace{
			commit:    time.Duration(1+rng.IntN(20)) * time.Millisecond,
			apply:     time.Duration(1+rng.IntN(30)) * time.Millisecond,
			heartbeat: time.Duration(2+rng.IntN(10)) * time.Millisecond,
		},
	}
	if rng.IntN(6) == 0 {
		p.policy = core.PolicyStall
	}
	if rng.IntN(4) == 0 {
		p.journalBytes += rng.Int64N(4) << 20
	}
	if p.overflow {
		p.maxBlocks = 16
	}
	for range 1 + rng.IntN(4) {
		// Not all a multiple of the change map's extent, nor of the writers' chunks.
		p.blocks = append(p.blocks, chunkBlocks*p.writers+rng.IntN(pick(rng, 8, 64, 256)))
		p.filled = append(p.filled, rng.IntN(4) == 0)
	}
	if rng.IntN(10) == 0 {
		p.drawStorm()
	}
	return p
}

func (p params) String() string {
	judge := "order"
	if p.exact {
		judge = "exact"
	}
	return fmt.Sprintf(
		"%s, volumes of %v blocks (filled: %v), journal %d bytes, %s, %d writers, writes of up to %d blocks, a flush "+
			"in %d operations, %d%% hot, %d%% discards and as many zeros, %d events, overflow %v, storm %v, reflink "+
			"%v, commit %v, apply %v",
		judge, p.blocks, p.filled, p.journalBytes, p.policy, p.writers, p.maxBlocks, p.flushEvery, p.hotPercent,
		p.discardPercent, p.events,
		p.overflow, p.storm, p.reflink, p.pace.commit, p.pace.apply)
}

// world is one round.
type world struct {
	ctx   context.Context
	rng   *rand.Rand
	p     params
	h     *history
	net   *link.Network
	a, b  *memSite
	ws    *writers
	cut   bool
	tally *tally
	// acked is the highest ordinal that the primary knows to be durable at the secondary; ackedClock the time before which
	// everything that had returned is. samples are what ackedClock is found from.
	acked      uint64
	ackedClock uint64
	// whole is the highest ordinal that the primary knew to be durable at the secondary while that had a whole copy: what
	// a promotion gives at least, also in the middle of a sync.
	whole   uint64
	samples []ackSample
	// powerFloor is what the primary's last power loss must have left.
	powerFloor floors

	// bound is what the promotion of the secondary said of the loss, at promoted.
	bound    *core.Loss
	promoted time.Time

	saved         []*savedState
	snapshots     []*groupSnapshot
	snapshotsMade int
}

type ackSample struct{ clock, head uint64 }

// memRound runs one round in memory.
func memRound(ctx context.Context, seed uint64, t *tally) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	return runMemRound(ctx, rng, drawParams(seed, rng), t)
}

func runMemRound(ctx context.Context, rng *rand.Rand, p params, t *tally) (err error) {
	seed := p.seed
	w := &world{ctx: ctx, rng: rng, tally: t, p: p}
	w.h = &history{exact: w.p.exact}
	w.h.note("round: %v", w.p)
	keepRNG := rand.New(rand.NewPCG(seed, 1<<32))
	var keepMu sync.Mutex
	w.net = link.NewNetwork(func(n int) int {
		keepMu.Lock()
		defer keepMu.Unlock()
		return keepRNG.IntN(n + 1)
	})
	defer w.net.Close()
	w.a = &memSite{name: siteA, pace: w.p.pace, fs: vfs.NewMem(), net: w.net}
	w.b = &memSite{name: siteB, pace: w.p.pace, fs: vfs.NewMem(), net: w.net}
	w.a.fs.SetReflink(w.p.reflink)
	w.b.fs.SetReflink(w.p.reflink)
	if w.p.storm {
		w.a.slow = time.Duration(5+w.rng.IntN(20)) * time.Millisecond
	}
	defer w.a.kill()
	defer w.b.kill()
	for _, s := range []*memSite{w.a, w.b} {
		if err := s.open(); err != nil {
			return err
		}
	}
	if err := w.createGroup(); err != nil {
		return err
	}
	w.ws = startWriters(w)
	defer func() {
		w.ws.ending()
		w.net.Close() // a writer that waits for room waits for a site that goes
		w.a.kill()
		w.b.kill()
		w.ws.stop()
	}()
	if err := w.pointWriters(); err != nil {
		return err
	}
	if w.rng.IntN(5) != 0 {
		// Most rounds begin with a secondary that can be promoted.
		err := w.eventually("the first sync", func() (bool, string) {
			g := w.b.group()
			return g != nil && g.Status().Promotable, fmt.Sprintf("primary %v", w.a.group().Status())
		})
		if err != nil {
			return err
		}
	}
	for range w.p.events {
		if err := w.burst(); err != nil {
			return err
		}
		if w.rng.IntN(6) == 0 || w.p.rollback && w.rng.IntN(2) == 0 {
			w.save()
		}
		if err := w.event(); err != nil {
			return err
		}
		if err := w.ws.err(); err != nil {
			return err
		}
	}
	if err := w.burst(); err != nil {
		return err
	}
	if err := w.judgeSnapshots("before the end"); err != nil {
		return err
	}
	if err := w.end(); err != nil {
		return err
	}
	if err := w.judgeSnapshots("in the end"); err != nil {
		return err
	}
	return w.ws.err()
}

func (w *world) createGroup() error {
	g, err := w.a.site.CreateGroup(replication.GroupSpec{
		Name: groupName, Settings: core.Settings{Peer: siteB, JournalSizeBytes: w.p.journalBytes, JournalFull: w.p.policy},
	})
	if err != nil {
		return err
	}
	for i, blocks := range w.p.blocks {
		if err := w.addVolume(g, blocks, w.p.filled[i]); err != nil {
			return err
		}
	}
	return nil
}

// addVolume adds a volume to the group, with content if filled. In an exact history the caller holds the writers' turn.
func (w *world) addVolume(g *replication.Group, blocks int, filled bool) error {
	number := len(w.h.models())
	id := fmt.Sprintf("v%d", number)
	model := w.h.addVolume(id, blocks)
	rec, err := w.a.pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: int64(blocks) * blockBytes,
		Replicable: true, Order: blockdev.OrderFlush})
	if err != nil {
		return err
	}
	if filled {
		if err := w.fill(id, number, blocks); err != nil {
			return err
		}
	}
	before := w.h.length()
	if err := g.AddVolume(rec, nil); err != nil {
		return err
	}
	joined := w.h.now()
	w.h.mu.Lock()
	model.joined = joined
	w.h.mu.Unlock()
	w.h.note("volume %d with %d blocks added, filled: %v", number, blocks, filled)
	if w.p.exact {
		w.h.mu.Lock()
		model.addedAt = before + 1
		w.h.mu.Unlock()
		w.h.other(g.Status().HeadOrdinal)
	}
	return nil
}

// fill writes content to a volume before it joins the group.
func (w *world) fill(id string, number, blocks int) error {
	image, err := w.a.pool.OpenImage(id)
	if err != nil {
		return err
	}
	defer image.Close()
	return w.fillImage(image, number, blocks)
}

func (w *world) fillImage(image *blockdev.Image, number, blocks int) error {
	for block := 0; block < blocks; block += 1 + w.rng.IntN(3*chunkBlocks) {
		n := min(1+w.rng.IntN(chunkBlocks), blocks-block)
		p := make([]byte, n*blockBytes)
		stamp(p, w.p.seed, w.h.initialWrite(number, block, n))
		if _, err := image.WriteAt(p, int64(block)*blockBytes); err != nil {
			return err
		}
		block += n
	}
	return image.Flush()
}

// pointWriters lets the writers go on against the primary that runs.
func (w *world) pointWriters() error {
	volumes, err := volumesOf(w.h, w.a.group())
	if err != nil {
		return err
	}
	w.ws.point(&target{volumes: volumes})
	return nil
}

// burst asks for some writes and waits for some of them, for a moment at most.
func (w *world) burst() error {
	if w.p.storm {
		return nil // its events write
	}
	n := 1 + w.rng.IntN(pick(w.rng, 4, 60, 200))
	if w.p.overflow && w.rng.IntN(2) == 0 {
		n = 60 + w.rng.IntN(120) // of 8 blocks on average: more than the journal holds
		n = n * int(w.p.journalBytes/replication.MinJournalBytes) * 2
	}
	w.ws.ask(n)
	left := w.rng.IntN(n)
	wait := time.Duration(w.rng.IntN(20)) * time.Millisecond
	if w.p.overflow {
		wait += 50 * time.Millisecond
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(w.ws.tokens) > left {
		select {
		case <-w.ctx.Done():
			return w.ctx.Err()
		case <-timer.C:
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// event does one thing to the sites while the writers run.
func (w *world) event() error {
	if w.p.storm {
		return w.storm()
	}
	if err := w.noDifferences(); err != nil {
		return err
	}
	if w.rng.IntN(4) == 0 {
		w.beginVerify()
	}
	switch draw := w.rng.IntN(100); {
	case draw < 22:
		w.toggleLink()
		return nil
	case draw < 32:
		return w.restartPrimary(false)
	case draw < 42:
		return w.restartPrimary(true)
	case draw < 50:
		return w.restartSecondary(false)
	case draw < 60:
		return w.restartSecondary(true)
	case draw < 73:
		return w.drill()
	case draw < 85:
		return w.snapshot()
	case draw < 93:
		return w.changeMembers()
	default:
		w.heal()
		return w.pause(time.Duration(w.rng.IntN(60)) * time.Millisecond)
	}
}

func (w *world) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (w *world) toggleLink() {
	if w.cut {
		w.heal()
		return
	}
	w.cut = true
	w.h.note("the link is cut")
	w.net.Cut(siteA)
}

func (w *world) heal() {
	if w.cut {
		w.h.note("the link is whole again")
	}
	w.cut = false
	w.net.Heal(siteA)
}

// observe takes note of what the primary knows of the secondary. What it says is durable there has to be there ever
// after.
func (w *world) observe() {
	g := w.a.group()
	_, clock := w.h.acknowledged()
	s := g.Status()
	w.acked = max(w.acked, orZero(s.AcknowledgedOrdinal))
	w.samples = append(w.samples, ackSample{clock, s.HeadOrdinal})
	// Looked at twice: a sync may begin in the middle of a status.
	if s.State != core.StateStreaming || g.Status().State != core.StateStreaming {
		return
	}
	w.whole = max(w.whole, orZero(s.AcknowledgedOrdinal))
	for _, sample := range w.samples {
		if sample.head <= orZero(s.AcknowledgedOrdinal) {
			w.ackedClock = max(w.ackedClock, sample.clock)
		}
	}
}

// readGroup reads what a site's copy holds.
func (w *world) readGroup(s *memSite) (content, error) {
	g := s.group()
	models := w.h.models()
	c := make(content, len(models))
	for i, m := range models {
		v, err := g.Volume(m.id)
		if errors.Is(err, replication.ErrNotFound) {
			c[i] = shownVolume{absent: true, perBlock: 1}
			continue
		}
		if err != nil {
			return nil, err
		}
		if c[i], err = w.h.read(w.p.seed, i, v, true); err != nil {
			// Whether it is so for good, or was so while records went from the journal to the image, is half of the answer.
			_, again := w.h.read(w.p.seed, i, v, true)
			return nil, fmt.Errorf("%s, where a second read does as well: %v: %w", s.name, again != nil, err)
		}
	}
	return c, nil
}

// faulty: a deliberate fault is at work.
var faulty atomic.Bool

// patience is how long a state may take that has to come; far more than a slow machine needs.
func patience() time.Duration {
	if faulty.Load() {
		return 15 * time.Second // it may well be that the state never comes
	}
	return 60 * time.Second
}

// eventually waits for a state that has to come. What it says in the end is for the report.
func (w *world) eventually(what string, holds func() (bool, string)) error {
	deadline := time.NewTimer(patience())
	defer deadline.Stop()
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, state := holds()
		if ok {
			return nil
		}
		if w.ws != nil { // a circle has none
			if err := w.ws.err(); err != nil {
				return err
			}
		}
		select {
		case <-w.ctx.Done():
			return w.ctx.Err()
		case <-deadline.C:
			return w.h.violation("%s has not come within %v: %s", what, patience(), state)
		case <-tick.C:
		}
	}
}
