package attach

import (
	"context"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
)

// A volume that shows a view differs from a replicable one in this: the view is served before it is staged and after it
// is unstaged, since a view is opened and deleted as a whole; and a view that was opened read-only is mounted as such,
// whatever access mode is asked for.

// serve has the replicator serve the file that a volume's device is to be over.
func (d *Attacher) serve(ctx context.Context, rec *blockdev.VolumeRecord) (replicator.Attachment, error) {
	if rec.View == nil {
		return d.sidecar.AttachVolume(ctx, rec.ID)
	}
	return d.sidecar.AttachView(ctx, rec)
}

// AsShown is a capability as a volume can be used with it. A device that takes no writes cannot be recovered, so a
// file system that is on it is mounted without.
func AsShown(rec *blockdev.VolumeRecord, want capability.Volume) capability.Volume {
	if rec.View == nil || rec.View.Writable || want.Block {
		return want
	}
	unrecovered := "noload"
	if FSTypeOf(rec.FSType, rec.Format) == blockdev.FSXFS {
		unrecovered = "norecovery"
	}
	want.MountOptions = slices.Clone(want.MountOptions)
	for _, option := range []string{"ro", unrecovered} {
		if !slices.Contains(want.MountOptions, option) {
			want.MountOptions = append(want.MountOptions, option)
		}
	}
	return want
}
