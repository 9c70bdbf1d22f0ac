package attach

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

func TestDecideFormat(t *testing.T) {
	const id = "6f1c0ddc-9f3e-4b0b-9d2c-0f5f5c2b5d11"
	formatted := &blockdev.FormatRecord{State: blockdev.FormatFormatted, FSType: "ext4", UUID: id}
	formatting := &blockdev.FormatRecord{State: blockdev.FormatFormatting, FSType: "ext4", UUID: id}
	ext4 := found{Superblock: host.Superblock{FSType: "ext4", UUID: id}}
	blank, data := found{Blank: true}, found{}
	for _, tc := range []struct {
		name     string
		record   *blockdev.FormatRecord
		fsType   string
		readOnly bool
		on       found
		want     formatAction
		refused  string
	}{
		{name: "new", fsType: "ext4", on: blank, want: actionFormat},
		{name: "formatted", record: formatted, fsType: "ext4", on: ext4, want: actionMount},
		{name: "formatted, read-only", record: formatted, fsType: "ext4", readOnly: true, on: ext4, want: actionMount},
		{name: "interrupted, blank", record: formatting, fsType: "ext4", on: blank, want: actionFormatAgain},
		{name: "interrupted, something there", record: formatting, fsType: "ext4", on: data, want: actionFormatAgain},
		{name: "interrupted, whole", record: formatting, fsType: "ext4", on: ext4, want: actionFormatAgain},

		{name: "superblock wiped", record: formatted, fsType: "ext4", on: data, refused: "has no superblock. It is not " +
			"formatted again"},
		{name: "all wiped", record: formatted, fsType: "ext4", on: blank, refused: "has no superblock. It is not " +
			"formatted again"},
		{name: "another file system found", record: formatted, fsType: "ext4",
			on: found{Superblock: host.Superblock{FSType: "xfs"}}, refused: "a superblock of xfs"},
		{name: "another file system wanted", record: formatted, fsType: "xfs", on: ext4,
			refused: "formatted with ext4, not xfs"},
		{name: "another file system wanted, interrupted", record: formatting, fsType: "xfs", on: blank,
			refused: "formatting it with ext4 has begun"},
		{name: "interrupted, read-only", record: formatting, fsType: "ext4", readOnly: true, on: ext4,
			refused: "stage it writable once"},
		{name: "new, read-only", fsType: "ext4", readOnly: true, on: blank, refused: "stage it writable once"},
		{name: "no record, data", fsType: "ext4", on: data, refused: "no format record, but data is on it"},
		{name: "no record, file system", fsType: "ext4", on: ext4, refused: "promoted copy"},
		{name: "state of another version", record: &blockdev.FormatRecord{State: "converting", FSType: "ext4"},
			fsType: "ext4", on: ext4, refused: `format state "converting"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := decideFormat(&blockdev.VolumeRecord{ID: "v", Format: tc.record}, tc.fsType, tc.readOnly, tc.on)
			if tc.refused != "" {
				if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), tc.refused) {
					t.Fatalf("got %v, %v; want FailedPrecondition with %q", got, err, tc.refused)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Fatalf("got %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}
