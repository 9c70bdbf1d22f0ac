package driver

import (
	"context"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// The record and everything after it have the name, so that a call again, which expands again, finds the same volume.
func TestCreateWithGroupTemplate(t *testing.T) {
	h := newNode(t, startSidecar(t))
	parameters := map[string]string{parameter.KeyConsistencyGroup: "${pvc.namespace}",
		"csi.storage.k8s.io/pvc/namespace": "shop"}
	req := createReq("v", capabilitytest.Mount(capabilitytest.Writer, ""), parameters)
	var id string
	for range 2 {
		response, err := h.c.CreateVolume(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		id = response.GetVolume().GetVolumeId()
	}
	rec, err := h.d.store.Pool.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	if rec.Group != "shop" || rec.Parameters[parameter.KeyConsistencyGroup] != "shop" {
		t.Errorf("group %q, parameters %v", rec.Group, rec.Parameters)
	}
	if _, err := h.c.GetCapacity(context.Background(),
		&csi.GetCapacityRequest{
			Parameters: map[string]string{parameter.KeyConsistencyGroup: "${pvc.namespace}"},
		}); err != nil {
		t.Errorf("capacity of the class: %v", err)
	}
}
