package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

// A type that is not one of the two never becomes an argument of a program, and mount is told to run no helper for
// those that are.
func TestMountTakesTwoTypesWithoutHelpers(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	for _, program := range []string{"mount", "mkfs.ext4", "mkfs.xfs"} {
		script := "#!/bin/sh\necho \"$(basename $0) $*\" >>" + calls + "\n"
		if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	device := filepath.Join(dir, "device")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	called := func() string {
		text, _ := os.ReadFile(calls)
		return string(text)
	}
	for _, fsType := range []string{"", "raw", "fuse.sh", "fuse", "nfs", "ext4,xfs", "ext4 ", "EXT4", "noext4", "auto",
		"-o"} {
		if err := (linuxMounter{}).Mount(context.Background(), device, dir, fsType, nil); err == nil ||
			!strings.Contains(err.Error(), "neither ext4 nor xfs") {
			t.Errorf("mount -t %q: %v", fsType, err)
		}
		if err := (linuxFileSystems{}).Make(context.Background(), device, FormatSpec{FSType: fsType}, true); err == nil {
			t.Errorf("%q was made", fsType)
		}
	}
	if got := called(); got != "" {
		t.Fatalf("called: %s", got)
	}
	for _, fsType := range []string{capability.Ext4, capability.XFS} {
		if err := (linuxMounter{}).Mount(context.Background(), device, dir, fsType, []string{"noatime"}); err != nil {
			t.Fatal(err)
		}
		if want := "mount -i -t " + fsType + " -o noatime -- " + device + " " + dir +
			"\n"; !strings.HasSuffix(called(), want) {
			t.Errorf("called %q, want %q", called(), want)
		}
	}
}
