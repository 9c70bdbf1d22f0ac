package sanity

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestImageRemovedInUse: images and their directories lose their names under mounted volumes. These are not deleted,
// and can be taken down, also by a driver that was started after that.
func TestImageRemovedInUse(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	replicator := "unix://" + filepath.Join(dir, "replicator.sock")
	p := startProcess(t, dir, "--sidecar", replicator)
	startReplicator(t, dir, replicator)
	c := newClient(t, p.endpoint, dir)
	for name, tc := range map[string]struct {
		change     func(volume string) error
		replicable bool
		withoutDir bool
	}{
		"image removed": {change: func(volume string) error { return os.Remove(filepath.Join(volume, "image")) }},
		"image of a shim": {change: func(volume string) error {
			return os.Remove(filepath.Join(volume, "image"))
		}, replicable: true},
		"image renamed": {change: func(volume string) error {
			return os.Rename(filepath.Join(volume, "image"), filepath.Join(dir, "renamed"))
		}},
		"image renamed beside": {change: func(volume string) error {
			return os.Rename(filepath.Join(volume, "image"), filepath.Join(volume, "image.bak"))
		}},
		"directory removed": {change: os.RemoveAll, withoutDir: true},
		"directory moved": {change: func(volume string) error {
			return os.Rename(volume, filepath.Join(dir, filepath.Base(volume)))
		}, withoutDir: true},
	} {
		for _, vc := range []func() *csi.VolumeCapability{rawBlock, func() *csi.VolumeCapability {
			return fileSystem("ext4")
		}} {
			for _, restart := range []bool{false, true} {
				t.Run(name, func(t *testing.T) {
					c := *c
					c.t = t
					params := map[string]string{}
					if tc.replicable {
						params["slipstream.dev/replicable"] = "true"
					}
					id := c.up("v", 16<<20, vc(), params)
					c.must(tc.change(filepath.Join(dir, "pool", "volumes", id)))
					if restart {
						p.kill()
						p.start()
					}
					if err := c.delete(id); status.Code(err) != codes.FailedPrecondition {
						t.Errorf("deleted while it is mounted: %v", err)
					}
					if !tc.replicable && !tc.withoutDir {
						if err := c.stage(id, vc()); status.Code(err) != codes.FailedPrecondition ||
							!strings.Contains(err.Error(), "copy the device") {
							t.Errorf("staged again: %v", err)
						}
					}
					if mounts, loops := leftovers(t, dir); len(loops) != 1 || len(mounts) == 0 {
						t.Errorf("before it is unpublished: mounts %v, loop devices %v", mounts, loops)
					}
					c.down(id)
					if mounts, loops := leftovers(t, dir); len(loops) > 0 || len(mounts) > 0 {
						t.Errorf("after it was deleted: mounts %v, loop devices %v", mounts, loops)
					}
				})
			}
		}
	}
}
