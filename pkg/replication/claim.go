package replication

import (
	"encoding/json"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// describeClaims fills in what a group's volumes are in Kubernetes. It is the members' own account, not the pool's records: a
// status reads no disk. Something that does not parse is left out, since nothing depends on it.
func describeClaims(volumes []*sidecarpb.VolumeStatus, members []core.Member) {
	byID := map[string]core.Member{}
	for _, m := range members {
		if !m.Removed {
			byID[m.VolumeID] = m
		}
	}
	for _, v := range volumes {
		m := byID[v.VolumeId]
		v.FsType = m.FSType
		var format blockdev.FormatRecord
		if json.Unmarshal(m.Format, &format) == nil && format.FSType != "" {
			v.FsType = format.FSType
		}
		var claim blockdev.ClaimRecord
		if json.Unmarshal(m.Claim, &claim) == nil {
			v.ClaimName, v.ClaimNamespace, v.PersistentVolume, v.Block = claim.Name, claim.Namespace, claim.Volume, claim.Block
		}
	}
}
