package replication

import (
	"errors"
	"io/fs"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// What a group remembers of its peer across a restart of the replicator, in a record file of its own in the group's
// directory (core.Recollection, in the form of blockdev's package comment, kind "remembered").
//
// It is overwritten in place and never synced: it proves something on the same boot of the machine only, and until then
// the page cache has it. An old one is right, as everything is that it says: the bounds made from it are wider. One
// that is missing or damaged makes them unknown. So nothing of it can keep a group from working.
const (
	rememberedName = "remembered"
	rememberedKind = "remembered"
	// rememberInterval is how often it is written at most: by so much a bound can be wider after a kill.
	rememberInterval = time.Second
)

// rememberedFile writes what a group remembers, one writer at a time. Its lock comes before Group.mu.
type rememberedFile struct {
	g    *Group
	fs   vfs.FS
	path string

	mu        sync.Mutex
	writtenAt clocks.Instant
	failing   bool // the last write failed, and that was logged
}

// recall reads what an earlier process left.
func (f *rememberedFile) recall() {
	g := f.g
	head := g.journal.Head()
	g.clock.begin(head, 0, clocks.Instant{})
	var r core.Recollection
	err := recordfile.Read(g.cfg.FS, f.path, rememberedKind, &r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		klog.InfoS("What was known of the peer is lost; lag and loss are unknown until it is heard again",
			"group", g.core.Meta.Name, "reason", err.Error())
		return
	}
	if g.core.Recall(r) && r.Role == core.RolePrimary && r.Told != nil {
		g.clock.begin(head, *r.Told, r.CaughtUp.At)
	}
}

// save writes what is known now; with lazily not more often than the interval.
func (f *rememberedFile) save(lazily bool) {
	g := f.g
	instant, now := g.cfg.Clock(), g.cfg.Now()
	err := f.write(instant, lazily, func() core.Recollection {
		g.mu.Lock()
		r := g.core.Remember(g.journal.Durable())
		g.mu.Unlock()
		if r.Role == core.RolePrimary {
			r.CaughtUp.At = g.clock.oldest(g.journal.Head, now, instant)
		}
		return r
	})
	if err != nil {
		klog.ErrorS(err, "What is known of the peer cannot be written; after a restart the lag may be unknown for a while",
			"group", g.Name())
	}
}

// write writes what content returns; with lazily not more often than the interval. The first of several errors is
// returned, and none changes anything.
func (f *rememberedFile) write(instant clocks.Instant, lazily bool, content func() core.Recollection) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if passed, ok := instant.SinceAtMost(f.writtenAt); lazily && ok && passed < rememberInterval {
		return nil
	}
	f.writtenAt = instant
	err := f.writeLocked(content())
	reported := f.failing
	f.failing = err != nil
	if reported {
		return nil
	}
	return err
}

func (f *rememberedFile) writeLocked(r core.Recollection) error {
	data, err := recordfile.Encode(rememberedKind, r)
	if err != nil {
		return err
	}
	file, err := f.fs.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		file, err = f.fs.Create(f.path)
	}
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, 0)
	if size, sizeErr := file.Size(); err == nil && sizeErr == nil && size > int64(len(data)) {
		err = file.Truncate(int64(len(data)))
	}
	return errors.Join(err, file.Close())
}

// forget is for a peer that has nothing any more, whatever it had.
func (f *rememberedFile) forget() {
	g := f.g
	g.clock.begin(g.journal.Head(), 0, clocks.Instant{})
	if err := g.cfg.FS.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "What was known of the peer stays on disk until it is written again", "group", g.core.Meta.Name)
	}
}
