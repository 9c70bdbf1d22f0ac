package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// An image has no place for a generation: all of its bytes are the volume's. So group.json has the identity of each
// member's image file, and one that was put in its place is another file. Where all of the pool was copied, to another
// disk for one, every file is another one; that is told by the directories that groups and volumes are in, which are
// others then, too.

// openAll opens the images of all members, after a look at whether they and their records are what group.json
// knows.
func (ms *members) openAll() error {
	m := &ms.g.core.Meta
	places, err := ms.places()
	if err != nil {
		return err
	}
	moved := len(m.Places) == len(places)
	for i := range m.Places {
		moved = moved && m.Places[i] != places[i]
	}
	if moved {
		klog.InfoS("The pool was copied to another place: the images there are taken for its volumes", "group", m.Name,
			"dir", ms.g.dir)
	}
	for i := range m.Members {
		member := &m.Members[i]
		if member.Removed() {
			continue
		}
		if err := ms.checkFiles(member, moved); err != nil {
			return err
		}
		if err := ms.open(*member); err != nil {
			return err
		}
	}
	return nil
}

// places are the identities of the directories of all groups and of all volumes.
func (ms *members) places() ([]string, error) {
	g := ms.g
	groups, err := vfs.Identity(g.cfg.FS, g.cfg.Pool.GroupsDir())
	if err != nil {
		return nil, err
	}
	volumes, err := vfs.Identity(g.cfg.FS, g.cfg.Pool.VolumesDir())
	return []string{groups, volumes}, err
}

// checkFiles reports a member's record or image that is missing, or is not the one that the group had. A record
// is written before group.json is and so never says less.
func (ms *members) checkFiles(m *core.Member, moved bool) error {
	g := ms.g
	rec, err := g.cfg.Pool.Get(m.VolumeID)
	if errors.Is(err, blockdev.ErrNoVolume) {
		return stale(g.cfg.Pool.VolumesDir()+"/"+m.VolumeID, "the directory of volume %s is missing", m.VolumeID)
	}
	if err != nil {
		return err
	}
	path := g.cfg.Pool.RecordPath(m.VolumeID)
	var format blockdev.FormatRecord
	if len(m.Format) > 0 {
		if err := json.Unmarshal(m.Format, &format); err != nil {
			return fmt.Errorf("group %s: volume %s: format record: %w", g.Name(), m.VolumeID, err)
		}
	}
	switch {
	case rec.Group != g.Name():
		return stale(path, "volume %s is in group %q there, and in group %q", m.VolumeID, rec.Group, g.Name())
	case rec.Joins < m.Joins:
		return stale(path, "volume %s was put into %s there, and into %d: an older copy", m.VolumeID,
			words.Count(rec.Joins, "group"), m.Joins)
	case rec.SizeBytes < m.SizeBytes:
		return stale(path, "volume %s has %s there, and %d: an older copy", m.VolumeID,
			words.Count(rec.SizeBytes, "byte"), m.SizeBytes)
	case format.State == blockdev.FormatFormatted && (rec.Format == nil || rec.Format.State != format.State):
		return stale(path, "volume %s has no file system there, and has one: an older copy", m.VolumeID)
	}
	identity, image, err := ms.imageIdentity(m.VolumeID)
	if err != nil {
		return fmt.Errorf("group %s: volume %s: %w", g.Name(), m.VolumeID, err)
	}
	if m.Image != "" && identity != "" && m.Image != identity && !moved {
		return stale(image, "it is another file than volume %s had: a copy", m.VolumeID)
	}
	return nil
}

func (ms *members) imageIdentity(volumeID string) (identity, path string, err error) {
	if path, err = ms.g.cfg.Pool.ImagePath(volumeID); err != nil {
		return "", "", err
	}
	identity, err = vfs.Identity(ms.g.cfg.FS, path)
	return identity, path, err
}

// noteIdentities brings group.json to what was opened, where it does not say so: for a group of an earlier version, and
// one that was copied to another place.
func (ms *members) noteIdentities() error {
	m := &ms.g.core.Meta
	places, err := ms.places()
	if err != nil {
		return err
	}
	changed := m.Generation == 0 || !slices.Equal(m.Places, places)
	for i := range m.Members {
		member := &m.Members[i]
		if member.Removed() {
			continue
		}
		identity, _, err := ms.imageIdentity(member.VolumeID)
		if err != nil {
			return fmt.Errorf("group %s: volume %s: %w", m.Name, member.VolumeID, err)
		}
		changed = changed || member.Image != identity
		member.Image = identity
	}
	m.Places = places
	if !changed {
		return nil
	}
	return ms.g.saveMeta()
}
