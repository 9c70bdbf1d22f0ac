package store

import (
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// NoteClone, in a snapshot's parameters, is the id of the volume that the snapshot was taken for, to be its
// content. Such a snapshot is the driver's own: it is not listed, and goes when the volume has its content. The key is
// not under ParameterPrefix, where it could be mistaken for a parameter.
const NoteClone = "driver.internal/clone"

// Visible reports whether the CO has heard of a snapshot, or is about to.
func Visible(rec *blockdev.SnapshotRecord) bool {
	return rec.State != blockdev.SnapshotCreating && rec.Parameters[NoteClone] == ""
}

// SnapshotFailure is the error of a snapshot that will never be ready, or nil. CSI has no state for one: not ready
// would be waited for without end.
func SnapshotFailure(rec *blockdev.SnapshotRecord) error {
	if rec.State != blockdev.SnapshotFailed {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition, "snapshot %s of volume %s failed: %s; delete it and take a new one",
		rec.ID, rec.SourceVolumeID, rec.FailReason)
}

// TakenAt is when a snapshot was taken.
func TakenAt(rec *blockdev.SnapshotRecord) time.Time {
	if rec.Cut.UnixNanos != 0 {
		return time.Unix(0, rec.Cut.UnixNanos)
	}
	return time.Unix(0, rec.CreatedUnixNanos)
}

// Snapshot returns a snapshot's record; an error is a status error, NotFound if it does not exist.
func (d *Store) Snapshot(id string) (*blockdev.SnapshotRecord, error) {
	rec, err := d.Pool.GetSnapshot(id)
	if err != nil {
		return nil, SnapshotError("read", id, err)
	}
	return rec, nil
}

// Snapshots returns the records of all snapshots that have a readable one; the others are logged.
func (d *Store) Snapshots() ([]*blockdev.SnapshotRecord, error) {
	recs, err := d.Pool.ListSnapshots()
	if err != nil && recs == nil {
		return nil, d.ListError("snapshots", err)
	}
	if err != nil {
		klog.ErrorS(err, "Some snapshot records cannot be read", "pool", d.poolDir)
	}
	return recs, nil
}

// FindSnapshot returns a snapshot that the CO asked for and is is true of, or nil.
func (d *Store) FindSnapshot(is func(*blockdev.SnapshotRecord) bool) (*blockdev.SnapshotRecord, error) {
	recs, err := d.Snapshots()
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if rec.Parameters[NoteClone] == "" && is(rec) {
			return rec, nil
		}
	}
	return nil, nil
}

// SnapshotError gives an error of the pool the code that a CO acts on.
func SnapshotError(doing, id string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return status.Errorf(codes.NotFound, "snapshot %q: not in the pool", id)
	case errors.Is(err, blockdev.ErrPoolGone):
		return status.Errorf(codes.Unavailable, "%s snapshot %q: %v", doing, id, err)
	case vfs.NoSpace(err):
		return status.Errorf(codes.ResourceExhausted, "%s snapshot %q: %v; free space in the pool or add some", doing, id,
			err)
	}
	return status.Errorf(codes.Internal, "%s snapshot %q: %v", doing, id, err)
}

// NoteGroupSize, in a snapshot's parameters, is how many snapshots its group snapshot has. One that has fewer, or has
// some in state creating, was interrupted, and no call has answered with it. The key is not under ParameterPrefix,
// where it could be mistaken for a parameter.
const NoteGroupSize = "driver.internal/group-size"

// GroupMembers returns the snapshots of group snapshots that is is true of, by id.
func (d *Store) GroupMembers(is func(*blockdev.SnapshotRecord) bool) ([]*blockdev.SnapshotRecord, error) {
	recs, err := d.Snapshots()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(recs, func(rec *blockdev.SnapshotRecord) bool {
		return rec.GroupSnapshotID == "" || !is(rec)
	}), nil
}

// Whole reports whether these are all the snapshots of a group snapshot that was taken.
func Whole(members []*blockdev.SnapshotRecord) bool {
	if len(members) == 0 || members[0].Parameters[NoteGroupSize] != strconv.Itoa(len(members)) {
		return false
	}
	return !slices.ContainsFunc(members, func(m *blockdev.SnapshotRecord) bool {
		return m.State == blockdev.SnapshotCreating
	})
}
