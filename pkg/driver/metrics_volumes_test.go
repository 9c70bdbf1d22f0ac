package driver

import (
	"strconv"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// The metadata that the provisioner adds stands in the record and in the metrics, and is no part of what a repeated
// CreateVolume has to agree in.
func TestClaimMetadata(t *testing.T) {
	h := newNode(t, nil)
	metadata := map[string]string{parameter.KeyClaimName: "orders", parameter.KeyClaimNamespace: "shop",
		parameter.KeyVolumeName: "pvc-1"}
	id := h.create("pvc-1", capabilitytest.Mount(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, ""), metadata)
	if again := h.create("pvc-1", capabilitytest.Mount(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, ""),
		nil); again != id {
		t.Fatalf("without the metadata it is volume %s, not %s", again, id)
	}
	rec, err := h.d.store.Volume(id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&blockdev.ClaimRecord{Name: "orders", Namespace: "shop", Volume: "pvc-1"}, rec.Claim); diff != "" {
		t.Error(diff)
	}
	want := `
# HELP slipstream_volume_size_bytes Size of the volume. Its image can use less space.
# TYPE slipstream_volume_size_bytes gauge
slipstream_volume_size_bytes{group="",pvc="orders",pvc_namespace="shop",volume="ID"} SIZE
# HELP slipstream_volume_staged 1 if the volume is staged on this node.
# TYPE slipstream_volume_staged gauge
slipstream_volume_staged{group="",pvc="orders",pvc_namespace="shop",volume="ID"} 0
`
	want = strings.NewReplacer("ID", rec.ID, "SIZE", strconv.FormatFloat(float64(rec.SizeBytes), 'g', -1,
		64)).Replace(want)
	if err := testutil.CollectAndCompare(newVolumeMetrics(h.d), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
