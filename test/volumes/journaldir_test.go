package volumes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// TestJournalsOnAnotherFileSystem: groups live on the disk that they were given, only as large as it allows. Without
// that disk the site does not start, whatever is in its volumes' images; with it, everything that was flushed is there.
func TestJournalsOnAnotherFileSystem(t *testing.T) {
	disk := testenv.MountFS(t, "mkfs.ext4", "-q")
	at := filepath.Join(t.TempDir(), "journals")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func() {
		t.Helper()
		if err := unix.Mount(disk, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil && err != unix.EINVAL {
			t.Error(err)
		}
	})
	s := newSites(t, func(p *testsite.Pair) { p.A.Config.JournalDir = at })
	v, path := s.create(testsite.VolumeOptions{Name: "v", SizeBytes: 32 * mib})
	file := filepath.Join(path, "file")
	write := func(text string) {
		t.Helper()
		s.must(os.WriteFile(file, []byte(text), 0o600))
		s.run("sync", file)
	}
	write("first")
	s.settle()
	segments, err := filepath.Glob(filepath.Join(at, "groups", "*", "journal", "*.seg"))
	s.must(err)
	if left, err := os.ReadDir(filepath.Join(s.A.Config.PoolDir(), "groups")); len(segments) == 0 || len(left) > 0 {
		t.Fatalf("%d segments in %s, %d groups in the pool (%v)", len(segments), at, len(left), err)
	}

	// The disk has 512 MiB and a group of 256 that may double.
	large := testsite.VolumeOptions{Name: "large", SizeBytes: 16 * mib, Block: true,
		Parameters: map[string]string{"slipstream.dev/consistency-group": "large", "slipstream.dev/journal-size": "256Mi"}}
	if _, err := s.A.CreateVolume(s.ctx, large); status.Code(err) != codes.ResourceExhausted ||
		!strings.Contains(err.Error(), at) {
		t.Errorf("a journal that the disk has no room for: %v", err)
	}
	plain, err := s.A.CreateVolume(s.ctx, testsite.VolumeOptions{Name: "plain", SizeBytes: 16 * mib, Block: true})
	s.must(err)
	s.must(s.A.DeleteVolume(s.ctx, plain))

	// A power failure, after which the disk is not mounted.
	write("second")
	s.must(s.A.Kill())
	s.must(s.A.PowerCycle())
	s.must(unix.Unmount(at, 0))
	s.must(s.A.LaunchReplicator())
	s.must(s.A.LaunchDriver())
	for program, process := range map[string]*testsite.Process{"replicator": s.A.Replicator(),
		"csi-driver": s.A.Driver()} {
		if err := process.Wait(time.Minute); err != nil {
			t.Errorf("%s runs without the journals: %v", program, err)
		}
		log, err := os.ReadFile(s.A.LogPath(program))
		s.must(err)
		if !strings.Contains(string(log), "is the file system with the journals mounted there?") {
			t.Errorf("%s does not say what is wrong:\n%s", program, log)
		}
	}
	if names, err := os.ReadDir(at); err != nil || len(names) > 0 {
		t.Errorf("left in the directory without a disk: %v, %v", names, err)
	}
	mount()
	s.must(s.A.Start(s.ctx))
	path, err = s.A.Mount(s.ctx, v)
	s.must(err)
	if text, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(text) != "second" {
		t.Errorf("the file has %q, %v", text, err)
	}
	s.settle()
	s.sameImages(v, 32*mib)
}
