package sanity

import (
	"bytes"
	"cmp"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// metadataStream is either of the two streams of the service.
type metadataStream[R any] interface{ Recv() (R, error) }

// receive reads a stream to its end.
func receive[R interface {
	GetBlockMetadata() []*csi.BlockMetadata
	GetVolumeCapacityBytes() int64
}](stream metadataStream[R], err error) (ranges []*csi.BlockMetadata, capacity int64, _ error) {
	for err == nil {
		var r R
		if r, err = stream.Recv(); err == nil {
			ranges, capacity = append(ranges, r.GetBlockMetadata()...), r.GetVolumeCapacityBytes()
		}
	}
	if err == io.EOF {
		err = nil
	}
	return ranges, capacity, err
}

// TestSnapshotMetadata backs up a mounted volume as a backup program would, over the socket of the driver and over that
// of a controller in front of it: whole once, and then what changed.
func TestSnapshotMetadata(t *testing.T) {
	requireMachine(t)
	t.Run("node", func(t *testing.T) { backUp(t, startBinary) })
	t.Run("router", func(t *testing.T) { backUp(t, startRouted) })
}

func backUp(t *testing.T, start func(*testing.T, string) endpoints) {
	dir := testenv.MountFS(t, "mkfs.xfs", "-q", "-m", "reflink=1")
	at := start(t, dir)
	c := newClient(t, at.node, dir)
	conn := dial(t, cmp.Or(at.controller, at.node))
	defer conn.Close()
	c.controller = csi.NewControllerClient(conn)
	metadata := csi.NewSnapshotMetadataClient(conn)
	vc := fileSystem("ext4")
	const size = 64 * mib
	id := c.up("v", size, vc, nil)
	snapshot := func(name string) (snapshotID string, image []byte) {
		t.Helper()
		ctx, cancel := c.context()
		defer cancel()
		r, err := c.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: id})
		c.must(err)
		if !r.GetSnapshot().GetReadyToUse() {
			t.Fatalf("a clone is ready at once: %v", r)
		}
		snapshotID = r.GetSnapshot().GetSnapshotId()
		image, err = os.ReadFile(filepath.Join(dir, "pool", "snapshots", snapshotID, "image"))
		c.must(err)
		return snapshotID, image[:size]
	}
	write := func(name string, fill byte) {
		t.Helper()
		c.must(os.WriteFile(filepath.Join(c.target(id), name), bytes.Repeat([]byte{fill}, int(mib)), 0o600))
		fd, err := unix.Open(c.target(id), unix.O_RDONLY, 0)
		c.must(err)
		c.must(unix.Syncfs(fd))
		c.must(unix.Close(fd))
	}
	apply := func(to, from []byte, ranges []*csi.BlockMetadata) (n int64) {
		for _, r := range ranges {
			copy(to[r.GetByteOffset():r.GetByteOffset()+r.GetSizeBytes()], from[r.GetByteOffset():])
			n += r.GetSizeBytes()
		}
		return n
	}
	write("a", 'a')
	first, firstImage := snapshot("first")
	write("b", 'b')
	c.must(os.Remove(filepath.Join(c.target(id), "a")))
	second, secondImage := snapshot("second")

	ctx, cancel := c.context()
	defer cancel()
	whole, capacity, err := receive(metadata.GetMetadataAllocated(ctx, &csi.GetMetadataAllocatedRequest{
		SnapshotId: first, MaxResults: 3}))
	c.must(err)
	backup := make([]byte, capacity)
	n := apply(backup, firstImage, whole)
	if capacity != size || !bytes.Equal(backup, firstImage) || n >= size/2 {
		t.Fatalf("the whole backup: capacity %d, %d bytes in %d ranges; equal %t", capacity, n, len(whole),
			bytes.Equal(backup, firstImage))
	}
	delta, _, err := receive(metadata.GetMetadataDelta(ctx, &csi.GetMetadataDeltaRequest{BaseSnapshotId: first,
		TargetSnapshotId: second}))
	c.must(err)
	n = apply(backup, secondImage, delta)
	if !bytes.Equal(backup, secondImage) || n < mib || n >= size/2 {
		t.Fatalf("the incremental backup: %d bytes in %d ranges; equal %t", n, len(delta), bytes.Equal(backup, secondImage))
	}
	t.Logf("whole: %d ranges; incremental: %d ranges, %d bytes", len(whole), len(delta), n)

	_, _, err = receive(metadata.GetMetadataDelta(ctx, &csi.GetMetadataDeltaRequest{BaseSnapshotId: second,
		TargetSnapshotId: first}))
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("the wrong way round: %v", err)
	}
	for _, s := range []string{first, second} {
		_, err := c.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: s}, grpc.WaitForReady(true))
		c.must(err)
		_, _, err = receive(metadata.GetMetadataAllocated(ctx, &csi.GetMetadataAllocatedRequest{SnapshotId: s}))
		if status.Code(err) != codes.NotFound {
			t.Errorf("of a deleted snapshot: %v", err)
		}
	}
	c.down(id)
}
