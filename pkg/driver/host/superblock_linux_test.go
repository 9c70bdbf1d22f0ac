package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

// TestSuperblockSize reads the sizes of file systems that mkfs has made: by it one is found that is smaller than its
// volume.
func TestSuperblockSize(t *testing.T) {
	for _, fsType := range []string{capability.Ext4, capability.XFS} {
		path := filepath.Join(t.TempDir(), fsType)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const size = 320 * (1 << 20)
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		program, args := FormatSpec{FSType: fsType, UUID: "11111111-2222-3333-4444-555555555555"}.MkfsArgs(false)
		if out, err := exec.Command(testenv.RequireTool(t, program), append(args, path)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := f.Truncate(2 * size); err != nil {
			t.Fatal(err)
		}
		sb, err := readSuperblock(f)
		if err != nil || sb != (Superblock{FSType: fsType, UUID: "11111111-2222-3333-4444-555555555555", SizeBytes: size}) {
			t.Errorf("%+v, %v", sb, err)
		}
	}
	if got := sizeOf(1<<62, 4096); got != 0 {
		t.Errorf("a size that no file system has is %d", got)
	}
}
