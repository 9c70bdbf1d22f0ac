package driver

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/lease"
)

const (
	maxLocateKeys     = 1000
	maxLeaseNameBytes = 128
)

// locator says what this node holds. See locate.proto.
type locator struct {
	locatepb.UnimplementedLocatorServer
	d *Driver
}

// Locate leases first and looks then: what was created under an earlier lease is there by now, and nothing is created
// under another one from here on.
func (l *locator) Locate(ctx context.Context, req *locatepb.LocateRequest) (*locatepb.LocateResponse, error) {
	if n := len(req.GetKeys()); n > maxLocateKeys {
		return nil, status.Errorf(codes.InvalidArgument, "%s, more than %d", words.Count(n, "key"), maxLocateKeys)
	}
	if n := len(req.GetLease()); n > maxLeaseNameBytes {
		return nil, status.Errorf(codes.InvalidArgument, "the lease's name has %s, more than %d",
			words.Count(n, "byte"), maxLeaseNameBytes)
	}
	if req.GetLease() != "" {
		keys := make([]lease.Key, len(req.GetKeys()))
		for i, key := range req.GetKeys() {
			keys[i] = lease.Key{Kind: key.GetKind(), Value: key.GetValue()}
		}
		if err := l.d.names.Take(req.GetLease(), keys); err != nil {
			return nil, err
		}
	}
	response := &locatepb.LocateResponse{NodeId: l.d.opts.NodeID}
	search := search{d: l.d}
	for i, key := range req.GetKeys() {
		ids, err := search.find(ctx, key.GetKind(), key.GetValue())
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			response.Held = append(response.Held, &locatepb.LocateResponse_Held{Index: uint32(i), Id: id})
		}
	}
	return response, nil
}

func (l *locator) Release(_ context.Context, req *locatepb.ReleaseRequest) (*locatepb.ReleaseResponse, error) {
	l.d.names.GiveUp(req.GetLease())
	return &locatepb.ReleaseResponse{}, nil
}

// search looks keys up; records of snapshots are read once for all of them.
type search struct {
	d         *Driver
	snapshots []*blockdev.SnapshotRecord
}

func (s *search) find(ctx context.Context, kind locatepb.Key_Kind, value string) ([]string, error) {
	switch kind {
	case locatepb.Key_VOLUME_ID:
		// A volume whose record cannot be read is here too: the call that it is looked up for says what is wrong with it.
		_, err := s.d.store.Pool.Get(value)
		if errors.Is(err, blockdev.ErrNoVolume) {
			// One whose directory was removed in use is here as well: it is not deleted.
			if _, devices, derr := s.d.attachments.Remains(value, false); derr != nil || len(devices) > 0 {
				return []string{value}, derr
			}
			return s.shown(value)
		}
		return present(value, err)
	case locatepb.Key_SNAPSHOT_ID:
		_, err := s.d.store.Pool.GetSnapshot(value)
		if errors.Is(err, blockdev.ErrNoSnapshot) {
			return s.shown(value)
		}
		return present(value, err)
	case locatepb.Key_VOLUME_NAME:
		recs, err := s.d.store.VolumesNamed(value)
		ids := make([]string, len(recs))
		for i, r := range recs {
			ids[i] = r.ID
		}
		return ids, err
	case locatepb.Key_SNAPSHOT_NAME:
		return s.snapshotIDs(func(r *blockdev.SnapshotRecord) bool { return r.GroupSnapshotID == "" && r.Name == value })
	case locatepb.Key_GROUP_SNAPSHOT_ID:
		ids, err := s.snapshotIDs(func(r *blockdev.SnapshotRecord) bool { return value != "" && r.GroupSnapshotID == value })
		return firstAs(value, ids), err
	case locatepb.Key_GROUP_SNAPSHOT_NAME:
		ids, err := s.snapshotIDs(func(r *blockdev.SnapshotRecord) bool {
			return value != "" && r.GroupSnapshotName == value
		})
		return firstAs(value, ids), err
	case locatepb.Key_CONSISTENCY_GROUP:
		return s.group(ctx, value)
	case locatepb.Key_CONSISTENCY_GROUP_ID:
		return s.groupID(ctx, value)
	}
	return nil, status.Errorf(codes.InvalidArgument, "key %q is of kind %s, which this version of the node does not know",
		value, kind)
}

// shown looks for a volume of a view, which has no record before it is used.
func (s *search) shown(id string) ([]string, error) {
	_, err := s.d.views.Find(id)
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	return []string{id}, err
}

func present(id string, err error) ([]string, error) {
	switch {
	case errors.Is(err, blockdev.ErrPoolGone):
		return nil, status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, fs.ErrNotExist) || blockdev.ValidateID(id) != nil:
		return nil, nil
	}
	return []string{id}, nil
}

func firstAs(value string, ids []string) []string {
	if len(ids) == 0 {
		return nil
	}
	return []string{value}
}

func (s *search) snapshotIDs(match func(*blockdev.SnapshotRecord) bool) (ids []string, err error) {
	if s.snapshots == nil {
		if s.snapshots, err = s.d.store.Snapshots(); err != nil {
			return nil, err
		}
	}
	for _, r := range s.snapshots {
		if match(r) {
			ids = append(ids, r.ID)
		}
	}
	return ids, nil
}

// group: volumes say which group they are in or on their way into; a group without volumes only the replicator knows.
func (s *search) group(ctx context.Context, name string) ([]string, error) {
	volumes, journals, err := s.d.store.VolumesAndJournals()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(volumes, func(r *blockdev.VolumeRecord) bool {
		return r.Group == name || r.MoveTo == name || journals[r].Group == name
	}) {
		return []string{name}, nil
	}
	if s.d.sidecar == nil {
		return nil, nil
	}
	g, err := s.d.sidecar.Group(ctx, name)
	if err != nil || g == nil {
		return nil, err
	}
	return []string{name}, nil
}

// groupID looks for a group that is open here by its id.
func (s *search) groupID(ctx context.Context, id string) ([]string, error) {
	if s.d.sidecar == nil || id == "" {
		return nil, nil
	}
	groups, err := s.d.sidecar.Groups(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if g.GetGroupId() == id {
			return []string{id}, nil
		}
	}
	return nil, nil
}
