package volumes

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestFrozenSnapshot takes a group snapshot of two plain volumes that are mounted and have pages that no call has
// flushed. The freeze that the class asks for brings them in. Both are restored to twice the size and mounted beside
// their origins, which XFS refuses for file systems with one UUID unless it is told not to care.
func TestFrozenSnapshot(t *testing.T) {
	for fsType, size := range map[string]int64{"ext4": 64 * mib, "xfs": 320 * mib} {
		t.Run(fsType, func(t *testing.T) {
			larger := 2 * size
			if fsType == "ext4" && !host.CanGrowMountedExt4() {
				t.Log("restored to the same size: this machine does not let ext4 grow while it is mounted (no CAP_SYS_RESOURCE)")
				larger = size
			}
			s := newSites(t)
			var origins []*testsite.Volume
			var paths []string
			var want [][32]byte
			for i, name := range []string{"stock", "sales"} {
				v, err := s.A.CreateVolume(s.ctx, testsite.VolumeOptions{Name: name, SizeBytes: size, FSType: fsType})
				s.must(err)
				path, err := s.A.Mount(s.ctx, v)
				s.must(err)
				data := make([]byte, 8*mib)
				_, err = rand.NewChaCha8([32]byte{byte(i)}).Read(data)
				s.must(err)
				s.must(os.WriteFile(filepath.Join(path, "unflushed"), data, 0o600))
				origins, paths, want = append(origins, v), append(paths, path), append(want, sha256.Sum256(data))
			}
			if _, err := s.A.GroupSnapshot(s.ctx, "unfrozen", origins, nil); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a group snapshot of plain volumes without a freeze: %v, want FailedPrecondition", err)
			}
			snapshot := s.ready(s.A, "frozen", origins, map[string]string{parameter.KeyFreeze: "true"})
			for _, path := range paths { // thawed again
				s.must(os.WriteFile(filepath.Join(path, "later"), nil, 0o600))
			}
			for i, origin := range origins {
				v, path := s.restore(s.A, snapshot, origin, testsite.VolumeOptions{SizeBytes: larger, FSType: fsType})
				if got := s.hash(filepath.Join(path, "unflushed"), 0, 1<<62); got != want[i] {
					t.Errorf("%s: what was not flushed before the snapshot is not in it", origin.ID)
				}
				s.absent(filepath.Join(path, "later"))
				var before, after unix.Statfs_t
				s.must(unix.Statfs(paths[i], &before))
				s.must(unix.Statfs(path, &after))
				if a, b := int64(after.Blocks)*after.Bsize, int64(before.Blocks)*before.Bsize; a < b+(larger-size)/2 {
					t.Errorf("%s: the restored file system has %d bytes, its origin %d", v.ID, a, b)
				}
			}
		})
	}
}

// TestSnapshotAtTheSecondary takes a group snapshot of the copies of two mounted volumes, which go on being written to.
// What is restored from it opens at the secondary, with what was flushed before and nothing of later.
func TestSnapshotAtTheSecondary(t *testing.T) {
	for fsType, size := range map[string]int64{"ext4": 64 * mib, "xfs": 320 * mib} {
		t.Run(fsType, func(t *testing.T) {
			s := newSites(t)
			var origins []*testsite.Volume
			var paths []string
			var want [][32]byte
			for _, name := range []string{"stock", "sales"} {
				v, path := s.create(testsite.VolumeOptions{Name: name, SizeBytes: size, FSType: fsType})
				origins, paths = append(origins, v), append(paths, path)
				want = append(want, s.writeRandom(filepath.Join(path, "before"), 0, 4*mib+int64(len(want))*mib))
			}
			s.settle()
			snapshot := s.ready(s.B, "copies", origins, nil)
			for _, path := range paths {
				s.writeRandom(filepath.Join(path, "later"), 0, mib)
			}
			s.settle()
			for i, origin := range origins {
				_, path := s.restore(s.B, snapshot, origin, testsite.VolumeOptions{SizeBytes: size, FSType: fsType})
				if got := s.hash(filepath.Join(path, "before"), 0, 1<<62); got != want[i] {
					t.Errorf("%s: other contents in the snapshot at the secondary", origin.ID)
				}
				s.absent(filepath.Join(path, "later"))
			}
		})
	}
}

// ready takes a group snapshot and waits until it is ready to use.
func (s *sites) ready(at *testsite.Site, name string, volumes []*testsite.Volume,
	parameters map[string]string) *csi.VolumeGroupSnapshot {
	s.t.Helper()
	snapshot, err := at.GroupSnapshot(s.ctx, name, volumes, parameters)
	s.must(err)
	s.until("the group snapshot is ready to use", func() bool {
		snapshot, err = at.GetGroupSnapshot(s.ctx, snapshot.GetGroupSnapshotId())
		s.must(err)
		return snapshot.GetReadyToUse()
	})
	return snapshot
}

// restore makes a volume from the member of a group snapshot that is of origin, and mounts it.
func (s *sites) restore(at *testsite.Site, snapshot *csi.VolumeGroupSnapshot, origin *testsite.Volume,
	o testsite.VolumeOptions) (*testsite.Volume, string) {
	s.t.Helper()
	for _, member := range snapshot.GetSnapshots() {
		if member.GetSourceVolumeId() == origin.ID {
			o.SnapshotID = member.GetSnapshotId()
		}
	}
	if o.SnapshotID == "" {
		s.t.Fatalf("group snapshot %s has no member of %s", snapshot.GetGroupSnapshotId(), origin.ID)
	}
	o.Name = "from-" + o.SnapshotID
	var v *testsite.Volume
	s.until("the volume is restored", func() (ok bool) {
		var err error
		v, err = at.CreateVolume(s.ctx, o)
		if code := status.Code(err); code == codes.Aborted || code == codes.Unavailable {
			return false // is being copied
		}
		s.must(err)
		return true
	})
	path, err := at.Mount(s.ctx, v)
	s.must(err)
	return v, path
}

func (s *sites) absent(path string) {
	s.t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("%s: %v, want that there is no such file", path, err)
	}
}
