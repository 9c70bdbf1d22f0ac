package driver

import (
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// TestHealthMetrics: what the health calls report of a volume's image, mounts and record is in the metrics, with the
// claim while the record can be read, each reason once and for as long as it lasts.
func TestHealthMetrics(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, "")
	id := h.create("v", vc, map[string]string{parameter.KeyClaimName: "orders", parameter.KeyClaimNamespace: "shop"})
	other := h.create("w", vc, nil)
	h.must(h.stage(id, vc))
	for _, pod := range []string{"a", "b"} {
		h.must(h.publish(id, pod, vc, false))
	}
	collector := newHealthMetrics(h.d)
	compare := func(name, help, lines string) {
		t.Helper()
		if lines != "" {
			lines = "# HELP " + name + " " + help + "\n# TYPE " + name + " gauge\n" + lines
		}
		if err := testutil.CollectAndCompare(collector, strings.NewReader(lines), name); err != nil {
			t.Error(err)
		}
	}
	// Conditions are of volume id: type and reason. claim is what the labels say of its claim.
	want := func(claim, healthy string, conditions ...[2]string) {
		t.Helper()
		var lines string
		for _, c := range conditions {
			lines += fmt.Sprintf("slipstream_volume_condition{group=\"\",%s,reason=%q,type=%q,volume=%q} 1\n", claim, c[1], c[0],
				id)
		}
		compare("slipstream_volume_condition", "1 for each adverse condition of the volume, while it lasts: docs/health.md "+
			"has the reasons. type is degraded, inaccessible or data_loss.", lines)
		compare("slipstream_volume_healthy", "1 if the volume has no adverse condition, 0 if it has one; absent if that is "+
			"not known.", fmt.Sprintf("slipstream_volume_healthy{group=\"\",pvc=\"\",pvc_namespace=\"\",volume=%q} 1\n"+
			"slipstream_volume_healthy{group=\"\",%s,volume=%q} %s\n", other, claim, id, healthy))
	}
	const claimed = `pvc="orders",pvc_namespace="shop"`
	want(claimed, "1")
	h.mounts[0].Stopped = "emergency_ro"
	want(claimed, "0", [2]string{"degraded", health.ReasonFileSystemStopped})
	h.mounts[0].Stopped = ""
	h.mounts = h.mounts[:2]
	want(claimed, "0", [2]string{"inaccessible", health.ReasonNotMounted})
	h.mounts = nil
	h.must(h.mem.Remove(h.image(id)))
	want(claimed, "0", [2]string{"data_loss", health.ReasonImageMissing},
		[2]string{"inaccessible", health.ReasonNotMounted})

	record := strings.TrimSuffix(h.imagePath(id), "image") + "volume.json"
	data, err := vfs.ReadFile(h.mem, record, 1<<30)
	h.must(err)
	h.truncate(record, int64(len(data))/2)
	want(`pvc="",pvc_namespace=""`, "0", [2]string{"inaccessible", health.ReasonRecordDamaged})
}
