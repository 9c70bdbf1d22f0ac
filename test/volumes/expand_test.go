package volumes

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// writeRandom writes n random bytes to a file or device from off on, durably, and returns their hash.
func (s *sites) writeRandom(path string, off, n int64) [32]byte {
	s.t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	s.must(err)
	defer f.Close()
	hash := sha256.New()
	random := rand.NewChaCha8([32]byte{byte(off >> 20), byte(n >> 20)})
	_, err = io.CopyN(io.MultiWriter(io.NewOffsetWriter(f, off), hash), random, n)
	s.must(err)
	s.must(f.Sync())
	return [32]byte(hash.Sum(nil))
}

func (s *sites) hash(path string, off, n int64) [32]byte {
	s.t.Helper()
	f, err := os.Open(path)
	s.must(err)
	defer f.Close()
	hash := sha256.New()
	_, err = io.Copy(hash, io.NewSectionReader(f, off, n))
	s.must(err)
	return [32]byte(hash.Sum(nil))
}

// TestExpandAtBothSites grows a volume while it is mounted and written to, first with the peer there, then with the
// peer away, and writes more each time than fitted before. The copy gets the size and the data, and opens.
func TestExpandAtBothSites(t *testing.T) {
	for _, kind := range []struct {
		name  string
		sizes [3]int64 // before, after the first and after the second expansion
		o     testsite.VolumeOptions
	}{
		{"ext4", [3]int64{64 * mib, 160 * mib, 288 * mib}, testsite.VolumeOptions{FSType: "ext4"}},
		{"xfs", [3]int64{320 * mib, 448 * mib, 608 * mib}, testsite.VolumeOptions{FSType: "xfs"}},
		{"block", [3]int64{32 * mib, 48 * mib, 96 * mib}, testsite.VolumeOptions{Block: true}},
		{"thick block", [3]int64{32 * mib, 48 * mib, 96 * mib},
			testsite.VolumeOptions{Block: true, Parameters: map[string]string{parameter.KeyProvisioning: "thick"}}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			if kind.o.FSType == "ext4" && !host.CanGrowMountedExt4() {
				t.Skip("this machine does not let ext4 grow while it is mounted (no CAP_SYS_RESOURCE)")
			}
			s := newSites(t)
			o := kind.o
			o.Name, o.SizeBytes = "v", kind.sizes[0]
			v, path := s.create(o)
			s.settle()

			hashes := map[string][32]byte{}
			// extend grows the volume, and then writes 16 MiB that end with the new end of a device, or a file that the
			// file system had no room for before.
			extend := func(from, to int64) {
				t.Helper()
				for range 2 { // a repetition changes nothing
					s.must(s.A.Expand(s.ctx, v, to, 0))
				}
				if o.Block {
					hashes[path] = s.writeRandom(path, to-16*mib, 16*mib)
					return
				}
				file := filepath.Join(path, filepath.Base(t.Name())+string(rune('a'+len(hashes))))
				hashes[file] = s.writeRandom(file, 0, to-from-32*mib)
			}
			extend(kind.sizes[0], kind.sizes[1])
			s.settle()
			if got := s.sizeAt(s.B, v); got != kind.sizes[1] {
				t.Errorf("the copy's image has %d bytes, want %d", got, kind.sizes[1])
			}

			s.must(s.B.Replicator().Kill())
			extend(kind.sizes[1], kind.sizes[2])
			if got := s.sizeAt(s.B, v); got != kind.sizes[1] {
				t.Errorf("without its replicator the copy's image has %d bytes", got)
			}
			if err := s.A.Expand(s.ctx, v, 0, kind.sizes[1]); status.Code(err) != codes.OutOfRange {
				t.Errorf("shrinking: %v, want OutOfRange", err)
			}
			s.must(s.B.Start(s.ctx))
			s.settle()

			s.must(s.A.Unmount(s.ctx, v))
			s.settle()
			s.sameImages(v, kind.sizes[2])
			_, err := s.A.Sidecar.Demote(s.ctx, &sidecarpb.DemoteRequest{Group: group})
			s.must(err)
			_, err = s.B.WaitGroup(s.ctx, group, "promoted", func(*sidecarpb.GroupStatus) bool {
				_, err := s.B.Sidecar.Promote(s.ctx, &sidecarpb.PromoteRequest{Group: group})
				return err == nil
			})
			s.must(err)
			copied, err := s.B.Mount(s.ctx, v)
			s.must(err)
			for file, want := range hashes {
				off, n := int64(0), int64(1)<<62
				at := filepath.Join(copied, filepath.Base(file))
				if o.Block {
					at, off, n = copied, kind.sizes[2]-16*mib, 16*mib
				}
				if s.hash(at, off, n) != want {
					t.Errorf("%s has other contents at the other site", filepath.Base(file))
				}
			}
			// And it grows there.
			s.must(s.B.Expand(s.ctx, v, kind.sizes[2]+16*mib, 0))
		})
	}
}

func (s *sites) sizeAt(site *testsite.Site, v *testsite.Volume) int64 {
	s.t.Helper()
	info, err := os.Stat(site.Image(v))
	s.must(err)
	return info.Size()
}
