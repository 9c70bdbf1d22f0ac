// Package store reads and changes the records of a pool, with errors that a CSI call can return. Package blockdev
// defines the records and writes them; this package adds the gRPC code that a CO acts on, and the queries that several
// services need.
//
// It is safe for concurrent use. Calls that change one record must not run at the same time; see work.Guards.
package store

import (
	"errors"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Volume returns a volume's record; an error is a status error, NotFound where there is no such volume.
func (d *Store) Volume(id string) (*blockdev.VolumeRecord, error) {
	rec, err := d.Pool.Get(id)
	if err != nil {
		return nil, VolumeError("read", id, err)
	}
	return rec, nil
}

// records returns the records of all volumes that have a readable one. The others are logged and left out: one damaged
// record must not keep all other volumes from being made, listed and deleted.
func (d *Store) Volumes() ([]*blockdev.VolumeRecord, error) {
	recs, err := d.Pool.List()
	if err != nil && recs == nil {
		return nil, d.ListError("volumes", err)
	}
	if err != nil {
		klog.ErrorS(err, "Some volume records cannot be read", "pool", d.poolDir)
	}
	return recs, nil
}

// Update changes a volume's record durably and puts what it is then into rec. doing is for the error, a status error,
// after which rec is as before.
func (d *Store) Update(rec *blockdev.VolumeRecord, doing string, change func(*blockdev.VolumeRecord)) error {
	updated, err := d.Pool.Update(rec.ID, func(r *blockdev.VolumeRecord) error {
		change(r)
		return nil
	})
	if err != nil {
		return VolumeError(doing, rec.ID, err)
	}
	*rec = *updated
	return nil
}

// ListError is the error of a list that cannot be had.
func (d *Store) ListError(what string, err error) error {
	code := codes.Internal
	if errors.Is(err, blockdev.ErrPoolGone) {
		code = codes.Unavailable
	}
	return status.Errorf(code, "list the %s of pool %s: %v", what, d.poolDir, err)
}

// poolError gives an error of the pool the code that a CO acts on.
func VolumeError(doing, id string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return status.Errorf(codes.NotFound, "volume %q: not in the pool", id)
	case errors.Is(err, blockdev.ErrPoolGone):
		return status.Errorf(codes.Unavailable, "%s volume %q: %v", doing, id, err)
	case vfs.NoSpace(err):
		return status.Errorf(codes.ResourceExhausted, "%s volume %q: %v; free space in the pool or add some", doing, id, err)
	}
	return status.Errorf(codes.Internal, "%s volume %q: %v", doing, id, err)
}

// Store is the pool with errors that a CSI call can return.
type Store struct {
	Pool    *blockdev.Pool
	poolDir string
}

func New(pool *blockdev.Pool, poolDir string) *Store {
	return &Store{Pool: pool, poolDir: poolDir}
}
