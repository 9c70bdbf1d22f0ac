// Package volumes tests what a volume and its copy at the other site have in common besides their contents, size and
// space, and changes of volumes in use, on real loop devices, FUSE mounts and processes.
package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

const mib = int64(1) << 20

// buildDir has the commands, built from this tree once for all tests, and goes with them.
var buildDir string

var buildCommands = sync.OnceValue(func() (err error) {
	if buildDir, err = os.MkdirTemp("", "slipstream-bin-"); err != nil {
		return err
	}
	return testsite.Build(context.Background(), buildDir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// sites are two sites with a group that replicates from A to B.
type sites struct {
	*testsite.Pair
	t   *testing.T
	ctx context.Context
}

const group = "g"

// newSites starts them; prepare changes them before.
func newSites(t *testing.T, prepare ...func(*testsite.Pair)) *sites {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the commands and runs two sites")
	}
	testenv.RequireLoop(t)
	testenv.RequireFUSE(t)
	if err := buildCommands(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	pair, err := testsite.New(testsite.Options{BinDir: buildDir})
	if err != nil {
		t.Fatal(err)
	}
	s := &sites{Pair: pair, t: t, ctx: ctx}
	t.Cleanup(func() {
		if t.Failed() {
			for _, site := range []*testsite.Site{pair.A, pair.B} {
				for _, program := range testsite.Programs {
					if log, err := os.ReadFile(site.LogPath(program)); err == nil {
						t.Logf("end of the log of %s at %s:\n%s", program, site.Config.Name, log[max(0, len(log)-3000):])
					}
				}
			}
		}
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
	})
	free, err := testsite.FreeAddresses(1)
	s.must(err)
	pair.A.Config.ReplicatorMetrics = free[0]
	for _, f := range prepare {
		f(pair)
	}
	s.must(pair.Start(ctx))
	journal := int64(256 << 20)
	if pair.A.Config.JournalDir != "" {
		journal = 128 << 20 // on a disk of 512 MiB; a journal may double
	}
	_, err = pair.A.Sidecar.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{
		Name: group, Settings: &sidecarpb.GroupSettings{Remote: new(pair.B.Config.Name), JournalSizeBytes: &journal},
	})
	s.must(err)
	return s
}

func (s *sites) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// create makes a volume at A, puts it into the group and mounts it.
func (s *sites) create(o testsite.VolumeOptions) (*testsite.Volume, string) {
	s.t.Helper()
	if o.Parameters == nil {
		o.Parameters = map[string]string{}
	}
	o.Parameters["slipstream.dev/replicable"] = "true"
	v, err := s.A.CreateVolume(s.ctx, o)
	s.must(err)
	_, err = s.A.Sidecar.AddVolume(s.ctx, &sidecarpb.AddVolumeRequest{Group: group, VolumeId: v.ID})
	s.must(err)
	path, err := s.A.Mount(s.ctx, v)
	s.must(err)
	return v, path
}

// settle waits until both images hold everything that was written. Nothing writes meanwhile.
func (s *sites) settle() {
	s.t.Helper()
	unix.Sync() // what is not flushed has no ordinal yet; on a busy machine this alone takes a minute
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	s.must(s.WaitApplied(ctx, group))
}

// sameImages compares the images of both sites. Both have everything, and nothing writes.
func (s *sites) sameImages(v *testsite.Volume, size int64) {
	s.t.Helper()
	a, err := os.Open(s.A.Image(v))
	s.must(err)
	defer a.Close()
	b, err := os.Open(s.B.Image(v))
	s.must(err)
	defer b.Close()
	x, y := make([]byte, mib), make([]byte, mib)
	for at := int64(0); ; at += mib {
		n, errX := io.ReadFull(a, x)
		m, errY := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			s.t.Fatalf("the images differ in the MiB at %d", at)
		}
		if errX != nil || errY != nil {
			if at+int64(n) != size || !errors.Is(errX, errY) {
				s.t.Fatalf("images end at %d, want %d: %v, %v", at+int64(n), size, errX, errY)
			}
			return
		}
	}
}

func (s *sites) allocated(site *testsite.Site, v *testsite.Volume) int64 {
	s.t.Helper()
	var st unix.Stat_t
	s.must(unix.Stat(site.Image(v), &st))
	return st.Blocks * 512
}

func (s *sites) run(program string, args ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, testenv.RequireTool(s.t, program), args...).CombinedOutput()
	if err != nil {
		s.t.Fatal(fmt.Errorf("%s %v: %w\n%s", program, args, err, out))
	}
}
