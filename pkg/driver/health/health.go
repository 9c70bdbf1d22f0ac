package health

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Reasons of adverse conditions, for machines. docs/health.md says what each means and what to do.
const (
	ReasonRecordDamaged = "RecordDamaged"

	ReasonImageMissing    = "ImageMissing"
	ReasonImageShort      = "ImageShort"
	ReasonImageUnreadable = "ImageUnreadable"
	ReasonViewFailed      = "ViewFailed"

	ReasonPoolFull        = "PoolFull"
	ReasonPoolNearlyFull  = "PoolNearlyFull"
	ReasonPoolUnavailable = "PoolUnavailable"

	ReasonLoopDeviceGone    = "LoopDeviceGone"
	ReasonNotMounted        = "NotMounted"
	ReasonFileSystemStopped = "FileSystemStopped"

	ReasonReplicatorUnavailable = "ReplicatorUnavailable"
	ReasonGroupUnavailable      = "GroupUnavailable"
	ReasonGroupDemoted          = "GroupDemoted"
	ReasonReplicationDiverged   = "ReplicationDiverged"
	ReasonReplicationSuspended  = "ReplicationSuspended"
	ReasonReplicationSyncing    = "ReplicationSyncing"
	ReasonReplicationLagging    = "ReplicationLagging"
	ReasonHistoryShort          = "HistoryShort"
	ReasonApplyStuck            = "ApplyStuck"
	ReasonSitesDiffer           = "SitesDiffer"
	ReasonJournalNearlyFull     = "JournalNearlyFull"
)

const (
	degraded     = csi.VolumeHealthErrorType_DEGRADED
	inaccessible = csi.VolumeHealthErrorType_INACCESSIBLE
	dataLoss     = csi.VolumeHealthErrorType_DATA_LOSS
)

// nearlyFullPercent: a pool, or a journal that makes writers wait when it is full, with less than this left is
// reported.
const nearlyFullPercent = 10

// Conditions are the adverse conditions of one volume, each reason once.
type Conditions []*csi.VolumeHealth_VolumeHealthEntry

func (c *Conditions) add(kind csi.VolumeHealthErrorType, reason, format string, args ...any) {
	*c = append(*c, &csi.VolumeHealth_VolumeHealthEntry{Status: kind, Reason: reason,
		Message: fmt.Sprintf(format, args...)})
}

// Survey is what holds for many volumes at once, found out when the first of them needs it. It is for one call and one
// goroutine.
type Survey struct {
	d      *Checker
	pool   func() space.FileSystem
	groups func() groupsView
}

// VolumeHealth returns the conditions that hold wherever the volume is looked at from: those of its record, its image,
// the pool and its group. An error is a status error, NotFound if the volume does not exist.
func (s *Survey) VolumeHealth(id string) (*blockdev.VolumeRecord, Conditions, error) {
	var found Conditions
	rec, err := s.d.store.Pool.Get(id)
	var corrupt *recordfile.CorruptError
	if errors.As(err, &corrupt) {
		found.add(inaccessible, ReasonRecordDamaged, "volume %s: %v; restore the record, or delete the volume's directory "+
			"to give it up", id, corrupt)
		return nil, found, nil
	}
	if Unreadable(err) {
		found.add(inaccessible, ReasonRecordDamaged, "volume %s: its record cannot be read: %v; check the file system "+
			"that pool %s is on", id, err, s.d.opts.PoolDir)
		return nil, found, nil
	}
	if err != nil {
		return nil, nil, store.VolumeError("read", id, err)
	}
	if rec.View != nil {
		return rec, found, s.viewHealth(&found, rec)
	}
	allocated, err := s.imageHealth(&found, rec)
	if err != nil {
		return nil, nil, err
	}
	if allocated < rec.SizeBytes || rec.Group != "" {
		s.spaceHealth(&found, rec)
	}
	if rec.Replicable {
		s.groupHealth(&found, rec)
	}
	return rec, found, nil
}

// Unreadable reports whether an error of reading a record concerns that record: neither is the volume gone, nor the
// pool.
func Unreadable(err error) bool {
	return err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, blockdev.ErrPoolGone)
}

// viewHealth looks whether the view that a volume shows still shows anything.
func (s *Survey) viewHealth(found *Conditions, rec *blockdev.VolumeRecord) error {
	failed, err := s.d.store.Pool.ViewFailed(rec.View.ViewID)
	switch {
	case errors.Is(err, blockdev.ErrNoView):
		found.add(inaccessible, ReasonViewFailed, "volume %s: view %s of group %s was deleted; delete the volume", rec.ID,
			rec.View.Name, rec.View.Group)
	case err != nil:
		return store.VolumeError("read the view of", rec.ID, err)
	case failed:
		found.add(dataLoss, ReasonViewFailed, "volume %s: view %s of group %s shows nothing any more (slipctl view list "+
			"says why); delete the volume and the view, and open another view", rec.ID, rec.View.Name, rec.View.Group)
	}
	return nil
}

// imageHealth looks at the image's size and returns what it has allocated.
func (s *Survey) imageHealth(found *Conditions, rec *blockdev.VolumeRecord) (allocated int64, err error) {
	path, err := s.d.store.Pool.ImagePath(rec.ID)
	if err != nil {
		return 0, status.Errorf(codes.Internal, "%v", err)
	}
	restore := "promote its group at the peer if it has one, or restore a snapshot or a backup"
	info, err := vfs.Lstat(s.d.fs, path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		found.add(inaccessible, ReasonImageUnreadable, "volume %s: its image %s is %s, not a regular file: put the image "+
			"back; if it is lost, %s",
			rec.ID, path, vfs.Kind(info.Mode()), restore)
		return 0, nil
	case errors.Is(err, fs.ErrNotExist):
		if _, err := s.d.store.Pool.Get(rec.ID); errors.Is(err, blockdev.ErrNoVolume) {
			return 0, store.VolumeError("read", rec.ID, err) // deleted meanwhile
		}
		found.add(dataLoss, ReasonImageMissing, "volume %s: its image %s is missing: %s; while it is still attached its "+
			"device can be copied", rec.ID, path, restore)
		return 0, nil
	case err != nil:
		found.add(inaccessible, ReasonImageUnreadable, "volume %s: its image cannot be looked at: %v; check the file "+
			"system that pool %s is on",
			rec.ID, err, s.d.opts.PoolDir)
		return 0, nil
	}
	if info.Size() < rec.SizeBytes && rec.State != blockdev.VolumeCreating {
		found.add(dataLoss, ReasonImageShort, "volume %s: its image %s has %s, the volume %d; what is missing is "+
			"lost here: %s",
			rec.ID, path, words.Count(info.Size(), "byte"), rec.SizeBytes, restore)
	}
	allocated, err = vfs.AllocatedBytes(info)
	if err != nil {
		return 0, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	return allocated, nil
}

// SpaceReason is ReasonPoolFull, ReasonPoolNearlyFull or empty.
func SpaceReason(p space.FileSystem) string {
	switch {
	case p.Err != nil:
		return ""
	case p.FreeBytes < capability.MinBlockSizeBytes, p.TotalInodes > 0 && p.FreeInodes < space.VolumeInodes:
		return ReasonPoolFull
	case p.FreeBytes < p.TotalBytes/100*nearlyFullPercent, p.FreeInodes*100 < p.TotalInodes*nearlyFullPercent:
		return ReasonPoolNearlyFull
	}
	return ""
}

// spaceHealth reports a pool that cannot take what the volume may still need.
func (s *Survey) spaceHealth(found *Conditions, rec *blockdev.VolumeRecord) {
	p := s.pool()
	switch reason := SpaceReason(p); {
	case p.Err != nil:
		found.add(inaccessible, ReasonPoolUnavailable, "volume %s: pool %s does not answer: %v; check the file system it "+
			"is on", rec.ID, s.d.opts.PoolDir, p.Err)
	case reason != "":
		found.add(degraded, reason, "volume %s may need more space, and %s", rec.ID, s.d.SpaceMessage(p))
	}
}

func (d *Checker) SpaceMessage(p space.FileSystem) string {
	return fmt.Sprintf("pool %s on node %s has %s: without space writes fail; free some (delete volumes or snapshots, "+
		"trim file systems) or enlarge the pool's file system", d.opts.PoolDir, d.opts.NodeID, p)
}

// NodeHealth adds the conditions of a staged volume at this node. publishPath is a path that the volume should be
// mounted on; empty for none in particular.
func (d *Checker) NodeHealth(found *Conditions, rec *blockdev.VolumeRecord, publishPath string) error {
	if rec.Stage == nil {
		return nil
	}
	// Also one whose file was removed: it works on, and what is wrong is the image.
	devices, err := d.attachments.AttachedDevices(rec)
	if err != nil {
		return err
	}
	mounts, err := d.attachments.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	again := "delete the pods that use the volume, so that it is unstaged and staged again"
	if len(devices) == 0 {
		found.add(inaccessible, ReasonLoopDeviceGone, "volume %s is staged on %s, but no loop device is over %s any more "+
			"(it was %s): the node was restarted or the device was detached; %s", rec.ID, rec.Stage.StagingPath,
			d.attachments.BackingPath(rec), rec.Stage.Device, again)
		return nil
	}
	shown := func(path string) *host.MountEntry {
		at := host.MountsAt(mounts, path)
		if len(at) == 0 || !slices.ContainsFunc(devices, func(l host.LoopDevice) bool {
			return at[len(at)-1].ShowsDevice(l.Device)
		}) {
			return nil
		}
		return &at[len(at)-1]
	}
	if !rec.Stage.Block {
		staged, stopped := shown(rec.Stage.StagingPath), ""
		if staged != nil {
			stopped = d.attachments.StoppedBy(rec, *staged)
		}
		switch {
		case staged == nil:
			found.add(inaccessible, ReasonNotMounted, "volume %s is not mounted on its staging path %s any more: it was "+
				"unmounted by another program; %s",
				rec.ID, rec.Stage.StagingPath, again)
			return nil
		case stopped != "":
			found.add(degraded, ReasonFileSystemStopped, "volume %s: its %s takes no writes any more (%s) after an error, "+
				"which the kernel's log has; "+
				"%s, which also checks it", rec.ID, staged.FSType, stopped, again)
		}
	}
	if publishPath == "" || shown(publishPath) != nil {
		return nil
	}
	published, err := d.attachments.Published(rec.ID)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(published, func(p attach.Publication) bool { return p.TargetPath == publishPath }) {
		found.add(inaccessible, ReasonNotMounted, "volume %s is published on %s, but not mounted there any more: delete "+
			"the pod that uses it", rec.ID, publishPath)
	}
	return nil
}
