package sanity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipstream-storage/slipstream/internal/bug/inject"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// buildBinary builds a command once per test run and returns its path; with the tag slipstream_bugs it is the build
// with the deliberate faults.
var buildBinary = func() func(t *testing.T, command string, tags ...string) string {
	var mu sync.Mutex
	built := map[string]bool{}
	return func(t *testing.T, command string, tags ...string) string {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		path := filepath.Join(binDir, strings.Join(append([]string{command}, tags...), "-"))
		if built[path] {
			return path
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		args := []string{"build", "-o", path}
		if len(tags) > 0 { // the build with the deliberate faults
			flags, err := inject.Flags(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			args = append(args, flags...)
		}
		args = append(args, "github.com/slipstream-storage/slipstream/cmd/"+command)
		build := exec.CommandContext(ctx, "go", args...)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", command, err, out)
		}
		built[path] = true
		return path
	}
}()

// binDir holds the built binaries; TestMain removes it.
var binDir string

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "slipstream-sanity-bin"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(binDir)
	os.Exit(code)
}

// process is the driver's binary on a pool. It can be killed and started again.
type process struct {
	t        *testing.T
	binary   string
	endpoint string
	args     []string
	cmd      *exec.Cmd
	log      *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startProcess starts the driver's binary and waits until it answers.
func startProcess(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p := &process{t: t, binary: buildBinary(t, "csi-driver"), endpoint: "unix://" + filepath.Join(dir, "csi.sock"),
		log: &lockedBuffer{}}
	p.args = append([]string{"--endpoint", p.endpoint, "--node-id", "node-a", "--pool", filepath.Join(dir, "pool"),
		"--state-dir", filepath.Join(dir, "state"), "-v", "2"}, args...)
	p.start()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of the driver:\n%s", p.log)
		}
	})
	return p
}

// startPatience is how long a program may take until it answers. Its first records wait for the disk with everybody's.
const startPatience = 3 * time.Minute

func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.binary, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	conn := dial(p.t, p.endpoint)
	defer conn.Close()
	if _, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true)); err != nil {
		p.t.Fatalf("the driver does not answer: %v\n%s", err, p.log)
	}
}

// startReplicator starts a keeper, and a site's replicator without peers on the driver's pool, and waits until that
// answers. When the test ends the replicator is stopped before the keeper, which holds its descriptors.
func startReplicator(t *testing.T, dir, endpoint string) (keeperPid, replicatorPid int) {
	t.Helper()
	pool := filepath.Join(dir, "pool")
	keeperPid, _ = background(t, "keeper", "--socket", filepath.Join(pool, "keeper.sock"))
	replicatorPid, log := background(t, "replicator", "--endpoint", endpoint, "--site", "east", "--pool", pool,
		"--state-dir", filepath.Join(dir, "state"))
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	conn := dial(t, endpoint)
	defer conn.Close()
	if _, err := sidecarpb.NewSidecarClient(conn).Probe(ctx, &sidecarpb.ProbeRequest{},
		grpc.WaitForReady(true)); err != nil {
		t.Fatalf("the replicator does not answer: %v\n%s", err, log)
	}
	return keeperPid, replicatorPid
}

// background runs a program until the end of the test, and returns its process id and what it logs.
func background(t *testing.T, program string, args ...string) (int, *lockedBuffer) {
	t.Helper()
	log := &lockedBuffer{}
	cmd := exec.Command(buildBinary(t, program), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of the %s:\n%s", program, log)
		}
	})
	return cmd.Process.Pid, log
}

// kill ends the driver with SIGKILL.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// terminate ends the driver with SIGTERM and returns how it exited.
func (p *process) terminate() error {
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	err := p.cmd.Wait()
	p.cmd = nil
	return err
}

func dial(t *testing.T, endpoint string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			// The default waits a second after the first failure, which with a driver that is being started is the rule.
			Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5,
				MaxDelay: 100 * time.Millisecond}, MinConnectTimeout: time.Second,
		}))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// requireMachine skips the test on a machine without loop devices or the programs that the driver runs.
func requireMachine(t *testing.T) {
	t.Helper()
	testenv.RequireLoop(t)
	for _, tool := range []string{"go", "mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs", "xfs_growfs", "mount"} {
		testenv.RequireTool(t, tool)
	}
}

// leftovers returns the mounts below dir and the loop devices over files below it.
func leftovers(t *testing.T, dir string) (mounts []string, loops []blockdev.LoopInfo) {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		mounts = append(mounts, info.Mountpoint)
	}
	loops, err = blockdev.FindLoops(func(path string) bool { return strings.HasPrefix(path, dir+"/") })
	if err != nil {
		t.Fatal(err)
	}
	return mounts, loops
}

// testDir is a temporary directory without symbolic links in its path, of which nothing is mounted or attached when the
// test ends, however it ends. What was left over fails the test.
func testDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts, loops := leftovers(t, dir)
		if len(mounts) > 0 || len(loops) > 0 {
			t.Errorf("left over: mounts %v, loop devices %v", mounts, loops)
		}
		var errs []error
		for i := len(mounts) - 1; i >= 0; i-- {
			errs = append(errs, unix.Unmount(mounts[i], unix.MNT_DETACH))
		}
		for _, l := range loops {
			errs = append(errs, blockdev.DetachLoopOf(l.Device, l.BackingPath))
		}
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// attach attaches an image to a loop device behind the driver's back.
func attach(t *testing.T, image string) {
	t.Helper()
	if _, err := blockdev.AttachLoop(blockdev.LoopConfig{BackingPath: image, BlockSizeBytes: 4096}); err != nil {
		t.Fatal(err)
	}
}

func allocatedBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
