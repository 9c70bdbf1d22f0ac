package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

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
	g := &Group{
		site: site, cfg: &site.cfg, dir: dir, clock: newWriteClock(), trimmed: make(chan struct{}), joining: map[uint32]bool{},
		shipWork: newSignal(), applyWork: newSignal(), trimWork: newSignal(), linkWork: newSignal(),
	}
	g.cuts = newCuts(g)
	meta, err := loadMeta(g.cfg.FS, g.path(core.MetaFile))
	if err != nil {
		return nil, err
	}
	g.core, g.name, g.id = core.New(meta), meta.Name, meta.GroupID
	g.segBytes.Store(segmentBytesFor(meta.JournalSizeBytes))
	if g.checkpoint, err = openCheckpoint(g.cfg.FS, g.path(checkpointName)); err != nil {
		return nil, err
	}
	if err := g.loadChangeMap(); err != nil {
		g.checkpoint.close()
		return nil, err
	}
	g.volumes.Store(&map[uint32]*Volume{})
	defer func() {
		if err != nil {
			g.cuts.close()
			g.checkpoint.close()
			for _, v := range *g.volumes.Load() {
				v.image.Close()
			}
		}
	}()
	for _, member := range meta.Members {
		if err := g.openMember(member); err != nil {
			return nil, err
		}
	}
	if err := g.openJournal(); err != nil {
		return nil, err
	}
	g.recall()
	if err := g.cuts.load(); err != nil {
		g.journal.Close()
		return nil, err
	}
	// A crash may have come while a volume was being added, changed or removed.
	if err := g.continueMembers(); err != nil {
		g.journal.Close()
		return nil, err
	}
	// Or between a change of role and the pool's records of it.
	if err := g.alignPool(); err != nil {
		g.journal.Close()
		return nil, err
	}
	g.writable.Store(g.core.Writable())
	return g, nil
}

// loadChangeMap reads what the peer lacks. A map that is damaged, or gone while a sync needs it, takes nothing from this
// site's data, so it does not keep the group from opening: the peer gets everything instead.
func (g *Group) loadChangeMap() (err error) {
	name, m := g.path(changeMapFile), &g.core.Meta
	g.pending, err = changemap.Load(g.cfg.FS, name)
	if err == nil && m.Sync == core.SyncRunning {
		_, err = g.cfg.FS.Stat(name)
	}
	if !errors.Is(err, changemap.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	klog.ErrorS(err, "The change map is lost; everything is copied to the peer at the next contact", "group", m.Name, "file", name)
	g.pending, m.Sync = changemap.New(), core.SyncNever
	return saveMeta(g.cfg.FS, g.path(core.MetaFile), m)
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
	last := g.checkpoint.last
	segmentBytes, hardLimit := journalLimits(meta)
	replay := recovery{g: g, from: last.Applied}
	g.journal, err = journal.Open(journal.Options{
		FS: g.cfg.FS, Dir: g.path(core.JournalDir), GroupID: groupID, TimelineID: timeline,
		SegmentBytes: segmentBytes, HardLimitBytes: hardLimit, FreeTarget: freeSegments, KeepFree: keptSegments,
		OldestSegment: last.OldestSegment, MinDurableOrdinal: last.DurableOrdinal, StartOrdinal: last.AppliedOrdinal,
		Visit: replay.record, RoomMade: g.wakeWriters,
	})
	if err != nil {
		return fmt.Errorf("group %s: %w", meta.Name, err)
	}
	if err := replay.finish(); err != nil {
		g.journal.Close()
		return err
	}
	if last.Applied == (journal.Position{}) || last.Applied.Segment < last.OldestSegment {
		// Nothing was ever applied, or all of it has left the journal, which does not know then where it had ended: begin
		// where the journal does.
		g.checkpoint.last.Applied = g.journal.End()
		if segments := g.journal.Segments(); len(segments) > 0 {
			g.checkpoint.last.Applied = segments[0].Begin
		}
	}
	klog.InfoS("Group opened", "group", meta.Name, "role", meta.Role, "applied", last.AppliedOrdinal, "head", g.journal.Head())
	return nil
}

// recovery rebuilds in memory what the journal says.
type recovery struct {
	g    *Group
	from journal.Position
	// consistent is what the last sync-begin or sync-end in the journal says; nil without one.
	consistent *bool
}

// record is called for each live record, in stream order.
func (r *recovery) record(h journal.Header, loc journal.Location) error {
	switch h.Kind {
	case journal.KindSyncBegin, journal.KindSyncEnd:
		now := h.Kind == journal.KindSyncEnd
		r.consistent = &now
	}
	if !touchesImage(h.Kind) || loc.Start().Before(r.from) {
		return nil
	}
	v := r.g.volume(h.Volume)
	if v == nil {
		return nil // removed since
	}
	v.indexRecord(h, loc)
	return nil
}

// finish brings group.json up to what the journal has: a secondary that died between the end of a sync and saying so. The
// last end in the journal is that of an earlier sync if it died before the beginning of the next was durable.
func (r *recovery) finish() error {
	m := &r.g.core.Meta
	if m.Role != core.RoleSecondary || r.consistent == nil || !*r.consistent || m.Consistent || m.AwaitsSync {
		return nil
	}
	_, err := r.g.stepLocked(core.SyncEndDurable{}, nil)
	return err
}

// createGroup makes a group's directory. group.json comes last: a directory without it does not count, and is swept.
func createGroup(site *Site, dir string, meta core.Meta) error {
	if err := meta.Validate(); err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrInvalid, meta.Name, err)
	}
	fsys := site.cfg.FS
	if err := fsys.MkdirAll(dir + "/" + core.JournalDir); err != nil {
		return err
	}
	return saveMeta(fsys, dir+"/"+core.MetaFile, &meta)
}

// deletingSuffix marks the directory of a group that is being deleted.
const deletingSuffix = ".deleting"

// sweepGroupDir removes what a crash left of a group that was being created or deleted. A directory that only lacks
// group.json is neither: its journal may hold the last writes of its volumes.
func (s *Site) sweepGroupDir(dir string) error {
	if !strings.HasSuffix(dir, deletingSuffix) {
		for _, name := range []string{core.MetaFile, checkpointName} {
			_, err := s.cfg.FS.Stat(dir + "/" + name)
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if segments, err := s.cfg.FS.ReadDir(dir + "/" + core.JournalDir); len(segments) > 0 {
			return err
		}
	}
	klog.InfoS("Removing what is left of a group that was being created or deleted", "dir", dir)
	return s.cfg.FS.RemoveAll(dir)
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
