// Package views makes the volumes of views (package replication) volumes of CSI: at either site, and without a copy.
//
// Each volume of a view has an id (blockdev.ViewVolumeID), which is used in two ways:
//
//   - As the handle of a PersistentVolume. The volume's record is made when it is staged, and goes when it is unstaged.
//   - As the handle of a snapshot. A volume that is made from it is not a copy, as one that is made from another
//     snapshot, but shows the view. So there is one such volume at a time, and it has the size of the view.
//
// Deleting such a volume leaves the view as it is. Views are made and deleted by the replicator; this package reads
// their records. It is safe for concurrent use; calls for one volume must be guarded (see work.Guards).
package views

import (
	"errors"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

// Manager looks views up and makes the records of their volumes.
type Manager struct{ store *store.Store }

// New returns the manager of a pool's views.
func New(st *store.Store) *Manager { return &Manager{store: st} }

// Shown is a volume of a view.
type Shown struct {
	View   *blockdev.ViewRecord
	Group  string
	Volume *blockdev.ViewVolume
}

// ID is the volume's, in CSI.
func (s *Shown) ID() string { return blockdev.ViewVolumeID(s.View.ID, s.Volume.Index) }

// Is reports whether an id is that of a volume of a view, whether there is one or not.
func Is(id string) bool {
	_, _, ok := blockdev.ParseViewVolumeID(id)
	return ok
}

// Find returns the volume of a view with an id; an error is a status error, NotFound if there is none.
func (m *Manager) Find(id string) (*Shown, error) {
	viewID, index, ok := blockdev.ParseViewVolumeID(id)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "volume %q: not in the pool", id)
	}
	rec, err := m.store.Pool.GetView(viewID)
	if errors.Is(err, fs.ErrNotExist) || err == nil && rec.Volume(index) == nil {
		return nil, status.Errorf(codes.NotFound, "volume %q: the view that it shows is not on this node any more; see "+
			"slipctl view list", id)
	}
	if err != nil {
		return nil, store.VolumeError("read the view of", id, err)
	}
	group, err := m.store.GroupRecord(rec.GroupID)
	if err != nil {
		return nil, store.VolumeError("read the group of", id, err)
	}
	return &Shown{View: rec, Group: group.Name, Volume: rec.Volume(index)}, nil
}

// Volume returns the record of a volume, and makes it if the volume is one of a view that has none yet. An error is a
// status error, NotFound if there is no such volume.
func (m *Manager) Volume(id string) (*blockdev.VolumeRecord, error) {
	rec, err := m.store.Volume(id)
	if status.Code(err) != codes.NotFound || !Is(id) {
		return rec, err
	}
	shown, err := m.Find(id)
	if err != nil {
		return nil, err
	}
	return m.Create(shown, blockdev.VolumeRecord{Name: id})
}

// Create makes the record of a volume that shows a view. rec has what the caller knows of it.
func (m *Manager) Create(s *Shown, rec blockdev.VolumeRecord) (*blockdev.VolumeRecord, error) {
	rec.ID, rec.SizeBytes, rec.BlockSizeBytes = s.ID(), s.Volume.SizeBytes, s.Volume.BlockSizeBytes
	rec.State, rec.CreatedUnixNanos = blockdev.VolumeReady, s.View.CreatedUnixNanos
	rec.View = &blockdev.ViewRef{ViewID: s.View.ID, Index: s.Volume.Index, Group: s.Group, Name: s.View.Name,
		Writable: s.View.Writable}
	if s.Volume.FSType != "" {
		rec.Format = &blockdev.FormatRecord{State: blockdev.FormatFormatted, FSType: s.Volume.FSType}
	}
	made, err := m.store.Pool.CreateViewVolume(rec)
	if err != nil {
		return nil, store.VolumeError("create", rec.ID, err)
	}
	return made, nil
}

// Transient reports whether a record was made by Volume, and goes when the volume is unstaged.
func Transient(rec *blockdev.VolumeRecord) bool { return rec.View != nil && rec.Name == rec.ID }

// Drop removes a record that is not wanted any more. The view stays.
func (m *Manager) Drop(rec *blockdev.VolumeRecord) error {
	err := m.store.Pool.Delete(rec.ID)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return store.VolumeError("delete", rec.ID, err)
}
