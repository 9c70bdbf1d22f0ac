package sidecar

import (
	"context"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// ListCopies implements sidecarpb.SidecarServer.
func (s *Service) ListCopies(context.Context, *sidecarpb.ListCopiesRequest) (*sidecarpb.ListCopiesResponse, error) {
	copies, err := s.opts.Site.Copies()
	if err != nil {
		klog.ErrorS(err, "Some volume records cannot be read; copies among them are not listed", "pool", s.opts.Pool.Dir())
	}
	response := &sidecarpb.ListCopiesResponse{}
	for _, c := range copies {
		out := &sidecarpb.Copy{
			VolumeId: c.VolumeID, Name: c.Name, SizeBytes: c.SizeBytes, AllocatedBytes: c.AllocatedBytes, Peer: c.Peer,
			Group: c.Group, Member: c.Member, ClaimName: c.Claim.Name, ClaimNamespace: c.Claim.Namespace,
		}
		if c.LeftUnixNanos != 0 {
			out.LeftUnixNanos = &c.LeftUnixNanos
		}
		response.Copies = append(response.Copies, out)
	}
	return response, nil
}

// DeleteCopy implements sidecarpb.SidecarServer.
func (s *Service) DeleteCopy(_ context.Context, r *sidecarpb.DeleteCopyRequest) (*sidecarpb.DeleteCopyResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	if err := s.checkDetached(r.VolumeId); err != nil {
		return nil, toStatus(err)
	}
	if err := s.opts.Site.DeleteCopy(r.VolumeId); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.DeleteCopyResponse{}, nil
}

// ListPeers implements sidecarpb.SidecarServer.
func (s *Service) ListPeers(context.Context, *sidecarpb.ListPeersRequest) (*sidecarpb.ListPeersResponse, error) {
	peers, err := s.opts.Site.Peers()
	if err != nil {
		klog.ErrorS(err, "Some volume records cannot be read; copies among them are not listed", "pool", s.opts.Pool.Dir())
	}
	response := &sidecarpb.ListPeersResponse{}
	for _, p := range peers {
		response.Peers = append(response.Peers, &sidecarpb.PeerUse{
			Peer: p.Peer, Primary: p.Primary, Secondary: p.Secondary, Broken: p.Broken, Connected: p.Connected, Copies: p.Copies,
		})
	}
	return response, nil
}

// ForgetPeer implements sidecarpb.SidecarServer.
func (s *Service) ForgetPeer(_ context.Context, r *sidecarpb.ForgetPeerRequest) (*sidecarpb.ForgetPeerResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	use, err := s.opts.Site.ForgetPeer(r.Peer, r.DeleteCopies)
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.ForgetPeerResponse{Kept: append(use.Primary, use.Secondary...)}, nil
}

// checkDetached returns an ErrInUse for a volume that is attached. The caller holds attachMu.
func (s *Service) checkDetached(id string) error {
	if s.attached[id] != nil {
		return fmt.Errorf("%w: volume %s is attached; unstage it first", replication.ErrInUse, id)
	}
	return nil
}
