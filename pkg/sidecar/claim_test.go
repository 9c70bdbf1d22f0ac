package sidecar

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// What the operator tells of a claim is at both sites, and is the primary's to tell.
func TestClaimOfAVolume(t *testing.T) {
	network := newNetwork(t)
	a, b := newFixture(t, network, "site-a", false), newFixture(t, network, "site-b", false)
	a.createGroup("shop", "site-b")
	a.createVolume("v0", 1<<20, true)
	claim := &sidecarpb.Claim{Name: "orders", Namespace: "shop", Volume: "pvc-1", StorageClass: "fast",
		AccessModes: []string{"ReadWriteOnce"}, RequestBytes: 1 << 20, Labels: map[string]string{"app": "shop"}}
	tell := func(f *fixture, c *sidecarpb.Claim) error {
		_, err := f.client.ModifyVolume(f.ctx, &sidecarpb.ModifyVolumeRequest{VolumeId: "v0", Claim: c})
		return err
	}
	at := func(f *fixture) *sidecarpb.Claim {
		response, err := f.client.ListGroups(f.ctx, &sidecarpb.ListGroupsRequest{})
		if err != nil || len(response.Groups) == 0 || len(response.Groups[0].Volumes) == 0 {
			return nil
		}
		return response.Groups[0].Volumes[0].Claim
	}
	if err := tell(a, claim); err != nil { // before it is a member
		t.Fatal(err)
	}
	a.addVolume("shop", "v0")
	for _, f := range []*fixture{a, b} {
		f.eventually("the claim is at "+f.name, func() bool { return proto.Equal(at(f), claim) })
	}
	claim.RequestBytes, claim.Labels = 2<<20, nil
	for range 2 {
		if err := tell(a, claim); err != nil {
			t.Fatal(err)
		}
	}
	b.eventually("the change is at the copy", func() bool { return proto.Equal(at(b), claim) })
	wantCode(t, "at the secondary", tell(b, claim), codes.FailedPrecondition)
	claim.AccessModes = []string{"Sometimes"}
	wantCode(t, "an unknown access mode", tell(a, claim), codes.InvalidArgument)
}
