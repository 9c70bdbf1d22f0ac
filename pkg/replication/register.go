package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// The register says which groups a pool has, and how far each one's checkpoint was at least: so a directory of a group
// that is gone, or was restored from an older backup than the pool's other files, is found out. It is a record file in
// the pool's directory, of kind "groups", beside the volumes; the groups may be on another disk. It is a witness alone:
// without it, or with an older one, every group opens that is there.
const (
	registerFile = "groups.json"
	registerKind = "groups"
)

type registerRecord struct {
	Groups []registeredGroup `json:"groups"`
}

type registeredGroup struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	Generation uint64 `json:"generation"` // of the checkpoint
}

// register is the content of the register in memory; guarded by Site.mu.
type register struct {
	groups map[string]registeredGroup // by id
	saved  []registeredGroup
}

func (s *Site) registerPath() string { return filepath.Join(s.cfg.Pool.Dir(), registerFile) }

// loadRegister reads the register. One that cannot be read is made anew from the groups that are there.
func (s *Site) loadRegister() {
	s.register.groups = map[string]registeredGroup{}
	var rec registerRecord
	err := recordfile.Read(s.cfg.FS, s.registerPath(), registerKind, &rec)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			klog.ErrorS(err, "The register of groups is lost, and made anew: a group whose directory is missing is not missed")
		}
		return
	}
	for _, g := range rec.Groups {
		if _, err := parseID(g.ID); err == nil {
			s.register.groups[g.ID] = g
		}
	}
	s.register.saved = rec.Groups
}

func (s *Site) notePositionsLocked(groups []*Group) {
	for _, g := range groups {
		s.register.groups[g.ID()] = registeredGroup{ID: g.ID(), Name: g.Name(), Generation: g.checkpoint.generation.Load()}
	}
}

// saveRegisterLocked brings the file up to date.
func (s *Site) saveRegisterLocked() error {
	s.notePositionsLocked(slices.Collect(maps.Values(s.groups)))
	var list []registeredGroup
	for _, g := range s.register.groups {
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b registeredGroup) int { return strings.Compare(a.ID, b.ID) })
	if slices.Equal(list, s.register.saved) {
		return nil
	}
	err := s.cfg.Pool.WithReserve(func() error {
		return recordfile.Write(s.cfg.FS, s.registerPath(), registerKind, &registerRecord{Groups: list})
	})
	if err != nil {
		return err
	}
	s.register.saved = list
	return nil
}

// noteGroupsLocked is saveRegisterLocked where nothing depends on it: it is tried again.
func (s *Site) noteGroupsLocked() {
	if err := s.saveRegisterLocked(); err != nil {
		klog.ErrorS(err, "The register of groups is not up to date; it is written again later", "file", s.registerPath())
	}
}

// registerInterval is how old what the register says of a checkpoint may be.
const registerInterval = time.Minute

// startRegister brings the register up to date from time to time, until the site ends.
func (s *Site) startRegister() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for pause.For(ctx, registerInterval) {
			s.mu.Lock()
			s.noteGroupsLocked()
			s.mu.Unlock()
		}
	}()
}

// nameIn is the name of a group that cannot be opened, if that can be found out.
func (s *Site) nameIn(dir string) string {
	if known, ok := s.register.groups[filepath.Base(dir)]; ok {
		return known.Name
	}
	if meta, err := loadMeta(s.cfg.FS, filepath.Join(dir, core.MetaFile)); err == nil &&
		meta.GroupID == filepath.Base(dir) {
		return meta.Name
	}
	return ""
}

// checkRegister compares an opened group with what the register says of it.
func (s *Site) checkRegister(g *Group) error {
	have, known := g.checkpoint.generation.Load(), s.register.groups[g.ID()].Generation
	if have < known {
		return stale(g.path(checkpointName),
			"it has generation %d, and had %d at least: an older copy of it, or of the group's directory", have, known)
	}
	return nil
}

// missLocked makes groups broken whose directory is gone: the register knows them, or the record of a volume does.
func (s *Site) missLocked() {
	there := map[string]bool{}
	for _, g := range s.groups {
		there[g.Name()] = true
	}
	parent := s.cfg.Pool.GroupsDir()
	for id, known := range s.register.groups {
		dir := filepath.Join(parent, id)
		if _, doomed := s.doomed[dir+deletingSuffix]; doomed {
			continue
		}
		if g := s.groups[known.Name]; g == nil || g.ID() != id {
			if s.broken[dir] == nil {
				s.breakLocked(dir, known.Name, stale(dir, "the directory of group %s is missing", known.Name))
			}
		}
		there[known.Name] = true
	}
	where := "is missing"
	for dir := range s.broken {
		switch name := s.brokenNames[dir]; {
		case name != "":
			there[name] = true
		case isGroupDir(dir):
			where = "is missing, or is " + dir + ", which does not say whose it is"
		}
	}
	for _, name := range s.doomed {
		there[name] = true
	}
	recs, _ := s.cfg.Pool.List() // the callers of List report what cannot be read
	for _, rec := range recs {
		if rec.Group == "" || there[rec.Group] {
			continue
		}
		there[rec.Group] = true
		dir := filepath.Join(parent, "group "+rec.Group)
		s.breakLocked(dir, rec.Group, stale(parent, "the directory of group %s, which volume %s is in, %s", rec.Group, rec.ID,
			where))
	}
}

func (s *Site) breakLocked(dir, name string, err error) {
	klog.ErrorS(err, "Group cannot be opened; its volumes cannot be attached", "dir", dir, "group", name)
	s.broken[dir], s.brokenNames[dir] = err, name
}

// brokenGroupLocked returns the directory of a group that could not be opened, and an ErrNotOpen.
func (s *Site) brokenGroupLocked(name string) (dir string, err error) {
	for dir, err := range s.broken {
		if name != "" && s.brokenNames[dir] == name {
			return dir, s.notOpen(name, err)
		}
	}
	return "", nil
}

// notOpen is the ErrNotOpen of a group.
func (s *Site) notOpen(name string, why error) error {
	return fmt.Errorf("%w: group %s cannot be opened at %s: %w", ErrNotOpen, name, s.cfg.Site, withRemedy(name, why))
}

// withRemedy adds to the reason why a group cannot be opened what a person can do about it, where it does not say so.
func withRemedy(name string, why error) error {
	var remedy string
	switch {
	case name == "", errors.Is(why, errStale), errors.Is(why, errRollingBack):
		return why
	case vfs.NoSpace(why):
		remedy = "it opens by itself when the pool's file system has space: expand that, or delete snapshots, or volumes " +
			"that are not in this group"
	default:
		remedy = "repair what is named here, and restart the replicator"
	}
	return fmt.Errorf("%w; %s; or give up what only its journal has (slipctl group delete %s --force), which keeps its "+
		"volumes as their images are", why, remedy, name)
}
