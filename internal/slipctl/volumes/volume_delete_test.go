package volumes

import (
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// Who has to act for a volume to go away depends on the role of its group here.
func TestDeletionText(t *testing.T) {
	record := func(group string, secondary bool) *blockdev.VolumeRecord {
		r := &blockdev.VolumeRecord{Name: "orders", Group: group, Secondary: secondary, Remote: "site-b"}
		r.ID, r.SizeBytes = "vol-1", 1<<30
		return r
	}
	group := func(state sidecarpb.GroupState) *sidecarpb.GroupStatus {
		return &sidecarpb.GroupStatus{Name: "shop", Peer: "site-b", State: state}
	}
	for name, tt := range map[string]struct {
		record *blockdev.VolumeRecord
		group  *sidecarpb.GroupStatus
		want   string
	}{
		"no group": {record("", false), nil,
			"The deletion of volume orders (vol-1, 1.00 GiB) destroys its data at this site."},
		"primary": {record("shop", false), group(sidecarpb.GroupState_GROUP_STATE_STREAMING),
			"The deletion of volume orders (vol-1, 1.00 GiB) destroys its data at this site. It leaves group shop."},
		"secondary": {record("shop", true), nil,
			"Volume orders (vol-1, 1.00 GiB) is a copy of site-b's volume in group shop. It is not deleted now: it " +
				"stays until site-b takes the volume out of the group, `slipctl group remove shop vol-1` at site-b."},
		"demoted": {record("shop", false), group(sidecarpb.GroupState_GROUP_STATE_DEMOTED),
			"Volume orders (vol-1, 1.00 GiB) is in group shop, which was demoted here for site-b to take over. It is " +
				"not deleted now: it stays until site-b takes the volume out of the group, `slipctl group promote shop` " +
				"and `slipctl group remove shop vol-1` at site-b.\nTo delete it here and now, take the group back first: " +
				"`slipctl group promote shop` at this site."},
	} {
		if got := deletionText(tt.record, tt.group); got != tt.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
