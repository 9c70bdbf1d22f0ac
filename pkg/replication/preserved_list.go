package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
)

// preservedOf returns the sets of an owner.
func (c *cuts) preservedOf(owner preservedOwner) []*preserved {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*preserved
	for _, p := range c.preserved {
		if p.record.Owner == owner {
			list = append(list, p)
		}
	}
	return list
}

// dropPreserved gives a set up, durably. The caller has ended all reading from it. After an error it may be there
// after a restart; until then its images are preserved as before. It may be repeated.
func (c *cuts) dropPreserved(p *preserved) error {
	if err := p.removeFiles(); err != nil {
		return fmt.Errorf("group %s: drop the images preserved at ordinal %d: %w", c.g.Name(), p.record.Ordinal, err)
	}
	for _, image := range p.images {
		image.stop() // apply may have it
	}
	c.mu.Lock()
	c.preserved = slices.DeleteFunc(c.preserved, func(other *preserved) bool { return other == p })
	c.mu.Unlock()
	p.close()
	return nil
}

// losePreserved gives up every set that has a member: its image leaves the group's care. The base of a sync is the
// exception: the image stays as it is until the sync ends.
func (c *cuts) losePreserved(volumeID string, why error) error {
	c.mu.Lock()
	list := slices.Clone(c.preserved)
	c.mu.Unlock()
	for _, p := range list {
		if p.record.Owner == ownerResync || p.image(volumeID) == nil {
			continue
		}
		if err := p.lose(why); err != nil {
			return err
		}
	}
	return nil
}

// beforeChange is called with the extents of members, by their indices, that are about to change in the images. It
// notes them for the tracking of changed blocks, and has them copied into all snapshots and sets that lack them, except
// for one set.
func (c *cuts) beforeChange(touched *changemap.Map, but *preserved) error {
	c.mu.Lock()
	copies, kept := slices.Clone(c.copies), slices.Clone(c.preserved)
	for at := (changemap.Cursor{}); ; {
		index, extent, n, ok := touched.NextRun(at, holeRunExtents)
		if !ok {
			break
		}
		if t := c.tracks[index]; t != nil {
			t.mark(int64(extent)*changemap.ExtentBytes, int64(n)*changemap.ExtentBytes)
		}
		at = changemap.Cursor{Volume: index, Extent: extent + n}
	}
	c.mu.Unlock()
	if len(copies) == 0 && len(kept) == 0 {
		return nil
	}
	for _, v := range c.g.Volumes() {
		extents := touched.Volume(v.index)
		if extents.Len() == 0 {
			continue
		}
		if err := preserveIn(copies, kept, v.id, extents, but); err != nil {
			return err
		}
	}
	return nil
}

// preserveVolume is beforeChange for a volume that need not be a member, and whose changes are not tracked then.
func (c *cuts) preserveVolume(volumeID string, extents *changemap.Map, but *preserved) error {
	c.mu.Lock()
	copies, kept := slices.Clone(c.copies), slices.Clone(c.preserved)
	c.mu.Unlock()
	return preserveIn(copies, kept, volumeID, extents, but)
}

func preserveIn(copies []*imageCopy, kept []*preserved, volumeID string, extents *changemap.Map, but *preserved) error {
	for _, running := range copies {
		if running.target.VolumeID != volumeID {
			continue
		}
		if err := running.preserve(extents); err != nil {
			return err
		}
	}
	for _, p := range kept {
		if p == but {
			continue
		}
		if err := p.preserve(volumeID, extents); err != nil {
			return err
		}
	}
	return nil
}

// loadPreserved opens the sets that the last process left, and removes what is left of others.
func (c *cuts) loadPreserved() error {
	g := c.g
	parent, err := c.preservedDir()
	if err != nil {
		return err
	}
	names, err := g.cfg.FS.ReadDir(parent)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		p := &preserved{c: c, dir: filepath.Join(parent, name)}
		err := p.open()
		var newer *blockdev.NewerVersionError
		switch {
		case err == nil:
			c.preserved = append(c.preserved, p)
			continue
		case errors.As(err, &newer):
			p.close()
			return err
		case !errors.Is(err, fs.ErrNotExist):
			klog.ErrorS(err, "Preserved images cannot be used any more", "group", g.Name(), "dir", p.dir)
		}
		p.close()
		if err := p.removeFiles(); err != nil {
			return err
		}
	}
	return nil
}

// open opens a set. fs.ErrNotExist: it was dropped, or never taken, or a part of it is missing.
func (p *preserved) open() error {
	g := p.c.g
	path := filepath.Join(p.dir, preservedFile)
	if err := blockdev.ReadRecord(g.cfg.FS, path, preservedKind, &p.record); err != nil {
		return err
	}
	if p.record.ID != filepath.Base(p.dir) || p.record.GroupID != g.ID() {
		return stale(path, "it is that of set %s of group %s", p.record.ID, p.record.GroupID)
	}
	for _, m := range p.record.Members {
		if m.SizeBytes < 0 || m.SizeBytes > changemap.MaxVolumeBytes {
			return stale(path, "volume %s has %d bytes there", m.VolumeID, m.SizeBytes)
		}
		paths, err := p.paths(m)
		if err != nil {
			return err
		}
		image := &preservedImage{member: m}
		p.images = append(p.images, image)
		if err := image.open(g.cfg.FS, paths, m.SizeBytes); err != nil {
			return fmt.Errorf("volume %s: %w", m.VolumeID, err)
		}
	}
	return nil
}
