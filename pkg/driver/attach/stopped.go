package attach

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// A file system that meets an error stops: it takes no writes any more, and may be read or not, until it is unmounted,
// checked and mounted again. Its mounts look as before. Kubernetes does not unstage a volume that another pod waits
// for, so publishing has to find it, too.

// StoppedBy says in a word how a file system has stopped; empty for one that goes on. One that is meant to be read-only
// has not stopped.
func (d *Attacher) StoppedBy(rec *blockdev.VolumeRecord, m host.MountEntry) string {
	switch {
	case rec.Stage == nil || rec.Stage.ReadOnly || rec.Stage.Block:
		return ""
	case m.Stopped != "":
		return m.Stopped
	case d.Filesystems.ShutDown(m.Mountpoint):
		return "shutdown"
	}
	return ""
}

// revive unmounts a staged file system that has stopped, and checks and mounts it again. It refuses while the file
// system is mounted elsewhere: who uses it there holds files that would be gone. An earlier call may have come to the
// unmounting.
func (d *Attacher) revive(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device) error {
	if rec.Stage == nil || rec.Stage.ReadOnly || rec.Stage.Block {
		return nil
	}
	path := rec.Stage.StagingPath
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	if at := host.MountsAt(mounts, path); len(at) > 0 {
		top := at[len(at)-1]
		if !top.ShowsDevice(device) {
			return nil // see publishSource
		}
		why := d.StoppedBy(rec, top)
		if why == "" {
			return nil
		}
		for _, m := range host.MountsOf(mounts, device) {
			if m.Mountpoint != path {
				return status.Errorf(codes.FailedPrecondition, "volume %s: its %s takes no writes any more (%s) after an error, "+
					"which the kernel's log has, and is mounted on %s: "+
					"delete all pods that use the volume; then it is checked and mounted again", rec.ID, top.FSType, why, m.Mountpoint)
			}
		}
		klog.InfoS("Mounting a file system that has stopped again", "volume", rec.ID, "path", path, "stopped", why)
		if err := d.unmountAll(rec, path, []host.LoopDevice{{Device: device}}); err != nil {
			return err
		}
	}
	return d.mountStaged(ctx, rec, device, path, rec.Stage.FSType, capability.Volume{Mode: capability.SupportedModes[0],
		MountOptions: capability.RecordedOptions(rec.Stage.MountOptions)})
}
