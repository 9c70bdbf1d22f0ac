package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A circle is a round in which the group goes from site to site and back, as often as it is drawn: by relocations, by
// forks from which one of the sites gives way, by resyncs after outages. In between views and bookmarks are made,
// members come and go, and both sites are compared. Sites are killed and lose power at any moment.
//
// The driving goroutine is the only writer. So the round knows what each ordinal of each site is, and every copy, view
// and tail has to be exactly that.

// circleSite is a site with what it holds: line[i] has ordinal i+1.
type circleSite struct {
	*memSite
	line []entry
	// flushed is what a power loss has to leave, while it is primary.
	flushed uint64
	tails   []keptTail
	views   []*openView
}

// keptTail is what a site had when it gave way.
type keptTail struct {
	head  uint64
	holds content
}

// openView is a view, and what it has to show.
type openView struct {
	name    string
	ordinal uint64
	shows   content
	volumes []string // by id
}

// circle is one round.
type circle struct {
	*world
	primary, secondary *circleSite
	// floor is the highest ordinal that the secondary had with a whole copy, as its primary knew.
	floor uint64
	// whole: the secondary had a whole copy once.
	whole bool
	// names counts views and bookmarks.
	names int
}

// circleTally counts what circles did.
type circleTally struct {
	circles, forks, tails, loserPromoted, relocations, resyncs, drills, drillsInSync atomic.Int64
	views, viewsLater, testFailovers, bookmarks, suspensions, repairs                atomic.Int64
	added, removed, grown, kills, powerLosses                                        atomic.Int64
}

func (t *circleTally) String() string {
	return fmt.Sprintf("%d circles: %d forks (%d times the promoted site gave way), %d tails judged, %d relocations, %d "+
		"outages longer than the journal, %d drills (%d in the middle of a sync), %d views (%d judged again later), %d test "+
		"failovers, %d bookmarks, %d suspensions, %d repairs, %d volumes added, %d removed, %d grown; %d kills, %d power "+
		"losses",
		t.circles.Load(), t.forks.Load(), t.loserPromoted.Load(), t.tails.Load(), t.relocations.Load(), t.resyncs.Load(),
		t.drills.Load(), t.drillsInSync.Load(), t.views.Load(), t.viewsLater.Load(), t.testFailovers.Load(),
		t.bookmarks.Load(), t.suspensions.Load(), t.repairs.Load(), t.added.Load(), t.removed.Load(), t.grown.Load(),
		t.kills.Load(), t.powerLosses.Load())
}

// circleRound runs one circle in memory.
func circleRound(ctx context.Context, seed uint64, t *tally) (err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := params{seed: seed, exact: true, journalBytes: replication.MinJournalBytes, maxBlocks: pick(rng, 1, 4, 16),
		reflink: rng.IntN(2) == 0, events: 4 + rng.IntN(6),
		pace: pace{
			commit: time.Duration(1+rng.IntN(10)) * time.Millisecond, apply: time.Duration(1+rng.IntN(20)) * time.Millisecond,
			heartbeat: time.Duration(2+rng.IntN(8)) * time.Millisecond,
		}}
	for range 1 + rng.IntN(3) {
		p.blocks = append(p.blocks, chunkBlocks+rng.IntN(pick(rng, 8, 64, 256)))
		p.filled = append(p.filled, rng.IntN(3) == 0)
	}
	w := &world{ctx: ctx, rng: rng, tally: t, p: p, h: &history{exact: true}, net: link.NewNetwork(nil)}
	w.h.note("circle: %v", p)
	c := &circle{world: w}
	defer func() { err = w.h.explain(err) }()
	defer w.net.Close()
	for _, name := range []string{siteA, siteB} {
		s := &memSite{name: name, pace: p.pace, fs: vfs.NewMem(), net: w.net}
		s.fs.SetReflink(p.reflink)
		if err := s.open(); err != nil {
			return err
		}
		defer s.kill()
		if name == siteA {
			w.a, c.primary = s, &circleSite{memSite: s}
		} else {
			w.b, c.secondary = s, &circleSite{memSite: s}
		}
	}
	if err := c.begin(); err != nil {
		return err
	}
	for range p.events {
		if err := c.event(); err != nil {
			return err
		}
	}
	t.circle.circles.Add(1)
	return c.end()
}

func (c *circle) begin() error {
	g, err := c.primary.site.CreateGroup(replication.GroupSpec{
		Name:     groupName,
		Settings: core.Settings{Peer: siteB, JournalSizeBytes: c.p.journalBytes, JournalFull: core.PolicyTrack},
	})
	if err != nil {
		return err
	}
	for i, blocks := range c.p.blocks {
		if err := c.add(g, blocks, c.p.filled[i]); err != nil {
			return err
		}
	}
	return c.settle("the first sync")
}

// event draws what is done next.
func (c *circle) event() error {
	if err := c.write(c.primary, c.rng.IntN(30)); err != nil {
		return err
	}
	if c.rng.IntN(3) == 0 {
		if err := c.disturb(c.primary, c.secondary); err != nil {
			return err
		}
	}
	events := []func() error{
		c.fork, c.fork, c.relocate, c.resync, c.view, c.view, c.judgeViews, c.testFailover, c.bookmark, c.suspend,
		c.verify, c.members, c.members, func() error { return c.drill("at rest") },
	}
	return events[c.rng.IntN(len(events))]()
}

// end judges everything that is left.
func (c *circle) end() error {
	if err := c.settle("the end"); err != nil {
		return err
	}
	if err := c.judgeViews(); err != nil {
		return err
	}
	return c.judgeTails()
}

// holds demands that a site's copy is exactly what the first n entries of a line are. Of some volumes it may have none.
func (c *circle) holds(s *memSite, who string, line []entry, n uint64, gone ...int) error {
	if n > uint64(len(line)) {
		return c.h.violation("%s is at ordinal %d, only %d were written", who, n, len(line))
	}
	shown, err := c.readGroup(s)
	if err != nil {
		return err
	}
	want := c.h.lineContent(line, n)
	for _, v := range gone {
		want[v].absent = want[v].absent || shown[v].absent
	}
	return c.h.checkImage(who, shown, want)
}

// write does some operations at a site that is primary.
func (c *circle) write(s *circleSite, n int) error {
	g := s.group()
	volumes := g.Volumes()
	for range n {
		v := volumes[c.rng.IntN(len(volumes))]
		number := slices.IndexFunc(c.h.models(), func(m *volumeModel) bool { return m.id == v.ID() })
		blocks := int(v.Size() / blockBytes)
		n := min(1+c.rng.IntN(c.p.maxBlocks), blocks)
		o := c.h.draft(number, c.rng.IntN(blocks-n+1), n)
		var err error
		off, length := int64(o.block)*blockBytes, int64(n)*blockBytes
		if c.rng.IntN(20) == 0 {
			o.kind = opDiscard
			err = v.Discard(off, length)
		} else {
			p := make([]byte, length)
			stamp(p, c.p.seed, o)
			_, err = v.WriteAt(p, off)
		}
		if err != nil {
			return c.h.violation("the primary at %s takes no writes: %v", s.name, err)
		}
		s.line = append(s.line, entry{op: o})
		if c.rng.IntN(16) == 0 {
			if err := v.Flush(); err != nil {
				return c.h.violation("the primary at %s: flush: %v", s.name, err)
			}
			s.flushed = uint64(len(s.line))
		}
	}
	return c.took(s, nil)
}

// took notes the ordinals that the engine took since, all of them durable; the first of them is that of a change of
// members.
func (c *circle) took(s *circleSite, m *memberChange) error {
	head := s.group().Status().HeadOrdinal
	if n := uint64(len(s.line)); head < n || m != nil && head == n {
		return c.h.violation("%s is at ordinal %d after %d operations", s.name, head, n)
	}
	for uint64(len(s.line)) < head {
		s.line = append(s.line, entry{member: m})
		m = nil
		s.flushed = uint64(len(s.line))
	}
	return nil
}

// observe notes what the primary knows of a secondary with a whole copy.
func (c *circle) observe() {
	s := c.primary.group().Status()
	if s.State == core.StateStreaming && c.primary.group().Status().State == core.StateStreaming {
		c.floor, c.whole = max(c.floor, orZero(s.AcknowledgedOrdinal)), true
	}
}

// settle waits until both sites are the same, and demands that they are what was written.
func (c *circle) settle(what string) error {
	p, s := c.primary, c.secondary
	who := fmt.Sprintf("the copy at %s after %s", s.name, what)
	err := c.eventually(who, func() (bool, string) {
		if s.group() == nil {
			return false, fmt.Sprintf("no group at %s", s.name)
		}
		a, b := p.group().Status(), s.group().Status()
		return a.State == core.StateStreaming && b.Role == core.RoleSecondary && b.Promotable && b.Before == nil &&
			b.DurableOrdinal == a.HeadOrdinal && orZero(a.AcknowledgedOrdinal) == a.HeadOrdinal &&
			a.ChangeMapBytes == 0, fmt.Sprintf("%s: %v, %s: %v", p.name, a, s.name, b)
	})
	if err != nil {
		return err
	}
	if head := p.group().Status().HeadOrdinal; head != uint64(len(p.line)) {
		return c.h.violation("%s is at ordinal %d after %d operations", p.name, head, len(p.line))
	}
	c.observe()
	s.line = slices.Clone(p.line)
	n := uint64(len(p.line))
	if err := c.holds(p.memSite, fmt.Sprintf("%s after %s", p.name, what), p.line, n); err != nil {
		return err
	}
	// A record is durable, and acknowledged, a moment before it is in the index that reads go by. Whatever shows a
	// secondary (a promotion, a view, a snapshot) looks at both as one, as the recovery points do.
	if _, err := s.group().Points(); err != nil {
		return c.h.violation("the recovery points of %s are not known: %v", s.name, err)
	}
	return c.holds(s.memSite, who, p.line, n)
}

// disturb ends sites' processes, or their power, in some of the calls, and starts them again. What a primary has lost
// then is not in its line any more.
func (c *circle) disturb(sites ...*circleSite) error {
	for _, s := range sites {
		if draw := c.rng.IntN(6); draw < 2 {
			if err := c.restart(s, draw == 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *circle) restart(s *circleSite, power bool) error {
	if !c.cut {
		c.net.Cut(s.name)
		defer c.net.Heal(s.name)
	}
	must := uint64(len(s.line))
	if power {
		must = s.flushed
		clone := s.clone(c.unsynced(), c.rng)
		s.kill()
		s.fs = clone.fs
		c.tally.circle.powerLosses.Add(1)
		c.h.note("%s lost power, flushed up to ordinal %d", s.name, must)
	} else {
		s.kill()
		c.tally.circle.kills.Add(1)
		c.h.note("%s was killed", s.name)
	}
	if err := s.open(); err != nil {
		return c.h.violation("%s does not start: %v", s.name, err)
	}
	g := s.group()
	if g == nil {
		return c.h.violation("%s has forgotten its group: %v", s.name, s.site.Broken())
	}
	if g.Status().Role != core.RolePrimary {
		return nil
	}
	head := g.Status().HeadOrdinal
	if head < must || head > uint64(len(s.line)) {
		return c.h.violation("%s came back with ordinal %d, %d were written and %d durable", s.name, head, len(s.line), must)
	}
	if s == c.primary && head < c.floor {
		return c.h.violation("%s came back with ordinal %d, its peer had %d", s.name, head, c.floor)
	}
	s.line, s.flushed = s.line[:head], head
	return c.holds(s.memSite, s.name+" after a crash", s.line, head)
}

// repeatable reports whether an error says that the operation is to be repeated.
func repeatable(err error) bool {
	return err != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, core.ErrPrecondition) ||
		errors.Is(err, replication.ErrClosed))
}

// add makes a volume, with content if filled, and adds it to the group.
func (c *circle) add(g *replication.Group, blocks int, filled bool) error {
	s, number := c.primary, len(c.h.models())
	id := fmt.Sprintf("v%d", number)
	c.h.addVolume(id, blocks)
	rec, err := s.pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: int64(blocks) * blockBytes,
		Replicable: true, Order: blockdev.OrderFlush})
	if err != nil {
		return err
	}
	if filled {
		image, err := s.pool.OpenImage(id)
		if err != nil {
			return err
		}
		defer image.Close()
		if err := c.fillImage(image, number, blocks); err != nil {
			return err
		}
	}
	if err := g.AddVolume(rec, nil); err != nil {
		return c.h.violation("volume %s cannot be added: %v", id, err)
	}
	c.h.note("volume %s of %d blocks added at %s, filled %v", id, blocks, s.name, filled)
	c.tally.circle.added.Add(1)
	return c.took(s, &memberChange{volume: number, blocks: blocks})
}
