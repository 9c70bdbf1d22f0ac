package driver

import (
	"cmp"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/views"
)

// createFromView makes a volume whose source is a volume of a view: it shows the view, and nothing is copied. rec is
// the volume of that name, if there is one.
func (s *controllerServer) createFromView(r createRequest, rec *blockdev.VolumeRecord) (*csi.CreateVolumeResponse,
	error) {
	id := r.source.SnapshotID
	if rec == nil {
		var err error
		if rec, err = s.showView(r); err != nil {
			return nil, err
		}
	}
	if err := compatible(rec, r); err != nil {
		return nil, err
	}
	if rec.ID != id {
		return nil, status.Errorf(codes.AlreadyExists, "volume %q exists and shows another view (%s); choose another name",
			r.name, rec.ID)
	}
	return &csi.CreateVolumeResponse{Volume: s.volume(rec)}, nil
}

// showView makes the record of a volume that shows a view.
func (s *controllerServer) showView(r createRequest) (*blockdev.VolumeRecord, error) {
	id := r.source.SnapshotID
	shown, err := s.d.views.Find(id)
	if status.Code(err) == codes.NotFound && r.elsewhere {
		return nil, status.Errorf(codes.ResourceExhausted, "volume %q: view %s is not on node %s, and a volume that shows "+
			"it is nowhere else", r.name, id, s.d.opts.NodeID)
	}
	if err != nil {
		return nil, err
	}
	done, err := s.d.guards.Enter(id, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer done()
	if r.effective.Replicable || r.effective.Thick {
		return nil, status.Errorf(codes.InvalidArgument, "volume %q shows view %s of group %s, which takes neither a group "+
			"nor space of its own: use a StorageClass without parameters of replication and provisioning", r.name,
			shown.View.Name, shown.Group)
	}
	if required := r.capacity.GetRequiredBytes(); required > shown.Volume.SizeBytes {
		return nil, status.Errorf(codes.OutOfRange, "volume %q: %s are asked for; it shows view %s, where it has %d",
			r.name, words.Count(required, "byte"), shown.View.Name, shown.Volume.SizeBytes)
	}
	has := shown.Volume.FSType
	if !r.block && r.fsType != "" && has != "" && has != r.fsType {
		return nil, status.Errorf(codes.InvalidArgument, "volume %q: %s is asked for, and in view %s it has %s", r.name,
			r.fsType, shown.View.Name, has)
	}
	if other, err := s.d.store.Volume(id); err == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %q: %s of view %s is in use by volume %q: a volume of a "+
			"view is one volume; delete that, or open another view (slipctl view create %s)", r.name,
			shown.Volume.VolumeID, shown.View.Name, other.Name, shown.Group)
	} else if status.Code(err) != codes.NotFound {
		return nil, err
	}
	return s.d.views.Create(shown, blockdev.VolumeRecord{Name: r.name, FSType: cmp.Or(r.fsType, has), Parameters: r.own,
		MutableParameters: r.mutable, Claim: r.claim, Source: r.source})
}

// viewSnapshot is a volume of a view as a snapshot that volumes are made from.
func (d *Driver) viewSnapshot(s *views.Shown) *csi.Snapshot {
	taken := cmp.Or(s.View.PointUnixNanos, s.View.CreatedUnixNanos)
	return &csi.Snapshot{
		SnapshotId:         s.ID(),
		SourceVolumeId:     s.Volume.VolumeID,
		SizeBytes:          leastOf(s.Volume.SizeBytes, s.Volume.FSType),
		CreationTime:       timestamppb.New(time.Unix(0, taken)),
		ReadyToUse:         true,
		AccessibleTopology: []*csi.Topology{d.topology()},
	}
}

// keepsView refuses to delete one volume of a view as a snapshot; nil for an id that is of none.
func (d *Driver) keepsView(id string) error {
	shown, err := d.views.Find(id)
	switch {
	case status.Code(err) == codes.NotFound:
		return nil
	case err != nil:
		return err
	}
	return status.Errorf(codes.FailedPrecondition, "snapshot %s is a volume of view %s of group %s, which is deleted as "+
		"a whole: `slipctl view delete %[3]s %[2]s`", id, shown.View.Name, shown.Group)
}
