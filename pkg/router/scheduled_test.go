package router

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// scheduled is what csi-provisioner asks for when a claim has waited for its pod, without --strict-topology: all nodes,
// the pod's first.
func scheduled(chosen string, others ...string) *csi.TopologyRequirement {
	requirement := on(append([]string{chosen}, others...)...)
	requirement.Preferred = requirement.Requisite
	return requirement
}

// TestScheduled: a volume with no place of its own goes to the node that the scheduler chose, or nowhere; a copy and a
// member of a group go where they have to be.
func TestScheduled(t *testing.T) {
	c := newCluster(t, "a", "b", "c")
	r, ctx := c.router(), testContext(t)
	r.connected(t, "a", "b", "c")
	shop := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "16Mi"}
	source, at := r.create(t, createReq("source", scheduled("b", "c", "a"), nil))
	if at != "b" {
		t.Fatalf("a volume for b is on %s", at)
	}
	if _, at := r.create(t, createReq("first", scheduled("c", "a", "b"), shop)); at != "c" {
		t.Errorf("the first of a group, for c, is on %s", at)
	}
	if _, at := r.create(t, createReq("second", scheduled("a", "b", "c"), shop)); at != "c" {
		t.Errorf("the second of a group on c, with its pod on a, is on %s", at)
	}
	clone := createReq("clone", scheduled("a", "b", "c"), nil)
	clone.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: source}}}
	if _, at := r.create(t, clone); at != "b" {
		t.Errorf("a clone of a volume on b, with its pod on a, is on %s", at)
	}
	// What is made is made, also when the scheduler chooses anew before Kubernetes has heard of it.
	if _, at := r.create(t, createReq("source", scheduled("a", "b", "c"), nil)); at != "b" {
		t.Errorf("a volume that is on b already is on %s", at)
	}
	// A StorageClass that allows two of the three nodes: both will do for it.
	if _, at := r.create(t, createReq("allowed", scheduled("c", "a"), nil)); at != "c" {
		t.Errorf("a volume for c, where a is allowed too, is on %s", at)
	}
	_, err := r.CreateVolume(ctx, createReq("stranger", scheduled("x", "a", "b", "c"), nil))
	wantCode(t, "a pod on a node without the driver", err, codes.ResourceExhausted)
	c.nodes["c"].kill()
	if _, at := r.create(t, createReq("beside", scheduled("a", "b", "c"), nil)); at != "a" {
		t.Errorf("a volume for a, with c silent, is on %s", at)
	}
	for what, req := range map[string]*csi.CreateVolumeRequest{
		"a volume for the silent node": createReq("silent", scheduled("c", "a", "b"), nil),
		"a member of its group":        createReq("third", scheduled("a", "b", "c"), shop),
	} {
		_, err := r.CreateVolume(ctx, req)
		wantCode(t, what, err, codes.Unavailable)
		if !strings.Contains(status.Convert(err).Message(), "node c") {
			t.Errorf("%s: the error does not name the node: %v", what, err)
		}
	}
}

// TestScheduledWhereThereIsNoRoom: the scheduler has to choose again, since another node might not do for the pod.
func TestScheduledWhereThereIsNoRoom(t *testing.T) {
	c := newCluster(t, "a", "b")
	r, ctx := c.router(), testContext(t)
	req := createReq("huge", scheduled("a", "b"), nil)
	req.CapacityRange.RequiredBytes = 1 << 60
	_, err := r.CreateVolume(ctx, req)
	wantCode(t, "no room", err, codes.ResourceExhausted)
	if m := status.Convert(err).Message(); !strings.HasPrefix(m, "node a:") {
		t.Errorf("the answer is not the chosen node's: %s", m)
	}
}
