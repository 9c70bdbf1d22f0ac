package csiaddons

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	groups "github.com/slipstream-storage/slipstream/pkg/api/addongrouppb"
	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// Driver is the driver of the node, as the services use it. Its errors are status errors.
type Driver interface {
	// NodeID is the node's name.
	NodeID() string
	// Volume returns a volume's record, or NotFound.
	Volume(id string) (*blockdev.VolumeRecord, error)
	// Enter keeps other calls about a volume out until leave is called; Aborted if one is running.
	Enter(volumeID, operation string) (leave func(), err error)
	// Modify changes how a volume is replicated.
	Modify(ctx context.Context, rec *blockdev.VolumeRecord, m parameter.Mutation) error
	// Replicator is the client of the node's replicator, or an error if there is none.
	Replicator() (sidecarpb.SidecarClient, error)
}

const (
	// DefaultPeerGrace is how long a peer must have been silent before a forced promotion is allowed. It is longer than a
	// restart of a gateway or replicator, and than the failure of a line that a router works around.
	DefaultPeerGrace = 30 * time.Second
	// callTimeout ends before the controller's limit of three minutes.
	callTimeout = 2 * time.Minute
	// removalPatience is how long Disable waits for the peer to hear that a volume left.
	removalPatience = 5 * time.Second
)

// Node serves replication and volume groups for the volumes of one node. The zero value but for Driver is ready.
type Node struct {
	Driver Driver
	// PeerGrace is DefaultPeerGrace if it is 0.
	PeerGrace time.Duration

	mu   sync.Mutex
	busy map[string]bool // group ids, and ids of volumes without a group
}

// Register adds the two services to a server.
func (n *Node) Register(server grpc.ServiceRegistrar) {
	replication.RegisterControllerServer(server, &replicationServer{n: n})
	groups.RegisterControllerServer(server, &groupServer{n: n})
}

func (n *Node) peerGrace() time.Duration {
	if n.PeerGrace > 0 {
		return n.PeerGrace
	}
	return DefaultPeerGrace
}

// enter makes the call the only one about a group, or about a volume without one.
func (n *Node) enter(what, id string) (leave func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.busy[id] {
		return nil, status.Errorf(codes.Aborted, "%s %s: another call about it is running; call again", what, id)
	}
	if n.busy == nil {
		n.busy = map[string]bool{}
	}
	n.busy[id] = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.busy, id)
	}, nil
}

// subject is what a call is about.
type subject struct {
	// volume is nil for a call about a group.
	volume *blockdev.VolumeRecord
	// group is nil for a volume that is in none.
	group *sidecarpb.GroupStatus
}

// String names it in errors.
func (s *subject) String() string {
	switch {
	case s.volume == nil:
		return "group " + s.group.GetName()
	case s.group == nil:
		return "volume " + s.volume.ID
	}
	return "volume " + s.volume.ID + " (group " + s.group.GetName() + ")"
}

func (s *subject) errorf(code codes.Code, format string, args ...any) error {
	return status.Errorf(code, "%s: "+format, append([]any{s}, args...)...)
}

// enabled reports whether there is a group with a peer.
func (s *subject) enabled() bool { return s.group.GetPeer() != "" }

// ships reports whether this site is the primary or was the last one.
func (s *subject) ships() bool { return s.group.GetRole() == sidecarpb.Role_ROLE_PRIMARY }

// demoted reports whether writes have ended here, as far as the status tells.
func (s *subject) demoted() bool {
	return s.group.GetState() == sidecarpb.GroupState_GROUP_STATE_DEMOTED
}

// begin finds what a source names and makes the call the only one about it.
func (n *Node) begin(ctx context.Context, source *replication.ReplicationSource) (s *subject, leave func(), err error) {
	if s, err = n.find(ctx, source); err != nil {
		return nil, nil, err
	}
	if s.group == nil {
		leave, err = n.enter("volume", s.volume.ID)
	} else {
		leave, err = n.enter("group", s.group.GetGroupId())
	}
	return s, leave, err
}

// find finds what a source names.
func (n *Node) find(ctx context.Context, source *replication.ReplicationSource) (*subject, error) {
	switch {
	case source.GetVolume().GetVolumeId() != "":
		return n.ofVolume(ctx, source.GetVolume().GetVolumeId())
	case source.GetVolumegroup().GetVolumeGroupId() != "":
		g, err := n.groupByID(ctx, source.GetVolumegroup().GetVolumeGroupId())
		return &subject{group: g}, err
	}
	return nil, status.Error(codes.InvalidArgument, "replication_source names neither a volume nor a volume group")
}

func (n *Node) ofVolume(ctx context.Context, id string) (*subject, error) {
	rec, err := n.volume(id)
	if err != nil {
		return nil, err
	}
	s := &subject{volume: rec}
	if rec.Group == "" {
		return s, nil
	}
	all, err := n.groups(ctx, rec.Group)
	if status.Code(err) == codes.NotFound {
		return nil, s.errorf(codes.Unavailable, "the replicator does not know its group %s yet; call again", rec.Group)
	}
	if err != nil {
		return nil, err
	}
	s.group = all[0]
	return s, usable(s.group)
}

func (n *Node) groupByID(ctx context.Context, id string) (*sidecarpb.GroupStatus, error) {
	all, err := n.groups(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		if g.GetGroupId() == id {
			return g, usable(g)
		}
	}
	return nil, status.Errorf(codes.NotFound, "volume group %.80q does not exist on node %s", id, n.Driver.NodeID())
}

// usable is an error for a group that cannot be opened: nothing is known about it.
func usable(g *sidecarpb.GroupStatus) error {
	if g.Unreadable() {
		return status.Errorf(codes.Unavailable, "group %s cannot be opened: %s", g.GetName(), g.GetStateReason())
	}
	return nil
}

// replicator is the node's replicator.
func (n *Node) replicator() (sidecarpb.SidecarClient, error) {
	client, err := n.Driver.Replicator()
	return client, failure(err)
}

// volume returns a volume's record, or NotFound.
func (n *Node) volume(id string) (*blockdev.VolumeRecord, error) {
	rec, err := n.Driver.Volume(id)
	return rec, failure(err)
}

// groups returns the status of one group, or of all with the empty name.
func (n *Node) groups(ctx context.Context, name string) ([]*sidecarpb.GroupStatus, error) {
	client, err := n.replicator()
	if err != nil {
		return nil, err
	}
	response, err := client.ListGroups(ctx, &sidecarpb.ListGroupsRequest{Name: name})
	if err != nil {
		return nil, failure(err)
	}
	return response.GetGroups(), nil
}

// failure is what a caller hears of an error of the replicator. It never is FailedPrecondition: that code forces a
// promotion, and is given on purpose only.
func failure(err error) error {
	if err == nil {
		return nil
	}
	code := status.Code(err)
	switch code {
	case codes.FailedPrecondition:
		code = codes.Aborted
	case codes.DeadlineExceeded, codes.Canceled:
		code = codes.Unavailable
	}
	return status.Error(code, status.Convert(err).Message())
}

// modify is Driver.Modify while no other call about the volume runs.
func (n *Node) modify(ctx context.Context, rec *blockdev.VolumeRecord, m parameter.Mutation, operation string) error {
	leave, err := n.Driver.Enter(rec.ID, operation)
	if err != nil {
		return err
	}
	defer leave()
	return failure(n.Driver.Modify(ctx, rec, m))
}
