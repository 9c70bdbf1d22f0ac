package replication

import (
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// groupSettings changes the settings of a group, and puts them into effect. group.json has them.
type groupSettings struct {
	g *Group
	// mu keeps changes apart. It is taken before all other locks of the group.
	mu sync.Mutex
}

// MinJournalBytes is [core.MinJournalBytes].
const MinJournalBytes = core.MinJournalBytes

// checkSettings returns an ErrInvalid if no group can have these settings.
func checkSettings(name string, s core.Settings) error {
	if err := s.Check(); err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrInvalid, name, err)
	}
	return nil
}

// checkPeer says why a group of this site cannot replicate with a site: it would wait forever.
func (c *Config) checkPeer(name string, s core.Settings) error {
	switch {
	case s.Peer == "":
		return nil
	case s.Peer == c.Site:
		return fmt.Errorf("%w: group %s: site %s cannot replicate to itself", ErrInvalid, name, s.Peer)
	case c.KnownPeer != nil && !c.KnownPeer(s.Peer):
		return fmt.Errorf("%w: group %s: %q is not a peer of site %s; look at the name, or start its replicator with "+
			"--peer %[3]s=host:port", ErrInvalid,
			name, s.Peer, c.Site)
	case c.addressOf(s) == "":
		return fmt.Errorf("%w: group %s: site %s has no address of its peer %s; give the group one (--remote-address), or "+
			"the replicator (--peer %[4]s=host:port)", ErrInvalid, name, c.Site, s.Peer)
	}
	return nil
}

// addressOf is where a group's peer is called; empty where that is not known.
func (c *Config) addressOf(s core.Settings) string {
	if s.PeerAddress != "" {
		return s.PeerAddress
	}
	return c.PeerAddress(s.Peer)
}

// journalLimits is what a journal's size and policy mean in segments: how large they are, and how much all of them are.
func journalLimits(m *core.Settings) (segmentBytes, hardLimit int64) {
	segmentBytes = segmentBytesFor(m.JournalSizeBytes)
	return segmentBytes, max(m.JournalLimitBytes(), 4*segmentBytes)
}

// Settings returns the group's settings as they are now.
func (g *Group) Settings() core.Settings {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Settings
}

// Change changes the settings that it is given; it may be called more than once. Another peer is set with
// [core.Settings.SetPeer].
type Change func(*core.Settings)

// Modify changes settings of a group under load, and returns when they are durable and in effect. Writers do not wait
// for it; those that wait for room in the journal look again. Repeating it is not an error.
//
// group.json decides: a crash before it is written leaves the old settings, a crash after it the new ones, which the
// next open puts into effect.
func (g *Group) Modify(change Change) error { return g.settings.modify(change, false) }

// modify is Modify; with peerGone also where the peer may have been promoted in this site's place.
func (gs *groupSettings) modify(change Change, peerGone bool) error {
	g := gs.g
	gs.mu.Lock()
	defer gs.mu.Unlock()
	before := g.Settings()
	next := before
	change(&next)
	if err := checkSettings(g.Name(), next); err != nil {
		return err
	}
	if next.Peer != before.Peer || next.PeerAddress != before.PeerAddress {
		if err := g.cfg.checkPeer(g.Name(), next); err != nil {
			return err
		}
	}
	switch {
	case next.Peer == "" && next.PeerAddress != "":
		return fmt.Errorf("%w: group %s: an address of the remote site needs a remote site", ErrInvalid, g.Name())
	case next.Peer == "" && next.JournalFull == core.PolicyStall:
		return fmt.Errorf("%w: group %s: journal-full stall needs a remote site; set journal-full to track as well",
			core.ErrPrecondition, g.Name())
	}
	if next.JournalSizeBytes > before.JournalSizeBytes {
		if err := g.site.checkJournalFits(g.Name(), next, g.journal.TotalBytes()); err != nil {
			return err
		}
	}
	if err := gs.configure(core.Configured{Settings: next, PeerGone: peerGone}, before); err != nil {
		return err
	}
	if next != before {
		klog.InfoS("Group changed", "group", g.Name(), "from", before, "to", next)
	}
	return nil
}

// configure changes settings, durably first, and puts them into effect. The caller holds mu.
//
// A stream to the peer has ended before another peer's name is in group.json: what the old one acknowledges after that
// must not count for the new one.
func (gs *groupSettings) configure(e core.Configured, before core.Settings) error {
	g := gs.g
	next := e.Settings
	if next == before {
		return nil
	}
	if g.ctx.Err() != nil {
		return ErrClosed
	}
	if next.Peer != before.Peer || next.PeerAddress != before.PeerAddress {
		release := g.streams.hold()
		defer func() { release(); g.shipper.linkWork.send() }()
	}
	if err := gs.change(e, before); err != nil {
		return err
	}
	gs.applyLimits()
	if next.JournalSizeBytes != before.JournalSizeBytes || next.RPOTargetMillis != before.RPOTargetMillis ||
		next.HistoryMillis != before.HistoryMillis || next.HistoryBytes != before.HistoryBytes ||
		next.Shard != before.Shard {
		g.streams.restart() // the peer hears of them in Hello
		g.shipper.linkWork.send()
	}
	g.shipper.work.send()
	g.tailPolicy.work.send()
	return nil
}

func (gs *groupSettings) change(e core.Configured, before core.Settings) error {
	g := gs.g
	g.members.mu.Lock() // a change of a member writes the peer into its volume's record
	defer g.members.mu.Unlock()
	if _, err := g.step(e, nil); err != nil {
		return err
	}
	if e.Settings.Peer == before.Peer {
		return nil
	}
	// The old peer's; a new one gets everything (SyncNever).
	g.changes.forget()
	g.remembered.forget()
	g.difference.Forget()
	if err := g.shipper.saveChangeMap(); err != nil {
		klog.ErrorS(err, "The change map of the old peer stays on disk; it does no harm", "group", g.Name())
	}
	return g.members.alignPool()
}

// applyLimits brings the journal to its configured size. What does not fit any more goes first, as under pressure.
func (gs *groupSettings) applyLimits() {
	g := gs.g
	g.mu.Lock()
	segmentBytes, hardLimit := journalLimits(&g.core.Meta.Settings)
	g.mu.Unlock()
	g.log.segBytes.Store(segmentBytes)
	if err := g.journal.SetLimits(segmentBytes, hardLimit); err != nil && !errors.Is(err, journal.ErrClosed) {
		g.fail(err) // not a size that checkSettings lets through
	}
	g.trimmer.work.send()
	g.log.room.send()
}

// follow takes over what a primary says of the group's settings. What it says wrong is not taken: replication does not
// depend on it.
func (gs *groupSettings) follow(told core.Settings) {
	g := gs.g
	gs.mu.Lock()
	defer gs.mu.Unlock()
	before := g.Settings()
	next := before
	if told.JournalSizeBytes != 0 {
		next.JournalSizeBytes = g.copies.journalBytes(told.JournalSizeBytes, before.JournalSizeBytes)
	}
	next.RPOTargetMillis = told.RPOTargetMillis
	// A journal that is smaller here holds less.
	next.HistoryMillis, next.HistoryBytes = told.HistoryMillis, min(told.HistoryBytes, next.JournalSizeBytes/2)
	next = g.shard.follow(next, told.Shard)
	err := checkSettings(g.Name(), next)
	if err == nil {
		err = gs.configure(core.Configured{Settings: next, FromPeer: true}, before)
	}
	if err != nil {
		klog.ErrorS(err, "The primary's settings are not taken over", "group", g.Name())
	}
}
