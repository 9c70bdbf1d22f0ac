package driver

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestDecideFormat(t *testing.T) {
	const id = "6f1c0ddc-9f3e-4b0b-9d2c-0f5f5c2b5d11"
	formatted := &blockdev.FormatRecord{State: blockdev.FormatFormatted, FSType: "ext4", UUID: id}
	formatting := &blockdev.FormatRecord{State: blockdev.FormatFormatting, FSType: "ext4", UUID: id}
	ext4 := found{Superblock: Superblock{FSType: "ext4", UUID: id}}
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

		{name: "superblock wiped", record: formatted, fsType: "ext4", on: data, refused: "has no superblock. It is not formatted again"},
		{name: "all wiped", record: formatted, fsType: "ext4", on: blank, refused: "has no superblock. It is not formatted again"},
		{name: "another file system found", record: formatted, fsType: "ext4", on: found{Superblock: Superblock{FSType: "xfs"}}, refused: "a superblock of xfs"},
		{name: "another file system wanted", record: formatted, fsType: "xfs", on: ext4, refused: "formatted with ext4, not xfs"},
		{name: "another file system wanted, interrupted", record: formatting, fsType: "xfs", on: blank, refused: "formatting it with ext4 has begun"},
		{name: "interrupted, read-only", record: formatting, fsType: "ext4", readOnly: true, on: ext4, refused: "stage it writable once"},
		{name: "new, read-only", fsType: "ext4", readOnly: true, on: blank, refused: "stage it writable once"},
		{name: "no record, data", fsType: "ext4", on: data, refused: "no format record, but data is on it"},
		{name: "no record, file system", fsType: "ext4", on: ext4, refused: "promoted copy"},
		{name: "state of another version", record: &blockdev.FormatRecord{State: "converting", FSType: "ext4"}, fsType: "ext4", on: ext4, refused: `format state "converting"`},
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
		got, err := fsTypeFor(tc.rec, tc.asked)
		if got != tc.want || (status.Code(err) == codes.FailedPrecondition) != (tc.want == "") {
			t.Errorf("%+v, asked for %q: got %q, %v; want %q", tc.rec, tc.asked, got, err, tc.want)
		}
	}
}

// TestMkfsArgs: force is used over an interrupted mkfs only, and space that was reserved is kept.
func TestMkfsArgs(t *testing.T) {
	for _, fsType := range []string{capability.Ext4, capability.XFS} {
		for _, force := range []bool{false, true} {
			for _, thick := range []bool{false, true} {
				program, args := formatSpec{FSType: fsType, UUID: "u-u", KeepSpace: thick}.mkfsArgs(force)
				if program != "mkfs."+fsType {
					t.Errorf("%s: program %s", fsType, program)
				}
				if got := slices.Contains(args, "-f") || slices.Contains(args, "-F"); got != force {
					t.Errorf("%s force %t: %v", fsType, force, args)
				}
				if got := slices.Contains(args, "-K") || slices.Contains(args, "nodiscard,lazy_itable_init=0"); got != thick {
					t.Errorf("%s thick %t: %v", fsType, thick, args)
				}
				if !strings.Contains(strings.Join(args, " "), "u-u") {
					t.Errorf("%s: no UUID in %v", fsType, args)
				}
			}
		}
	}
}

func TestReadBlank(t *testing.T) {
	const size = 5 * mib
	for _, off := range []int64{-1, 0, 1024, mib - 1, mib, size - mib - 1, size - mib, size - 1} {
		image := make([]byte, size)
		if off >= 0 {
			image[off] = 1
		}
		got, err := readBlank(bytes.NewReader(image), size)
		want := off < 0 || (off >= mib && off < size-mib)
		if err != nil || got != want {
			t.Errorf("byte at %d: blank %t, %v; want %t", off, got, err, want)
		}
	}
	if got, err := readBlank(bytes.NewReader(make([]byte, 4096)), 4096); !got || err != nil {
		t.Errorf("small device: %t, %v", got, err)
	}
	if _, err := readBlank(bytes.NewReader(make([]byte, 100)), 4096); err == nil {
		t.Error("a short device is taken for blank")
	}
}

func FuzzReadSuperblock(f *testing.F) {
	ext := make([]byte, superblockReadBytes)
	binary.LittleEndian.PutUint16(ext[extMagicOffset:], extMagic)
	f.Add(ext)
	f.Add(append([]byte("XFSB"), make([]byte, superblockReadBytes)...))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, image []byte) {
		sb, err := readSuperblock(bytes.NewReader(image))
		if len(image) < superblockReadBytes {
			if err == nil {
				t.Fatalf("%d bytes are taken for a device with %+v", len(image), sb)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		xfs := bytes.HasPrefix(image, []byte("XFSB"))
		ext := image[extMagicOffset] == 0x53 && image[extMagicOffset+1] == 0xEF
		switch {
		case xfs && sb.FSType != capability.XFS, !xfs && ext && sb.FSType != capability.Ext4, !xfs && !ext && sb != Superblock{}:
			t.Fatalf("got %+v for xfs %t, ext4 %t", sb, xfs, ext)
		}
	})
}
