package csiaddons

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipstream-storage/slipstream/internal/words"
	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// replicationServer is the replication service.
type replicationServer struct {
	replication.UnimplementedControllerServer
	n *Node
}

// single is an error with the code if the call is about a volume that shares its group with others.
func (s *subject) single(code codes.Code) error {
	if s.shared() {
		return s.errorf(code, "the group has %s with one role; use a VolumeGroupReplication over all of them",
			words.Count(len(s.group.GetVolumes()), "volume"))
	}
	return nil
}

func (s *subject) shared() bool { return s.volume != nil && len(s.group.GetVolumes()) > 1 }

// EnableVolumeReplication gives the group a peer. A volume without a group gets one of its own.
func (s *replicationServer) EnableVolumeReplication(ctx context.Context,
	req *replication.EnableVolumeReplicationRequest) (*replication.EnableVolumeReplicationResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	subject, leave, err := s.n.begin(ctx, req.GetReplicationSource())
	if err != nil {
		return nil, err
	}
	defer leave()
	want, err := settings(req.GetParameters())
	if err != nil {
		return nil, err
	}
	if err := s.n.enable(ctx, subject, want); err != nil {
		return nil, err
	}
	return &replication.EnableVolumeReplicationResponse{}, nil
}

func (n *Node) enable(ctx context.Context, s *subject, want parameter.Mutation) error {
	// The controller takes FailedPrecondition for a refusal that stays. These two do.
	if s.volume != nil && !s.volume.Replicable {
		return s.errorf(codes.FailedPrecondition, "it is not replicable; it was created without %s",
			parameter.KeyReplicable)
	}
	if err := s.single(codes.FailedPrecondition); err != nil {
		return err
	}
	switch peer := s.group.GetPeer(); {
	case peer != "" && want.Remote != "" && peer != want.Remote:
		return s.errorf(codes.InvalidArgument, "it replicates with %s, and the class says %s %s; name %s in the class, or "+
			"change the group (slipctl group set)", peer, parameter.KeyRemote, want.Remote, peer)
	case peer != "":
		return nil
	case want.Remote == "":
		return s.errorf(codes.InvalidArgument, "the class has no %s, which names the other site", parameter.KeyRemote)
	case s.group == nil:
		return n.modify(ctx, s.volume, want, "EnableVolumeReplication")
	}
	return n.change(ctx, &sidecarpb.ModifyGroupRequest{Name: s.group.GetName(),
		Settings: want.GroupSettings(func(key string) bool { return want.Has(key) })})
}

func (n *Node) change(ctx context.Context, req *sidecarpb.ModifyGroupRequest) error {
	client, err := n.replicator()
	if err != nil {
		return err
	}
	_, err = client.ModifyGroup(ctx, req)
	return failure(err)
}

// DisableVolumeReplication ends replication at the primary; the copy at the peer stays as it is then. Elsewhere, and
// where the histories of the sites diverged, it does nothing: the peer decides about the group, a person has to, or
// there is nothing to end.
func (s *replicationServer) DisableVolumeReplication(ctx context.Context,
	req *replication.DisableVolumeReplicationRequest) (*replication.DisableVolumeReplicationResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	subject, leave, err := s.n.begin(ctx, req.GetReplicationSource())
	if err != nil {
		return nil, err
	}
	defer leave()
	diverged := subject.group.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED
	if subject.enabled() && subject.ships() && !subject.demoted() && !diverged && !subject.shared() {
		if err := s.n.disable(ctx, subject); err != nil {
			return nil, err
		}
	}
	return &replication.DisableVolumeReplicationResponse{}, nil
}

func (n *Node) disable(ctx context.Context, s *subject) error {
	name := s.group.GetName()
	if s.volume == nil || name != s.volume.ID {
		track := sidecarpb.JournalFull_JOURNAL_FULL_TRACK // a group without a peer has no other
		return n.change(ctx, &sidecarpb.ModifyGroupRequest{Name: name,
			Settings: &sidecarpb.GroupSettings{Remote: new(""), JournalFull: &track}})
	}
	// The group was made for this volume and goes. The peer should hear of it: then the copy is a volume of its own there.
	client, err := n.replicator()
	if err != nil {
		return err
	}
	if _, err := client.RemoveVolume(ctx, &sidecarpb.RemoveVolumeRequest{Group: name, VolumeId: s.volume.ID}); err != nil {
		return failure(err)
	}
	if err := n.awaitPeer(ctx, name); err != nil {
		return err
	}
	off, err := parameter.ParseMutation(map[string]string{parameter.KeyReplication: parameter.ReplicationOff})
	if err != nil {
		return err
	}
	rec, err := n.volume(s.volume.ID)
	if err != nil {
		return err
	}
	return n.modify(ctx, rec, off, "DisableVolumeReplication")
}

// awaitPeer waits, not for long and not for a silent peer, until the peer has everything of a group.
func (n *Node) awaitPeer(ctx context.Context, name string) error {
	patience := time.NewTimer(removalPatience)
	defer patience.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		all, err := n.groups(ctx, name)
		if err != nil {
			return err
		}
		if g := all[0]; !g.GetConnected() || g.GetAcknowledgedOrdinal() >= g.GetHeadOrdinal() {
			return nil
		}
		select {
		case <-again.C:
		case <-patience.C:
			return nil
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// DemoteVolume ends writes here. What is here is shipped to the peer, which can be promoted when it has all of it.
func (s *replicationServer) DemoteVolume(ctx context.Context,
	req *replication.DemoteVolumeRequest) (*replication.DemoteVolumeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	subject, leave, err := s.n.begin(ctx, req.GetReplicationSource())
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := subject.single(codes.InvalidArgument); err != nil {
		return nil, err
	}
	if !subject.enabled() {
		return nil, subject.errorf(codes.FailedPrecondition, "replication is not enabled")
	}
	if subject.ships() {
		client, err := s.n.replicator()
		if err != nil {
			return nil, err
		}
		if _, err := client.Demote(ctx, &sidecarpb.DemoteRequest{Group: subject.group.GetName()}); err != nil {
			return nil, failure(err)
		}
	}
	return &replication.DemoteVolumeResponse{}, nil
}

// ResyncVolume reports whether the copy here, or that of the writes made here, is whole. With force a site that wrote
// past a fork gives way to the other one; what it wrote there is kept as snapshots first.
func (s *replicationServer) ResyncVolume(ctx context.Context,
	req *replication.ResyncVolumeRequest) (*replication.ResyncVolumeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	subject, leave, err := s.n.begin(ctx, req.GetReplicationSource())
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := subject.single(codes.InvalidArgument); err != nil {
		return nil, err
	}
	g := subject.group
	switch {
	case !subject.enabled():
		return nil, subject.errorf(codes.FailedPrecondition, "replication is not enabled")
	case g.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED && req.GetForce():
		return s.n.yield(ctx, subject)
	case g.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED:
		return nil, subject.errorf(codes.Aborted, "%s. To keep what this site wrote as snapshots and follow %s: slipctl "+
			"group yield %s at this site, or autoResync of the VolumeReplication", g.GetStateReason(), g.GetPeer(), g.GetName())
	case stopped(g):
		return nil, subject.errorf(codes.Aborted, "it is %s: %s", g.GetState().Word(), g.GetStateReason())
	case subject.ships() && !subject.demoted():
		return nil, subject.errorf(codes.FailedPrecondition, "it is primary here; demote it first")
	}
	return &replication.ResyncVolumeResponse{Ready: whole(g)}, nil
}

// yield begins to give way. The calls after it report how far that is.
func (n *Node) yield(ctx context.Context, s *subject) (*replication.ResyncVolumeResponse, error) {
	client, err := n.replicator()
	if err != nil {
		return nil, err
	}
	if _, err := client.Yield(ctx, &sidecarpb.YieldRequest{Group: s.group.GetName()}); err != nil {
		return nil, failure(err)
	}
	return &replication.ResyncVolumeResponse{}, nil
}

// whole reports whether a group that takes no writes here is in order: a demoted one if the peer has everything, a
// secondary if it is an instant of its primary and follows it.
func whole(g *sidecarpb.GroupStatus) bool {
	if !g.GetConnected() || g.GetApplyError() != "" {
		return false
	}
	if g.GetState() == sidecarpb.GroupState_GROUP_STATE_DEMOTED {
		return g.AcknowledgedOrdinal != nil && g.GetAcknowledgedOrdinal() >= g.GetHeadOrdinal() &&
			g.GetSyncTotalBytes() == 0
	}
	return g.GetState() == sidecarpb.GroupState_GROUP_STATE_STREAMING && g.GetPromotable()
}

// GetVolumeReplicationInfo answers at the primary, from what the replicator knows without asking the peer.
func (s *replicationServer) GetVolumeReplicationInfo(ctx context.Context,
	req *replication.GetVolumeReplicationInfoRequest) (*replication.GetVolumeReplicationInfoResponse, error) {
	subject, err := s.n.find(ctx, req.GetReplicationSource())
	if err != nil {
		return nil, err
	}
	switch {
	case !subject.enabled():
		return nil, subject.errorf(codes.FailedPrecondition, "replication is not enabled")
	case !subject.ships() || subject.demoted():
		return nil, subject.errorf(codes.FailedPrecondition, "it is not primary here")
	}
	return info(subject.group), nil
}

func info(g *sidecarpb.GroupStatus) *replication.GetVolumeReplicationInfoResponse {
	response := &replication.GetVolumeReplicationInfoResponse{StatusMessage: g.GetStateReason()}
	if g.LastReplicatedUnixNanos != nil {
		response.LastSyncTime = timestamppb.New(time.Unix(0, g.GetLastReplicatedUnixNanos()))
	}
	switch state := g.GetState(); {
	case g.GetApplyError() != "":
		response.Status, response.StatusMessage = replication.GetVolumeReplicationInfoResponse_ERROR, g.GetApplyError()
	case stopped(g):
		response.Status = replication.GetVolumeReplicationInfoResponse_ERROR
	case g.GetLagging():
		response.Status = replication.GetVolumeReplicationInfoResponse_DEGRADED
		if response.StatusMessage == "" {
			response.StatusMessage = "the copy lags beyond the RPO target"
		}
	case state == sidecarpb.GroupState_GROUP_STATE_STREAMING:
		response.Status = replication.GetVolumeReplicationInfoResponse_HEALTHY
	default:
		response.Status = replication.GetVolumeReplicationInfoResponse_DEGRADED
		if response.StatusMessage == "" {
			response.StatusMessage = state.Word()
		}
	}
	return response
}

// GetReplicationDestinationInfo is not announced, and needless: ids are equal at both sites.
func (s *replicationServer) GetReplicationDestinationInfo(context.Context,
	*replication.GetReplicationDestinationInfoRequest) (*replication.GetReplicationDestinationInfoResponse, error) {
	return nil, status.Error(codes.Unimplemented, "volumes and groups have the same ids at both sites")
}
