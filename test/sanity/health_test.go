package sanity

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
)

// health returns "STATUS Reason" of a volume's conditions at its node, and their messages.
func (c *client) health(id string) (conditions []string, messages string) {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	response, err := c.node.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: id,
		StagingTargetPath: c.staging(id), VolumePublishPath: c.target(id)})
	c.must(err)
	for _, e := range response.GetVolumeHealth().GetHealthStatuses() {
		conditions = append(conditions, e.GetStatus().String()+" "+e.GetReason())
		messages += e.GetMessage() + "\n"
	}
	return conditions, messages
}

func (c *client) wantHealth(id string, want ...string) {
	c.t.Helper()
	if got, messages := c.health(id); !slices.Equal(got, want) {
		c.t.Errorf("conditions %q, want %q: %s", got, want, messages)
	}
}

// loopOf returns the loop device over a volume's image.
func loopOf(t *testing.T, dir, id string) blockdev.LoopInfo {
	t.Helper()
	_, loops := leftovers(t, dir)
	i := slices.IndexFunc(loops, func(l blockdev.LoopInfo) bool { return strings.Contains(l.BackingPath, "/"+id+"/") })
	if i < 0 {
		t.Fatalf("volume %s has none of the loop devices %v", id, loops)
	}
	return loops[i]
}

func TestHealthOfLoopDevice(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	c := newClient(t, startProcess(t, dir).endpoint, dir)
	id := c.up("block", 32*mib, rawBlock(), nil)
	c.wantHealth(id)
	loop := loopOf(t, dir, id)
	c.must(blockdev.DetachLoopOf(loop.Device, loop.BackingPath))
	c.wantHealth(id, "INACCESSIBLE "+health.ReasonLoopDeviceGone)
	if _, message := c.health(id); !strings.Contains(message, loop.Device) || !strings.Contains(message, id) ||
		!strings.Contains(message, "staged again") {
		t.Errorf("message %q", message)
	}
	// What the message says to do.
	c.must(c.unpublish(id))
	c.must(c.unstage(id))
	c.must(c.stage(id, rawBlock()))
	c.must(c.publish(id, rawBlock(), false))
	c.wantHealth(id)

	c.down(id)
}

// TestHealthOfImage removes images under their devices. These work on as long as they are attached, and can be taken
// down in order.
func TestHealthOfImage(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	c := newClient(t, startProcess(t, dir).endpoint, dir)
	for _, vc := range []*csi.VolumeCapability{rawBlock(), fileSystem("ext4")} {
		id := c.up(fmt.Sprint("v", vc.GetBlock() != nil), 32*mib, vc, nil)
		c.must(os.Remove(filepath.Join(dir, "pool", "volumes", id, "image")))
		c.wantHealth(id, "DATA_LOSS "+health.ReasonImageMissing)
		c.must(c.unpublish(id))
		c.must(c.unstage(id))
		if mounts, loops := leftovers(t, dir); len(mounts) > 0 || len(loops) > 0 {
			t.Errorf("after unstaging: mounts %v, loop devices %v", mounts, loops)
		}
		c.wantHealth(id, "DATA_LOSS "+health.ReasonImageMissing)
		c.must(c.delete(id))
	}
}

// TestHealthOfFileSystem has ext4 report an error to itself, upon which it stops.
func TestHealthOfFileSystem(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	c := newClient(t, startProcess(t, dir).endpoint, dir)
	vc := fileSystem("ext4")
	vc.GetMount().MountFlags = []string{"errors=remount-ro"}
	id := c.up("ext4", 32*mib, vc, nil)
	c.wantHealth(id)
	device := filepath.Base(loopOf(t, dir, id).Device)
	trigger := fmt.Sprintf("/sys/fs/ext4/%s/trigger_fs_error", device)
	if err := os.WriteFile(trigger, []byte("1"), 0); err != nil {
		t.Skipf("this kernel's ext4 cannot be told to fail: %v", err)
	}
	c.wantHealth(id, "DEGRADED "+health.ReasonFileSystemStopped)
	c.must(c.unpublish(id))
	c.must(c.unstage(id))
	c.must(c.stage(id, vc)) // checks it
	c.must(c.publish(id, vc, false))
	c.wantHealth(id)
	c.down(id)
}
