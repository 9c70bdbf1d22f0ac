package slipctl

import (
	"context"
	"errors"
	"net"
	"slices"
	"sort"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/groups"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// fakeSidecar is a replicator that only remembers groups: what the commands have to get right is what they send, and
// what they make of an answer.
type fakeSidecar struct {
	sidecarpb.UnimplementedSidecarServer
	mu     sync.Mutex
	groups map[string]*sidecarpb.GroupStatus
	copies []*sidecarpb.Copy
	tails  []*sidecarpb.Tail
}

// serveFake listens on a socket until the returned function is called.
func serveFake(socket string) (stop func(), err error) {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	sidecarpb.RegisterSidecarServer(server, &fakeSidecar{copies: fakeCopies(), groups: map[string]*sidecarpb.GroupStatus{
		"copy": {
			Name: "copy", GroupId: "g-0", Role: sidecarpb.Role_ROLE_SECONDARY,
			State: sidecarpb.GroupState_GROUP_STATE_STREAMING, Peer: "site-a", Connected: true, Promotable: true,
			Timeline: "t0", HeadOrdinal: 90, DurableOrdinal: 90, AppliedOrdinal: 80, LagOrdinals: new(uint64(10)),
			LagBytes: new(uint64(40960)), LagSeconds: new(0.25),
			JournalSizeBytes: 1 << 30, JournalUsedBytes: 5 << 20,
			Volumes: []*sidecarpb.VolumeStatus{{VolumeId: "vol-1", SizeBytes: 1 << 30, UnappliedBytes: 4096}},
		},
		"broken": {Name: "broken", GroupId: "g-1", Role: sidecarpb.Role_ROLE_SECONDARY,
			State: sidecarpb.GroupState_GROUP_STATE_SYNCING, StateReason: "the first copy is running", Peer: "site-a",
			SyncDoneBytes: new(uint64(1 << 20)), SyncTotalBytes: new(uint64(4 << 20))},
	}})
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			panic(err) // only a broken test gets here
		}
	})
	return func() { server.Stop(); serving.Wait() }, nil
}

func (f *fakeSidecar) get(name string) (*sidecarpb.GroupStatus, error) {
	if g := f.groups[name]; g != nil {
		return g, nil
	}
	return nil, status.Errorf(codes.NotFound, "there is no group %q", name)
}

func (f *fakeSidecar) CreateGroup(_ context.Context,
	r *sidecarpb.CreateGroupRequest) (*sidecarpb.CreateGroupResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if g := f.groups[r.GetName()]; g != nil {
		if g.GetPeer() != r.GetSettings().GetRemote() {
			return nil, status.Errorf(codes.AlreadyExists, "group %s replicates to %q", r.GetName(), g.GetPeer())
		}
		return &sidecarpb.CreateGroupResponse{GroupId: g.GetGroupId()}, nil
	}
	f.groups[r.GetName()] = &sidecarpb.GroupStatus{
		Name: r.GetName(), GroupId: "g-" + r.GetName(), Role: sidecarpb.Role_ROLE_PRIMARY,
		State: sidecarpb.GroupState_GROUP_STATE_CONNECTING, Peer: r.GetSettings().GetRemote(), Promotable: true,
		JournalSizeBytes: r.GetSettings().GetJournalSizeBytes(), JournalFull: r.GetSettings().GetJournalFull(),
		StateReason: r.GetSettings().GetRemoteAddress(),
	}
	if whole := r.GetSettings().GetShardOf(); whole != "" {
		f.groups[r.GetName()].Shard = &sidecarpb.ShardStatus{Group: whole, Numbers: []uint32{0, 1}}
	}
	return &sidecarpb.CreateGroupResponse{GroupId: "g-" + r.GetName()}, nil
}

// DropShard takes a shard out of a group, also one that has left.
func (f *fakeSidecar) DropShard(_ context.Context,
	r *sidecarpb.DropShardRequest) (*sidecarpb.DropShardResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	g.Shard.Numbers = slices.DeleteFunc(g.Shard.Numbers, func(n uint32) bool { return n == r.GetShard() })
	return &sidecarpb.DropShardResponse{Status: g}, nil
}

func (f *fakeSidecar) ModifyGroup(_ context.Context,
	r *sidecarpb.ModifyGroupRequest) (*sidecarpb.ModifyGroupResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetName())
	if err != nil {
		return nil, err
	}
	given := r.GetSettings()
	if given.Remote != nil {
		g.Peer = *given.Remote
	}
	if given.RemoteAddress != nil {
		g.StateReason = *given.RemoteAddress
	}
	if given.JournalSizeBytes != nil {
		g.JournalSizeBytes = *given.JournalSizeBytes
	}
	if given.JournalFull != nil {
		g.JournalFull = *given.JournalFull
	}
	if given.RpoTargetMillis != nil {
		g.RpoTargetSeconds, g.Lagging = float64(*given.RpoTargetMillis)/1e3, true
	}
	if given.ShipSchedule != nil {
		g.ShipSchedule = *given.ShipSchedule
	}
	if given.ShipBytesPerSecond != nil {
		g.ShipBytesPerSecond = *given.ShipBytesPerSecond
	}
	return &sidecarpb.ModifyGroupResponse{Status: g}, nil
}

func (f *fakeSidecar) AddVolume(_ context.Context,
	r *sidecarpb.AddVolumeRequest) (*sidecarpb.AddVolumeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	member := func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == r.GetVolumeId() }
	if !slices.ContainsFunc(g.GetVolumes(), member) {
		g.Volumes = append(g.Volumes, &sidecarpb.VolumeStatus{VolumeId: r.GetVolumeId()})
	}
	return &sidecarpb.AddVolumeResponse{}, nil
}

func (f *fakeSidecar) RemoveVolume(_ context.Context,
	r *sidecarpb.RemoveVolumeRequest) (*sidecarpb.RemoveVolumeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	for i, v := range g.GetVolumes() {
		if v.GetVolumeId() == r.GetVolumeId() {
			g.Volumes = append(g.Volumes[:i:i], g.Volumes[i+1:]...)
		}
	}
	return &sidecarpb.RemoveVolumeResponse{}, nil
}

func (f *fakeSidecar) DeleteGroup(_ context.Context,
	r *sidecarpb.DeleteGroupRequest) (*sidecarpb.DeleteGroupResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetName())
	if err != nil {
		return nil, err
	}
	if len(g.GetVolumes()) > 0 && !r.GetForce() {
		return nil, status.Errorf(codes.FailedPrecondition, "group %s has volumes: remove them first", r.GetName())
	}
	delete(f.groups, r.GetName())
	return &sidecarpb.DeleteGroupResponse{}, nil
}

func (f *fakeSidecar) ListGroups(_ context.Context,
	r *sidecarpb.ListGroupsRequest) (*sidecarpb.ListGroupsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &sidecarpb.ListGroupsResponse{}
	for name, g := range f.groups {
		if r.GetName() == "" || r.GetName() == name {
			response.Groups = append(response.Groups, g)
		}
	}
	sort.Slice(response.Groups, func(i,
		j int) bool {
		return response.Groups[i].GetName() < response.Groups[j].GetName()
	})
	return response, nil
}

// WatchGroup sends three statuses and ends, as if the replicator had been stopped.
func (f *fakeSidecar) WatchGroup(r *sidecarpb.WatchGroupRequest,
	stream grpc.ServerStreamingServer[sidecarpb.GroupStatus]) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetName())
	if err != nil {
		return err
	}
	for range 3 {
		if err := stream.Send(g); err != nil {
			return err
		}
	}
	if r.GetIntervalMillis() == groups.WaitInterval.Milliseconds() {
		<-stream.Context().Done() // a wait does not end with the statuses
	}
	return nil
}

func (f *fakeSidecar) Promote(_ context.Context, r *sidecarpb.PromoteRequest) (*sidecarpb.PromoteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	if !r.GetForce() {
		return nil, status.Errorf(codes.FailedPrecondition,
			"site-a has not demoted group %s: demote it there, or promote with force", r.GetGroup())
	}
	g.Role = sidecarpb.Role_ROLE_PRIMARY
	return &sidecarpb.PromoteResponse{Status: g, Loss: &sidecarpb.LossReport{
		RecoveredOrdinal: 90, LostOrdinals: new(uint64(10)), LostSeconds: new(0.25),
		Text: "The last heartbeat spoke of ordinal 100.",
	}}, nil
}

func (f *fakeSidecar) Demote(_ context.Context, r *sidecarpb.DemoteRequest) (*sidecarpb.DemoteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.get(r.GetGroup()); err != nil {
		return nil, err
	}
	return &sidecarpb.DemoteResponse{FinalOrdinal: 77}, nil
}

func (f *fakeSidecar) Relocate(_ context.Context, r *sidecarpb.RelocateRequest) (*sidecarpb.RelocateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	if r.GetTimeoutMillis() == 1 {
		return nil, status.Error(codes.DeadlineExceeded, "group moving is demoted at site-b: site-a did not take "+
			"over in time")
	}
	g.Role = sidecarpb.Role_ROLE_SECONDARY
	return &sidecarpb.RelocateResponse{Status: g, FinalOrdinal: 90, TookMillis: 34}, nil
}

func (f *fakeSidecar) Yield(_ context.Context, r *sidecarpb.YieldRequest) (*sidecarpb.YieldResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	if g.GetPeer() != "site-a" {
		return nil, status.Errorf(codes.FailedPrecondition, "group %s: there is nothing to yield", r.GetGroup())
	}
	if g.GetYield().GetStage() == "done" {
		return &sidecarpb.YieldResponse{Status: g, Yield: g.GetYield()}, nil
	}
	if r.GetDryRun() {
		return &sidecarpb.YieldResponse{Status: g, Yield: &sidecarpb.YieldStatus{
			ForkOrdinal: 80, HeadOrdinal: 90, Writes: 10, Bytes: 40960, VolumeIds: []string{"vol-1"},
			SizeBytes: 1 << 30,
		}}, nil
	}
	g.Role, g.State = sidecarpb.Role_ROLE_SECONDARY, sidecarpb.GroupState_GROUP_STATE_STREAMING
	g.Yield = &sidecarpb.YieldStatus{Stage: "done", ForkOrdinal: 80, HeadOrdinal: 90, CopiedBytes: 45056}
	f.tails = append(f.tails, &sidecarpb.Tail{
		Id: "tail-1", Group: r.GetGroup(), ForkOrdinal: 80, HeadOrdinal: 90, Writes: 10, Bytes: 40960,
		Snapshots: []*sidecarpb.TailSnapshot{{SnapshotId: "tail-1-0", VolumeId: "vol-1", SizeBytes: 1 << 30,
			State: "ready"}},
	})
	return &sidecarpb.YieldResponse{Status: g, Yield: g.Yield}, nil
}

func (f *fakeSidecar) ListTails(_ context.Context,
	r *sidecarpb.ListTailsRequest) (*sidecarpb.ListTailsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &sidecarpb.ListTailsResponse{}
	for _, t := range f.tails {
		if r.GetGroup() == "" || r.GetGroup() == t.GetGroup() {
			response.Tails = append(response.Tails, t)
		}
	}
	return response, nil
}

func (f *fakeSidecar) DeleteTail(_ context.Context,
	r *sidecarpb.DeleteTailRequest) (*sidecarpb.DeleteTailResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, t := range f.tails {
		if t.GetId() == r.GetId() {
			f.tails = append(f.tails[:i], f.tails[i+1:]...)
			return &sidecarpb.DeleteTailResponse{}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "tail %q is not kept here", r.GetId())
}
