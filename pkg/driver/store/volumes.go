package store

import (
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// Volumes returns the records of all volumes that have a readable one, by id. The others are logged and left out: one
// damaged record must not prevent all other volumes from being created, listed and deleted.
func (d *Store) Volumes() ([]*blockdev.VolumeRecord, error) {
	shared, err := d.SharedVolumes()
	recs := make([]*blockdev.VolumeRecord, len(shared))
	for i, rec := range shared {
		recs[i] = rec.Clone()
	}
	return recs, err
}

// SharedVolumes is Volumes for callers that change neither the list nor its records, which it does not copy.
func (d *Store) SharedVolumes() ([]*blockdev.VolumeRecord, error) {
	d.index.mu.Lock()
	defer d.index.mu.Unlock()
	if err := d.refresh(); err != nil {
		return nil, err
	}
	return d.index.list, nil
}

// VolumesNamed returns the records of the volumes with a name, by id: the caller's own copies. CSI makes one volume of
// a name, but a secondary copy has the name that its primary gave it.
func (d *Store) VolumesNamed(name string) ([]*blockdev.VolumeRecord, error) {
	d.index.mu.Lock()
	defer d.index.mu.Unlock()
	if err := d.refresh(); err != nil {
		return nil, err
	}
	recs := slices.Clone(d.index.names[name])
	for i := range recs {
		recs[i] = recs[i].Clone()
	}
	return recs, nil
}
