package host

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

// TestMkfsArgs: force is used over an interrupted mkfs only, and space that was reserved is kept.
func TestMkfsArgs(t *testing.T) {
	for _, fsType := range []string{capability.Ext4, capability.XFS} {
		for _, force := range []bool{false, true} {
			for _, thick := range []bool{false, true} {
				program, args := FormatSpec{FSType: fsType, UUID: "u-u", KeepSpace: thick}.MkfsArgs(force)
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
	const size = 5 * (1 << 20)
	for _, off := range []int64{-1, 0, 1024, (1 << 20) - 1, (1 << 20), size - (1 << 20) - 1, size - (1 << 20), size - 1} {
		image := make([]byte, size)
		if off >= 0 {
			image[off] = 1
		}
		got, err := readBlank(bytes.NewReader(image), size)
		want := off < 0 || (off >= (1<<20) && off < size-(1<<20))
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
		case xfs && sb.FSType != capability.XFS, !xfs && ext && sb.FSType != capability.Ext4, !xfs && !ext &&
			sb != Superblock{}:
			t.Fatalf("got %+v for xfs %t, ext4 %t", sb, xfs, ext)
		}
	})
}
