package parameter

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

func TestClaimOf(t *testing.T) {
	for _, tt := range []struct {
		name       string
		parameters map[string]string
		block      bool
		want       *blockdev.ClaimRecord
	}{
		{"no provisioner", map[string]string{KeyReplicable: "true"}, true, nil},
		{"a claim", map[string]string{KeyClaimName: "orders", KeyClaimNamespace: "shop", KeyVolumeName: "pvc-1"}, false,
			&blockdev.ClaimRecord{Name: "orders", Namespace: "shop", Volume: "pvc-1"}},
		{"a raw block device", map[string]string{KeyVolumeName: "pvc-1"}, true,
			&blockdev.ClaimRecord{Volume: "pvc-1", Block: true}},
	} {
		if diff := cmp.Diff(tt.want, ClaimOf(tt.parameters, tt.block)); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}
