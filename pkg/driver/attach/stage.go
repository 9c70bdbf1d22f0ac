package attach

import (
	"context"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
)

// UndoTimeout bounds what a failed call does to leave nothing behind, after its own deadline may have passed.
const UndoTimeout = time.Minute

func (d *Attacher) Stage(ctx context.Context, rec *blockdev.VolumeRecord, given string,
	want capability.Volume) (err error) {
	if rec.Secondary && rec.Group == "" {
		return status.Errorf(codes.FailedPrecondition,
			"volume %s is the copy of a volume that left its group at %s: put it into a group of this site (slipctl group "+
				"add) to make it a volume of its own",
			rec.ID, rec.Remote)
	}
	if rec.Secondary {
		return status.Errorf(codes.FailedPrecondition,
			"volume %s is a secondary copy and takes no writes: group %s is secondary here; use the volume at its primary, "+
				"%s. To move the group here: `slipctl group relocate %[2]s` at %[3]s. If %[3]s is lost: `slipctl group promote "+
				"%[2]s --force` at this site", rec.ID, rec.Group, rec.Remote)
	}
	if rec.State != blockdev.VolumeReady {
		return status.Errorf(codes.FailedPrecondition, "volume %s is %s: it can be staged when it is %s", rec.ID, rec.State,
			blockdev.VolumeReady)
	}
	if why := d.tasks.WhyRead(rec.ID); why != "" {
		return status.Errorf(codes.Aborted, "volume %s: %s, and would change under the copy; call again when that is done",
			rec.ID, why)
	}
	if rec.Served() {
		if err := d.sidecar.Need(ctx); err != nil {
			return err
		}
	}
	want = AsShown(rec, want)
	devices, err := d.AttachedDevices(rec)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(devices, func(l host.LoopDevice) bool { return l.Deleted }); i >= 0 {
		return ImageGone(rec.ID, devices[i])
	}
	path := host.CanonicalPath(given)
	if len(devices) > 0 { // else the record is what a reboot left
		path = StagingPath(rec, given)
	}
	staged, err := d.alreadyStaged(rec, devices, path, want)
	if err != nil {
		return err
	}
	fsType := ""
	if !want.Block {
		if fsType, err = FSTypeFor(rec, want.FSType); err != nil {
			return err
		}
	}
	record := blockdev.StageRecord{
		StagingPath:  path,
		GivenPath:    host.AbsolutePath(given),
		BackingPath:  d.BackingPath(rec),
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
			// else NodeUnstageVolume does it, which has ended this, or the next driver's calls
			if err != nil && ctx.Err() == nil {
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
	if !rec.Served() {
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
func (d *Attacher) alreadyStaged(rec *blockdev.VolumeRecord, devices []host.LoopDevice, path string,
	want capability.Volume) (bool, error) {
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return false, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	if rec.Stage != nil && rec.Stage.StagingPath != path && len(devices) > 0 {
		return false, status.Errorf(codes.FailedPrecondition, "volume %s is staged on %s: unstage it there first", rec.ID,
			rec.Stage.StagingPath)
	}
	if rec.Stage != nil && rec.Stage.Block != want.Block && len(devices) > 0 {
		// Its device node may be in a pod's hands, and mkfs would write under them.
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with raw block %t, not %t: unstage it "+
			"first",
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
		return false, status.Errorf(codes.FailedPrecondition, "volume %s: %s is mounted on %s: unmount it, or stage on "+
			"another path", rec.ID, top.Source, path)
	case top.ReadOnly != want.MountsReadOnly():
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with read-only %t, not %t: unstage it "+
			"first",
			rec.ID, path, top.ReadOnly, want.MountsReadOnly())
	case want.FSType != "" && want.FSType != top.FSType:
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with %s, not %s: a volume is "+
			"formatted once; make a new one",
			rec.ID, path, top.FSType, want.FSType)
	case rec.Stage != nil && !capability.SameOptions(rec.Stage.MountOptions, want.MountOptions):
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged on %s with mount options %q, not %q: "+
			"unstage it first",
			rec.ID, path, rec.Stage.MountOptions, want.MountOptions)
	}
	return true, nil
}

func (d *Attacher) mountStaged(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device, path, fsType string,
	want capability.Volume) error {
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
			// A person may have changed it on purpose.
			klog.InfoS("The file system has another UUID than its record", "volume", rec.ID, "found", on.UUID, "recorded",
				rec.Format.UUID)
		}
		if err := d.shareFormat(ctx, rec); err != nil {
			return err
		}
		if !readOnly {
			work.Doing(ctx, "its "+fsType+" is checked")
			if err := d.Filesystems.Check(ctx, device.Path, fsType); err != nil {
				return status.Errorf(codes.Internal, "volume %s: its file system could not be repaired without asking: %v; "+
					"take a copy of the image, then run e2fsck on %s by hand", rec.ID, err, d.BackingPath(rec))
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

// checkMount looks whether a mount has become what was asked for. mount(8) makes a read-only one of a device that
// cannot be written, for one.
func (d *Attacher) checkMount(rec *blockdev.VolumeRecord, device host.Device, path, fsType string,
	readOnly bool) error {
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
		return status.Errorf(codes.Internal, "volume %s: %s was to be mounted on %s with %s, read-only %t, and there is "+
			"%s with %s, read-only %t: see the kernel's log",
			rec.ID, device.Path, path, fsType, readOnly, top.Source, top.FSType, top.ReadOnly)
	}
	return nil
}

func (d *Attacher) recordStage(rec *blockdev.VolumeRecord, stage *blockdev.StageRecord) error {
	return d.store.Update(rec, "record the staging of", func(r *blockdev.VolumeRecord) {
		r.Stage = stage
		r.Left = nil // in use it is a volume of this site, and no copy any more
	})
}

// undoStage takes back what a failed stage did. Where it cannot, the stage record stays, and the next stage or unstage
// goes on from there.
func (d *Attacher) undoStage(ctx context.Context, rec *blockdev.VolumeRecord, path string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoTimeout)
	defer cancel()
	if err := d.Unstage(ctx, rec, path); err != nil {
		klog.ErrorS(err, "A failed NodeStageVolume could not be undone; the next call does it", "volume", rec.ID)
	}
}
