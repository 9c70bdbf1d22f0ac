package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/driver"
)

// TestDiscardAtBothSites fills a volume, deletes what was written and discards: a thin volume gives the space back at both sites,
// a thick one keeps it at both, from its first day on.
func TestDiscardAtBothSites(t *testing.T) {
	for _, tc := range []struct {
		fsType string
		thick  bool
		online bool // by a mount option, not by fstrim
	}{
		{"ext4", false, false}, {"ext4", true, true}, {"xfs", false, true}, {"xfs", true, false},
	} {
		t.Run(fmt.Sprintf("%s/thick %t/mount option %t", tc.fsType, tc.thick, tc.online), func(t *testing.T) {
			const size, written = 320 * mib, 96 * mib
			const metadata = 64 * mib // of an empty file system with its log, at most
			s := newSites(t)
			o := testsite.VolumeOptions{Name: "v", SizeBytes: size, FSType: tc.fsType}
			if tc.thick {
				o.Parameters = map[string]string{driver.ParamProvisioning: driver.ProvisioningThick}
			}
			if tc.online {
				o.MountFlags = []string{"discard"}
			}
			v, path := s.create(o)
			check := func(when string, least, most int64) {
				t.Helper()
				if tc.thick {
					least, most = size, size+mib
				}
				s.settle()
				for _, site := range []*testsite.Site{s.A, s.B} {
					n := s.allocated(site, v)
					t.Logf("%s, the image at %s takes %d MiB", when, site.Config.Name, n/mib)
					if n < least || n > most {
						t.Errorf("%s, the image at %s takes %d bytes, want %d to %d", when, site.Config.Name, n, least, most)
					}
				}
			}
			check("new", 1, metadata)
			file := filepath.Join(path, "file")
			s.writeRandom(file, 0, written)
			check("written", written, written+metadata)
			s.must(os.Remove(file))
			s.run("sync", "-f", path) // what is not in its log yet, a file system does not discard
			if !tc.online {
				s.run("fstrim", path)
			}
			check("discarded", 1, metadata)
			s.must(s.A.Unmount(s.ctx, v))
			s.settle()
			s.sameImages(v, size)
		})
	}
}
