package slipctl

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// The fake has one copy without a group, of a site that also has the group "copy" of fake_test.go.
func fakeCopies() []*sidecarpb.Copy {
	return []*sidecarpb.Copy{{
		VolumeId: "vol-9", SizeBytes: 1 << 30, AllocatedBytes: 3 << 20, Peer: "site-a", Group: "old",
		LeftUnixNanos: new(int64(1764338400e9)), ClaimNamespace: "shop", ClaimName: "data",
	}}
}

func (f *fakeSidecar) ListCopies(context.Context, *sidecarpb.ListCopiesRequest) (*sidecarpb.ListCopiesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &sidecarpb.ListCopiesResponse{Copies: f.copies}, nil
}

func (f *fakeSidecar) DeleteCopy(_ context.Context,
	r *sidecarpb.DeleteCopyRequest) (*sidecarpb.DeleteCopyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.copies)
	f.copies = slices.DeleteFunc(f.copies, func(c *sidecarpb.Copy) bool { return c.GetVolumeId() == r.GetVolumeId() })
	if len(f.copies) == before {
		return nil, status.Errorf(codes.NotFound, "there is no volume %s", r.GetVolumeId())
	}
	return &sidecarpb.DeleteCopyResponse{}, nil
}

func (f *fakeSidecar) ListPeers(context.Context, *sidecarpb.ListPeersRequest) (*sidecarpb.ListPeersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	use := &sidecarpb.PeerUse{Peer: "site-a"}
	for name, g := range f.groups {
		if g.GetPeer() == "site-a" {
			use.Secondary = append(use.Secondary, name)
		}
	}
	slices.Sort(use.Secondary)
	for _, c := range f.copies {
		use.Copies = append(use.Copies, c.GetVolumeId())
	}
	if len(use.Secondary)+len(use.Copies) == 0 {
		return &sidecarpb.ListPeersResponse{}, nil
	}
	return &sidecarpb.ListPeersResponse{Peers: []*sidecarpb.PeerUse{use}}, nil
}

func (f *fakeSidecar) ForgetPeer(_ context.Context,
	r *sidecarpb.ForgetPeerRequest) (*sidecarpb.ForgetPeerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	response := &sidecarpb.ForgetPeerResponse{}
	for name, g := range f.groups {
		switch {
		case g.GetPeer() != r.GetPeer():
		case r.GetDeleteCopies():
			delete(f.groups, name)
		default:
			g.Peer = ""
			response.Kept = append(response.Kept, name)
		}
	}
	if r.GetDeleteCopies() {
		f.copies = nil
	}
	slices.Sort(response.Kept)
	return response, nil
}

func (f *fakeSidecar) Suspend(_ context.Context, r *sidecarpb.SuspendRequest) (*sidecarpb.SuspendResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	changed := g.GetState() != sidecarpb.GroupState_GROUP_STATE_SUSPENDED
	g.State = sidecarpb.GroupState_GROUP_STATE_SUSPENDED
	return &sidecarpb.SuspendResponse{Changed: changed}, nil
}

func (f *fakeSidecar) Resume(_ context.Context, r *sidecarpb.ResumeRequest) (*sidecarpb.ResumeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	changed := g.GetState() == sidecarpb.GroupState_GROUP_STATE_SUSPENDED
	g.State = sidecarpb.GroupState_GROUP_STATE_CONNECTING
	return &sidecarpb.ResumeResponse{Changed: changed}, nil
}

// Verify finds the one difference that the fake's group "copy" has, and none in others.
func (f *fakeSidecar) Verify(_ context.Context, r *sidecarpb.VerifyRequest) (*sidecarpb.VerifyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	v := &sidecarpb.VerifyStatus{FinishedUnixNanos: new(int64(5)), UpdatedUnixNanos: new(int64(5)),
		Ordinal: new(uint64(90)), DifferenceCount: new(uint64(0))}
	if r.GetGroup() == "copy" {
		v.DifferenceCount = new(uint64(1))
		v.Differences = []*sidecarpb.VolumeExtent{{VolumeId: "vol-1", OffsetBytes: 131072, LengthBytes: 65536}}
	}
	g.Verify = v
	return &sidecarpb.VerifyResponse{}, nil
}

func (f *fakeSidecar) Repair(_ context.Context, r *sidecarpb.RepairRequest) (*sidecarpb.RepairResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, err := f.get(r.GetGroup())
	if err != nil {
		return nil, err
	}
	n := g.GetVerify().GetDifferenceCount()
	if n == 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "no comparison found a difference in group %s", r.GetGroup())
	}
	g.Verify = &sidecarpb.VerifyStatus{FinishedUnixNanos: new(int64(5)), UpdatedUnixNanos: new(int64(9)),
		Ordinal: new(uint64(90)), DifferenceCount: new(uint64(0))}
	return &sidecarpb.RepairResponse{Extents: n}, nil
}
