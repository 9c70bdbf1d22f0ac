package csiaddons

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// PromoteVolume makes this site primary if nothing is lost by it, or if the peer is silent. A demotion that was made
// here is taken back while the peer follows this site, since it then has nothing that is not here.
func (s *replicationServer) PromoteVolume(ctx context.Context,
	req *replication.PromoteVolumeRequest) (*replication.PromoteVolumeResponse, error) {
	if err := s.promote(ctx, req); err != nil {
		return nil, err
	}
	return &replication.PromoteVolumeResponse{}, nil
}

func (s *replicationServer) promote(ctx context.Context, req *replication.PromoteVolumeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	subject, leave, err := s.n.begin(ctx, req.GetReplicationSource())
	if err != nil {
		return err
	}
	defer leave()
	if err := subject.single(codes.InvalidArgument); err != nil {
		return err
	}
	if !subject.enabled() {
		return subject.errorf(codes.Aborted, "replication is not enabled, so there is no role to take")
	}
	client, err := s.n.replicator()
	if err != nil {
		return err
	}
	name := subject.group.GetName()
	_, planned := client.Promote(ctx, &sidecarpb.PromoteRequest{Group: name})
	if status.Code(planned) != codes.FailedPrecondition {
		return failure(planned)
	}
	// What the refusal is worth depends on the peer, as it is now.
	now, err := s.n.groups(ctx, name)
	if err != nil {
		return err
	}
	subject.group = now[0]
	reason := status.Convert(planned).Message()
	verdict := judge(subject.group, s.n.peerGrace())
	if verdict == wait {
		return subject.errorf(codes.Aborted, "%s. %s", reason, whyWait(subject.group, s.n.peerGrace()))
	}
	if verdict == lose && !req.GetForce() {
		return subject.errorf(codes.FailedPrecondition, "%s. %s has been silent for %.0f s; with force this site is "+
			"promoted and loses what has not arrived", reason, subject.group.GetPeer(),
			subject.group.GetPeerSilentSeconds())
	}
	_, err = client.Promote(ctx, &sidecarpb.PromoteRequest{Group: name, Force: true})
	return failure(err)
}

// verdict is what follows from a refused promotion.
type verdict int

const (
	// wait: the promotion could lose writes of a peer that can be heard, or give a copy that is no instant.
	wait verdict = iota
	// takeBack: this site was demoted, and the peer follows it. Promotion here begins a timeline that the peer continues.
	takeBack
	// lose: the peer is silent. Promotion loses what has not arrived.
	lose
)

// judge decides about a group whose planned promotion was refused.
func judge(g *sidecarpb.GroupStatus, grace time.Duration) verdict {
	switch {
	case stopped(g), !g.GetPromotable():
		return wait
	case g.GetConnected() && g.GetState() == sidecarpb.GroupState_GROUP_STATE_DEMOTED:
		return takeBack
	case g.GetConnected(), g.PeerSilentSeconds == nil, g.GetPeerSilentSeconds() < grace.Seconds():
		return wait
	}
	return lose
}

// stopped reports whether a person has to act before anything is replicated.
func stopped(g *sidecarpb.GroupStatus) bool {
	return g.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED ||
		g.GetState() == sidecarpb.GroupState_GROUP_STATE_FAILED
}

// whyWait says what the caller can do about wait.
func whyWait(g *sidecarpb.GroupStatus, grace time.Duration) string {
	byHand := fmt.Sprintf("To lose what is not here on purpose: slipctl group promote --force %s at this site",
		g.GetName())
	switch {
	case stopped(g), !g.GetPromotable():
		return g.GetStateReason()
	case g.GetConnected():
		return fmt.Sprintf("%s can be heard, so this is not forced. %s", g.GetPeer(), byHand)
	case g.PeerSilentSeconds == nil:
		return fmt.Sprintf("How long %s has been silent is not known, so this is not forced. %s", g.GetPeer(), byHand)
	}
	return fmt.Sprintf("%s was heard %.0f s ago; after %v of silence this can be forced. %s", g.GetPeer(),
		g.GetPeerSilentSeconds(), grace, byHand)
}
