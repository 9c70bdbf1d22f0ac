package shim_test

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

// TestSizeNeedsNoServer checks that the kernel knows the size of the file when no process serves it, also after writes.
// A loop device that is made larger asks for this size (lo_calculate_size), and has a size of 0 if the question fails:
// it would fail if the asking process were killed while it waits for the server.
func TestSizeNeedsNoServer(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		requireAll(t)
		const before, after = 4 * mib, 8 * mib
		dir := t.TempDir()
		cfg := helperConfig{
			KeeperSocket: filepath.Join(dir, "keeper.sock"),
			MountPoint:   filepath.Join(dir, "mnt"),
			Mode:         mode,
			VolumeID:     "grown",
			ImagePath:    filepath.Join(dir, "image"),
			SizeBytes:    after,
		}
		guard(t, cfg.MountPoint, 60*time.Second)
		startKeeper(t, cfg.KeeperSocket)
		proc := startProcess(t, cfg)
		t.Cleanup(func() {
			if err := shim.Unmount(cfg.MountPoint); err != nil {
				t.Error(err)
			}
			if err := proc.cmd.Wait(); err != nil {
				t.Errorf("the serving process after the unmount: %v", err)
			}
		})
		name, loop := attachLoop(t, filepath.Join(cfg.MountPoint, shim.FileName), before, mode)
		if _, err := loop.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		if err := loop.Flush(); err != nil {
			t.Fatal(err)
		}
		proc.signal(t, syscall.SIGKILL)

		grown := make(chan error, 1)
		go func() { grown <- blockdev.SetLoopSize(name, after) }()
		select {
		case err := <-grown:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the kernel asks the server for the size of the file")
		}
		proc = startProcess(t, cfg)
		if t.Failed() {
			<-grown
			return
		}
		larger, err := blockdev.OpenLoopDevice(name)
		if err != nil {
			t.Fatal(err)
		}
		defer larger.Close()
		if larger.Size() != after {
			t.Errorf("the device has %d bytes, want %d", larger.Size(), after)
		}
	})
}
