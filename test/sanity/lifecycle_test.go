package sanity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	mib = int64(1) << 20

	writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
)

func fileSystem(fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: writer},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
	}
}

func rawBlock() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: writer},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

// client calls a driver as kubelet and the sidecars do.
type client struct {
	t          *testing.T
	dir        string
	controller csi.ControllerClient
	node       csi.NodeClient
}

func newClient(t *testing.T, endpoint, dir string) *client {
	t.Helper()
	conn := dial(t, endpoint)
	t.Cleanup(func() { conn.Close() })
	return &client{t: t, dir: dir, controller: csi.NewControllerClient(conn), node: csi.NewNodeClient(conn)}
}

func (c *client) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

func (c *client) staging(id string) string { return filepath.Join(c.dir, "staging", id) }
func (c *client) target(id string) string  { return filepath.Join(c.dir, "pods", id, "mount") }

func (c *client) create(name string, size int64, vc *csi.VolumeCapability, params map[string]string) (string, error) {
	ctx, cancel := c.context()
	defer cancel()
	response, err := c.controller.CreateVolume(ctx,
		&csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{vc},
			CapacityRange: &csi.CapacityRange{RequiredBytes: size}, Parameters: params}, grpc.WaitForReady(true))
	return response.GetVolume().GetVolumeId(), err
}

func (c *client) stage(id string, vc *csi.VolumeCapability) error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.node.NodeStageVolume(ctx,
		&csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: c.staging(id), VolumeCapability: vc},
		grpc.WaitForReady(true))
	return err
}

func (c *client) publish(id string, vc *csi.VolumeCapability, readOnly bool) error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.node.NodePublishVolume(ctx,
		&csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: c.staging(id), TargetPath: c.target(id),
			VolumeCapability: vc, Readonly: readOnly}, grpc.WaitForReady(true))
	return err
}

func (c *client) unpublish(id string) error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: c.target(id)},
		grpc.WaitForReady(true))
	return err
}

func (c *client) unstage(id string) error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.node.NodeUnstageVolume(ctx,
		&csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: c.staging(id)}, grpc.WaitForReady(true))
	return err
}

func (c *client) expand(id string, size int64) error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.node.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: c.target(id),
		CapacityRange: &csi.CapacityRange{RequiredBytes: size}}, grpc.WaitForReady(true))
	return err
}

func (c *client) delete(id string) error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}, grpc.WaitForReady(true))
	return err
}

func (c *client) usage(id string) []*csi.VolumeUsage {
	c.t.Helper()
	ctx, cancel := c.context()
	defer cancel()
	response, err := c.node.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: c.target(id)})
	c.must(err)
	return response.GetUsage()
}

// run runs a program that the test needs; try returns how it failed.
func (c *client) run(program string, args ...string) {
	c.t.Helper()
	c.must(c.try(program, args...))
}

// trimTo discards what a file system does not use until its image takes at most a number of bytes. It asks again: XFS
// frees the blocks of a deleted file in the background, and no file system discards what its log does not say is free.
// A sync that comes too early for it leaves them to the log's own timer, which is half a minute.
func (c *client) trimTo(path, image string, most int64) {
	c.t.Helper()
	n := int64(0)
	for range 600 {
		c.run("sync", "-f", path)
		c.run("fstrim", path)
		if n = allocatedBytes(c.t, image); n <= most {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	c.t.Errorf("image takes %d bytes after discards, want at most %d", n, most)
}

func (c *client) try(program string, args ...string) error {
	ctx, cancel := c.context()
	defer cancel()
	if out, err := exec.CommandContext(ctx, testenv.RequireTool(c.t, program), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", program, args, err, out)
	}
	return nil
}

func (c *client) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// up creates, stages and publishes.
func (c *client) up(name string, size int64, vc *csi.VolumeCapability, params map[string]string) string {
	c.t.Helper()
	id, err := c.create(name, size, vc, params)
	c.must(err)
	c.must(c.stage(id, vc))
	c.must(c.publish(id, vc, false))
	return id
}

// down unpublishes, unstages and deletes.
func (c *client) down(id string) {
	c.t.Helper()
	c.must(c.unpublish(id))
	c.must(c.unstage(id))
	c.must(c.delete(id))
}

func TestFileSystems(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	c := newClient(t, startProcess(t, dir).endpoint, dir)
	for _, fsType := range []string{"ext4", "xfs"} {
		for _, provisioning := range []string{parameter.ProvisioningThin, parameter.ProvisioningThick} {
			t.Run(fsType+"/"+provisioning, func(t *testing.T) {
				c := *c
				c.t = t
				vc := fileSystem(fsType)
				const size = 320 * mib
				id := c.up(fsType+provisioning, size, vc, map[string]string{parameter.KeyProvisioning: provisioning})
				file := filepath.Join(c.target(id), "file")
				c.must(os.WriteFile(file, []byte("kept"), 0o600))
				before := c.usage(id)
				if len(before) != 2 || before[0].GetTotal() < size/2 || before[0].GetTotal() > size || before[1].GetTotal() == 0 {
					t.Errorf("usage %v", before)
				}
				allocated := allocatedBytes(t, filepath.Join(dir, "pool", "volumes", id, "image"))
				if thick := provisioning == parameter.ProvisioningThick; thick != (allocated >= size) {
					t.Errorf("%s image takes %d of %d bytes after mkfs", provisioning, allocated, size)
				}

				// What is deleted and discarded gives its space back, unless the volume is thick.
				const written = 64 * mib
				large := filepath.Join(c.target(id), "large")
				c.must(os.WriteFile(large, bytes.Repeat([]byte("x"), int(written)), 0o600))
				c.run("sync", "-f", c.target(id))
				if n := allocatedBytes(t,
					filepath.Join(dir, "pool", "volumes", id, "image")); n < min(allocated+written-mib, size) {
					t.Errorf("%s image takes %d bytes with %d written, %d before", provisioning, n, written, allocated)
				}
				c.must(os.Remove(large))
				image := filepath.Join(dir, "pool", "volumes", id, "image")
				if provisioning == parameter.ProvisioningThick {
					err := c.try("fstrim", c.target(id))
					if err == nil || !strings.Contains(err.Error(), "not supported") {
						t.Errorf("a thick volume can be discarded: %v", err)
					}
					if n := allocatedBytes(t, image); n < size {
						t.Errorf("thick image takes %d of %d bytes after a discard", n, size)
					}
				} else {
					c.trimTo(c.target(id), image, allocated+written/2)
				}

				// Online, with a file open.
				if fsType == "xfs" || host.CanGrowMountedExt4() {
					f, err := os.Open(file)
					c.must(err)
					c.must(c.expand(id, 2*size))
					c.must(f.Close())
					if after := c.usage(id); after[0].GetTotal() < before[0].GetTotal()+size/2 {
						t.Errorf("file system had %d bytes, has %d after growing the volume by %d",
							before[0].GetTotal(), after[0].GetTotal(), size)
					}
				} else {
					if err := c.expand(id, 2*size); status.Code(err) != codes.Internal ||
						!strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
						t.Errorf("expansion that this machine does not allow: %v", err)
					}
				}

				// Read-only at the target, while the staging path stays writable.
				c.must(c.unpublish(id))
				c.must(c.publish(id, vc, true))
				if err := os.WriteFile(filepath.Join(c.target(id), "other"), nil, 0o600); err == nil {
					t.Error("a read-only target was written")
				}
				c.must(c.unpublish(id))
				c.must(c.unstage(id))

				// The second mount finds what the first wrote.
				c.must(c.stage(id, vc))
				c.must(c.publish(id, vc, false))
				if data, err := os.ReadFile(file); err != nil || string(data) != "kept" {
					t.Errorf("after the second mount: %q, %v", data, err)
				}

				// A busy target is an error, and stays what it is.
				f, err := os.Open(file)
				c.must(err)
				if err := c.unpublish(id); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "busy") {
					t.Errorf("unpublish of a busy target: %v", err)
				}
				c.must(f.Close())
				c.down(id)
			})
		}
	}
}

func TestRawBlock(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	c := newClient(t, startProcess(t, dir).endpoint, dir)
	id := c.up("block", 32*mib, rawBlock(), nil)
	device, err := os.OpenFile(c.target(id), os.O_RDWR, 0)
	c.must(err)
	defer device.Close()
	want := bytes.Repeat([]byte("block"), 1000)
	_, err = device.WriteAt(want, mib)
	c.must(err)
	c.must(device.Sync())
	if usage := c.usage(id); len(usage) != 1 || usage[0].GetTotal() != 32*mib {
		t.Errorf("usage %v", usage)
	}
	c.must(c.expand(id, 48*mib))
	if end, err := device.Seek(0, io.SeekEnd); err != nil || end != 48*mib {
		t.Errorf("device ends at %d after the expansion, %v", end, err)
	}
	if _, err := device.WriteAt(want, 48*mib); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a write past the volume's end: %v", err)
	}
	c.must(device.Close())
	c.must(c.unpublish(id))
	c.must(c.publish(id, rawBlock(), true))
	if f, err := os.OpenFile(c.target(id), os.O_RDWR, 0); err == nil {
		_, err = f.WriteAt(want, 0)
		err = errors.Join(err, f.Sync())
		f.Close()
		if err == nil {
			t.Error("a read-only block volume was written")
		}
	}
	c.must(c.unpublish(id))
	c.must(c.unstage(id))
	c.must(c.stage(id, rawBlock()))
	c.must(c.publish(id, rawBlock(), false))
	got := make([]byte, len(want))
	again, err := os.OpenFile(c.target(id), os.O_RDWR, 0)
	c.must(err)
	_, err = again.ReadAt(got, mib)
	c.must(errors.Join(err, again.Close()))
	if !bytes.Equal(got, want) {
		t.Error("what was written before the second attachment is not there")
	}
	c.down(id)
}

// TestWipedSuperblockIsNotFormatted is the accident that cost users of other drivers their data.
func TestWipedSuperblockIsNotFormatted(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	c := newClient(t, startProcess(t, dir).endpoint, dir)
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			c := *c
			c.t = t
			vc := fileSystem(fsType)
			id := c.up(fsType, 320*mib, vc, nil)
			c.must(os.WriteFile(filepath.Join(c.target(id), "precious"), bytes.Repeat([]byte("p"), int(mib)), 0o600))
			c.must(c.unpublish(id))
			c.must(c.unstage(id))

			image, err := os.OpenFile(filepath.Join(dir, "pool", "volumes", id, "image"), os.O_RDWR, 0)
			c.must(err)
			defer image.Close()
			saved := make([]byte, 8192)
			_, err = image.ReadAt(saved, 0)
			c.must(err)
			_, err = image.WriteAt(make([]byte, len(saved)), 0)
			c.must(err)
			for range 2 {
				err := c.stage(id, vc)
				if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "not formatted again") {
					t.Fatalf("stage with a wiped superblock: %v", err)
				}
			}
			wiped := make([]byte, len(saved))
			_, err = image.ReadAt(wiped, 0)
			c.must(err)
			if !bytes.Equal(wiped, make([]byte, len(saved))) {
				t.Fatal("something was written over the wiped superblock")
			}
			if _, loops := leftovers(t, dir); len(loops) > 0 {
				t.Errorf("the refusal left %v attached", loops)
			}
			_, err = image.WriteAt(saved, 0)
			c.must(err)
			c.must(c.stage(id, vc))
			c.must(c.publish(id, vc, false))
			if info, err := os.Stat(filepath.Join(c.target(id), "precious")); err != nil || info.Size() != mib {
				t.Errorf("after the repair: %v, %v", info, err)
			}
			c.down(id)
		})
	}
}

// TestUncleanFileSystem stages what a power failure leaves: a file system whose log has to be replayed.
func TestUncleanFileSystem(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	c := newClient(t, startProcess(t, dir).endpoint, dir)
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			c := *c
			c.t = t
			vc := fileSystem(fsType)
			id := c.up(fsType, 320*mib, vc, nil)
			image := filepath.Join(dir, "pool", "volumes", id, "image")
			f, err := os.Create(filepath.Join(c.target(id), "flushed"))
			c.must(err)
			_, err = f.WriteString("kept")
			c.must(errors.Join(err, f.Sync(), f.Close()))
			// What is on the disk at this moment, with the file system mounted.
			c.run("cp", "--sparse=always", image, filepath.Join(dir, fsType))
			c.must(c.unpublish(id))
			c.must(c.unstage(id))
			c.run("cp", "--sparse=always", filepath.Join(dir, fsType), image)
			c.must(c.stage(id, vc))
			c.must(c.publish(id, vc, false))
			if data, err := os.ReadFile(filepath.Join(c.target(id), "flushed")); err != nil || string(data) != "kept" {
				t.Errorf("after the replay: %q, %v", data, err)
			}
			c.must(os.WriteFile(filepath.Join(c.target(id), "new"), nil, 0o600))
			c.down(id)
		})
	}
}

// TestKillBetweenCalls kills the driver with SIGKILL at random moments, before, in and after calls, and repeats each
// call that failed. At the end nothing is left over and the data is right.
func TestKillBetweenCalls(t *testing.T) {
	requireMachine(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := testDir(t)
	p := startProcess(t, dir)
	c := newClient(t, p.endpoint, dir)
	for round, vc := range []*csi.VolumeCapability{fileSystem("ext4"), fileSystem("xfs"), rawBlock()} {
		var id string
		name := strings.Repeat("k", round+1)
		file := func() string { return filepath.Join(c.target(id), "file") }
		block := vc.GetBlock() != nil
		for _, call := range []struct {
			name string
			do   func() error
		}{
			{"create", func() (err error) { id, err = c.create(name, 320*mib, vc, nil); return err }},
			{"stage", func() error { return c.stage(id, vc) }},
			{"publish", func() error { return c.publish(id, vc, false) }},
			{"write", func() error {
				if block {
					return nil
				}
				return os.WriteFile(file(), []byte("kept"), 0o600)
			}},
			{"unpublish", func() error { return c.unpublish(id) }},
			{"unstage", func() error { return c.unstage(id) }},
			{"stage again", func() error { return c.stage(id, vc) }},
			{"publish again", func() error { return c.publish(id, vc, false) }},
			{"check", func() error {
				if block {
					return nil
				}
				data, err := os.ReadFile(file())
				if err == nil && string(data) != "kept" {
					err = errors.New("the file has other contents: " + string(data))
				}
				return err
			}},
			{"expand", func() error {
				if vc.GetMount().GetFsType() == "ext4" && !host.CanGrowMountedExt4() {
					return nil
				}
				return c.expand(id, 400*mib)
			}},
			{"unpublish again", func() error { return c.unpublish(id) }},
			{"unstage again", func() error { return c.unstage(id) }},
			{"delete", func() error { return c.delete(id) }},
		} {
			// In the call, at a moment within the time such a call takes.
			result := make(chan error, 1)
			go func() { result <- call.do() }()
			time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond)
			p.kill()
			p.start() // a call that had not reached the killed one yet waits for the next
			err := <-result
			if err != nil && status.Code(err) != codes.Unavailable {
				t.Fatalf("%s, interrupted: %v", call.name, err)
			}
			// Once more, whether it failed or not, and once more after that: the CO may have missed the answer.
			for range 2 {
				if err := call.do(); err != nil {
					t.Fatalf("%s, repeated: %v", call.name, err)
				}
				if call.name == "write" || call.name == "check" {
					break
				}
			}
		}
		p.kill()
		p.start()
		if mounts, loops := leftovers(t, dir); len(mounts) > 0 || len(loops) > 0 {
			t.Fatalf("left over: mounts %v, loop devices %v", mounts, loops)
		}
		if names, err := os.ReadDir(filepath.Join(dir, "pool", "volumes")); err != nil || len(names) > 0 {
			t.Fatalf("left over in the pool: %v, %v", names, err)
		}
	}
}

// TestOrphanIsDetached: a loop device that the driver attached and died before it could say so.
func TestOrphanIsDetached(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	p := startProcess(t, dir)
	c := newClient(t, p.endpoint, dir)
	staged := c.up("staged", 32*mib, rawBlock(), nil)
	idle, err := c.create("idle", 32*mib, rawBlock(), nil)
	c.must(err)
	p.kill()
	attach(t, filepath.Join(dir, "pool", "volumes", idle, "image"))
	if _, loops := leftovers(t, dir); len(loops) != 2 {
		t.Fatalf("loop devices %v, want 2", loops)
	}
	p.start()
	_, loops := leftovers(t, dir)
	if len(loops) != 1 || !strings.Contains(loops[0].BackingPath, staged) {
		t.Errorf("after the start: %v, want the staged volume's alone", loops)
	}
	c.down(staged)
	c.must(c.delete(idle))
}

// TestTerminate: SIGTERM ends the driver and nothing else.
func TestTerminate(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	p := startProcess(t, dir)
	c := newClient(t, p.endpoint, dir)
	id := c.up("v", 32*mib, fileSystem("ext4"), nil)
	c.must(os.WriteFile(filepath.Join(c.target(id), "file"), []byte("kept"), 0o600))
	if err := p.terminate(); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, p.log)
	}
	if mounts, loops := leftovers(t, dir); len(mounts) != 2 || len(loops) != 1 {
		t.Errorf("after SIGTERM: mounts %v, loop devices %v", mounts, loops)
	}
	if data, err := os.ReadFile(filepath.Join(c.target(id), "file")); err != nil || string(data) != "kept" {
		t.Errorf("after SIGTERM: %q, %v", data, err)
	}
	p.start()
	c.down(id)
}
