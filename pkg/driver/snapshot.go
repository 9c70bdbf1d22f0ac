package driver

import (
	"context"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/snapshots"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

func (s *controllerServer) parseSnapshot(req *csi.CreateSnapshotRequest) (r snapshots.Request, err error) {
	r = snapshots.Request{Name: req.GetName(), Source: req.GetSourceVolumeId()}
	switch {
	case r.Name == "":
		return r, status.Error(codes.InvalidArgument, "snapshot name is missing")
	case len(r.Name) > maxNameBytes:
		return r, status.Errorf(codes.InvalidArgument, "snapshot name has %s, more than %d",
			words.Count(len(r.Name), "byte"), maxNameBytes)
	case r.Source == "":
		return r, status.Errorf(codes.InvalidArgument, "snapshot %q: source volume id is missing", r.Name)
	case !s.d.accessible(req.GetAccessibilityRequirements()):
		return r, status.Errorf(codes.ResourceExhausted,
			"snapshot %q cannot be on any of the nodes asked for: a snapshot is where its volume is, on node %q", r.Name,
			s.d.opts.NodeID)
	}
	r.Params, err = parameter.ParseSnapshot(req.GetParameters())
	r.Own = parameter.Own(req.GetParameters())
	return r, err
}

// CreateSnapshot takes a snapshot: of a volume in a consistency group as a cut of the group's order, by the replicator;
// of any other by a clone of its image, or, where the file system cannot share blocks, by a copy. The answer says
// ready_to_use false while a copy goes on.
func (s *controllerServer) CreateSnapshot(ctx context.Context,
	req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	r, err := s.parseSnapshot(req)
	if err != nil {
		return nil, err
	}
	done, err := s.d.guards.Enter("snapshot name "+r.Name, "CreateSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	snap, err := s.d.store.FindSnapshot(func(rec *blockdev.SnapshotRecord) bool {
		return rec.GroupSnapshotID == "" && rec.Name == r.Name
	})
	if err != nil {
		return nil, err
	}
	if snap != nil && snap.SourceVolumeID != r.Source {
		return nil, status.Errorf(codes.AlreadyExists, "snapshot %q exists (%s) and is of volume %s, not of %s; choose "+
			"another name",
			r.Name, snap.ID, snap.SourceVolumeID, r.Source)
	}
	if snap == nil || snap.State == blockdev.SnapshotCreating {
		if snap, err = s.d.snapshots.Take(ctx, r, snap); err != nil {
			return nil, err
		}
	}
	if err := store.SnapshotFailure(snap); err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: s.snapshot(snap)}, nil
}

// DeleteSnapshot deletes a snapshot, whatever its state. A copy that makes it is ended.
func (s *controllerServer) DeleteSnapshot(ctx context.Context,
	req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	id := req.GetSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot id is missing")
	}
	done, err := s.d.guards.Enter(id, "DeleteSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.store.Snapshot(id)
	if status.Code(err) == codes.NotFound {
		return &csi.DeleteSnapshotResponse{}, s.d.keepsView(id)
	}
	if err != nil {
		return nil, err
	}
	if rec.GroupSnapshotID != "" {
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %s is part of group snapshot %s, which is deleted as a "+
			"whole (DeleteVolumeGroupSnapshot)",
			id, rec.GroupSnapshotID)
	}
	if err := s.d.snapshots.DeleteSnapshot(ctx, rec); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// ListSnapshots lists snapshots by id, those of group snapshots included.
func (s *controllerServer) ListSnapshots(_ context.Context,
	req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	page, err := parsePage(req.GetMaxEntries(), req.GetStartingToken())
	if err != nil {
		return nil, err
	}
	response := &csi.ListSnapshotsResponse{}
	if id := req.GetSnapshotId(); id != "" {
		if shown, err := s.d.views.Find(id); err == nil {
			if of := req.GetSourceVolumeId(); (of == "" || of == shown.Volume.VolumeID) && id > page.after {
				response.Entries = []*csi.ListSnapshotsResponse_Entry{{Snapshot: s.d.viewSnapshot(shown)}}
			}
			return response, nil
		}
		rec, err := s.d.store.Snapshot(id)
		switch {
		case status.Code(err) == codes.NotFound:
			return response, nil
		case err != nil:
			return nil, err
		case !store.Visible(rec), req.GetSourceVolumeId() != "" && rec.SourceVolumeID != req.GetSourceVolumeId(),
			id <= page.after:
			return response, nil
		}
		if err := store.SnapshotFailure(rec); err != nil {
			return nil, err
		}
		response.Entries = []*csi.ListSnapshotsResponse_Entry{{Snapshot: s.snapshot(rec)}}
		return response, nil
	}
	recs, err := s.d.store.Snapshots()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(recs, func(a, b *blockdev.SnapshotRecord) int { return strings.Compare(a.ID, b.ID) })
	for _, rec := range recs {
		if !store.Visible(rec) || rec.ID <= page.after || (req.GetSourceVolumeId() != "" &&
			rec.SourceVolumeID != req.GetSourceVolumeId()) {
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
func (s *controllerServer) GetSnapshot(_ context.Context,
	req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if req.GetSnapshotId() == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot id is missing")
	}
	if shown, err := s.d.views.Find(req.GetSnapshotId()); err == nil {
		return &csi.GetSnapshotResponse{Snapshot: s.d.viewSnapshot(shown)}, nil
	}
	rec, err := s.d.store.Snapshot(req.GetSnapshotId())
	if err == nil && !store.Visible(rec) {
		err = status.Errorf(codes.NotFound, "snapshot %q: not in the pool", req.GetSnapshotId())
	}
	if err == nil {
		err = store.SnapshotFailure(rec)
	}
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: s.snapshot(rec)}, nil
}

func (s *controllerServer) snapshot(rec *blockdev.SnapshotRecord) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId:         rec.ID,
		SourceVolumeId:     rec.SourceVolumeID,
		SizeBytes:          leastRequest(rec),
		CreationTime:       timestamppb.New(store.TakenAt(rec)),
		ReadyToUse:         rec.State == blockdev.SnapshotReady,
		GroupSnapshotId:    rec.GroupSnapshotID,
		AccessibleTopology: []*csi.Topology{s.d.topology()},
	}
}

// leastRequest is the least that a claim has to ask for to be given a volume that a snapshot fits into, in bytes:
// csi-provisioner refuses claims below the snapshot's size_bytes. It is less than the snapshot's size where sizeFor
// rounds up, so that a claim that is made again as it was (1Mi, or 10G, which is no multiple of sizeUnitBytes) is not
// refused. 0, which stands for "unspecified" in the CSI specification, is any request.
func leastRequest(rec *blockdev.SnapshotRecord) int64 {
	return leastOf(rec.SizeBytes, attach.FSTypeOf(rec.FSType, rec.Format))
}

func leastOf(sizeBytes int64, fsType string) int64 {
	switch {
	case sizeBytes <= capability.MinSizeBytes[fsType]:
		// none for a raw block volume, or one that nothing was ever on
		return 0
	case sizeBytes%(1<<20) == 0: // more likely asked for than rounded up to
		return sizeBytes
	}
	return sizeBytes - capability.SizeUnitBytes + 1
}
