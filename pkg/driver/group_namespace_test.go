package driver

import (
	"context"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// TestGroupOfAnotherNamespace: naming a group in a class is not enough to share its journal with another namespace: not
// for a new volume, and not for one that is modified. The class that names the group can allow it; a StorageClass does
// not allow it for a group that a VolumeAttributesClass names. A volume that is refused is not left behind.
func TestGroupOfAnotherNamespace(t *testing.T) {
	sidecar := startSidecar(t)
	h := newNode(t, sidecar)
	create := func(name, namespace string, class, mutable map[string]string) (string, error) {
		t.Helper()
		parameters := map[string]string{parameter.KeyClaimNamespace: namespace, parameter.KeyClaimName: name,
			parameter.KeyReplicable: "true"}
		for key, value := range class {
			parameters[key] = value
		}
		req := createReq(name, capabilitytest.Mount(capabilitytest.Writer, ""), parameters)
		req.MutableParameters = mutable
		response, err := h.c.CreateVolume(context.Background(), req)
		if err != nil {
			return "", err
		}
		id := response.GetVolume().GetVolumeId()
		sidecar.claimOf(id, namespace, name)
		return id, nil
	}
	want := func(what string, err error, code codes.Code) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
	group := map[string]string{parameter.KeyConsistencyGroup: "shop"}
	shared := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeySharedGroup: "true"}
	other := map[string]string{parameter.KeyConsistencyGroup: "other", parameter.KeySharedGroup: "true"}

	_, err := create("orders", "shop", group, nil)
	want("the first", err, codes.OK)
	_, err = create("stock", "shop", group, nil)
	want("of the same namespace", err, codes.OK)
	_, err = create("spy", "evil", group, nil)
	want("of another namespace", err, codes.PermissionDenied)
	_, err = create("spy", "evil", map[string]string{parameter.KeyRemote: "west"}, group)
	want("by a VolumeAttributesClass", err, codes.PermissionDenied)
	_, err = create("spy", "evil", other, group)
	want("a class for another group", err, codes.PermissionDenied)
	list, err := h.c.ListVolumes(context.Background(), &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 2 {
		t.Errorf("volumes: %v, %v", list.GetEntries(), err)
	}

	id, err := create("own", "evil", nil, nil)
	want("without a group", err, codes.OK)
	want("modified", h.modify(id, group), codes.PermissionDenied)
	rec, err := h.d.store.Volume(id)
	if err != nil || rec.Group != "" || rec.MoveTo != "" {
		t.Errorf("refused, and in group %q, on its way to %q: %v", rec.Group, rec.MoveTo, err)
	}
	want("modified by a class that allows it", h.modify(id, shared), codes.OK)
	want("and changed later", h.modify(id, map[string]string{parameter.KeyRPOTarget: "5s"}), codes.OK)
	_, err = create("partner", "partner", shared, nil)
	want("of a class that allows it", err, codes.OK)
	// A group that is shared stays so: its members go on, newcomers need a class that allows it.
	_, err = create("more", "shop", group, nil)
	want("a newcomer", err, codes.PermissionDenied)

	want("without a name", h.modify(id, map[string]string{parameter.KeySharedGroup: "true"}), codes.InvalidArgument)
	_, err = create("bad", "shop", map[string]string{parameter.KeySharedGroup: "true"}, nil)
	want("a class without a name", err, codes.InvalidArgument)
}
