package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// NodePublishVolume binds the staged file system, or the device node of a raw block volume, to a target path.
func (s *nodeServer) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	id := req.GetVolumeId()
	if err := checkArguments(id, argument{"target_path", req.GetTargetPath()}, argument{"staging_target_path", req.GetStagingTargetPath()}); err != nil {
		return nil, err
	}
	want, err := capability.Parse(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	entry := publication{
		GivenPath:    host.AbsolutePath(req.GetTargetPath()),
		ReadOnly:     req.GetReadonly() || want.MountsReadOnly(),
		AccessMode:   want.Mode.String(),
		Block:        want.Block,
		FSType:       want.FSType,
		MountOptions: want.MountOptions,
	}
	// In the background, because a file system that has stopped is checked: see revive.
	err = s.d.runTask(ctx, "NodePublishVolume", id, fmt.Sprintf("%q %+v", req.GetStagingTargetPath(), entry), func(ctx context.Context) error {
		rec, err := s.d.volume(id)
		if err != nil {
			return err
		}
		return s.d.publish(ctx, rec, stagingPath(rec, req.GetStagingTargetPath()), entry, want.Mode)
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *Driver) publish(ctx context.Context, rec *blockdev.VolumeRecord, stagingPath string, entry publication, mode capability.Mode) error {
	if rec.Stage == nil || rec.Stage.StagingPath != stagingPath {
		return status.Errorf(codes.FailedPrecondition, "volume %s is not staged on %s: stage it first", rec.ID, stagingPath)
	}
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
	published, err := d.published(rec.ID)
	if err != nil {
		return err
	}
	// An entry without its mount is what a crash or a reboot left, and says nothing.
	published = slices.DeleteFunc(published, func(p publication) bool { return !mountedFrom(mounts, p.TargetPath, device) })
	entry.TargetPath = targetPath(published, entry.GivenPath)
	if already, err := checkSecondPublish(rec.ID, published, entry, mode); already || err != nil {
		return err
	}
	if at := host.MountsAt(mounts, entry.TargetPath); len(at) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %s: %s is mounted on %s already: unmount it, or publish elsewhere",
			rec.ID, at[len(at)-1].Source, entry.TargetPath)
	}
	return d.bind(rec, device, source, entry)
}

// asStaged refuses a publication that the volume, as it is staged, cannot be used for as described.
func asStaged(rec *blockdev.VolumeRecord, entry publication) error {
	staged := rec.Stage
	differs := func(what string, has, asked any) error {
		return status.Errorf(codes.FailedPrecondition, "volume %s is staged on %s with %s %v, and published with %v: unstage it, and stage it as it is to be used",
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

// published returns a volume's publications; an error is a status error.
func (d *Driver) published(id string) ([]publication, error) {
	list, err := d.publications.List(id)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "volume %s: %v", id, err)
	}
	return list, nil
}

// publishSource is what gets bound: the staging path, or the device's node.
func publishSource(rec *blockdev.VolumeRecord, mounts []host.MountEntry, device host.Device, stagingPath string, block bool) (string, error) {
	mounted := mountedFrom(mounts, stagingPath, device)
	switch {
	case block && mounted:
		return "", status.Errorf(codes.FailedPrecondition, "volume %s is staged with a file system, not as a block device: unstage it and stage it as one", rec.ID)
	case block:
		return device.Path, nil
	case !mounted:
		return "", status.Errorf(codes.FailedPrecondition, "volume %s is not mounted on its staging path %s: stage it again", rec.ID, stagingPath)
	}
	return stagingPath, nil
}

// mountedFrom reports whether the topmost mount on path shows the device.
func mountedFrom(mounts []host.MountEntry, path string, device host.Device) bool {
	at := host.MountsAt(mounts, path)
	return len(at) > 0 && at[len(at)-1].ShowsDevice(device)
}

// checkSecondPublish compares a publication with those that there are. already: it is there as it should be.
func checkSecondPublish(id string, published []publication, entry publication, mode capability.Mode) (already bool, err error) {
	for _, other := range published {
		same := other.sameArgs(entry)
		otherPath := other.TargetPath != entry.TargetPath
		code := secondPublish(mode, otherPath, same)
		if otherPath && code == codes.OK && other.AccessMode != entry.AccessMode {
			code = codes.FailedPrecondition
		}
		switch code {
		case codes.OK:
		case codes.AlreadyExists:
			return false, status.Errorf(code, "volume %s is published on %s with other arguments (access mode %s, read-only %t): unpublish it first",
				id, other.TargetPath, other.AccessMode, other.ReadOnly)
		default:
			return false, status.Errorf(code, "volume %s is published on %s with access mode %s, and cannot be on %s with %s as well: unpublish it there first",
				id, other.TargetPath, other.AccessMode, entry.TargetPath, entry.AccessMode)
		}
		if !otherPath {
			return true, nil
		}
		if entry.Block && other.ReadOnly != entry.ReadOnly {
			// Read-only is a property of a block device, not of a node for it.
			return false, status.Errorf(codes.FailedPrecondition, "volume %s is a block device published on %s with read-only %t: all its targets have to agree",
				id, other.TargetPath, other.ReadOnly)
		}
	}
	return false, nil
}

func (d *Driver) bind(rec *blockdev.VolumeRecord, device host.Device, source string, entry publication) error {
	if err := d.publications.Put(rec.ID, entry); err != nil {
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

// makeTarget makes the directory, or the file, that the mount goes on. Its parent is the CO's, but some COs leave it out.
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

// NodeUnpublishVolume unmounts a target path and removes it.
func (s *nodeServer) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	id := req.GetVolumeId()
	done, err := s.d.beginCall("NodeUnpublishVolume", id, argument{"target_path", req.GetTargetPath()})
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.volume(id)
	if status.Code(err) == codes.NotFound {
		return &csi.NodeUnpublishVolumeResponse{}, s.d.unpublishRemains(id, host.CanonicalPath(req.GetTargetPath()))
	}
	if err != nil {
		return nil, err
	}
	published, err := s.d.published(id)
	if err != nil {
		return nil, err
	}
	path := targetPath(published, req.GetTargetPath())
	devices, err := s.d.publishedDevices(rec, published, path)
	if err != nil {
		return nil, err
	}
	if err := s.d.unpublish(rec, path, devices); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *Driver) unpublish(rec *blockdev.VolumeRecord, path string, devices []host.LoopDevice) error {
	if err := d.unmountAll(rec, path, devices); err != nil {
		return err
	}
	// Remove, not RemoveAll: should the unmount have been an illusion, the data behind it stays.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return status.Errorf(codes.Internal, "volume %s: remove target path: %v; look what is in it", rec.ID, err)
	}
	if err := d.publications.Remove(rec.ID, path); err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	return nil
}

// unpublishRemains is unpublish for a volume without a record. Of a volume that was deleted nothing is mounted; one whose directory was
// removed may be.
func (d *Driver) unpublishRemains(id, path string) error {
	rec, devices, err := d.remains(id, false)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return d.nothingMountedOn(id, path)
	}
	return d.unpublish(rec, path, devices)
}

// publishedDevices returns the loop devices of a volume, and that whose node is mounted on a target path of a raw block volume: it may
// have been detached behind the driver's back, and the publication then says whose mount it is.
func (d *Driver) publishedDevices(rec *blockdev.VolumeRecord, published []publication, path string) ([]host.LoopDevice, error) {
	devices, err := d.attachedDevices(rec)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(published, func(p publication) bool { return p.Block && p.TargetPath == path }) {
		return devices, nil
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	for _, m := range host.MountsAt(mounts, path) {
		node := host.Device{Path: filepath.Join("/dev", filepath.Base(m.Root))}
		if m.IsNodeOf(node) {
			devices = append(devices, host.LoopDevice{Device: node})
		}
	}
	return devices, nil
}
