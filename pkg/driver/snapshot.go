package driver

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/klog/v2"
)

// snapshotIDPrefix makes a snapshot id recognisable in logs.
const snapshotIDPrefix = "snap-"

// cloneSnapshotKey, in a snapshot's parameters, is the id of the volume that the snapshot was taken for, to be its content. Such a
// snapshot is the driver's own: it is not listed, and goes when the volume has its content. The key is not under
// ParameterPrefix, where it could be mistaken for a parameter.
const cloneSnapshotKey = "driver.internal/clone"

// snapshotRequest is a validated CreateSnapshotRequest.
type snapshotRequest struct {
	name   string
	source string
	params parameter.Snapshot
	own    map[string]string // the parameters under ParameterPrefix, as given
}

func (s *controllerServer) parseSnapshot(req *csi.CreateSnapshotRequest) (r snapshotRequest, err error) {
	r = snapshotRequest{name: req.GetName(), source: req.GetSourceVolumeId()}
	switch {
	case r.name == "":
		return r, status.Error(codes.InvalidArgument, "snapshot name is missing")
	case len(r.name) > maxNameBytes:
		return r, status.Errorf(codes.InvalidArgument, "snapshot name has %d bytes, more than %d", len(r.name), maxNameBytes)
	case r.source == "":
		return r, status.Errorf(codes.InvalidArgument, "snapshot %q: source volume id is missing", r.name)
	case !s.d.accessible(req.GetAccessibilityRequirements()):
		return r, status.Errorf(codes.ResourceExhausted,
			"snapshot %q cannot be on any of the nodes asked for: a snapshot is where its volume is, on node %q", r.name, s.d.opts.NodeID)
	}
	r.params, err = parameter.ParseSnapshot(req.GetParameters())
	r.own = parameter.Own(req.GetParameters())
	return r, err
}

// CreateSnapshot takes a snapshot: of a volume in a consistency group as a cut of the group's order, by the replicator; of
// any other by a clone of its image, or, where the file system cannot share blocks, by a copy. The answer says
// ready_to_use false while a copy goes on.
func (s *controllerServer) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	r, err := s.parseSnapshot(req)
	if err != nil {
		return nil, err
	}
	done, err := s.d.guards.Enter("snapshot name "+r.name, "CreateSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	snap, err := s.d.findSnapshot(func(rec *blockdev.SnapshotRecord) bool { return rec.GroupSnapshotID == "" && rec.Name == r.name })
	if err != nil {
		return nil, err
	}
	if snap != nil && snap.SourceVolumeID != r.source {
		return nil, status.Errorf(codes.AlreadyExists, "snapshot %q exists (%s) and is of volume %s, not of %s; choose another name",
			r.name, snap.ID, snap.SourceVolumeID, r.source)
	}
	if snap == nil || snap.State == blockdev.SnapshotCreating {
		if snap, err = s.d.snapshot(ctx, r, snap); err != nil {
			return nil, err
		}
	}
	if err := snapshotFailure(snap); err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: s.snapshot(snap)}, nil
}

// snapshot takes a snapshot anew; begun is what an interrupted call left of it, or nil.
func (d *Driver) snapshot(ctx context.Context, r snapshotRequest, begun *blockdev.SnapshotRecord) (*blockdev.SnapshotRecord, error) {
	done, err := d.guards.Enter(r.source, "CreateSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	if begun != nil {
		if err := d.dropSnapshot(ctx, begun); err != nil {
			return nil, err
		}
	}
	rec, err := d.volume(r.source)
	if err != nil {
		return nil, err
	}
	list, err := d.takeSnapshots(ctx, []*blockdev.VolumeRecord{rec}, r.params, func(s *blockdev.SnapshotRecord) {
		s.Name, s.Parameters = r.name, r.own
	})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// DeleteSnapshot deletes a snapshot, whatever its state. A copy that makes it is ended.
func (s *controllerServer) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	id := req.GetSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot id is missing")
	}
	done, err := s.d.guards.Enter(id, "DeleteSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.getSnapshot(id)
	if status.Code(err) == codes.NotFound {
		return &csi.DeleteSnapshotResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if rec.GroupSnapshotID != "" {
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %s is part of group snapshot %s, which is deleted as a whole (DeleteVolumeGroupSnapshot)",
			id, rec.GroupSnapshotID)
	}
	if err := s.d.deleteSnapshot(ctx, rec); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// ListSnapshots lists snapshots by id, those of group snapshots included.
func (s *controllerServer) ListSnapshots(_ context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	page, err := parsePage(req.GetMaxEntries(), req.GetStartingToken())
	if err != nil {
		return nil, err
	}
	response := &csi.ListSnapshotsResponse{}
	if id := req.GetSnapshotId(); id != "" {
		rec, err := s.d.getSnapshot(id)
		switch {
		case status.Code(err) == codes.NotFound:
			return response, nil
		case err != nil:
			return nil, err
		case !visible(rec), req.GetSourceVolumeId() != "" && rec.SourceVolumeID != req.GetSourceVolumeId(), id <= page.after:
			return response, nil
		}
		if err := snapshotFailure(rec); err != nil {
			return nil, err
		}
		response.Entries = []*csi.ListSnapshotsResponse_Entry{{Snapshot: s.snapshot(rec)}}
		return response, nil
	}
	recs, err := s.d.snapshots()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(recs, func(a, b *blockdev.SnapshotRecord) int { return strings.Compare(a.ID, b.ID) })
	for _, rec := range recs {
		if !visible(rec) || rec.ID <= page.after || (req.GetSourceVolumeId() != "" && rec.SourceVolumeID != req.GetSourceVolumeId()) {
			continue
		}
		if n := len(response.Entries); page.full(n) {
			response.NextToken = page.token(response.Entries[n-1].GetSnapshot().GetSnapshotId())
			break
		}
		response.Entries = append(response.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: s.snapshot(rec)})
	}
	return response, nil
}

// GetSnapshot returns a snapshot, or NotFound; for one that failed the error says why.
func (s *controllerServer) GetSnapshot(_ context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot id is missing")
	}
	rec, err := s.d.getSnapshot(req.GetSnapshotId())
	if err == nil && !visible(rec) {
		err = status.Errorf(codes.NotFound, "snapshot %q: not in the pool", req.GetSnapshotId())
	}
	if err == nil {
		err = snapshotFailure(rec)
	}
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: s.snapshot(rec)}, nil
}

// visible reports whether the CO has heard of a snapshot, or is about to.
func visible(rec *blockdev.SnapshotRecord) bool {
	return rec.State != blockdev.SnapshotCreating && rec.Parameters[cloneSnapshotKey] == ""
}

// snapshotFailure is the error of a snapshot that will never be ready, or nil. CSI has no state for one: not ready would be
// waited for without end.
func snapshotFailure(rec *blockdev.SnapshotRecord) error {
	if rec.State != blockdev.SnapshotFailed {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition, "snapshot %s of volume %s failed: %s; delete it and take a new one", rec.ID, rec.SourceVolumeID, rec.FailReason)
}

func (s *controllerServer) snapshot(rec *blockdev.SnapshotRecord) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId:         rec.ID,
		SourceVolumeId:     rec.SourceVolumeID,
		SizeBytes:          leastRequest(rec),
		CreationTime:       timestamppb.New(takenAt(rec)),
		ReadyToUse:         rec.State == blockdev.SnapshotReady,
		GroupSnapshotId:    rec.GroupSnapshotID,
		AccessibleTopology: []*csi.Topology{s.d.topology()},
	}
}

// leastRequest is the least that a claim has to ask for to be given a volume that a snapshot fits into, in bytes: csi-provisioner refuses
// claims below the snapshot's size_bytes. It is less than the snapshot's size where sizeFor rounds up, so that a claim that
// is made again as it was (1Mi, or 10G, which is no multiple of sizeUnitBytes) is not refused. 0, which stands for
// "unspecified" in the CSI specification, is any request.
func leastRequest(rec *blockdev.SnapshotRecord) int64 {
	switch {
	case rec.SizeBytes <= capability.MinSizeBytes[fsTypeOf(rec.FSType, rec.Format)]: // none for a raw block volume, or one that nothing was ever on
		return 0
	case rec.SizeBytes%(1<<20) == 0: // more likely asked for than rounded up to
		return rec.SizeBytes
	}
	return rec.SizeBytes - capability.SizeUnitBytes + 1
}

// takenAt is when a snapshot was taken.
func takenAt(rec *blockdev.SnapshotRecord) time.Time {
	if rec.Cut.UnixNanos != 0 {
		return time.Unix(0, rec.Cut.UnixNanos)
	}
	return time.Unix(0, rec.CreatedUnixNanos)
}

// getSnapshot returns a snapshot's record; an error is a status error, NotFound where there is no such snapshot.
func (d *Driver) getSnapshot(id string) (*blockdev.SnapshotRecord, error) {
	rec, err := d.pool.GetSnapshot(id)
	if err != nil {
		return nil, snapshotError("read", id, err)
	}
	return rec, nil
}

// snapshots returns the records of all snapshots that have a readable one; the others are logged.
func (d *Driver) snapshots() ([]*blockdev.SnapshotRecord, error) {
	recs, err := d.pool.ListSnapshots()
	if err != nil && recs == nil {
		return nil, d.listError("snapshots", err)
	}
	if err != nil {
		klog.ErrorS(err, "Some snapshot records cannot be read", "pool", d.opts.PoolDir)
	}
	return recs, nil
}

// findSnapshot returns a snapshot that the CO asked for and is is true of, or nil.
func (d *Driver) findSnapshot(is func(*blockdev.SnapshotRecord) bool) (*blockdev.SnapshotRecord, error) {
	recs, err := d.snapshots()
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if rec.Parameters[cloneSnapshotKey] == "" && is(rec) {
			return rec, nil
		}
	}
	return nil, nil
}

// snapshotError gives an error of the pool the code that a CO acts on.
func snapshotError(doing, id string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return status.Errorf(codes.NotFound, "snapshot %q: not in the pool", id)
	case errors.Is(err, blockdev.ErrPoolGone):
		return status.Errorf(codes.Unavailable, "%s snapshot %q: %v", doing, id, err)
	case vfs.NoSpace(err):
		return status.Errorf(codes.ResourceExhausted, "%s snapshot %q: %v; free space in the pool or add some", doing, id, err)
	}
	return status.Errorf(codes.Internal, "%s snapshot %q: %v", doing, id, err)
}
