package volumes

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// TestDiscardAtBothSites fills a volume, deletes what was written and discards: a thin volume gives the space back at
// both sites, a thick one keeps it at both, from its first day on.
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
				o.Parameters = map[string]string{parameter.KeyProvisioning: parameter.ProvisioningThick}
			}
			if tc.online {
				o.MountFlags = []string{"discard"}
			}
			v, path := s.create(o)
			takes := func(least, most int64) error {
				if tc.thick {
					least, most = size, size+mib
				}
				s.settle()
				for _, site := range []*testsite.Site{s.A, s.B} {
					if n := s.allocated(site, v); n < least || n > most {
						return fmt.Errorf("the image at %s takes %d bytes, want %d to %d", site.Config.Name, n, least, most)
					}
				}
				return nil
			}
			check := func(when string, least, most int64) {
				t.Helper()
				if err := takes(least, most); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
			check("new", 1, metadata)
			file := filepath.Join(path, "file")
			s.writeRandom(file, 0, written)
			check("written", written, written+metadata)
			s.must(os.Remove(file))
			// XFS frees a deleted file's blocks in the background, and no file system discards what its log does not say is
			// free: a sync that comes too early leaves that to the log's own timer, which is half a minute.
			discarded := func() error {
				s.run("sync", "-f", path)
				if !tc.online {
					s.run("fstrim", path)
				}
				return takes(1, metadata)
			}
			err := discarded()
			for attempt := 0; err != nil && attempt < 200; attempt++ {
				time.Sleep(200 * time.Millisecond)
				err = discarded()
			}
			if err != nil {
				t.Errorf("discarded: %v", err)
			}
			s.must(s.A.Unmount(s.ctx, v))
			s.settle()
			s.sameImages(v, size)
		})
	}
}
