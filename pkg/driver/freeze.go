package driver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// freezeLimit is how long file systems stay frozen at most, whatever happens to the call that froze them.
const freezeLimit = 30 * time.Second

// errNotFrozen is returned by FileSystems.Thaw for a file system that is not frozen.
var errNotFrozen = errors.New("file system is not frozen")

// frozen are the file systems of volumes that are frozen together.
type frozen struct {
	d     *Driver
	timer *time.Timer

	mu    sync.Mutex
	paths []string
	err   error // why the freeze did not last
}

// freeze freezes the file systems of staged volumes; volumes that are not staged, or raw, are left out. The records of the
// snapshots that it is for are in the pool, in state creating and with the parameter, so that a driver that dies leaves a
// note for the next one (see thawLeftOver). The calls for the volumes are guarded. thaw has to be called, and says
// whether all stayed frozen until then.
func (d *Driver) freeze(ctx context.Context, recs []*blockdev.VolumeRecord) (f *frozen, err error) {
	f = &frozen{d: d}
	for _, rec := range recs {
		if rec.Stage == nil || rec.Stage.Block {
			continue
		}
		entry, err := d.mountOn(rec, rec.Stage.StagingPath)
		if err != nil {
			return nil, errors.Join(err, f.thaw())
		}
		if entry == nil {
			continue
		}
		device, err := d.device(rec)
		if err == nil {
			if f.timer == nil {
				f.timer = time.AfterFunc(freezeLimit, f.expire)
			}
			err = d.freezeOne(ctx, entry.Mountpoint, device.Path)
		}
		if err != nil {
			if terr := f.thaw(); terr != nil {
				klog.ErrorS(terr, "Thawing after a freeze that failed", "volume", rec.ID)
			}
			return nil, status.Errorf(codes.FailedPrecondition, "volume %s: freeze its file system on %s: %v; see who else has frozen it, or take the snapshot without %s",
				rec.ID, entry.Mountpoint, err, ParamFreeze)
		}
		f.mu.Lock()
		f.paths = append(f.paths, entry.Mountpoint)
		f.mu.Unlock()
	}
	return f, nil
}

func (d *Driver) freezeOne(ctx context.Context, path, device string) error {
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	return d.filesystems.Freeze(ctx, path, device)
}

// any reports whether anything is frozen.
func (f *frozen) any() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.paths) > 0
}

// expire thaws when the time is up.
func (f *frozen) expire() {
	f.thawAll(errors.New("the file systems were frozen for as long as they may be"))
}

// thaw ends the freeze. An error says that it did not last until now: what was taken meanwhile is of no use.
func (f *frozen) thaw() error {
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
	if len(f.paths) > 0 && f.err == nil {
		f.err = why
	}
	for _, path := range slices.Backward(f.paths) {
		if err := f.d.filesystems.Thaw(path); err != nil {
			klog.ErrorS(err, "Thawing a file system", "path", path)
			if f.err == nil {
				f.err = err
			}
		}
	}
	f.paths = nil
}

// thawLeftOver thaws what a driver that died left frozen.
func (d *Driver) thawLeftOver(rec *blockdev.SnapshotRecord) error {
	if rec.State != blockdev.SnapshotCreating || rec.Parameters[ParamFreeze] != "true" {
		return nil
	}
	volume, err := d.volume(rec.SourceVolumeID)
	if status.Code(err) == codes.NotFound || (err == nil && volume.Stage == nil) {
		return nil
	}
	if err != nil {
		return err
	}
	entry, err := d.mountOn(volume, volume.Stage.StagingPath)
	if err != nil || entry == nil || d.isNode(volume, *entry) {
		return err
	}
	err = d.filesystems.Thaw(entry.Mountpoint)
	if errors.Is(err, errNotFrozen) {
		return nil
	}
	klog.InfoS("Thawed a file system that an interrupted snapshot had left frozen", "volume", volume.ID, "path", entry.Mountpoint, "err", err)
	return err
}
