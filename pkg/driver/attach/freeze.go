package attach

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

// FreezeLimit is how long file systems stay frozen at most, whatever happens to the call that froze them.
const FreezeLimit = 30 * time.Second

// frozen are the file systems of volumes that are frozen together.
type frozen struct {
	d     *Attacher
	timer *time.Timer

	mu  sync.Mutex
	fss []frozenFS
	err error // why the freeze did not last
}

type frozenFS struct{ path, snapshotID string }

// NotFrozen is a freeze of no file system.
func (d *Attacher) NotFrozen() *frozen { return &frozen{d: d} }

// Freeze freezes the file systems of staged volumes; volumes that are not staged, or raw, are left out. snaps are the
// records, in state creating, of the snapshots that it is for. Each says so before its file system is frozen and
// until it is thawed, so that a driver that dies leaves a note for the next one (see thawLeftOver), and so that
// nothing is thawed that another program has frozen. The calls for the volumes are guarded. thaw has to be called,
// and says whether all stayed frozen until then.
func (d *Attacher) Freeze(ctx context.Context, recs []*blockdev.VolumeRecord,
	snaps []*blockdev.SnapshotRecord) (f *frozen, err error) {
	f = &frozen{d: d}
	for i, rec := range recs {
		if rec.Stage == nil || rec.Stage.Block {
			continue
		}
		entry, err := d.MountOn(rec, rec.Stage.StagingPath)
		if err != nil {
			return nil, errors.Join(err, f.Thaw())
		}
		if entry == nil {
			continue
		}
		device, err := d.device(rec)
		if err == nil {
			if f.timer == nil {
				f.timer = time.AfterFunc(FreezeLimit, f.expire)
			}
			err = f.add(ctx, frozenFS{entry.Mountpoint, snaps[i].ID}, device.Path)
		}
		if err != nil {
			if terr := f.Thaw(); terr != nil {
				klog.ErrorS(terr, "Thawing after a freeze that failed", "volume", rec.ID)
			}
			return nil, status.Errorf(codes.FailedPrecondition, "volume %s: freeze its file system on %s: %v; see who else "+
				"has frozen it, or take the snapshot without %s",
				rec.ID, entry.Mountpoint, err, parameter.KeyFreeze)
		}
	}
	return f, nil
}

// add freezes one file system. After an error it is not frozen, unless by another program.
func (f *frozen) add(ctx context.Context, fs frozenFS, device string) error {
	if err := f.d.noteFreeze(fs.snapshotID, true); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, FreezeLimit)
	defer cancel()
	if err := f.d.Filesystems.Freeze(limited, fs.path, device); err != nil {
		return errors.Join(err, f.d.noteFreeze(fs.snapshotID, false))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fss = append(f.fss, fs)
	return nil
}

func (d *Attacher) noteFreeze(snapshotID string, freezing bool) error {
	if _, err := d.store.Pool.UpdateSnapshot(snapshotID, func(r *blockdev.SnapshotRecord) error {
		r.Freezing = freezing
		return nil
	}); err != nil {
		return store.SnapshotError("note the freeze for", snapshotID, err)
	}
	return nil
}

// Any reports whether anything is frozen.
func (f *frozen) Any() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.fss) > 0
}

// expire thaws when the time is up.
func (f *frozen) expire() {
	f.thawAll(errors.New("the file systems were frozen for as long as they may be"))
}

// Thaw ends the freeze. An error says that it did not last until now: what was taken meanwhile is of no use.
func (f *frozen) Thaw() error {
	if f.timer != nil {
		f.timer.Stop()
	}
	f.thawAll(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *frozen) thawAll(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.fss) > 0 && f.err == nil {
		f.err = why
	}
	for _, fs := range slices.Backward(f.fss) {
		err := f.d.Filesystems.Thaw(fs.path)
		if err != nil {
			klog.ErrorS(err, "Thawing a file system", "path", fs.path)
			if f.err == nil {
				f.err = err
			}
		}
		if err == nil || errors.Is(err, host.ErrNotFrozen) {
			if err := f.d.noteFreeze(fs.snapshotID, false); err != nil {
				klog.ErrorS(err, "A file system is thawed, and its snapshot's record does not say so", "path", fs.path)
			}
		}
	}
	f.fss = nil
}

// ThawLeftOver thaws what a driver that died had frozen for a snapshot, or was freezing.
func (d *Attacher) ThawLeftOver(snapshotID string) error {
	rec, err := d.store.Snapshot(snapshotID)
	if status.Code(err) == codes.NotFound {
		return nil
	}
	if err != nil || !rec.Freezing {
		return err
	}
	volume, err := d.store.Volume(rec.SourceVolumeID)
	if status.Code(err) == codes.NotFound || (err == nil && volume.Stage == nil) {
		return nil
	}
	if err != nil {
		return err
	}
	entry, err := d.MountOn(volume, volume.Stage.StagingPath)
	if err != nil || entry == nil || d.IsNode(volume, *entry) {
		return err
	}
	err = d.Filesystems.Thaw(entry.Mountpoint)
	if !errors.Is(err, host.ErrNotFrozen) {
		klog.InfoS("Thawed a file system that an interrupted snapshot had left frozen", "volume", volume.ID, "path",
			entry.Mountpoint, "err", err)
		if err != nil {
			return err
		}
	}
	if err := d.noteFreeze(snapshotID, false); err != nil {
		// a full pool
		klog.ErrorS(err, "A file system is thawed, and its snapshot's record does not say so", "path", entry.Mountpoint)
	}
	return nil
}

// thawToUnmount thaws a file system whose last mount is about to go. The kernel unmounts a frozen one too, and keeps
// it, frozen, without a path by which it could be thawed, and with it the device.
func (d *Attacher) thawToUnmount(rec *blockdev.VolumeRecord, mounts []host.MountEntry, top host.MountEntry) error {
	last := 0
	for _, m := range mounts {
		if m.Device == top.Device {
			last++
		}
	}
	if last != 1 || d.IsNode(rec, top) {
		return nil
	}
	switch err := d.Filesystems.Thaw(top.Mountpoint); {
	case err == nil:
		klog.InfoS("Thawed a file system that another program had left frozen, to unmount it", "volume", rec.ID, "path",
			top.Mountpoint)
	case errors.Is(err, host.ErrNotFrozen), errors.Is(err, syscall.EIO): // EIO: it is stopped and answers nothing
	default:
		return status.Errorf(codes.Unavailable, "volume %s: see whether its file system is frozen before it is unmounted: "+
			"%v; call again", rec.ID, err)
	}
	return nil
}
