package operatortest

import (
	"context"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// Node is a replicator in memory, with the rules of the real one that matter here.
type Node struct {
	sidecarpb.SidecarClient // nil: other calls are a mistake

	// Mu guards what is below while reconcilers run in other goroutines.
	Mu         sync.Mutex
	Groups     map[string]*sidecarpb.GroupStatus
	Replicable func(volume string) bool
	Claims     map[string][2]string // namespace and name, by volume
	Silent     bool
	Without    bool
	Fail       map[string]error // by call
	Bookmarks  map[string][]*sidecarpb.Bookmark
	Views      map[string]*sidecarpb.View // by group and name
	// Others are the names of the nodes that this one reaches; nil for a replicator without groups over several nodes.
	Others func() []string
	// Promotes is another node, whose shards are promoted with those of this one; nil for none.
	Promotes *Node

	calls []string
}

func (n *Node) do(call string) error {
	n.calls = append(n.calls, call)
	if n.Silent {
		return status.Error(codes.Unavailable, "no answer")
	}
	if n.Without {
		return status.Error(codes.FailedPrecondition, "no replicator")
	}
	return n.Fail[strings.Fields(call)[0]]
}

func (n *Node) ListGroups(context.Context, *sidecarpb.ListGroupsRequest,
	...grpc.CallOption) (*sidecarpb.ListGroupsResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if n.Silent || n.Without {
		return nil, n.do("ListGroups")
	}
	r := &sidecarpb.ListGroupsResponse{}
	for _, g := range n.Groups {
		r.Groups = append(r.Groups, proto.CloneOf(g))
	}
	return r, nil
}

// ModifyVolume takes what is told of claims. It is no call that the tests of membership look at.
func (n *Node) ModifyVolume(_ context.Context, r *sidecarpb.ModifyVolumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.ModifyVolumeResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	for _, g := range n.Groups {
		for _, v := range g.GetVolumes() {
			if v.GetVolumeId() == r.GetVolumeId() {
				v.Claim = proto.CloneOf(r.GetClaim())
			}
		}
	}
	return &sidecarpb.ModifyVolumeResponse{}, nil
}

func (n *Node) CreateGroup(_ context.Context, r *sidecarpb.CreateGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.CreateGroupResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("CreateGroup " + r.GetName()); err != nil {
		return nil, err
	}
	if n.Groups[r.GetName()] == nil {
		zero := 0.0
		g := &sidecarpb.GroupStatus{Name: r.GetName(), Role: sidecarpb.Role_ROLE_PRIMARY, Timeline: "t1", Connected: true,
			State: sidecarpb.GroupState_GROUP_STATE_STREAMING, Promotable: true, JournalSizeBytes: 1 << 30, LagSeconds: &zero}
		n.Groups[r.GetName()] = g
		set(g, r.GetSettings())
	}
	return &sidecarpb.CreateGroupResponse{}, nil
}

func set(g *sidecarpb.GroupStatus, s *sidecarpb.GroupSettings) {
	if s.Remote != nil {
		g.Peer, g.PeerAddress = s.GetRemote(), ""
	}
	if s.RemoteAddress != nil {
		g.PeerAddress = s.GetRemoteAddress()
	}
	if s.JournalSizeBytes != nil {
		g.JournalSizeBytes = s.GetJournalSizeBytes()
	}
	if s.JournalFull != nil {
		g.JournalFull = s.GetJournalFull()
	}
	if s.RpoTargetMillis != nil {
		g.RpoTargetSeconds = float64(s.GetRpoTargetMillis()) / 1000
	}
	if s.ShipBytesPerSecond != nil {
		g.ShipBytesPerSecond = s.GetShipBytesPerSecond()
	}
	if s.TailsMost != nil {
		g.TailsMost = s.GetTailsMost()
	}
	if s.TailsMillis != nil {
		g.TailsMillis = s.GetTailsMillis()
	}
	if s.ShardOf != nil {
		g.Shard = &sidecarpb.ShardStatus{Group: s.GetShardOf(), Id: s.GetShard(), Numbers: []uint32{s.GetShard()},
			Shards: []*sidecarpb.ShardPlace{{Id: s.GetShard(), GroupName: g.GetName(), Joined: true}}}
	}
}

func (n *Node) SiteNodes(context.Context, *sidecarpb.SiteNodesRequest,
	...grpc.CallOption) (*sidecarpb.SiteNodesResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	switch {
	case n.Silent:
		return nil, status.Error(codes.Unavailable, "no answer")
	case n.Others == nil:
		return nil, status.Error(codes.Unimplemented, "unknown method SiteNodes")
	}
	return &sidecarpb.SiteNodesResponse{Answering: n.Others()}, nil
}

func (n *Node) ModifyGroup(_ context.Context, r *sidecarpb.ModifyGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.ModifyGroupResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("ModifyGroup " + r.GetName()); err != nil {
		return nil, err
	}
	set(n.Groups[r.GetName()], r.GetSettings())
	return &sidecarpb.ModifyGroupResponse{}, nil
}

func (n *Node) DeleteGroup(_ context.Context, r *sidecarpb.DeleteGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.DeleteGroupResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("DeleteGroup " + r.GetName()); err != nil {
		return nil, err
	}
	if g := n.Groups[r.GetName()]; g != nil && len(g.GetVolumes()) > 0 && !r.GetForce() {
		return nil, status.Error(codes.FailedPrecondition, "the group has volumes")
	}
	delete(n.Groups, r.GetName())
	return &sidecarpb.DeleteGroupResponse{}, nil
}

func (n *Node) AddVolume(_ context.Context, r *sidecarpb.AddVolumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.AddVolumeResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("AddVolume " + r.GetGroup() + " " + r.GetVolumeId()); err != nil {
		return nil, err
	}
	g := n.Groups[r.GetGroup()]
	if g == nil {
		return nil, status.Error(codes.NotFound, "no such group")
	}
	if n.Replicable != nil && !n.Replicable(r.GetVolumeId()) {
		return nil, sidecarpb.Refusal(codes.FailedPrecondition, sidecarpb.ReasonNotReplicable, "volume is not replicable")
	}
	for _, other := range n.Groups {
		if n.in(other, r.GetVolumeId()) && other != g {
			if !r.GetMove() {
				return nil, status.Error(codes.FailedPrecondition, "volume is in another group")
			}
			n.remove(other, r.GetVolumeId())
		}
	}
	if !n.in(g, r.GetVolumeId()) {
		claim := n.Claims[r.GetVolumeId()]
		g.Volumes = append(g.Volumes, &sidecarpb.VolumeStatus{VolumeId: r.GetVolumeId(), SizeBytes: 1 << 30,
			ClaimNamespace: claim[0], ClaimName: claim[1]})
	}
	return &sidecarpb.AddVolumeResponse{}, nil
}

func (n *Node) in(g *sidecarpb.GroupStatus, id string) bool {
	return slices.ContainsFunc(g.GetVolumes(), func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == id })
}

func (n *Node) remove(g *sidecarpb.GroupStatus, id string) {
	g.Volumes = slices.DeleteFunc(g.Volumes, func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == id })
}

func (n *Node) RemoveVolume(_ context.Context, r *sidecarpb.RemoveVolumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.RemoveVolumeResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("RemoveVolume " + r.GetGroup() + " " + r.GetVolumeId()); err != nil {
		return nil, err
	}
	n.remove(n.Groups[r.GetGroup()], r.GetVolumeId())
	return &sidecarpb.RemoveVolumeResponse{}, nil
}

// Took returns the calls since the last time.
func (n *Node) Took() []string {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	calls := n.calls
	n.calls = nil
	return calls
}

// Names returns the names of the node's groups.
func (n *Node) Names() (names []string) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	for name := range n.Groups {
		names = append(names, name)
	}
	return names
}
