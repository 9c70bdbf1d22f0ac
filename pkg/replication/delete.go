package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A directory of a group that is being made, and of one that is being deleted, has one of these behind its name.
const (
	creatingSuffix = ".creating"
	deletingSuffix = ".deleting"
)

var errGroupDeleted = errors.New("its group was deleted while it was copied")

// DeleteGroup forgets a group and its journal. Its volumes stay, with everything durable applied to them; snapshots
// that are being copied fail. With members it needs force; with attached ones it is refused. A group that cannot be
// opened needs force, too: its volumes keep what their images have. A group that does not exist is not an error;
// neither is a repetition.
func (s *Site) DeleteGroup(name string, force bool) error {
	g, err := s.Group(name)
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrNotOpen):
		return s.deleteBroken(name, force)
	case err != nil:
		return err
	}
	if attached := g.members.attached(); len(attached) > 0 {
		return fmt.Errorf("%w: volumes of group %s are attached at %s: %s; stop the application and unmount them there",
			ErrInUse, name, s.cfg.Site, strings.Join(attached, ", "))
	}
	if n := len(g.Volumes()); n > 0 && !force {
		return fmt.Errorf("%w: group %s has %s at %s; to delete it and keep the volumes without a group: %s",
			ErrInUse, name, words.Count(n, "volume"), s.cfg.Site, core.Command{Site: s.cfg.Site,
				Verb: core.CommandDelete, Name: name})
	}
	if views := g.Views(); len(views) > 0 {
		return fmt.Errorf("%w: group %s has %s; delete them first, beginning with `slipctl view delete %s %s` at %s",
			ErrInUse, name, words.Count(len(views), "view"), name, views[0].Name, s.cfg.Site)
	}
	g.tellOfDepartures()
	// No stream may come any more: it could wait for the lock that is held below, while it is waited for there.
	defer g.streams.refuse()()
	if err := g.log.commit(); err != nil && !force {
		return err
	}
	if err := g.applier.applyAll(g.ctx); err != nil && !force {
		return err
	}
	defer g.cuts.suspend()()
	if err := g.cuts.abandon(errGroupDeleted); err != nil && !force {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, name)
	_ = g.Close() // its files go
	return s.discardLocked(g.dir, name)
}

// departurePatience is how long a deletion waits for a peer to hear that the volumes have left the group.
const departurePatience = 5 * time.Second

// tellOfDepartures waits, at a primary without volumes, until its peer has everything that is in the journal. Without
// it the peer would keep the group with its volumes, and refuse a new one with its name. A peer that is away, or slow,
// is not waited for: the deletion must not depend on it.
func (g *Group) tellOfDepartures() {
	if len(g.Volumes()) > 0 || g.log.commit() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(g.ctx, departurePatience)
	defer cancel()
	for {
		g.mu.Lock()
		state, _ := g.core.State()
		told, known := g.core.Told()
		g.mu.Unlock()
		streams := state == core.StateStreaming || state == core.StateSyncing
		if !streams || known && told >= g.journal.Head() || !pause.For(ctx, rolePoll) {
			return
		}
	}
}

// deleteBroken is DeleteGroup for a group that could not be opened, or that is deleted in part.
func (s *Site) deleteBroken(name string, force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.finishDeletionsLocked(); err != nil {
		return err
	}
	dir, reason := s.brokenGroupLocked(name)
	if dir == "" {
		return nil
	}
	if !force {
		return reason
	}
	recs, err := s.cfg.Pool.List()
	if err != nil {
		klog.ErrorS(err, "Volumes whose records cannot be read are not taken out of the group", "group", name)
	}
	for _, rec := range recs {
		if rec.Group == name && rec.Stage != nil {
			return fmt.Errorf("%w: volume %s of group %s is staged at %s; unstage it first", ErrInUse, rec.ID, name,
				rec.Stage.StagingPath)
		}
	}
	if err := s.discardLocked(dir, name); err != nil {
		return err
	}
	delete(s.broken, dir)
	delete(s.brokenNames, dir)
	return nil
}

// discardLocked deletes the directory of a group that is not open. Renaming it is what decides; the rest is repeated by
// the next call, or the next start, until it is done.
func (s *Site) discardLocked(dir, name string) error {
	doomed := dir + deletingSuffix
	err := s.cfg.FS.Rename(dir, doomed)
	if err == nil {
		err = s.cfg.FS.SyncDir(filepath.Dir(dir))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.doomed[doomed] = name
	return s.finishDeletionsLocked()
}

// finishDeletionsLocked goes on with all deletions; one that cannot be completed does not keep the others from it.
func (s *Site) finishDeletionsLocked() error {
	var errs []error
	for doomed, name := range s.doomed {
		if err := s.finishDeletionLocked(doomed, name); err != nil {
			errs = append(errs, fmt.Errorf("group %s (%s): its deletion is not complete: %w", name, doomed, err))
			continue
		}
		delete(s.doomed, doomed)
	}
	return errors.Join(errs...)
}

// makeWayLocked is finishDeletionsLocked for a new group: only a deletion of one with its name or identifier is in its
// way.
func (s *Site) makeWayLocked(dir, name string) error {
	err := s.finishDeletionsLocked()
	if err == nil {
		return nil
	}
	for doomed, other := range s.doomed {
		if other == name || doomed == dir+deletingSuffix {
			return err
		}
	}
	klog.ErrorS(err, "The next start, or a deletion that is repeated, goes on with it")
	return nil
}

// finishDeletionLocked takes the group out of its volumes' records and of the register. The journal goes first: it is
// not needed any more, and on a full disk the rest needs its space. group.json goes last, since it says which group
// it was.
func (s *Site) finishDeletionLocked(doomed, name string) error {
	fsys := s.cfg.FS
	if err := fsys.RemoveAll(filepath.Join(doomed, core.JournalDir)); err != nil {
		return err
	}
	recs, err := s.cfg.Pool.List()
	if err != nil {
		klog.ErrorS(err, "Volumes whose records cannot be read are not taken out of the group", "group", name)
	}
	for _, rec := range recs {
		if rec.Group != name || name == "" {
			continue
		}
		_, err := s.cfg.Pool.Update(rec.ID, func(r *blockdev.VolumeRecord) error {
			if r.Group != name {
				return nil
			}
			if r.Secondary {
				r.Left = &blockdev.LeftRecord{Peer: r.Remote, Group: name, UnixNanos: s.cfg.Now().UnixNano()}
			}
			r.Group, r.Remote, r.Secondary = "", "", false
			return nil
		})
		if err != nil && !errors.Is(err, blockdev.ErrNoVolume) {
			return err
		}
	}
	id := strings.TrimSuffix(filepath.Base(doomed), deletingSuffix)
	if kept, err := s.cfg.Pool.PreservedDir(id); err == nil { // else the directory only says which group is missing
		if err := fsys.RemoveAll(kept); err != nil {
			return err
		}
	}
	if err := s.deleteViewsOf(id); err != nil {
		return err
	}
	delete(s.register.groups, id)
	if err := s.saveRegisterLocked(); err != nil {
		return err
	}
	return fsys.RemoveAll(doomed)
}

// deleteViewsOf deletes the views of a group that is deleted: those of one that could not be opened.
func (s *Site) deleteViewsOf(groupID string) error {
	recs, err := s.cfg.Pool.ListViews()
	if err != nil {
		klog.ErrorS(err, "Views whose records cannot be read are not deleted with their group", "group", groupID)
	}
	for _, rec := range recs {
		if rec.GroupID == groupID {
			if err := s.cfg.Pool.DeleteView(rec.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// isGroupDir reports whether a directory has the name of a group's, whole or not.
func isGroupDir(dir string) bool {
	_, err := parseID(strings.TrimSuffix(strings.TrimSuffix(filepath.Base(dir), creatingSuffix), deletingSuffix))
	return err == nil
}

// sweepGroupDir removes what a crash left of a group that was being created or deleted, and reports whether there is
// nothing more to open. A directory that only lacks group.json is neither: its journal may hold the last writes of its
// volumes. An entry that is no directory, or does not have the name of a group's directory, is foreign and an
// error.
func (s *Site) sweepGroupDir(dir string) (swept bool, err error) {
	fsys := s.cfg.FS
	if !isGroupDir(dir) {
		return false, &vfs.UnfitError{Path: dir,
			Reason: "it has not the name of a group's directory; nothing is done with it: move it out of " + filepath.Dir(dir)}
	}
	if err := vfs.CheckDir(fsys, dir); err != nil {
		return false, err
	}
	switch {
	case strings.HasSuffix(dir, creatingSuffix):
		klog.InfoS("Removing what is left of a group that was being created", "dir", dir)
		return true, fsys.RemoveAll(dir)
	case strings.HasSuffix(dir, deletingSuffix):
		klog.InfoS("Removing what is left of a group that was being deleted", "dir", dir)
		name := s.register.groups[strings.TrimSuffix(filepath.Base(dir), deletingSuffix)].Name
		if meta, err := loadMeta(fsys, filepath.Join(dir, core.MetaFile)); err == nil {
			name = meta.Name
		}
		s.doomed[dir] = name
		return true, nil
	}
	if _, known := s.register.groups[filepath.Base(dir)]; known {
		return false, nil
	}
	for _, name := range []string{core.MetaFile, checkpointName} {
		if _, err := fsys.Stat(filepath.Join(dir, name)); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	segments, err := fsys.ReadDir(filepath.Join(dir, core.JournalDir))
	if len(segments) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	klog.InfoS("Removing what is left of a group that an earlier version was creating", "dir", dir)
	return true, fsys.RemoveAll(dir)
}
