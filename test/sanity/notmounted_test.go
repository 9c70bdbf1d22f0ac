package sanity

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// TestPoolNotMounted: where a pool's file system is not mounted, the programs do not start, say what to mount, and make
// nothing on the disk below. When it is mounted again the volumes are there.
func TestPoolNotMounted(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	pool := filepath.Join(dir, "pool")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(pool, 0o700))
	mount := func() {
		t.Helper()
		must(unix.Mount("pool", pool, "tmpfs", 0, "size=256m"))
	}
	mount()
	p := startProcess(t, dir)
	id := createVolume(t, p)
	must(p.terminate())
	// The tmpfs is kept under another mount point, as a disk is that is not mounted.
	kept := filepath.Join(dir, "kept")
	must(os.Mkdir(kept, 0o700))
	must(unix.Mount(pool, kept, "", unix.MS_BIND, ""))
	must(unix.Unmount(pool, 0))

	replicator := []string{"replicator", "--endpoint", "unix://" + filepath.Join(dir, "r.sock"), "--site", "east",
		"--pool", pool,
		"--state-dir", filepath.Join(dir, "state")}
	for _, args := range [][]string{append([]string{"csi-driver"}, p.args...), replicator} {
		code, out := exits(t, args[0], args[1:]...)
		if code == 0 || !strings.Contains(out, pool) || !strings.Contains(out, "mount its file system there") {
			t.Errorf("%s ended with %d and says: %s", args[0], code, out)
		}
	}
	if entries, err := os.ReadDir(pool); err != nil || len(entries) > 0 {
		t.Errorf("on the mount point: %v, %v", entries, err)
	}
	// Another disk is there.
	mount()
	if code, out := exits(t, "csi-driver", p.args...); code == 0 || !strings.Contains(out, "mount its file system there") {
		t.Errorf("on another disk the driver ended with %d and says: %s", code, out)
	}
	must(unix.Unmount(pool, 0))

	must(unix.Mount(kept, pool, "", unix.MS_BIND, ""))
	p.start()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn := dial(t, p.endpoint)
	defer conn.Close()
	controller := csi.NewControllerClient(conn)
	if _, err := controller.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id}); err != nil {
		t.Errorf("mounted again: %v", err)
	}
	// Unmounted under a driver that runs: lazily, since it has a file open there.
	must(unix.Unmount(pool, unix.MNT_DETACH))
	for name, err := range map[string]error{
		"delete": second(controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})),
		"list":   second(controller.ListVolumes(ctx, &csi.ListVolumesRequest{})),
		"create": second(controller.CreateVolume(ctx, createRequest())),
	} {
		if err == nil || !strings.Contains(err.Error(), "mount its file system") {
			t.Errorf("%s after the pool was unmounted: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(pool); err != nil || len(entries) > 0 {
		t.Errorf("on the mount point: %v, %v", entries, err)
	}
	must(p.terminate())
	must(unix.Unmount(kept, 0))
}

func second[T any](_ T, err error) error { return err }

func createRequest() *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: 16 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
	}
}

func createVolume(t *testing.T, p *process) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn := dial(t, p.endpoint)
	defer conn.Close()
	response, err := csi.NewControllerClient(conn).CreateVolume(ctx, createRequest())
	if err != nil {
		t.Fatal(err)
	}
	return response.GetVolume().GetVolumeId()
}

// exits runs a program that is expected to end by itself.
func exits(t *testing.T, program string, args ...string) (code int, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, buildBinary(t, program), args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}
