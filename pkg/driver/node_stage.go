package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// undoTimeout bounds what a failed call does to leave nothing behind, after its own deadline may have passed.
const undoTimeout = time.Minute

// NodeStageVolume attaches a volume to a loop device and, for a file system volume, mounts it on the staging path.
//
// It is done in the background (see background): a check of a large file system takes longer than any call waits.
// Each step finds out what an earlier call did, so that it can be repeated after a crash between any two of them:
//
//  1. stage record, durable: from here on NodeUnstageVolume has something to undo
//  2. replicable: the replicator serves the volume's file
//  3. loop device
//  4. format record and mkfs, once in the volume's life
//  5. check, mount
func (s *nodeServer) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	id, path := req.GetVolumeId(), req.GetStagingTargetPath()
	if err := checkArguments(id, argument{"staging_target_path", path}); err != nil {
		return nil, err
	}
	want, err := capability.Parse(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	err = s.d.runTask(ctx, "NodeStageVolume", id, fmt.Sprintf("%q %+v", path, want), func(ctx context.Context) error {
		rec, err := s.d.volume(id)
		if err != nil {
			return err
		}
		return s.d.stage(ctx, rec, path, want)
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (d *Driver) stage(ctx context.Context, rec *blockdev.VolumeRecord, given string, want capability.Volume) (err error) {
	if rec.Secondary && rec.Group == "" {
		return status.Errorf(codes.FailedPrecondition,
			"volume %s is the copy of a volume that left its group at %s: put it into a group of this site (slipctl group add) to make it a volume of its own",
			rec.ID, rec.Remote)
	}
	if rec.Secondary {
		return status.Errorf(codes.FailedPrecondition,
			"volume %s is a secondary copy and takes no writes: promote its group first (slipctl group promote %s)", rec.ID, rec.Group)
	}
	if rec.State != blockdev.VolumeReady {
		return status.Errorf(codes.FailedPrecondition, "volume %s is %s: it can be staged when it is %s", rec.ID, rec.State, blockdev.VolumeReady)
	}
	if why := d.beingCopied(rec.ID); why != "" {
		return status.Errorf(codes.Aborted, "volume %s: %s, and would change under the copy; call again when that is done", rec.ID, why)
	}
	if rec.Replicable {
		if err := d.needSidecar(ctx); err != nil {
			return err
		}
	}
	devices, err := d.attachedDevices(rec)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(devices, func(l host.LoopDevice) bool { return l.Deleted }); i >= 0 {
		return imageGone(rec.ID, devices[i])
	}
	path := host.CanonicalPath(given)
	if len(devices) > 0 { // else the record is what a reboot left
		path = stagingPath(rec, given)
	}
	staged, err := d.alreadyStaged(rec, devices, path, want)
	if err != nil {
		return err
	}
	fsType := ""
	if !want.Block {
		if fsType, err = fsTypeFor(rec, want.FSType); err != nil {
			return err
		}
	}
	record := blockdev.StageRecord{
		StagingPath:  path,
		GivenPath:    host.AbsolutePath(given),
		BackingPath:  d.backingPath(rec),
		FSType:       fsType,
		MountOptions: want.MountOptions,
		ReadOnly:     want.MountsReadOnly(),
		Block:        want.Block,
	}
	if rec.Stage != nil {
		record.Device, record.Image = rec.Stage.Device, rec.Stage.Image
	}
	if err := d.recordStage(rec, &record); err != nil {
		return err
	}
	if !staged {
		// What was mounted by an earlier call stays when this one fails; what this one began does not.
		defer func() {
			if err != nil && ctx.Err() == nil { // else NodeUnstageVolume does it, which has ended this, or the next driver's calls
				d.undoStage(ctx, rec, path)
			}
		}()
	}
	device, err := d.attach(ctx, rec)
	if err != nil {
		return err
	}
	record = *rec.Stage
	record.Device = device.Path
	if !rec.Replicable {
		if record.Image, err = d.Loops.File(device.Path); err != nil {
			return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
		}
	}
	if err := d.recordStage(rec, &record); err != nil {
		return err
	}
	switch {
	case want.Block && rec.Format == nil && !want.ReadOnly():
		return d.recordRaw(ctx, rec)
	case want.Block:
		return d.shareFormat(ctx, rec)
	case staged:
		if err = d.revive(ctx, rec, device); err == nil {
			err = d.shareFormat(ctx, rec)
		}
	default:
		return d.mountStaged(ctx, rec, device, path, fsType, want)
	}
	if err != nil {
		return err
	}
	return d.growFileSystem(ctx, rec, device, path, fsType, want.MountsReadOnly())
}

// alreadyStaged reports whether the volume's file system is mounted on path. It refuses a path that is not the one the
// volume is staged on, or that carries something else.
func (d *Driver) alreadyStaged(rec *blockdev.VolumeRecord, devices []host.LoopDevice, path string, want capability.Volume) (bool, error) {
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return false, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	if rec.Stage != nil && rec.Stage.StagingPath != path && len(devices) > 0 {
		return false, status.Errorf(codes.FailedPrecondition, "volume %s is staged on %s: unstage it there first", rec.ID, rec.Stage.StagingPath)
	}
	if rec.Stage != nil && rec.Stage.Block != want.Block && len(devices) > 0 {
		// Its device node may be in a pod's hands, and mkfs would write under them.
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with raw block %t, not %t: unstage it first",
			rec.ID, rec.Stage.StagingPath, rec.Stage.Block, want.Block)
	}
	at := host.MountsAt(mounts, path)
	if len(at) == 0 {
		return false, nil
	}
	top := at[len(at)-1]
	ours := slices.ContainsFunc(devices, func(l host.LoopDevice) bool { return top.ShowsDevice(l.Device) })
	switch {
	case !ours:
		return false, status.Errorf(codes.FailedPrecondition, "volume %s: %s is mounted on %s: unmount it, or stage on another path", rec.ID, top.Source, path)
	case top.ReadOnly != want.MountsReadOnly():
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with read-only %t, not %t: unstage it first",
			rec.ID, path, top.ReadOnly, want.MountsReadOnly())
	case want.FSType != "" && want.FSType != top.FSType:
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with %s, not %s: a volume is formatted once; make a new one",
			rec.ID, path, top.FSType, want.FSType)
	case rec.Stage != nil && !capability.SameOptions(rec.Stage.MountOptions, want.MountOptions):
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with mount options %q, not %q: unstage it first",
			rec.ID, path, rec.Stage.MountOptions, want.MountOptions)
	}
	return true, nil
}

func (d *Driver) mountStaged(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device, path, fsType string, want capability.Volume) error {
	readOnly := want.MountsReadOnly()
	on, err := d.inspect(rec, device)
	if err != nil {
		return err
	}
	action, err := decideFormat(rec, fsType, readOnly, on)
	if err != nil {
		return err
	}
	if action != actionMount {
		if err := d.format(ctx, rec, device, fsType, action == actionFormatAgain); err != nil {
			return err
		}
	} else {
		if on.UUID != rec.Format.UUID && rec.Format.UUID != "" {
			// Somebody may have changed it on purpose; it is his file system.
			klog.InfoS("The file system has another UUID than its record", "volume", rec.ID, "found", on.UUID, "recorded", rec.Format.UUID)
		}
		if err := d.shareFormat(ctx, rec); err != nil {
			return err
		}
		if !readOnly {
			work.Doing(ctx, "its "+fsType+" is checked")
			if err := d.Filesystems.Check(ctx, device.Path, fsType); err != nil {
				return status.Errorf(codes.Internal, "volume %s: its file system could not be repaired without asking: %v; "+
					"take a copy of the image, then run e2fsck on %s by hand", rec.ID, err, d.backingPath(rec))
			}
		}
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return status.Errorf(codes.Internal, "volume %s: staging path: %v", rec.ID, err)
	}
	work.Doing(ctx, "its "+fsType+" is mounted, and its log replayed")
	if err := d.Mounter.Mount(ctx, device.Path, path, fsType, capability.MountOptions(fsType, want)); err != nil {
		return status.Errorf(codes.Internal, "volume %s: mount on %s: %v", rec.ID, path, err)
	}
	if err := d.checkMount(rec, device, path, fsType, readOnly); err != nil {
		return err
	}
	if action == actionMount && !readOnly && on.SizeBytes > 0 && on.SizeBytes < rec.SizeBytes {
		d.catchUp(ctx, rec, device, path, fsType, on.SizeBytes)
	}
	return d.growFileSystem(ctx, rec, device, path, fsType, readOnly)
}

// checkMount looks whether a mount has become what was asked for. mount(8) makes a read-only one of a device that cannot be written, for one.
func (d *Driver) checkMount(rec *blockdev.VolumeRecord, device host.Device, path, fsType string, readOnly bool) error {
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	at := host.MountsAt(mounts, path)
	switch {
	case len(at) == 0:
		return status.Errorf(codes.Internal, "volume %s: it was mounted on %s, and is not there", rec.ID, path)
	case !at[len(at)-1].ShowsDevice(device) || at[len(at)-1].FSType != fsType || at[len(at)-1].ReadOnly != readOnly:
		top := at[len(at)-1]
		return status.Errorf(codes.Internal, "volume %s: %s was to be mounted on %s with %s, read-only %t, and there is %s with %s, read-only %t: see the kernel's log",
			rec.ID, device.Path, path, fsType, readOnly, top.Source, top.FSType, top.ReadOnly)
	}
	return nil
}

func (d *Driver) recordStage(rec *blockdev.VolumeRecord, stage *blockdev.StageRecord) error {
	return d.update(rec, "record the staging of", func(r *blockdev.VolumeRecord) {
		r.Stage = stage
	})
}

// undoStage takes back what a failed stage did. Where it cannot, the stage record stays, and the next stage or unstage
// goes on from there.
func (d *Driver) undoStage(ctx context.Context, rec *blockdev.VolumeRecord, path string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := d.unstage(ctx, rec, path); err != nil {
		klog.ErrorS(err, "A failed NodeStageVolume could not be undone; the next call does it", "volume", rec.ID)
	}
}

// NodeUnstageVolume undoes NodeStageVolume in the opposite order. It succeeds for a volume that is not staged, or gone, as long as nothing is
// mounted on the path.
func (s *nodeServer) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	id := req.GetVolumeId()
	s.d.tasks.StopCall(ctx, id)
	done, err := s.d.beginCall("NodeUnstageVolume", id, argument{"staging_target_path", req.GetStagingTargetPath()})
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.volume(id)
	if status.Code(err) == codes.NotFound {
		return &csi.NodeUnstageVolumeResponse{}, s.d.unstageRemains(ctx, id, host.CanonicalPath(req.GetStagingTargetPath()))
	}
	if err != nil {
		return nil, err
	}
	path := stagingPath(rec, req.GetStagingTargetPath())
	if rec.Stage != nil && rec.Stage.StagingPath != path {
		// Unstaging one path must not take another one's device away.
		return &csi.NodeUnstageVolumeResponse{}, s.d.nothingMountedOn(id, path)
	}
	if err := s.d.unstage(ctx, rec, path); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

func (d *Driver) nothingMountedOn(id, path string) error {
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", id, err)
	}
	if at := host.MountsAt(mounts, path); len(at) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %q is not staged on %s, but %s is mounted there: unmount it by hand",
			id, path, at[len(at)-1].Source)
	}
	return nil
}

func (d *Driver) unstage(ctx context.Context, rec *blockdev.VolumeRecord, path string) error {
	devices, err := d.attachedDevices(rec)
	if err != nil {
		return err
	}
	if rec.Stage == nil && len(devices) == 0 {
		return d.nothingMountedOn(rec.ID, path)
	}
	if err := d.takeDown(ctx, rec, devices, path); err != nil {
		return err
	}
	return d.recordStage(rec, nil)
}

// unstageRemains is unstage for a volume without a record.
func (d *Driver) unstageRemains(ctx context.Context, id, path string) error {
	rec, devices, err := d.remains(id, true)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return d.nothingMountedOn(id, path)
	}
	return d.takeDown(ctx, rec, devices, path)
}

// takeDown unmounts a volume's devices from its staging path and detaches them.
func (d *Driver) takeDown(ctx context.Context, rec *blockdev.VolumeRecord, devices []host.LoopDevice, path string) error {
	if rec.Replicable && len(devices) > 0 {
		if err := d.needSidecar(ctx); err != nil {
			return err
		}
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	for _, device := range devices {
		for _, m := range host.MountsOf(mounts, device.Device) {
			if m.Mountpoint != path {
				return status.Errorf(codes.FailedPrecondition, "volume %s is still mounted on %s: unpublish it there first", rec.ID, m.Mountpoint)
			}
		}
	}
	if err := d.unmountAll(rec, path, devices); err != nil {
		return err
	}
	return d.release(ctx, rec, devices)
}

// maxStackedMounts bounds unmountAll; more mounts of one device on one path have never been made by this driver.
const maxStackedMounts = 8

// unmountAll unmounts a volume's mounts on a path and makes sure in the mount table that they are gone.
func (d *Driver) unmountAll(rec *blockdev.VolumeRecord, path string, devices []host.LoopDevice) error {
	for range maxStackedMounts {
		mounts, err := d.Mounter.Mounts()
		if err != nil {
			return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
		}
		at := host.MountsAt(mounts, path)
		if len(at) == 0 {
			return nil
		}
		top := at[len(at)-1]
		if !slices.ContainsFunc(devices, func(l host.LoopDevice) bool { return top.ShowsDevice(l.Device) }) {
			return status.Errorf(codes.FailedPrecondition, "volume %s: %s, which is not of this volume, is mounted on %s: unmount it by hand",
				rec.ID, top.Source, path)
		}
		if err := d.thawToUnmount(rec, mounts, top); err != nil {
			return err
		}
		switch err := d.Mounter.Unmount(path); {
		case errors.Is(err, unix.EBUSY):
			return status.Errorf(codes.FailedPrecondition, "volume %s: %s is busy: a process still uses it (fuser -vm %s shows which); call again when it has ended",
				rec.ID, path, path)
		case err != nil:
			return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
		}
	}
	return status.Errorf(codes.Internal, "volume %s is still mounted on %s after %d unmounts: something mounts it again", rec.ID, path, maxStackedMounts)
}
