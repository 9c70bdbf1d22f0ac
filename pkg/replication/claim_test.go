package replication

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// What a volume is in Kubernetes goes to the peer with it: a failover has to know whose volumes it opens.
func TestClaimTravels(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 0, 1<<20, nil)
	claim := &blockdev.ClaimRecord{Name: "orders", Namespace: "shop", Volume: "pvc-1", Block: true}
	rec, err := a.pool.Create(blockdev.VolumeRecord{
		ID: "v0", Name: "pvc-1", SizeBytes: 1 << 20, Replicable: true, Order: blockdev.OrderFlush, Claim: claim,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	copied := caughtUp(t, g, b)
	stored, err := b.pool.Get("v0")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(claim, stored.Claim); diff != "" {
		t.Errorf("the copy's record: %s", diff)
	}
	for site, group := range map[string]*Group{"site-a": g, "site-b": copied} {
		v := group.Status().Volumes[0]
		if v.Claim != *claim {
			t.Errorf("%s: %v", site, v)
		}
	}

	// What is learnt of the claim later follows, with the growth that is a part of it.
	later := &blockdev.ClaimRecord{Name: "orders", Namespace: "shop", Volume: "pvc-1", Manifest: &blockdev.ClaimManifest{
		StorageClass: "fast", AccessModes: []string{"ReadWriteOnce"}, RequestBytes: 1 << 20,
		Labels: map[string]string{"app": "shop"}}}
	for range 2 {
		if err := g.SetClaim("v0", later); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the claim is at the copy", func() bool {
		v := copied.Status().Volumes[0]
		stored, err := b.pool.Get("v0")
		return err == nil && v.Claim.Equal(later) && stored.Claim.Equal(later)
	})
	if err := copied.SetClaim("v0", claim); !errors.Is(err, ErrNotPrimary) {
		t.Errorf("at the secondary: %v", err)
	}
	later.Manifest.Labels["big"] = strings.Repeat("x", maxMemberJSONBytes)
	if err := g.SetClaim("v0", later); !errors.Is(err, ErrInvalid) {
		t.Errorf("a large claim: %v", err)
	}
	if err := g.SetClaim("none", claim); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such volume: %v", err)
	}
}

func TestDescribeClaims(t *testing.T) {
	volumes := []VolumeStatus{{VolumeID: "wanted"}, {VolumeID: "made"}, {VolumeID: "damaged"}, {VolumeID: "left"},
		{VolumeID: "unknown"}}
	describeClaims(volumes, []core.Member{
		{VolumeID: "wanted", FSType: "ext4", Claim: []byte(`{"name":"a","namespace":"n","volume":"pv"}`)},
		{VolumeID: "made", FSType: "ext4", Format: []byte(`{"state":"formatted","fsType":"xfs"}`)},
		{VolumeID: "damaged", FSType: "ext4", Format: []byte(`{`), Claim: []byte(`7`)},
		{VolumeID: "left", FSType: "ext4", State: core.MemberRemoved},
	})
	want := []VolumeStatus{
		{VolumeID: "wanted", FSType: "ext4", Claim: blockdev.ClaimRecord{Name: "a", Namespace: "n", Volume: "pv"}},
		{VolumeID: "made", FSType: "xfs"}, {VolumeID: "damaged", FSType: "ext4"}, {VolumeID: "left"}, {VolumeID: "unknown"},
	}
	if diff := cmp.Diff(want, volumes); diff != "" {
		t.Error(diff)
	}
}
