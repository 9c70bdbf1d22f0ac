package shards

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// Register adds the service for the other nodes to a gRPC server. The server lets only nodes of the site call it.
func (n *Node) Register(r grpc.ServiceRegistrar) { shardpb.RegisterShardsServer(r, &Server{node: n}) }

// Server answers the other nodes.
type Server struct {
	shardpb.UnimplementedShardsServer
	node *Node
}

// Server returns what answers the other nodes, for a caller in the same process.
func (n *Node) Server() *Server { return &Server{node: n} }

// ListShards implements shardpb.ShardsServer.
func (v *Server) ListShards(context.Context, *shardpb.ListShardsRequest) (*shardpb.ListShardsResponse, error) {
	answer := &shardpb.ListShardsResponse{Node: v.node.opts.Name}
	for _, s := range v.node.local() {
		answer.Shards = append(answer.Shards, infoToWire(s))
	}
	return answer, nil
}

// shard is the shard that a call names, or the status that the caller gets.
func (v *Server) shard(group string, number uint32) (*replication.Shard, error) {
	id, err := shardFromWire(number)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s := v.node.shard(group, id)
	if s == nil {
		return nil, status.Errorf(codes.NotFound, "node %s does not have shard %d of %s", v.node.opts.Name, id,
			untrusted.Escape(group, untrusted.MaxNameBytes))
	}
	return s, nil
}

// Deliver implements shardpb.ShardsServer.
func (v *Server) Deliver(_ context.Context, r *shardpb.DeliverRequest) (*shardpb.DeliverResponse, error) {
	m, err := messageOf(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s, err := v.shard(r.GetGroup(), r.GetShard())
	if err != nil {
		return nil, err
	}
	answer, err := s.Deliver(m)
	if err != nil {
		return nil, toStatus(err)
	}
	return response(answer), nil
}

func toStatus(err error) error {
	code := codes.Internal
	switch {
	case errors.Is(err, replication.ErrNoShard):
		code = codes.NotFound
	case errors.Is(err, core.ErrNotYet): // before the next: it is one of these
		code = codes.Aborted
	case errors.Is(err, core.ErrPrecondition), errors.Is(err, replication.ErrUnmarked),
		errors.Is(err, replication.ErrNotOpen):
		code = codes.FailedPrecondition
	case errors.Is(err, replication.ErrClosed):
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

var roles = map[core.Role]shardpb.Role{
	core.RolePrimary: shardpb.Role_ROLE_PRIMARY, core.RoleSecondary: shardpb.Role_ROLE_SECONDARY,
	core.RoleDemoted: shardpb.Role_ROLE_DEMOTED,
}

func infoToWire(s shardInfo) *shardpb.Shard {
	return &shardpb.Shard{Group: s.group, Id: uint32(s.id), GroupName: s.groupName, Role: roles[s.role],
		Config: configToWire(s.config), Shown: idToWire(s.shown), Newest: idToWire(s.newest), Arrived: s.arrived,
		Decided: s.decided, Closing: uint64(s.standing.Closing), Covered: idToWire(s.standing.Covered),
		Marked: idToWire(s.standing.Marked), Final: idToWire(s.standing.Final), Suspended: s.suspended,
		Separate: s.separate, Heard: s.heard}
}

// standingFromWire is the standing of a shard with a role.
func standingFromWire(w *shardpb.Shard, id epoch.ShardID, role core.Role) epoch.Standing {
	s := epoch.Standing{Shard: id, Closing: epoch.Life(w.GetClosing()), Covered: idFromWire(w.GetCovered()),
		Marked: idFromWire(w.GetMarked()), Final: idFromWire(w.GetFinal())}
	switch {
	case role == core.RoleSecondary:
		s.Stand = epoch.StandFollowing
	case role == core.RoleDemoted:
		s.Stand = epoch.StandDemoted
	case s.Closing != 0:
		s.Stand = epoch.StandClosed
	default:
		s.Stand = epoch.StandOpen
	}
	return s
}

func infoFromWire(w *shardpb.Shard) (shardInfo, error) {
	s := shardInfo{group: w.GetGroup(), groupName: w.GetGroupName(), shown: idFromWire(w.GetShown()),
		newest: idFromWire(w.GetNewest()), arrived: w.GetArrived(), decided: w.GetDecided(), suspended: w.GetSuspended(),
		separate: w.GetSeparate(), heard: w.GetHeard()}
	for role, wire := range roles {
		if wire == w.GetRole() {
			s.role = role
		}
	}
	err := untrusted.CheckName("group", s.group)
	if err == nil {
		err = untrusted.CheckName("group", s.groupName)
	}
	if err == nil {
		s.id, err = shardFromWire(w.GetId())
	}
	if err == nil {
		s.config, err = configFromWire(w.GetConfig())
	}
	s.standing = standingFromWire(w, s.id, s.role)
	return s, err
}
