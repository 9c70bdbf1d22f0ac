package attach

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

func TestFSTypeFor(t *testing.T) {
	formatted := func(fsType string) *blockdev.VolumeRecord {
		return &blockdev.VolumeRecord{ID: "v", Format: &blockdev.FormatRecord{FSType: fsType}}
	}
	for _, tc := range []struct {
		rec   *blockdev.VolumeRecord
		asked string
		want  string // empty: refused
	}{
		{&blockdev.VolumeRecord{}, "", "ext4"},
		{&blockdev.VolumeRecord{}, "xfs", "xfs"},
		{&blockdev.VolumeRecord{FSType: "xfs"}, "", "xfs"},
		{&blockdev.VolumeRecord{FSType: "xfs"}, "ext4", ""},
		{formatted("xfs"), "", "xfs"},
		{formatted("xfs"), "xfs", "xfs"},
		{formatted("xfs"), "ext4", ""},
		{formatted(capability.Raw), "", ""},
		{formatted(capability.Raw), "ext4", ""},
	} {
		got, err := FSTypeFor(tc.rec, tc.asked)
		if got != tc.want || (status.Code(err) == codes.FailedPrecondition) != (tc.want == "") {
			t.Errorf("%+v, asked for %q: got %q, %v; want %q", tc.rec, tc.asked, got, err, tc.want)
		}
	}
}
