package sanity

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// killableDriver is the driver's binary in the build that can be told at which of its steps to kill itself.
type killableDriver struct {
	t     *testing.T
	dir   string
	extra []string // arguments and environment
	env   []string

	sizeBytes int64 // of the volumes whose lives it lives

	log   *lockedBuffer
	ended chan struct{} // closed when the process has ended
	cmd   *exec.Cmd
}

// start starts it; killAt of 0 lets it live.
func (d *killableDriver) start(killAt int) {
	d.t.Helper()
	args := append([]string{"--endpoint", "unix://" + filepath.Join(d.dir, "csi.sock"), "--node-id", "node-a", "--pool",
		filepath.Join(d.dir, "pool"), "--state-dir", filepath.Join(d.dir, "state"), "-v", "2"}, d.extra...)
	d.log, d.ended = &lockedBuffer{}, make(chan struct{})
	d.cmd = exec.Command(buildBinary(d.t, "csi-driver", "slipstream_bugs"), args...)
	d.cmd.Env = append(append(os.Environ(), "SLIPSTREAM_KILL_AT="+strconv.Itoa(killAt)), d.env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait() // killed, one way or the other
		close(ended)
	}(d.cmd, d.ended)
}

func (d *killableDriver) dead() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

func (d *killableDriver) kill() {
	_ = d.cmd.Process.Kill()
	<-d.ended
}

var stepLine = regexp.MustCompile(`(?m)^step (\d+): (.*)$`)

// steps are those that it has come to, by number, from 1 on.
func (d *killableDriver) steps() []string {
	steps := []string{""}
	for _, m := range stepLine.FindAllStringSubmatch(d.log.String(), -1) {
		steps = append(steps, m[2])
	}
	return steps
}

// life takes a volume through its life with a driver that dies at a step, and goes on with one that does not: as a CO
// would, by calling again. It returns what is wrong in the end.
func (d *killableDriver) life(c *client, name string, vc *csi.VolumeCapability, params map[string]string,
	killAt int) error {
	d.start(killAt)
	var id string
	file := func() string { return filepath.Join(c.target(id), "file") }
	block := vc.GetBlock() != nil
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"create", func() (err error) { id, err = c.create(name, d.sizeBytes, vc, params); return err }},
		{"stage", func() error { return c.stage(id, vc) }},
		{"publish", func() error { return c.publish(id, vc, false) }},
		{"write", func() error {
			if block {
				return nil
			}
			return os.WriteFile(file(), []byte("kept"), 0o600)
		}},
		{"expand", func() error {
			if vc.GetMount().GetFsType() == "ext4" && !host.CanGrowMountedExt4() {
				return nil
			}
			return c.expand(id, d.sizeBytes+8*mib)
		}},
		{"check", func() error {
			data, err := os.ReadFile(file())
			if !block && (err != nil || string(data) != "kept") {
				return fmt.Errorf("the file has %q, %w", data, err)
			}
			return nil
		}},
		{"unpublish", func() error { return c.unpublish(id) }},
		{"unstage", func() error { return c.unstage(id) }},
		{"delete", func() error { return c.delete(id) }},
	} {
		for attempt := 1; ; attempt++ {
			result := make(chan error, 1)
			go func() { result <- call.do() }()
			var err error
			select {
			case err = <-result:
			case <-d.ended:
				d.start(0)
				err = <-result // broken off, or done by the new one, for which it waited
			}
			if d.dead() {
				d.start(0)
				err = errors.New("killed")
			}
			if err == nil {
				break
			}
			// The connection broke; or the call died with the driver and its goroutines are not all done.
			if code := status.Code(err); attempt == 5 || code != codes.Unavailable && code != codes.Unknown {
				return fmt.Errorf("%s, attempt %d: %w", call.name, attempt, err)
			}
		}
	}
	defer d.kill()
	return d.leftovers(id)
}

// leftovers says what is left of a volume that was deleted.
func (d *killableDriver) leftovers(id string) error {
	var errs []error
	left := func(format string, args ...any) { errs = append(errs, fmt.Errorf("left over: "+format, args...)) }
	if mounts, loops := leftovers(d.t, d.dir); len(mounts) > 0 || len(loops) > 0 {
		left("mounts %v, loop devices %v", mounts, loops)
	}
	err := filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, vfs.TempSuffix) {
			if _, err := os.Lstat(strings.TrimSuffix(path, vfs.TempSuffix)); err == nil {
				return nil // the spare of a record that is there
			}
		}
		if name := entry.Name(); strings.HasSuffix(name, vfs.TempSuffix) || strings.HasSuffix(name, ".creating") ||
			strings.HasSuffix(name, ".deleting") ||
			strings.Contains(path, "/pods/") && name == "mount" ||
			// those directories are the CO's
			strings.Contains(path, id) && !strings.Contains(path, "/pods/") && !strings.Contains(path, "/staging/") {
			left("%s", path)
		}
		return nil
	})
	groups, derr := os.ReadDir(filepath.Join(d.dir, "pool", "groups"))
	if len(groups) > 0 {
		left("group %s", groups[0].Name())
	}
	return errors.Join(append(errs, err, derr)...)
}

// openFiles are the descriptors of a process that name a volume, or are FUSE connections.
func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil &&
			(strings.Contains(to, "/vol-") || to == "/dev/fuse") {
			open = append(open, to)
		}
	}
	return open
}

// killBudget bounds each kind of volume: on a machine where not every step's turn comes in that time, chance decides
// which do. SLIPSTREAM_KILL_BUDGET, as in "10m", is another one, with which all do.
func killBudget(t *testing.T) time.Duration {
	text := os.Getenv("SLIPSTREAM_KILL_BUDGET")
	if text == "" {
		return 30 * time.Second
	}
	budget, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return budget
}

// TestKillAtEveryStep kills the driver's binary before the first, the second, and so on, of the steps of a volume's
// life: each time the next driver finishes that life, with the volume's data, and nothing is left over.
func TestKillAtEveryStep(t *testing.T) {
	if testing.Short() {
		t.Skip("lives as often as a life has steps")
	}
	requireMachine(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, kind := range []struct {
		name       string
		vc         *csi.VolumeCapability
		params     map[string]string
		replicable bool
		sizeBytes  int64
	}{
		{name: "plain, ext4", vc: fileSystem("ext4")},
		{name: "plain, thick block", vc: rawBlock(),
			params: map[string]string{parameter.KeyProvisioning: parameter.ProvisioningThick}},
		{name: "replicable, block", vc: rawBlock(), replicable: true,
			params: map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "16Mi"}},
		{name: "replicable, ext4", vc: fileSystem("ext4"), replicable: true,
			params: map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "16Mi"}},
		{name: "replicable, xfs", vc: fileSystem("xfs"), replicable: true, sizeBytes: 320 * mib,
			params: map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "16Mi"}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			dir := testDir(t)
			d := &killableDriver{t: t, dir: dir, sizeBytes: cmp.Or(kind.sizeBytes, 24*mib)}
			c := newClient(t, "unix://"+filepath.Join(dir, "csi.sock"), dir)
			var pids []int
			if kind.replicable {
				testenv.RequireFUSE(t)
				sidecar := "unix://" + filepath.Join(dir, "replicator.sock")
				d.extra = []string{"--sidecar", sidecar}
				if err := os.Mkdir(filepath.Join(dir, "pool"), 0o755); err != nil {
					t.Fatal(err)
				}
				keeper, replicator := startReplicator(t, dir, sidecar)
				pids = []int{keeper, replicator}
			}
			live := func(killAt int) []string {
				t.Helper()
				err := d.life(c, fmt.Sprint("v", killAt), kind.vc, kind.params, killAt)
				for _, pid := range pids {
					if open := openFiles(t, pid); len(open) > 0 {
						err = errors.Join(err, fmt.Errorf("process %d has open: %v", pid, open))
					}
				}
				if err != nil {
					t.Fatalf("killed at step %d: %v\nlog of the last driver:\n%s", killAt, err, d.log)
				}
				return d.steps()
			}
			const never = 1 << 30
			steps := live(never)
			total := len(steps) - 1
			if total < 15 {
				t.Fatalf("a life of %d steps: they are not seen: %q", total, steps)
			}
			end, covered := time.Now().Add(killBudget(t)), 0
			for _, i := range random.Perm(total) {
				if time.Now().After(end) {
					break
				}
				live(i + 1)
				covered++
			}
			t.Logf("%d of %d steps", covered, total)
		})
	}
}

// TestCatchesLeftovers: a driver that does not clean up when it starts is caught.
func TestCatchesLeftovers(t *testing.T) {
	requireMachine(t)
	dir := testDir(t)
	d := &killableDriver{t: t, dir: dir, env: []string{"SLIPSTREAM_BUG=skip-reconcile"}, sizeBytes: 24 * mib}
	c := newClient(t, "unix://"+filepath.Join(dir, "csi.sock"), dir)
	const never = 1 << 30
	for range 2 { // the first makes the pool too
		if err := d.life(c, "whole", rawBlock(), nil, never); err != nil {
			t.Fatal(err)
		}
	}
	at := 0
	for i, step := range d.steps() {
		if strings.HasPrefix(step, "rename ") && strings.Contains(filepath.Base(step), "vol-") {
			at = i // the volume comes into being
			break
		}
	}
	if at == 0 {
		t.Fatalf("no step makes the volume: %q", d.steps())
	}
	err := d.life(c, "interrupted", rawBlock(), nil, at)
	if err == nil || !strings.Contains(err.Error(), ".creating") {
		t.Errorf("killed at step %d with the fault: %v", at, err)
	}
	if !bytes.Contains([]byte(fmt.Sprint(err)), []byte("left over")) {
		t.Errorf("the fault is found for another reason: %v", err)
	}
}
