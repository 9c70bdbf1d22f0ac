package attach

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

func (d *Attacher) Publish(ctx context.Context, rec *blockdev.VolumeRecord, stagingPath string, entry Publication,
	mode capability.Mode) error {
	if rec.Stage == nil || rec.Stage.StagingPath != stagingPath {
		return status.Errorf(codes.FailedPrecondition, "volume %s is not staged on %s: stage it first", rec.ID, stagingPath)
	}
	entry.ReadOnly = entry.ReadOnly || rec.View != nil && !rec.View.Writable
	if err := asStaged(rec, entry); err != nil {
		return err
	}
	device, err := d.device(rec)
	if err != nil {
		return err
	}
	if !entry.Block {
		if err := d.revive(ctx, rec, device); err != nil {
			return err
		}
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	source, err := publishSource(rec, mounts, device, stagingPath, entry.Block)
	if err != nil {
		return err
	}
	published, err := d.Published(rec.ID)
	if err != nil {
		return err
	}
	// An entry without its mount is what a crash or a reboot left, and says nothing.
	published = slices.DeleteFunc(published, func(p Publication) bool {
		return !mountedFrom(mounts, p.TargetPath, device)
	})
	entry.TargetPath = TargetPath(published, entry.GivenPath)
	if already, err := checkSecondPublish(rec.ID, published, entry, mode); already || err != nil {
		return err
	}
	if at := host.MountsAt(mounts, entry.TargetPath); len(at) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %s: %s is mounted on %s already: unmount it, or publish "+
			"elsewhere",
			rec.ID, at[len(at)-1].Source, entry.TargetPath)
	}
	return d.bind(rec, device, source, entry)
}

// asStaged refuses a publication that the volume, as it is staged, cannot be used for as described.
func asStaged(rec *blockdev.VolumeRecord, entry Publication) error {
	staged := rec.Stage
	differs := func(what string, has, asked any) error {
		return status.Errorf(codes.FailedPrecondition, "volume %s is staged on %s with %s %v, and published with %v: "+
			"unstage it, and stage it as it is to be used",
			rec.ID, staged.StagingPath, what, has, asked)
	}
	switch {
	case staged.ReadOnly && !entry.ReadOnly:
		return differs("read-only", true, false)
	case entry.Block || staged.Block: // see publishSource
	case entry.FSType != "" && staged.FSType != "" && entry.FSType != staged.FSType:
		return differs("file system", staged.FSType, entry.FSType)
	default:
		// Read-only is also a property of the bind mount.
		wanted := slices.DeleteFunc(slices.Clone(entry.MountOptions), func(o string) bool { return o == "ro" })
		if missing := capability.MissingOptions(capability.RecordedOptions(staged.MountOptions), wanted); len(missing) > 0 {
			return differs("mount options", strings.Join(staged.MountOptions, ","), strings.Join(entry.MountOptions, ","))
		}
	}
	return nil
}

// Published returns a volume's publications; an error is a status error.
func (d *Attacher) Published(id string) ([]Publication, error) {
	list, err := d.Publications.List(id)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "volume %s: %v", id, err)
	}
	return list, nil
}

// publishSource is what gets bound: the staging path, or the device's node.
func publishSource(rec *blockdev.VolumeRecord, mounts []host.MountEntry, device host.Device, stagingPath string,
	block bool) (string, error) {
	mounted := mountedFrom(mounts, stagingPath, device)
	switch {
	case block && mounted:
		return "", status.Errorf(codes.FailedPrecondition, "volume %s is staged with a file system, not as a block "+
			"device: unstage it and stage it as one", rec.ID)
	case block:
		return device.Path, nil
	case !mounted:
		return "", status.Errorf(codes.FailedPrecondition, "volume %s is not mounted on its staging path %s: stage it again",
			rec.ID, stagingPath)
	}
	return stagingPath, nil
}

// mountedFrom reports whether the topmost mount on path shows the device.
func mountedFrom(mounts []host.MountEntry, path string, device host.Device) bool {
	at := host.MountsAt(mounts, path)
	return len(at) > 0 && at[len(at)-1].ShowsDevice(device)
}

// checkSecondPublish compares a publication with those that there are. already: it is there as it should be.
func checkSecondPublish(id string, published []Publication, entry Publication,
	mode capability.Mode) (already bool, err error) {
	for _, other := range published {
		same := other.SameArgs(entry)
		otherPath := other.TargetPath != entry.TargetPath
		code := secondPublish(mode, otherPath, same)
		if otherPath && code == codes.OK && other.AccessMode != entry.AccessMode {
			code = codes.FailedPrecondition
		}
		switch code {
		case codes.OK:
		case codes.AlreadyExists:
			return false, status.Errorf(code, "volume %s is published on %s with other arguments (access mode %s, read-only "+
				"%t): unpublish it first",
				id, other.TargetPath, other.AccessMode, other.ReadOnly)
		default:
			return false, status.Errorf(code, "volume %s is published on %s with access mode %s, and cannot be on %s with %s "+
				"as well: unpublish it there first",
				id, other.TargetPath, other.AccessMode, entry.TargetPath, entry.AccessMode)
		}
		if !otherPath {
			return true, nil
		}
		if entry.Block && other.ReadOnly != entry.ReadOnly {
			// Read-only is a property of a block device, not of a node for it.
			return false, status.Errorf(codes.FailedPrecondition, "volume %s is a block device published on %s with "+
				"read-only %t: all its targets have to agree",
				id, other.TargetPath, other.ReadOnly)
		}
	}
	return false, nil
}

func (d *Attacher) bind(rec *blockdev.VolumeRecord, device host.Device, source string, entry Publication) error {
	if err := d.Publications.Put(rec.ID, entry); err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	err := makeTarget(entry.TargetPath, entry.Block)
	if err == nil && entry.Block {
		err = d.Filesystems.SetDeviceReadOnly(device.Path, entry.ReadOnly)
	}
	if err == nil {
		err = d.Mounter.Bind(source, entry.TargetPath, entry.ReadOnly)
	}
	if err != nil {
		// The CO calls NodeUnpublishVolume, which removes the target and the entry.
		return status.Errorf(codes.Internal, "volume %s: publish on %s: %v", rec.ID, entry.TargetPath, err)
	}
	return nil
}

// makeTarget makes the directory, or the file, that the mount goes on. Its parent is the CO's, but some COs leave it
// out.
func makeTarget(path string, block bool) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	if !block {
		if err := os.Mkdir(path, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

// secondPublish decides about a NodePublishVolume for a volume that is already published, by the second table of the
// specification's NodePublishVolume (the one for plugins with SINGLE_NODE_MULTI_WRITER). sameArgs: capability and
// readonly are those of the first call; otherPath: the target is not one that is published already.
func secondPublish(mode capability.Mode, otherPath, sameArgs bool) codes.Code {
	switch {
	case !otherPath && sameArgs:
		return codes.OK
	case !otherPath:
		return codes.AlreadyExists
	case mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return codes.OK
	default:
		return codes.FailedPrecondition
	}
}
