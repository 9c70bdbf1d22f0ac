package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/health"
)

// The health calls change nothing and take no guard: a volume that another call hangs on is the one whose health is
// asked for.

// ControllerGetVolumeHealth returns the conditions of a volume's record and image, the pool and the volume's group.
func (s *controllerServer) ControllerGetVolumeHealth(ctx context.Context,
	req *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	_, found, err := s.d.health.Survey(ctx).VolumeHealth(id)
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: &csi.VolumeHealth{VolumeId: id, HealthStatuses: found}},
		nil
}

// ControllerListVolumeHealth returns the volumes with adverse conditions, by id: also those whose record cannot be
// read, and secondary copies.
func (s *controllerServer) ControllerListVolumeHealth(ctx context.Context,
	req *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	page, err := parsePage(req.GetMaxEntries(), req.GetStartingToken())
	if err != nil {
		return nil, err
	}
	ids, err := s.d.store.Pool.IDs()
	if err != nil {
		return nil, s.d.store.ListError("volumes", err)
	}
	slices.Sort(ids)
	survey := s.d.health.Survey(ctx)
	response := &csi.ControllerListVolumeHealthResponse{}
	for _, id := range ids {
		if id <= page.after {
			continue
		}
		_, found, err := survey.VolumeHealth(id)
		if status.Code(err) == codes.NotFound {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			continue
		}
		if n := len(response.Entries); page.full(n) {
			response.NextToken = page.token(response.Entries[n-1].GetVolumeId())
			break
		}
		response.Entries = append(response.Entries, &csi.VolumeHealth{VolumeId: id, HealthStatuses: found})
	}
	return response, nil
}

// NodeGetVolumeHealth returns the conditions that the controller sees, since a volume is nowhere but on this node, and
// those of its loop device and mounts. A volume that is not staged here has none of the latter.
func (s *nodeServer) NodeGetVolumeHealth(ctx context.Context,
	req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	rec, found, err := s.d.health.Survey(ctx).VolumeHealth(id)
	if err != nil {
		return nil, err
	}
	if rec != nil {
		publishPath := req.GetVolumePublishPath()
		if publishPath != "" {
			if publishPath, err = s.d.attachments.VolumePath(rec, publishPath); err != nil {
				return nil, err
			}
		}
		if err := s.d.health.NodeHealth(&found, rec, publishPath); err != nil {
			return nil, err
		}
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: &csi.VolumeHealth{VolumeId: id, HealthStatuses: found}}, nil
}

// NodeGetStorageHealth returns the conditions of the pool, the replicator and its peers, each reason once.
func (s *nodeServer) NodeGetStorageHealth(ctx context.Context,
	_ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	response := &csi.NodeGetStorageHealthResponse{}
	add := func(kind csi.StorageHealthErrorType, reason, format string, args ...any) {
		response.BackendHealth = append(response.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status: kind, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	const broken, unreachable = csi.StorageHealthErrorType_STORAGE_DEGRADED, csi.StorageHealthErrorType_STORAGE_UNREACHABLE
	space := s.d.space.PoolFileSystem()
	if err := errors.Join(s.d.store.Pool.Check(), space.Err); err != nil {
		add(unreachable, health.ReasonPoolUnavailable, "pool %s on node %s does not answer: %v; check the file system it "+
			"is on", s.d.opts.PoolDir, s.d.opts.NodeID, err)
		return response, nil
	}
	if reason := health.SpaceReason(space); reason != "" {
		add(broken, reason, "%s", s.d.health.SpaceMessage(space))
	}
	if journals, apart := s.d.space.JournalFileSystem(); apart && health.SpaceReason(journals) != "" {
		add(broken, health.SpaceReason(journals), "the journals' file system, at %s on node %s, has %s: free some, or "+
			"enlarge it",
			s.d.store.Pool.GroupsDir(), s.d.opts.NodeID, journals)
	}
	if damaged := s.damagedRecords(); len(damaged) > 0 {
		add(broken, health.ReasonRecordDamaged, "pool %s on node %s has volumes whose records cannot be read: %s; restore "+
			"the records, or delete the volumes' directories to give them up",
			s.d.opts.PoolDir, s.d.opts.NodeID, strings.Join(damaged, ", "))
	}
	if s.d.sidecar == nil {
		return response, nil // a node for plain volumes
	}
	view := s.d.health.ViewGroups(ctx)
	if view.Err != nil {
		add(broken, health.ReasonReplicatorUnavailable, "replicable volumes on node %s wait for the replicator: %s",
			s.d.opts.NodeID, status.Convert(view.Err).Message())
		return response, nil
	}
	if len(view.Broken) > 0 {
		add(broken, health.ReasonGroupUnavailable, "the replicator on node %s could not open groups: %s; put that right, "+
			"then restart it (not needed where it was because there was no space)",
			s.d.opts.NodeID, strings.Join(view.Broken, "; "))
	}
	if away := view.WithoutContact(); len(away) > 0 {
		add(broken, health.ReasonReplicationSuspended, "groups on node %s that have no contact with their peers: %s; see "+
			"that the replicators there run and can be reached",
			s.d.opts.NodeID, strings.Join(away, ", "))
	}
	return response, nil
}

// damagedRecords returns the ids of the volumes whose records cannot be read.
func (s *nodeServer) damagedRecords() []string {
	ids, err := s.d.store.Pool.IDs()
	if err != nil {
		return nil // the pool was asked a moment ago
	}
	return slices.DeleteFunc(ids, func(id string) bool {
		_, err := s.d.store.Pool.Get(id)
		return !health.Unreadable(err)
	})
}
