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

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Volume returns a volume's record; an error is a status error, NotFound if it does not exist.
func (d *Store) Volume(id string) (*blockdev.VolumeRecord, error) {
	rec, err := d.Pool.Get(id)
	if err != nil {
		return nil, VolumeError("read", id, err)
	}
	return rec, nil
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

// VolumeError gives an error of the pool the code that a CO acts on.
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

// Store is the pool with errors that a CSI call can return. It is safe for concurrent use.
type Store struct {
	Pool    *blockdev.Pool
	fs      vfs.FS
	poolDir string
	index   index
	groups  groupRecords
}

// New returns the store of a pool at poolDir on fsys. It has to be closed.
func New(pool *blockdev.Pool, fsys vfs.FS, poolDir string) *Store {
	return &Store{Pool: pool, fs: fsys, poolDir: poolDir, index: index{
		unwatched: vfs.Base(fsys) != vfs.OS, names: map[string][]*blockdev.VolumeRecord{},
		journals: map[*blockdev.VolumeRecord]parameter.Journal{}, files: map[string]fileState{},
		unread: map[string]bool{},
	}, groups: groupRecords{entries: map[string]knownGroup{}}}
}

// Close ends the watch of the pool's records. The pool stays open.
func (d *Store) Close() error {
	d.index.mu.Lock()
	defer d.index.mu.Unlock()
	d.index.endWatch()
	d.index.unwatched = true // a call that is still running looks at the files
	return nil
}
