package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

// TestFsckResults: a check that did not say that the file system is sound is an error, also one that said nothing:
// NodeStageVolume then fails, and what is there stays as it is.
func TestFsckResults(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		sound        bool
	}{
		{"clean", "exit 0", true},
		{"corrected", "exit 1", true},
		{"corrected, reboot", "exit 3", true},
		{"uncorrected", "exit 4", false},
		{"corrected in part", "exit 5", false},
		{"operational error", "exit 8", false},
		{"cancelled", "exit 32", false},
		{"killed", "kill -9 $$", false},
		{"missing", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.script != "" {
				if err := os.WriteFile(filepath.Join(dir, "e2fsck"), []byte("#!/bin/sh\n"+tc.script+"\n"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir)
			err := linuxFileSystems{}.Check(context.Background(), "/dev/null", capability.Ext4)
			if (err == nil) != tc.sound {
				t.Errorf("%v", err)
			}
			if err := (linuxFileSystems{}).Check(context.Background(), "/dev/null", capability.XFS); err != nil {
				t.Errorf("xfs is not checked but mounted, which replays its log: %v", err)
			}
		})
	}
}
