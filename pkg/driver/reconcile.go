package driver

import (
	"context"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// reconcile brings the machine in line with the records after the driver, or the node, went down at any point:
//
//   - what interrupted creations and deletions left in the pool is removed;
//   - a loop device over a file of this pool that no record calls staged is detached;
//   - the writeback of staged replicable volumes goes on;
//   - what an interrupted snapshot left frozen is thawed, and copies go on.
//
// A volume whose record says staged and whose device or mount is gone, as after a reboot, stays as it is: whether it is
// needed again only the CO knows, which repeats NodeStageVolume or NodeUnstageVolume. Nothing that is mounted is ever
// unmounted here.
func (d *Driver) reconcile(ctx context.Context) error {
	swept, err := d.store.Pool.Sweep()
	if err != nil {
		klog.ErrorS(err, "What interrupted calls had left cannot be removed; it takes space, and the next start tries again",
			"pool", d.opts.PoolDir)
	}
	if len(swept) > 0 {
		klog.InfoS("Removed what interrupted calls had left", "paths", swept)
	}
	recs, err := d.store.Volumes()
	if err != nil {
		return err
	}
	var staged []*blockdev.VolumeRecord
	for _, rec := range recs {
		if rec.Stage == nil {
			continue
		}
		staged = append(staged, rec)
		if rec.Served() && rec.Order != blockdev.OrderAck {
			// The file is opened in the background, when the replicator answers.
			if err := d.attachments.Writeback.Add(d.attachments.BackingPath(rec)); err != nil {
				return fmt.Errorf("volume %s: %w", rec.ID, err)
			}
		}
	}
	if err := d.attachments.DetachOrphans(ctx, staged); err != nil {
		return err
	}
	if err := d.snapshots.ReconcileSnapshots(ctx); err != nil {
		return err
	}
	d.snapshots.ResumeFills(recs)
	return nil
}
