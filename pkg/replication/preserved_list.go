package replication

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// preservedSets are a group's sets of preserved images. Its lock comes before those of preserved and extentCopy.
type preservedSets struct {
	g  *Group
	mu sync.Mutex
	// list is only added to with applier.mu held.
	list []*preserved
}

// all returns the sets at this instant.
func (s *preservedSets) all() []*preserved {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

// take takes a set of preserved images. It is durable. With an error nothing is left of it that counts.
func (s *preservedSets) take(ctx context.Context, r preserveRequest) (*preserved, error) {
	if err := s.g.log.commit(); err != nil {
		return nil, err
	}
	s.g.applier.mu.Lock()
	defer s.g.applier.mu.Unlock()
	return s.takeLocked(ctx, r)
}

// takeLocked is take for a caller that holds applier.mu.
func (s *preservedSets) takeLocked(ctx context.Context, r preserveRequest) (*preserved, error) {
	g := s.g
	limit, timeline, err := g.log.positionFor(r.position)
	if err != nil {
		return nil, err
	}
	if err := g.applier.applyExactly(ctx, limit); err != nil {
		return nil, err
	}
	p := &preserved{s: s, record: preservedRecord{
		ID: uuid.NewString(), GroupID: g.ID(), Owner: r.owner, Full: r.full, Timeline: timeline,
		Ordinal: g.checkpoint.read().AppliedOrdinal, UnixNanos: g.cfg.Now().UnixNano(),
	}}
	volumes := g.Volumes()
	slices.SortFunc(volumes, func(a, b *Volume) int { return int(a.index) - int(b.index) })
	for _, v := range volumes {
		if r.volumes == nil || slices.Contains(r.volumes, v.id) {
			m := preservedMember{Index: v.index, VolumeID: v.id, SizeBytes: v.size.Load()}
			p.record.Members = append(p.record.Members, m)
		}
	}
	if err := p.create(); err != nil {
		p.close()
		if removeErr := p.removeFiles(); removeErr != nil {
			klog.ErrorS(removeErr, "Removing preserved images that were not taken; the next start does it", "group", g.Name(),
				"dir", p.dir)
		}
		return nil, fmt.Errorf("group %s: preserve images at ordinal %d: %w", g.Name(), p.record.Ordinal, err)
	}
	klog.V(2).InfoS("Images preserved", "group", g.Name(), "ordinal", p.record.Ordinal, "owner", r.owner)
	return p, nil
}

// dir is where the group's sets are, or would be.
func (s *preservedSets) dir() (string, error) { return s.g.cfg.Pool.PreservedDir(s.g.ID()) }

// of returns the sets of an owner.
func (s *preservedSets) of(owner preservedOwner) []*preserved {
	var list []*preserved
	for _, p := range s.all() {
		if p.record.Owner == owner {
			list = append(list, p)
		}
	}
	return list
}

// drop gives a set up, durably. The caller has ended all reading from it. After an error it may be there
// after a restart; until then its images are preserved as before. It may be repeated.
func (s *preservedSets) drop(p *preserved) error {
	if err := p.removeFiles(); err != nil {
		return fmt.Errorf("group %s: drop the images preserved at ordinal %d: %w", s.g.Name(), p.record.Ordinal, err)
	}
	for _, image := range p.images {
		image.stop() // apply may have it
	}
	s.mu.Lock()
	s.list = slices.DeleteFunc(s.list, func(other *preserved) bool { return other == p })
	s.mu.Unlock()
	p.close()
	return nil
}

// lose gives up every set that has a member: its image leaves the group's care. The base of a sync is the
// exception: the image stays as it is until the sync ends.
func (s *preservedSets) lose(volumeID string, why error) error {
	for _, p := range s.all() {
		if p.record.Owner == ownerResync || p.record.Owner == ownerTrial || p.image(volumeID) == nil {
			continue
		}
		if err := p.lose(why); err != nil {
			return err
		}
	}
	return nil
}

// beforeApply is called with the records that are about to be applied: it keeps what they overwrite.
func (s *preservedSets) beforeApply(records []journal.Record) error {
	if len(s.all()) == 0 {
		return nil
	}
	return s.beforeChange(s.g.members.touched(records), nil)
}

// beforeChange is called with the extents of members, by their indices, that are about to change in the images. It has
// them kept by all sets that lack them, except for one.
func (s *preservedSets) beforeChange(touched *changemap.Map, but *preserved) error {
	if len(s.all()) == 0 {
		return nil
	}
	for _, v := range s.g.Volumes() {
		extents := touched.Volume(v.index)
		if extents.Len() == 0 {
			continue
		}
		if err := s.keep(v.id, extents, but); err != nil {
			return err
		}
	}
	return nil
}

// keep is beforeChange for a volume that need not be a member.
func (s *preservedSets) keep(volumeID string, extents *changemap.Map, but *preserved) error {
	for _, p := range s.all() {
		if p == but {
			continue
		}
		if err := p.preserve(volumeID, extents); err != nil {
			return err
		}
	}
	return nil
}

// load opens the sets that the last process left, and removes what is left of others. After an error that does not say
// that a set is lost, it is there for the next open.
func (s *preservedSets) load() error {
	g := s.g
	parent, err := s.dir()
	if err != nil {
		return err
	}
	names, err := g.cfg.FS.ReadDir(parent)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		p := &preserved{s: s, dir: filepath.Join(parent, name)}
		err := p.open()
		if err == nil {
			s.list = append(s.list, p)
			continue
		}
		p.close()
		if !isLost(err) {
			return g.unopened("the images preserved in "+p.dir, err)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			klog.ErrorS(err, "Preserved images cannot be used any more", "group", g.Name(), "dir", p.dir)
		}
		if err := p.removeFiles(); err != nil {
			return err
		}
	}
	return nil
}

// open opens a set. fs.ErrNotExist: it was dropped, or never taken, or a part of it is missing; isLost has the others
// that say that it is no use any more.
func (p *preserved) open() error {
	g := p.s.g
	path := filepath.Join(p.dir, preservedFile)
	if err := recordfile.Read(g.cfg.FS, path, preservedKind, &p.record); err != nil {
		return err
	}
	if p.record.ID != filepath.Base(p.dir) || p.record.GroupID != g.ID() {
		return stale(path, "it is that of set %s of group %s", p.record.ID, p.record.GroupID)
	}
	for _, m := range p.record.Members {
		if m.SizeBytes < 0 || m.SizeBytes > changemap.MaxVolumeBytes {
			return stale(path, "volume %s has %s there", m.VolumeID, words.Count(m.SizeBytes, "byte"))
		}
		paths, err := p.paths(m)
		if err != nil {
			return stale(path, "%v", err)
		}
		image := &preservedImage{member: m}
		p.images = append(p.images, image)
		if err := image.open(g.cfg.FS, paths, m.SizeBytes); err != nil {
			return fmt.Errorf("volume %s: %w", m.VolumeID, err)
		}
	}
	return nil
}

// close closes the files; what is on disk is what the next process goes on from.
func (s *preservedSets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.list {
		p.close()
	}
	s.list = nil
}
