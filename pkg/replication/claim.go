package replication

import (
	"encoding/json"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// describeClaims sets the claims and file systems of a status's volumes. They come from the members, not from the
// records of the pool, because a status reads no disk. What does not parse is left out; nothing depends on it.
func describeClaims(volumes []VolumeStatus, members []core.Member) {
	byID := map[string]core.Member{}
	for _, m := range members {
		if !m.Removed() {
			byID[m.VolumeID] = m
		}
	}
	for i := range volumes {
		v := &volumes[i]
		m := byID[v.VolumeID]
		v.FSType = m.FSType
		var format blockdev.FormatRecord
		if json.Unmarshal(m.Format, &format) == nil && format.FSType != "" {
			v.FSType = format.FSType
		}
		var claim blockdev.ClaimRecord
		if json.Unmarshal(m.Claim, &claim) == nil {
			v.Claim = claim
		}
	}
}
