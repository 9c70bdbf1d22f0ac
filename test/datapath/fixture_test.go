// Package datapath tests the guarantees of the data path on real loop devices, FUSE mounts and processes: it outlives
// its processes (G5), and nothing about the peer delays a write (G2).
//
// The tests share one machine's loop devices and disks and compare throughputs; they do not run in parallel.
package datapath

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug/inject"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// buildDir has the commands, built from this tree once for all tests, and goes with them.
var buildDir string

// buildCommands builds the commands that the tests run as processes; buildFaultyCommands builds them so that a
// deliberate fault can be switched on.
var (
	buildCommands       = sync.OnceValues(func() (dir string, err error) { return goBuild("good") })
	buildFaultyCommands = sync.OnceValues(func() (dir string, err error) {
		sources, err := os.MkdirTemp("", "slipstream-faults-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(sources)
		flags, err := inject.Flags(sources)
		if err != nil {
			return "", err
		}
		return goBuild("faulty", flags...)
	})
)

func goBuild(name string, flags ...string) (dir string, err error) {
	if buildDir == "" {
		if buildDir, err = os.MkdirTemp("", "slipstream-bin-"); err != nil {
			return "", err
		}
	}
	dir = filepath.Join(buildDir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	return dir, testsite.Build(context.Background(), dir, flags...)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// newPair starts two sites and takes them away at the end.
func newPair(t *testing.T, ctx context.Context) *testsite.Pair {
	t.Helper()
	return newPairOf(t, ctx, buildCommands)
}

func newPairOf(t *testing.T, ctx context.Context, build func() (string, error)) *testsite.Pair {
	t.Helper()
	testenv.RequireRoot(t)
	testenv.RequireFUSE(t)
	testenv.RequireLoop(t)
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	p, err := testsite.New(testsite.Options{BinDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, s := range []*testsite.Site{p.A, p.B} {
				for _, program := range testsite.Programs {
					logTail(t, s.LogPath(program))
				}
			}
		}
		if err := p.Close(); err != nil {
			t.Errorf("taking the sites away: %v", err)
		}
	})
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

func logTail(t *testing.T, path string) {
	const lines = 40
	data, err := os.ReadFile(path)
	if err != nil {
		return
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	t.Logf("%s ends with:\n%s", path, strings.Join(all[max(0, len(all)-lines):], "\n"))
}

// group makes a replicated group.
func group(t *testing.T, ctx context.Context, s *testsite.Site, r *sidecarpb.CreateGroupRequest) {
	t.Helper()
	if _, err := s.Sidecar.CreateGroup(ctx, r); err != nil {
		t.Fatal(err)
	}
}

// blockVolume provisions a raw block volume in a group and stages it; dev is its device node.
func blockVolume(t *testing.T, ctx context.Context, s *testsite.Site, name, group string, sizeBytes int64,
	order string) (v *testsite.Volume, dev string) {
	t.Helper()
	parameters := testsite.Replicable()
	parameters["slipstream.dev/order"] = order
	v, err := s.CreateVolume(ctx, testsite.VolumeOptions{Name: name, SizeBytes: sizeBytes, Block: true,
		Parameters: parameters})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sidecar.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: group, VolumeId: v.ID}); err != nil {
		t.Fatal(err)
	}
	if dev, err = s.Mount(ctx, v); err != nil {
		t.Fatal(err)
	}
	return v, dev
}

// fioResult is the part of fio's JSON that the tests look at.
type fioResult struct {
	Jobs []struct {
		Error int `json:"error"`
		Write struct {
			TotalIOs int64 `json:"total_ios"`
		} `json:"write"`
		Read struct {
			TotalIOs int64 `json:"total_ios"`
		} `json:"read"`
	} `json:"jobs"`
}

// startFio runs fio until it ends; wait returns its result and its error.
func startFio(t *testing.T, ctx context.Context, args ...string) (wait func() (*fioResult, error)) {
	t.Helper()
	fio := testenv.RequireTool(t, "fio")
	out := filepath.Join(t.TempDir(), "fio.json")
	cmd := exec.CommandContext(ctx, fio, append(args, "--output-format=json", "--output="+out)...)
	cmd.Dir = t.TempDir() // fio leaves verification state in its directory
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stderr, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() (*fioResult, error) {
		err := cmd.Wait()
		data, readErr := os.ReadFile(out)
		if err != nil || readErr != nil {
			return nil, fmt.Errorf("fio: %w: %s%s", errors.Join(err, readErr), stderr.String(), data)
		}
		var r fioResult
		if i := bytes.IndexByte(data, '{'); i > 0 {
			data = data[i:] // warnings come before
		}
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("fio: %w: %s", err, data)
		}
		for _, j := range r.Jobs {
			if j.Error != 0 {
				return &r, fmt.Errorf("fio: error %d: %s", j.Error, stderr.String())
			}
		}
		return &r, nil
	}
}

// startVerify starts a pass of fio over sizeBytes of a device or file: it writes ioBytes in 4 KiB blocks at random
// places, and then verifies what it wrote. A pass that did neither is an error.
func startVerify(t *testing.T, ctx context.Context, rng *rand.Rand, file string,
	sizeBytes, ioBytes int64) (wait func() error) {
	t.Helper()
	result := startFio(t, ctx, "--name=verify", "--filename="+file, "--rw=randwrite", "--bs=4k",
		fmt.Sprintf("--size=%d", sizeBytes),
		fmt.Sprintf("--io_size=%d", ioBytes), "--ioengine=libaio", "--iodepth=8", "--direct=1", "--fsync=32",
		"--verify=crc32c", "--verify_fatal=1",
		"--do_verify=1", "--serialize_overlap=1", fmt.Sprintf("--randseed=%d", rng.Uint32()))
	return func() error {
		r, err := result()
		if err == nil && (r.Jobs[0].Write.TotalIOs == 0 || r.Jobs[0].Read.TotalIOs == 0) {
			err = fmt.Errorf("wrote %d and verified %d blocks", r.Jobs[0].Write.TotalIOs, r.Jobs[0].Read.TotalIOs)
		}
		return err
	}
}

// caughtUp waits until B has everything and can be promoted.
func caughtUp(t *testing.T, ctx context.Context, p *testsite.Pair, group string) {
	t.Helper()
	_, err := p.A.WaitGroup(ctx, group, "the peer has everything", func(g *sidecarpb.GroupStatus) bool {
		return testsite.Streaming(g) && g.GetAcknowledgedOrdinal() == g.HeadOrdinal && g.ChangeMapBytes == 0
	})
	if err != nil {
		t.Fatal(err)
	}
}

// copyDevice copies what a device holds into a file, for when the device is gone.
func copyDevice(t *testing.T, dev string) (path string) {
	t.Helper()
	dst, err := os.CreateTemp(t.TempDir(), "copy")
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	src, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	return dst.Name()
}

// sameDevices compares a volume at A with the promoted copy at B, byte for byte.
func sameDevices(t *testing.T, a, b string) {
	t.Helper()
	fa, err := os.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer fb.Close()
	const chunk = 1 << 20
	pa, pb := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); ; off += chunk {
		na, errA := fa.ReadAt(pa, off)
		nb, errB := fb.ReadAt(pb, off)
		if na != nb || !bytes.Equal(pa[:na], pb[:nb]) {
			t.Fatalf("%s and %s differ within %d bytes from %d", a, b, chunk, off)
		}
		if errA != nil || errB != nil {
			return
		}
	}
}

// relocate moves the group to B without loss and returns the volume's device there.
func relocate(t *testing.T, ctx context.Context, p *testsite.Pair, group string, v *testsite.Volume) (devB string) {
	t.Helper()
	caughtUp(t, ctx, p, group)
	if err := p.A.Unmount(ctx, v); err != nil {
		t.Fatal(err)
	}
	if _, err := p.A.Sidecar.Demote(ctx, &sidecarpb.DemoteRequest{Group: group}); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := p.B.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: group})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // the demotion is on its way
	}
	devB, err := p.B.Mount(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	return devB
}
