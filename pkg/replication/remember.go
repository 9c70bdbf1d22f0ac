package replication

import (
	"errors"
	"io/fs"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// What a group remembers of its peer across a restart of the replicator, in a record file of its own in the group's
// directory (core.Recollection, in the form of blockdev's package comment, kind "remembered").
//
// It is overwritten in place and never synced: it proves something on the same boot of the machine only, and until then
// the page cache has it. An old one is right, as everything is that it says: the bounds made from it are wider. One that
// is missing or damaged makes them unknown. So nothing of it can keep a group from working.
const (
	rememberedFile = "remembered"
	rememberedKind = "remembered"
	// rememberInterval is how often it is written at most: by so much a bound can be wider after a kill.
	rememberInterval = time.Second
)

// recall reads what an earlier process left.
func (g *Group) recall() {
	head := g.journal.Head()
	g.clock.begin(head, 0, clocks.Instant{})
	var r core.Recollection
	err := blockdev.ReadRecord(g.cfg.FS, g.path(rememberedFile), rememberedKind, &r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		klog.InfoS("What was known of the peer is lost; lag and loss are unknown until it is heard again", "group", g.core.Meta.Name, "reason", err.Error())
		return
	}
	if g.core.Recall(r) && r.Role == core.RolePrimary && r.Told != nil {
		g.clock.begin(head, *r.Told, r.CaughtUp.At)
	}
}

// remember writes what is known now; with lazily not more often than the interval. Errors are logged once and change nothing.
func (g *Group) remember(lazily bool) {
	g.rememberMu.Lock()
	defer g.rememberMu.Unlock()
	instant, now := g.cfg.Clock(), g.cfg.Now()
	if passed, ok := instant.SinceAtMost(g.rememberedAt); lazily && ok && passed < rememberInterval {
		return
	}
	g.rememberedAt = instant
	g.mu.Lock()
	r := g.core.Remember(g.journal.Durable())
	g.mu.Unlock()
	if r.Role == core.RolePrimary {
		r.CaughtUp.At = g.clock.oldest(g.journal.Head, now, instant)
	}
	err := g.writeRemembered(r)
	if err != nil && !g.rememberFails {
		klog.ErrorS(err, "What is known of the peer cannot be written; after a restart the lag may be unknown for a while", "group", g.Name())
	}
	g.rememberFails = err != nil
}

func (g *Group) writeRemembered(r core.Recollection) error {
	data, err := blockdev.EncodeRecord(rememberedKind, r)
	if err != nil {
		return err
	}
	name := g.path(rememberedFile)
	f, err := g.cfg.FS.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = g.cfg.FS.Create(name)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if size, sizeErr := f.Size(); err == nil && sizeErr == nil && size > int64(len(data)) {
		err = f.Truncate(int64(len(data)))
	}
	return errors.Join(err, f.Close())
}

// forgetPeer is for a peer that has nothing any more, whatever it had.
func (g *Group) forgetPeer() {
	g.clock.begin(g.journal.Head(), 0, clocks.Instant{})
	if err := g.cfg.FS.Remove(g.path(rememberedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "What was known of the peer stays on disk until it is written again", "group", g.core.Meta.Name)
	}
}
