package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// openGroup opens what a clean stop, a kill or a power loss left, in this order: group.json says what the group is, the
// checkpoint how far the images are, the journal has the rest, and the index is rebuilt from it. Nothing is applied
// here: a group serves I/O as soon as the index is there.
//
// Damage is an error that names the file and the place. Nothing on disk has been changed then.
func openGroup(site *Site, dir string) (_ *Group, err error) {
	g := newGroup(site, dir)
	if err := g.openFiles(); err != nil {
		return nil, err
	}
	g.changes.checkpoint = g.checkpoint
	meta := &g.core.Meta
	g.log.segBytes.Store(segmentBytesFor(meta.JournalSizeBytes))
	defer func() {
		if err != nil {
			g.cuts.close()
			g.preserved.close()
			g.views.close()
			g.checkpoint.close()
			for _, v := range *g.members.list.Load() {
				v.image.Close()
			}
		}
	}()
	if err := site.checkRegister(g); err != nil {
		return nil, err
	}
	back, err := g.resync.finish()
	if err != nil {
		return nil, err
	}
	if err := g.members.openAll(); err != nil {
		return nil, err
	}
	if err := g.openJournal(); err != nil {
		return nil, err
	}
	if err := g.loadChangeMap(); err != nil {
		g.journal.Close()
		return nil, err
	}
	g.remembered.recall()
	err = g.cuts.load()
	if err == nil {
		err = g.preserved.load()
	}
	if err == nil {
		err = g.resync.check()
	}
	if err == nil {
		err = g.trials.opened(back)
	}
	if err != nil {
		g.journal.Close()
		return nil, err
	}
	g.verification.load()
	if err := g.views.load(); err != nil {
		g.journal.Close()
		return nil, err
	}
	if err := g.yields.resume(); err != nil {
		g.journal.Close()
		return nil, err
	}
	if _, err := g.stepLocked(core.Opened{Durable: g.journal.Head()}, nil); err != nil {
		g.journal.Close()
		return nil, err
	}
	// A crash may have come while a volume was being added, changed or removed.
	if err := g.members.resume(); err != nil {
		g.journal.Close()
		return nil, err
	}
	// Or between a change of role and the pool's records of it.
	if err := g.members.alignPool(); err != nil {
		g.journal.Close()
		return nil, err
	}
	if err := g.members.noteIdentities(); err != nil {
		g.journal.Close()
		return nil, err
	}
	g.writable.Store(g.core.Writable())
	return g, nil
}

// newGroup returns a group in a directory, of which nothing is read.
func newGroup(site *Site, dir string) *Group {
	g := &Group{
		site: site, cfg: &site.cfg, dir: dir, clock: newWriteClock(),
	}
	g.cuts, g.views, g.verification, g.shard = newCuts(g), &views{g: g}, newVerification(g), newShard(g)
	g.points.g, g.bookmarks.g, g.history.g = g, g, g
	g.yields.g, g.handover.g, g.resync.g, g.trials.g = g, g, g, g
	g.members.g, g.copies.g, g.preserved.g = g, g, g
	g.log.g, g.settings.g, g.remembered.g = g, g, g
	g.applier.g, g.applier.work = g, newSignal()
	g.trimmer.g, g.trimmer.work = g, newSignal()
	g.tailPolicy.g, g.tailPolicy.work = g, newSignal()
	g.shipper.g, g.shipper.work, g.shipper.linkWork = g, newSignal(), newSignal()
	g.remembered.fs, g.remembered.path = g.cfg.FS, g.path(rememberedName)
	g.changes = newChangeSet(g.cfg.FS, g.path(changeMapFile), g.cfg.Pool.WithReserve)
	g.members.list.Store(&map[uint32]*Volume{})
	return g
}

// loadChangeMap reads what the peer lacks. A map that is damaged, gone, an older copy or another group's takes nothing
// from this site's data, so it does not keep the group from opening: the peer gets everything instead.
func (g *Group) loadChangeMap() error {
	name, m := g.path(changeMapFile), &g.core.Meta
	pending, tag, err := changemap.LoadTagged(g.cfg.FS, name)
	last := g.checkpoint.read()
	who, known := last.Owner, last.Files[fileMap]
	switch {
	case errors.Is(err, fs.ErrNotExist) && known == 0 && m.Sync != core.SyncRunning:
		pending, err = changemap.New(), nil // nothing was ever folded
	case err == nil && known == 0 && tag == changemap.Tag{}: // of an earlier version
	case err == nil && (tag.Group != who.group || tag.Pool != who.pool):
		err = stale(name, "it is that of group %x in pool %x", tag.Group, tag.Pool)
	case err == nil:
		if err = g.checkpoint.checkGeneration(fileMap, tag.Generation); err != nil && tag.Generation > known {
			return err // the checkpoint is what is old
		}
	}
	g.changes.load(pending, max(known, tag.Generation))
	if !errors.Is(err, changemap.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errStale) {
		return err
	}
	klog.ErrorS(err, "The change map is lost; everything is copied to the peer at the next contact", "group", m.Name,
		"file", name)
	g.changes.load(changemap.New(), known)
	m.Sync, m.FullCopy = core.SyncNever, fmt.Sprintf("%s has lost its change map (%s)", g.cfg.Site, changeMapFile)
	return g.saveMeta()
}

func (g *Group) openJournal() error {
	meta := &g.core.Meta
	groupID, err := parseID(meta.GroupID)
	if err != nil {
		return err
	}
	timeline, err := parseID(meta.Timeline())
	if err != nil {
		return err
	}
	last := g.checkpoint.read()
	segmentBytes, hardLimit := journalLimits(&meta.Settings)
	replay := recovery{g: g, from: last.Applied, applied: map[*Volume]*appliedTail{}}
	g.journal, err = journal.Open(journal.Options{
		FS: g.cfg.FS, Dir: g.path(core.JournalDir), GroupID: groupID, TimelineID: timeline,
		SegmentBytes: segmentBytes, HardLimitBytes: hardLimit, FreeTarget: freeSegments, KeepFree: keptSegments,
		OldestSegment: last.OldestSegment, MinDurableOrdinal: last.DurableOrdinal, StartOrdinal: last.AppliedOrdinal,
		Mark: last.Mark, Checkpoint: g.path(checkpointName), Generation: g.checkpoint.generation.Load,
		Announce: g.checkpoint.announceSegment,
		Visit:    replay.record, RoomMade: g.log.room.send, Memory: g.site.memory,
	})
	if err != nil {
		return fmt.Errorf("group %s: %w", meta.Name, err)
	}
	g.changes.loadRelied(meta.Relied)
	g.points.recall()
	g.checkpoint.horizon.Store(max(g.checkpoint.horizon.Load(), replay.horizon))
	err = replay.checkImages()
	if err == nil {
		err = replay.finish()
	}
	if err == nil {
		err = g.bookmarks.recover(replay.bookmarks)
	}
	if err == nil {
		err = g.shard.recallMarks(replay.marks)
	}
	if err != nil {
		g.journal.Close()
		return err
	}
	g.applier.beginApply(last.Applied)
	klog.InfoS("Group opened", "group", meta.Name, "role", meta.Role, "applied", last.AppliedOrdinal,
		"head", g.journal.Head())
	return nil
}

// beginApply sets where apply begins, if applied is no place of the journal: nothing was ever applied, or all of it has
// left the journal, which does not know then where it had ended. Apply begins where the journal does.
func (a *applier) beginApply(applied journal.Position) {
	g := a.g
	segments := g.journal.Segments()
	switch {
	case len(segments) == 0:
		g.checkpoint.beginAt(g.journal.End())
	case applied.Segment < segments[0].Sequence:
		g.checkpoint.beginAt(segments[0].Begin)
	}
}

// recovery rebuilds in memory what the journal says.
type recovery struct {
	g    *Group
	from journal.Position
	// consistent is what the last sync-begin or sync-end in the journal says; nil without one.
	consistent *bool
	// applied is what the images have of the journal.
	applied map[*Volume]*appliedTail
	// horizon is the last one in the journal.
	horizon   uint64
	bookmarks []foundBookmark
	marks     []foundMark
}

// checkImages compares the images with what the journal says was applied to them. One of a volume that is being added
// may have been written past the group since.
func (r *recovery) checkImages() error {
	for v, tail := range r.applied {
		if m := r.g.core.Meta.At(v.index); m.State.Adding() {
			continue
		}
		if err := tail.check(v); err != nil {
			return fmt.Errorf("group %s: %w", r.g.Name(), err)
		}
	}
	return nil
}

// record is called for each live record, in stream order.
func (r *recovery) record(h journal.Header, loc journal.Location) error {
	switch h.Kind {
	case journal.KindSyncBegin, journal.KindSyncEnd:
		now := h.Kind == journal.KindSyncEnd
		r.consistent = &now
		if now {
			r.g.points.syncEnd.extend(journal.Position(loc), h.Ordinal)
		}
	}
	switch h.Kind {
	case journal.KindSyncBegin, journal.KindHorizon:
		r.horizon = uint64(h.Offset)
	case journal.KindBookmark:
		r.bookmarks = append(r.bookmarks, foundBookmark{h, loc})
	case journal.KindEpoch:
		r.marks = append(r.marks, foundMark{h, loc})
	}
	v := r.g.members.at(h.Volume)
	if !touchesImage(&h) || v == nil || h.Offset+int64(h.Length) > v.size.Load() { // removed or made smaller since
		return nil
	}
	if loc.Start().Before(r.from) {
		if r.applied[v] == nil {
			r.applied[v] = &appliedTail{}
		}
		r.applied[v].add(h, loc)
		return nil
	}
	v.indexRecord(h, loc)
	return nil
}

// finish brings group.json up to what the journal has: a secondary that died between the end of a sync and saying so.
// The last end in the journal is that of an earlier sync if it died before the beginning of the next was durable.
func (r *recovery) finish() error {
	m := &r.g.core.Meta
	if m.Role != core.RoleSecondary || r.consistent == nil || !*r.consistent || m.Copy != core.CopyPartial {
		return nil
	}
	_, err := r.g.stepLocked(core.SyncEndDurable{}, nil)
	return err
}

// createGroup makes a group's directory with all that a group has from its beginning, under another name. Renaming it
// is the instant the group comes into being.
func createGroup(site *Site, dir string, meta core.Meta) error {
	if err := meta.Validate(); err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrInvalid, meta.Name, err)
	}
	meta.Pool, meta.Generation = site.cfg.Pool.ID(), 1
	who, err := ownerOf(meta.GroupID, meta.Pool)
	if err != nil {
		return err
	}
	fsys, tmp := site.cfg.FS, dir+creatingSuffix
	if err := fsys.RemoveAll(tmp); err != nil { // of a creation that failed
		return err
	}
	if err := fsys.MkdirAll(filepath.Join(tmp, core.JournalDir)); err != nil {
		return err
	}
	if err := createCheckpoint(fsys, filepath.Join(tmp, checkpointName),
		checkpoint{Owner: who, Files: [fileCount]uint64{fileMeta: 1}}); err != nil {
		return err
	}
	if err := writeMeta(fsys, filepath.Join(tmp, core.MetaFile), &meta); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, dir); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(dir))
}

func parseID(id string) ([16]byte, error) {
	u, err := uuid.Parse(id)
	if err != nil {
		return [16]byte{}, fmt.Errorf("%w: identifier %q: %w", ErrInvalid, id, err)
	}
	if u.String() != id { // one identifier, one directory
		return [16]byte{}, fmt.Errorf("%w: identifier %q: not in the form %s", ErrInvalid, id, u)
	}
	return u, nil
}
