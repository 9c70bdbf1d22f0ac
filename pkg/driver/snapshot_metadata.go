package driver

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockmap"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// maxTuples is how many ranges one message has, whatever the caller allows: 16 KiB or so.
const maxTuples = 1000

// snapshotMetadataServer says which ranges of a snapshot hold data, and which may differ between two snapshots of a
// volume.
//
// Its answers are supersets: they never lack a range that matters, and may have one that does not. They come from what
// the file system has allocated and shares, and from the change sets that a group keeps of its snapshots, and never
// from a comparison of contents. Ranges have variable lengths, in whole logical blocks.
type snapshotMetadataServer struct {
	csi.UnimplementedSnapshotMetadataServer
	d *Driver
}

// GetMetadataAllocated streams the ranges that may hold other than zeros.
func (s *snapshotMetadataServer) GetMetadataAllocated(req *csi.GetMetadataAllocatedRequest,
	stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if err := checkWindow(req.GetStartingOffset(), req.GetMaxResults()); err != nil {
		return err
	}
	rec, image, err := s.openForMetadata("snapshot_id", req.GetSnapshotId(), req.GetStartingOffset())
	if err != nil {
		return err
	}
	defer image.Close()
	return streamRanges(stream.Context(), rec, blockmap.Allocated(image), req.GetStartingOffset(), req.GetMaxResults(),
		func(list []*csi.BlockMetadata) error {
			return stream.Send(&csi.GetMetadataAllocatedResponse{BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH,
				VolumeCapacityBytes: rec.SizeBytes, BlockMetadata: list})
		})
}

// GetMetadataDelta streams the ranges of the target that may differ from the base. Where nothing better is known of two
// snapshots these are all that either has allocated.
func (s *snapshotMetadataServer) GetMetadataDelta(req *csi.GetMetadataDeltaRequest,
	stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if err := checkWindow(req.GetStartingOffset(), req.GetMaxResults()); err != nil {
		return err
	}
	base, baseImage, err := s.openForMetadata("base_snapshot_id", req.GetBaseSnapshotId(), 0)
	if err != nil {
		return err
	}
	defer baseImage.Close()
	target, targetImage, err := s.openForMetadata("target_snapshot_id", req.GetTargetSnapshotId(), req.GetStartingOffset())
	if err != nil {
		return err
	}
	defer targetImage.Close()
	m, err := s.differing(base, target, baseImage, targetImage)
	if err != nil {
		return err
	}
	return streamRanges(stream.Context(), target, m, req.GetStartingOffset(), req.GetMaxResults(),
		func(list []*csi.BlockMetadata) error {
			return stream.Send(&csi.GetMetadataDeltaResponse{BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH,
				VolumeCapacityBytes: target.SizeBytes, BlockMetadata: list})
		})
}

func checkWindow(startingOffset int64, maxResults int32) error {
	switch {
	case maxResults < 0:
		return status.Errorf(codes.InvalidArgument, "max_results %d is negative", maxResults)
	case startingOffset < 0:
		return status.Errorf(codes.OutOfRange, "starting_offset %d is negative", startingOffset)
	}
	return nil
}

// openForMetadata opens the image of a snapshot that is ready. An error is a status error; field is the request's, for
// its message.
func (s *snapshotMetadataServer) openForMetadata(field, id string,
	startingOffset int64) (*blockdev.SnapshotRecord, vfs.File, error) {
	if id == "" {
		return nil, nil, status.Errorf(codes.InvalidArgument, "%s is missing", field)
	}
	rec, err := s.d.store.Snapshot(id)
	if err == nil && rec.Parameters[store.NoteClone] != "" {
		err = status.Errorf(codes.NotFound, "snapshot %q: not in the pool", id)
	}
	if err == nil {
		err = store.SnapshotFailure(rec)
	}
	switch {
	case err != nil:
		return nil, nil, status.Errorf(status.Code(err), "%s: %s", field, status.Convert(err).Message())
	case rec.State != blockdev.SnapshotReady:
		// Not FailedPrecondition, which would have the caller copy everything instead.
		return nil, nil, status.Errorf(codes.Unavailable, "snapshot %s is not ready yet (%s, %d of %s): call again "+
			"when it is",
			id, rec.State, rec.CopiedBytes, words.Count(rec.SizeBytes, "byte"))
	case startingOffset > rec.SizeBytes:
		return nil, nil, status.Errorf(codes.OutOfRange, "starting_offset %d is behind the end of snapshot %s, which has "+
			"%s", startingOffset, id, words.Count(rec.SizeBytes, "byte"))
	}
	path, err := s.d.store.Pool.SnapshotImagePath(id)
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "snapshot %s: %v", id, err)
	}
	image, err := s.d.attachments.FS.OpenReadOnly(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := s.d.store.Pool.GetSnapshot(id); errors.Is(err, blockdev.ErrNoSnapshot) {
			return nil, nil, status.Errorf(codes.NotFound, "%s: snapshot %q was deleted", field, id)
		}
	}
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "snapshot %s: %v; it cannot be restored from: delete it and take "+
			"another", id, err)
	}
	if size, err := image.Size(); err != nil || size < rec.SizeBytes {
		image.Close()
		return nil, nil, status.Errorf(codes.Internal, "snapshot %s: its image %s has %d of %s (%v): delete it and "+
			"take another", id, path, size, words.Count(rec.SizeBytes, "byte"), err)
	}
	return rec, image, nil
}

// differing returns where two snapshots may differ. An error is a status error: InvalidArgument unless they are of one
// volume and the base is the older.
func (s *snapshotMetadataServer) differing(base, target *blockdev.SnapshotRecord, baseImage,
	targetImage vfs.File) (blockmap.Map, error) {
	switch {
	case base.SourceVolumeID != target.SourceVolumeID:
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %s is of volume %s and snapshot %s of volume %s: both "+
			"have to be of one volume",
			base.ID, base.SourceVolumeID, target.ID, target.SourceVolumeID)
	case base.ID == target.ID:
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %s is base and target: name two", base.ID)
	}
	set, err := s.changesBetween(base.ID, target.ID)
	if err == nil {
		return changedExtents(set), nil
	}
	if !errors.Is(err, changes.ErrUnrelated) {
		return nil, status.Errorf(codes.Internal, "what changed between snapshots %s and %s: %v", base.ID, target.ID, err)
	}
	// The chain of parents goes before the clock, which may have been set back.
	_, err = s.changesBetween(target.ID, base.ID)
	if err != nil && !errors.Is(err, changes.ErrUnrelated) {
		return nil, status.Errorf(codes.Internal, "what changed between snapshots %s and %s: %v", target.ID, base.ID, err)
	}
	if err == nil || store.TakenAt(target).Before(store.TakenAt(base)) {
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %s is older than snapshot %s, which is given as its "+
			"base: exchange them", target.ID, base.ID)
	}
	m, err := blockmap.Differing(baseImage, targetImage)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "what snapshots %s and %s share: %v", base.ID, target.ID, err)
	}
	return m, nil
}

// changesBetween is changes.Between, again where a snapshot between the two was deleted while it was read: its set went
// to the next one.
func (s *snapshotMetadataServer) changesBetween(base, target string) (set *changemap.Map, err error) {
	const deletions = 10 // that may come in between; each takes longer than a look
	for range deletions {
		set, err = changes.Between(s.d.attachments.FS, s.d.store.Pool, base, target)
		if !errors.Is(err, blockdev.ErrNoSnapshot) {
			return set, err
		}
	}
	return nil, err
}

func changedExtents(set *changemap.Map) blockmap.Map {
	return func(off int64) (int64, int64, error) {
		volume, extent, n, ok := set.NextRun(changemap.Cursor{Extent: uint64(off) / changemap.ExtentBytes}, math.MaxInt64)
		if !ok || volume != 0 {
			return 0, 0, io.EOF
		}
		return max(off, int64(extent)*changemap.ExtentBytes), int64(extent+n) * changemap.ExtentBytes, nil
	}
}

// streamRanges sends what a map has from an offset on. It sends at least one message, so that the caller learns the
// volume's size.
func streamRanges(ctx context.Context, rec *blockdev.SnapshotRecord, m blockmap.Map, from int64, maxResults int32,
	send func([]*csi.BlockMetadata) error) error {
	most := maxTuples
	if maxResults > 0 {
		most = min(most, int(maxResults))
	}
	next := blockmap.Window(m, from, rec.SizeBytes, rec.BlockSizeBytes)
	for first := true; ; first = false {
		var list []*csi.BlockMetadata
		var ended bool
		for len(list) < most && !ended {
			if err := ctx.Err(); err != nil {
				return status.FromContextError(err).Err()
			}
			start, end, err := next()
			switch {
			case err == io.EOF:
				ended = true
			case err != nil:
				return status.Errorf(codes.Internal, "snapshot %s: %v", rec.ID, err)
			default:
				list = append(list, &csi.BlockMetadata{ByteOffset: start, SizeBytes: end - start})
			}
		}
		if len(list) > 0 || first {
			if err := send(list); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
	}
}
