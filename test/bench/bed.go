package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// variant is what a load runs on.
type variant string

// The variants. The order of this list is that of the report.
const (
	plain       variant = "plain loop device"
	driverPlain variant = "plain volume of the driver"

	replicated variant = "replicated"
	off        variant = "replication off"
	flushed    variant = "replicated, order flush"
	peerAlone  variant = "qemu-storage-daemon, no mirror"
	peer       variant = "qemu-storage-daemon, background mirror"
	peerSync   variant = "qemu-storage-daemon, write-blocking mirror"
)

// variants are all of them, in the order of the report.
var variants = []variant{plain, driverPlain, replicated, off, flushed, peerAlone, peer, peerSync}

// isPlain says that a variant may be the baseline.
func (v variant) isPlain() bool { return v == plain || v == driverPlain }

// bed is the devices of one variant, prepared to be measured on.
type bed struct {
	variant variant
	// devices are block devices of sizeBytes each, which loads may overwrite unless the bed has mounts.
	devices   []string
	sizeBytes int64
	mounts    []string
	servers   []*pgServer
	mariadb   *mariadb // nil: none
	// here and there are the processes that serve the devices, and those that take in their copies.
	here, there []int
	// volumes and group are those of a Slipstream variant.
	volumes []*testsite.Volume
	group   string

	finish func(context.Context) error // waits for what was put off, in the background of the devices
}

// settle finishes what measurements put off: dirty pages, records not applied, records not shipped.
func (b *bed) settle(ctx context.Context) error {
	for _, device := range b.devices {
		if err := syncFile(device); err != nil {
			return err
		}
	}
	for _, mount := range b.mounts {
		if err := syncFS(mount); err != nil {
			return err
		}
	}
	if b.finish == nil {
		return nil
	}
	return b.finish(ctx)
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// Timeouts of steps that wait for the sites. They are for a busy machine.
const (
	startTimeout  = 2 * time.Minute
	settleTimeout = 3 * time.Minute
)

// caughtUp says that nothing is left to be done for a group: all is durable, applied and acknowledged.
func caughtUp(g *sidecarpb.GroupStatus) bool {
	return testsite.Streaming(g) && g.GetChangeMapBytes() == 0 &&
		g.GetAcknowledgedOrdinal() >= g.GetHeadOrdinal() && g.GetAppliedOrdinal() >= g.GetHeadOrdinal()
}

// waitCaughtUp waits for both sites of a group.
func waitCaughtUp(ctx context.Context, pair *testsite.Pair, group string) error {
	g, err := pair.A.WaitGroup(ctx, group, "caught up", caughtUp)
	if err != nil {
		return err
	}
	_, err = pair.B.WaitGroup(ctx, group, "applied", func(s *sidecarpb.GroupStatus) bool {
		return s.GetAppliedOrdinal() >= g.GetHeadOrdinal()
	})
	return err
}

// bedOptions say what a bed is made of.
type bedOptions struct {
	// name is unique in the pair.
	name string
	// volumes is how many, of sizeBytes each.
	volumes   int
	sizeBytes int64
	// filesystem makes and mounts ext4 on each; otherwise they are raw devices.
	filesystem bool
	// groups is how many groups the volumes are spread over; 0 is one.
	groups int
	// dataset puts data into a mounted file system.
	dataset func(mount string, index int) error
}

// plainBed makes loop devices over images beside those of the pair.
func (e *env) plainBed(ctx context.Context, pair *testsite.Pair, o bedOptions) (*bed, error) {
	b := &bed{variant: plain, sizeBytes: o.sizeBytes}
	dir := filepath.Join(pair.Dir, "plain")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for i := range o.volumes {
		image := filepath.Join(dir, fmt.Sprintf("%s-%d", o.name, i))
		f, err := os.Create(image)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(f.Truncate(o.sizeBytes), f.Close()); err != nil {
			return nil, err
		}
		device, err := blockdev.AttachLoop(blockdev.LoopConfig{BackingPath: image, SizeLimitBytes: o.sizeBytes})
		if err != nil {
			return nil, err
		}
		if !o.filesystem {
			b.devices = append(b.devices, device)
			continue
		}
		mount := image + ".mnt" // unmounted with the pair
		if err := mountNew(ctx, device, mount); err != nil {
			return nil, err
		}
		b.mounts = append(b.mounts, mount)
		if err := fillFS(mount); err != nil {
			return nil, err
		}
	}
	return b, e.load(ctx, b, o)
}

// mountNew makes ext4 on a device as the driver does, and mounts it on a new directory.
func mountNew(ctx context.Context, device, mount string) error {
	if _, err := run(ctx, "mkfs.ext4", "-q", "-m0", device); err != nil {
		return err
	}
	if err := os.Mkdir(mount, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, mount, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", device, err)
	}
	return nil
}

// slipstreamBed makes volumes of site A through its CSI socket and, except for the variants off and driverPlain,
// replicates them to site B.
func (e *env) slipstreamBed(ctx context.Context, pair *testsite.Pair, v variant, o bedOptions) (*bed, error) {
	b := &bed{variant: v, sizeBytes: o.sizeBytes}
	if v != driverPlain {
		b.here, b.there = []int{pair.A.Replicator().Pid()}, []int{pair.B.Replicator().Pid()}
	}
	for i := range o.volumes {
		parameters := testsite.Replicable()
		switch v {
		case flushed:
			parameters["slipstream.dev/order"] = "flush"
		case driverPlain:
			parameters = nil
		}
		volume, err := pair.A.CreateVolume(ctx, testsite.VolumeOptions{
			Name: fmt.Sprintf("%s-%d", o.name, i), SizeBytes: o.sizeBytes, FSType: "ext4", Block: !o.filesystem,
			Parameters: parameters,
		})
		if err != nil {
			return nil, err
		}
		path, err := pair.A.Mount(ctx, volume)
		if err != nil {
			return nil, err
		}
		b.volumes = append(b.volumes, volume)
		if o.filesystem {
			b.mounts = append(b.mounts, path)
		} else {
			b.devices = append(b.devices, path)
		}
	}
	for _, mount := range b.mounts {
		if err := fillFS(mount); err != nil {
			return nil, err
		}
	}
	if v != off && v != driverPlain {
		if err := errors.Join(e.join(ctx, pair, b, o), b.settle(ctx)); err != nil {
			return nil, err
		}
	}
	// After the volumes have joined: what follows goes through the journal, whose first segments are new files too.
	return b, e.load(ctx, b, o)
}

// join puts the volumes of a bed into groups that are replicated. settle waits until they are.
func (e *env) join(ctx context.Context, pair *testsite.Pair, b *bed, o bedOptions) error {
	var groups []string
	for i := range max(1, o.groups) {
		groups = append(groups, fmt.Sprintf("%s-%d", o.name, i))
		request := &sidecarpb.CreateGroupRequest{
			Name:     groups[i],
			Settings: &sidecarpb.GroupSettings{Remote: new(pair.B.Config.Name), JournalSizeBytes: &e.journalBytes},
		}
		if _, err := pair.A.Sidecar.CreateGroup(ctx, request); err != nil {
			return err
		}
	}
	for i, volume := range b.volumes {
		request := &sidecarpb.AddVolumeRequest{Group: groups[i%len(groups)], VolumeId: volume.ID}
		if _, err := pair.A.Sidecar.AddVolume(ctx, request); err != nil {
			return err
		}
	}
	b.group = groups[0]
	b.finish = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, settleTimeout)
		defer cancel()
		for _, group := range groups {
			if err := waitCaughtUp(ctx, pair, group); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// load writes devices in full, so that no measurement compares the first write to a place, for which the file system
// below has to find space, with another's second; into file systems it puts the data set.
func (e *env) load(ctx context.Context, b *bed, o bedOptions) error {
	for i, mount := range b.mounts {
		if o.dataset != nil {
			if err := o.dataset(mount, i); err != nil {
				return err
			}
			if err := b.settle(ctx); err != nil {
				return err
			}
		}
	}
	for _, device := range b.devices {
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = writeNoise(f, o.sizeBytes)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("filling %s: %w", device, err)
		}
	}
	return errors.Join(ctx.Err(), b.settle(ctx))
}

// fillFS writes a file into all free space and removes it, so that the image below has its space. The file system does
// not tell the device of the removal, since it is mounted without discard.
func fillFS(mount string) error {
	path := filepath.Join(mount, "fill")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = writeNoise(f, 1<<62)
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	if err := errors.Join(err, f.Sync(), f.Close(), os.Remove(path), syncFS(mount)); err != nil {
		return fmt.Errorf("filling %s: %w", mount, err)
	}
	return nil
}

// writeNoise writes up to so many bytes that do not compress. It need not be good noise: each MiB is the same.
func writeNoise(f *os.File, bytes int64) (int64, error) {
	block := make([]byte, 1<<20)
	state := uint64(0x9e3779b97f4a7c15)
	for i := range block {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		block[i] = byte(state >> 32)
	}
	var done int64
	for done < bytes {
		n, err := f.Write(block[:min(int64(len(block)), bytes-done)])
		done += int64(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
