package operatortest

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (n *Node) Promote(_ context.Context, r *sidecarpb.PromoteRequest,
	_ ...grpc.CallOption) (*sidecarpb.PromoteResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do(fmt.Sprintf("Promote %s %v", r.GetGroup(), r.GetForce())); err != nil {
		return nil, err
	}
	g := n.Groups[r.GetGroup()]
	if g.GetRole() == sidecarpb.Role_ROLE_SECONDARY {
		if !r.GetForce() && r.GetPoint() == nil && g.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED {
			return nil, status.Error(codes.FailedPrecondition, "the peer has not demoted itself")
		}
		if r.GetPoint() != nil {
			at := int64(1_700_000_000_000_000_000)
			g.Role, g.State = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.GroupState_GROUP_STATE_TRIAL
			g.Trial = &sidecarpb.TrialStatus{Ordinal: 42, UnixNanos: &at, UndoneWrites: 5}
			return &sidecarpb.PromoteResponse{Status: proto.CloneOf(g)}, nil
		}
		g.Role, g.State = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.GroupState_GROUP_STATE_CONNECTING
		if r.GetForce() {
			seconds := 1.5
			g.Timeline += "'"
			g.Loss = &sidecarpb.LossReport{LostSeconds: &seconds, Text: "at most 1.5 s"}
		}
		if n.Promotes != nil {
			n.Promotes.promoteShards(g)
		}
	}
	return &sidecarpb.PromoteResponse{Loss: g.GetLoss(), Status: proto.CloneOf(g)}, nil
}

// promoteShards makes the shards of a group what the one that was promoted is.
func (n *Node) promoteShards(as *sidecarpb.GroupStatus) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	for _, g := range n.Groups {
		if g.GetShard().GetGroup() == as.GetShard().GetGroup() {
			g.Role, g.State, g.Timeline, g.Loss = as.Role, as.State, as.Timeline, proto.CloneOf(as.Loss)
		}
	}
}

func (n *Node) Demote(_ context.Context, r *sidecarpb.DemoteRequest,
	_ ...grpc.CallOption) (*sidecarpb.DemoteResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("Demote " + r.GetGroup()); err != nil {
		return nil, err
	}
	n.Groups[r.GetGroup()].State = sidecarpb.GroupState_GROUP_STATE_DEMOTED
	return &sidecarpb.DemoteResponse{FinalOrdinal: 7}, nil
}

func (n *Node) Suspend(_ context.Context, r *sidecarpb.SuspendRequest,
	_ ...grpc.CallOption) (*sidecarpb.SuspendResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("Suspend " + r.GetGroup()); err != nil {
		return nil, err
	}
	since := int64(1)
	g := n.Groups[r.GetGroup()]
	g.SuspendedUnixNanos, g.State = &since, sidecarpb.GroupState_GROUP_STATE_SUSPENDED
	return &sidecarpb.SuspendResponse{Changed: true}, nil
}

func (n *Node) Resume(_ context.Context, r *sidecarpb.ResumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.ResumeResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("Resume " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.Groups[r.GetGroup()]
	g.SuspendedUnixNanos, g.State = nil, sidecarpb.GroupState_GROUP_STATE_STREAMING
	return &sidecarpb.ResumeResponse{Changed: true}, nil
}

func (n *Node) Relocate(_ context.Context, r *sidecarpb.RelocateRequest,
	_ ...grpc.CallOption) (*sidecarpb.RelocateResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("Relocate " + r.GetGroup()); err != nil {
		return nil, err
	}
	n.Groups[r.GetGroup()].Role = sidecarpb.Role_ROLE_SECONDARY
	return &sidecarpb.RelocateResponse{FinalOrdinal: 7, TookMillis: 1500}, nil
}

func (n *Node) CommitTrial(_ context.Context, r *sidecarpb.CommitTrialRequest,
	_ ...grpc.CallOption) (*sidecarpb.CommitTrialResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("CommitTrial " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.Groups[r.GetGroup()]
	g.Trial, g.State = nil, sidecarpb.GroupState_GROUP_STATE_CONNECTING
	return &sidecarpb.CommitTrialResponse{Changed: true, TailId: "tail-1"}, nil
}

func (n *Node) RollBackTrial(_ context.Context, r *sidecarpb.RollBackTrialRequest,
	_ ...grpc.CallOption) (*sidecarpb.RollBackTrialResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("RollBackTrial " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.Groups[r.GetGroup()]
	if g.Trial == nil {
		return &sidecarpb.RollBackTrialResponse{}, nil
	}
	g.Trial, g.Role, g.State = nil, sidecarpb.Role_ROLE_SECONDARY, sidecarpb.GroupState_GROUP_STATE_CONNECTING
	return &sidecarpb.RollBackTrialResponse{Changed: true}, nil
}

// Yield makes the group a secondary when the peer calls, which is the test's work.
func (n *Node) Yield(_ context.Context, r *sidecarpb.YieldRequest,
	_ ...grpc.CallOption) (*sidecarpb.YieldResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("Yield " + r.GetGroup()); err != nil {
		return nil, err
	}
	return &sidecarpb.YieldResponse{Yield: &sidecarpb.YieldStatus{Writes: 3, Bytes: 12288}}, nil
}

// Verify begins a comparison; EndVerify ends it.
func (n *Node) Verify(_ context.Context, r *sidecarpb.VerifyRequest,
	_ ...grpc.CallOption) (*sidecarpb.VerifyResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("Verify " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.Groups[r.GetGroup()]
	if g.GetVerify().GetRunning() {
		return nil, status.Error(codes.FailedPrecondition, "a comparison runs")
	}
	if g.Verify == nil {
		g.Verify = &sidecarpb.VerifyStatus{}
	}
	g.Verify.Running, g.Verify.Error = true, ""
	return &sidecarpb.VerifyResponse{}, nil
}

// EndVerify ends the comparisons that run, with so many differing extents each; a text is why they failed.
func (n *Node) EndVerify(differences uint64, failure string) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	for _, g := range n.Groups {
		v := g.GetVerify()
		if !v.GetRunning() {
			continue
		}
		v.Running, v.Error = false, failure
		if failure != "" {
			continue
		}
		finished, ordinal := v.GetFinishedUnixNanos()+1, uint64(7)
		v.FinishedUnixNanos, v.Ordinal, v.DifferenceCount, v.Differences = &finished, &ordinal, &differences, nil
		for i := range differences {
			v.Differences = append(v.Differences, &sidecarpb.VolumeExtent{VolumeId: g.Volumes[0].VolumeId,
				OffsetBytes: int64(i) << 16, LengthBytes: 1 << 16})
		}
	}
}

func (n *Node) GroupPoints(_ context.Context, r *sidecarpb.GroupPointsRequest,
	_ ...grpc.CallOption) (*sidecarpb.GroupPointsResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	response := &sidecarpb.GroupPointsResponse{}
	for _, b := range n.Bookmarks[r.GetGroup()] {
		response.Bookmarks = append(response.Bookmarks, proto.CloneOf(b))
	}
	return response, nil
}

func (n *Node) BookmarkGroup(_ context.Context, r *sidecarpb.BookmarkGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.Bookmark, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("BookmarkGroup " + r.GetGroup() + " " + r.GetLabel()); err != nil {
		return nil, err
	}
	for _, b := range n.Bookmarks[r.GetGroup()] {
		if b.GetLabel() == r.GetLabel() {
			return nil, status.Error(codes.AlreadyExists, "there is a bookmark of that label")
		}
	}
	at := int64(1_700_000_000_000_000_000)
	b := &sidecarpb.Bookmark{Label: r.GetLabel(), Available: true,
		Point: &sidecarpb.RecoveryPoint{Ordinal: uint64(41 + len(n.Bookmarks[r.GetGroup()])), UnixNanos: &at}}
	n.Bookmarks[r.GetGroup()] = append(n.Bookmarks[r.GetGroup()], b)
	return proto.CloneOf(b), nil
}

func (n *Node) CreateView(_ context.Context, r *sidecarpb.CreateViewRequest,
	_ ...grpc.CallOption) (*sidecarpb.View, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("CreateView " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.Groups[r.GetGroup()]
	if g.GetRole() == sidecarpb.Role_ROLE_PRIMARY {
		return nil, status.Error(codes.FailedPrecondition, "group is primary: start it at the peer")
	}
	if n.Views[r.GetGroup()+"/"+r.GetName()] != nil {
		return nil, status.Error(codes.AlreadyExists, "there is a view of that name")
	}
	at := int64(1_700_000_000_000_000_000)
	view := &sidecarpb.View{Group: r.GetGroup(), Name: r.GetName(), Ordinal: 42, PointUnixNanos: &at,
		CreatedUnixNanos: at + int64(10*time.Second), Writable: r.GetWritable(), Test: r.GetTest()}
	for _, v := range g.GetVolumes() {
		view.Volumes = append(view.Volumes, &sidecarpb.ViewVolume{VolumeId: v.GetVolumeId(), SizeBytes: v.GetSizeBytes(),
			FsType: "ext4", CsiVolumeId: "view-" + v.GetVolumeId()})
	}
	n.Views[r.GetGroup()+"/"+r.GetName()] = view
	return proto.CloneOf(view), nil
}

func (n *Node) ListViews(_ context.Context, r *sidecarpb.ListViewsRequest,
	_ ...grpc.CallOption) (*sidecarpb.ListViewsResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if n.Silent {
		return nil, n.do("ListViews")
	}
	response := &sidecarpb.ListViewsResponse{}
	for _, v := range n.Views {
		if r.GetGroup() == "" || r.GetGroup() == v.GetGroup() {
			response.Views = append(response.Views, proto.CloneOf(v))
		}
	}
	return response, nil
}

func (n *Node) DeleteView(_ context.Context, r *sidecarpb.DeleteViewRequest,
	_ ...grpc.CallOption) (*sidecarpb.DeleteViewResponse, error) {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if err := n.do("DeleteView " + r.GetGroup()); err != nil {
		return nil, err
	}
	delete(n.Views, r.GetGroup()+"/"+r.GetName())
	return &sidecarpb.DeleteViewResponse{}, nil
}
