package store

import (
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
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

// VolumesAndJournals is SharedVolumes with the journals of the groups that volumes are on their way into. A volume that
// is on its way into none is not in the map. The caller does not change the map.
func (d *Store) VolumesAndJournals() ([]*blockdev.VolumeRecord, map[*blockdev.VolumeRecord]parameter.Journal, error) {
	d.index.mu.Lock()
	defer d.index.mu.Unlock()
	if err := d.refresh(); err != nil {
		return nil, nil, err
	}
	return d.index.list, d.index.journals, nil
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
