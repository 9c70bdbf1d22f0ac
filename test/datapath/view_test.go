package datapath

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/workload"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// shopVolumes makes a group with the two volumes of a shop on ext4, mounted at A.
func shopVolumes(t *testing.T, ctx context.Context, p *testsite.Pair, name string) workload.Dirs {
	t.Helper()
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: name, Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(64 << 20))},
	})
	var dirs []string
	for _, volume := range []string{"stock", "sales"} {
		v, err := p.A.CreateVolume(ctx, testsite.VolumeOptions{Name: name + "-" + volume, SizeBytes: 128 << 20,
			FSType: "ext4", Parameters: testsite.Replicable()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.A.Sidecar.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: name, VolumeId: v.ID}); err != nil {
			t.Fatal(err)
		}
		dir, err := p.A.Mount(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return workload.Dirs{Stock: dirs[0], Sales: dirs[1], Run: t.TempDir()}
}

// shopping places orders until stop is called, which returns how many.
func shopping(t *testing.T, ctx context.Context, dirs workload.Dirs) (stop func() int) {
	t.Helper()
	shop, err := workload.Open(ctx, workload.SQLite, dirs, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	placed, done := 0, make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			order := workload.Order{ID: int64(placed + 1), Item: placed % 1000, Quantity: 1, Details: strings.Repeat("x", 300)}
			if err := shop.Place(context.Background(), 0, order); err != nil {
				t.Errorf("order %d: %v", placed+1, err)
				return
			}
			placed++
		}
	}()
	return sync.OnceValue(func() int {
		cancel()
		<-done
		if err := shop.Close(); err != nil {
			t.Error(err)
		}
		return placed
	})
}

// slipctl runs the command against a site and returns what it printed.
func slipctl(t *testing.T, ctx context.Context, s *testsite.Site, arguments ...string) ([]byte, error) {
	t.Helper()
	stdout, _, err := slipctlTexts(t, ctx, s, arguments...)
	return stdout, err
}

// slipctlTexts is slipctl with what is printed on standard error.
func slipctlTexts(t *testing.T, ctx context.Context, s *testsite.Site, arguments ...string) (out, text []byte,
	err error) {
	t.Helper()
	dir, err := buildCommands()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "slipctl")
	if _, err := os.Stat(program); err != nil {
		build := exec.CommandContext(ctx, "go", "build", "-o", program,
			"github.com/slipstream-storage/slipstream/cmd/slipctl")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	cmd := exec.CommandContext(ctx, program, append(arguments, "--sidecar", s.Config.SidecarEndpoint())...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	t.Logf("$ slipctl %s\n%s%s", strings.Join(arguments, " "), &stdout, &stderr)
	return stdout.Bytes(), stderr.Bytes(), err
}

func mustSlipctl(t *testing.T, ctx context.Context, s *testsite.Site, arguments ...string) []byte {
	t.Helper()
	out, err := slipctl(t, ctx, s, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// lagSampler samples a group's lag at its secondary, and whether a sync ran, until it is asked.
func lagSampler(ctx context.Context, p *testsite.Pair, name string) (stop func() (p99 time.Duration, samples int,
	syncBytes uint64, err error)) {
	ctx, cancel := context.WithCancel(ctx)
	var lags []float64
	var syncBytes uint64
	var failed error
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			atA, errA := p.A.Group(ctx, name)
			if errA != nil && ctx.Err() == nil {
				failed = errA
				return
			}
			if atA != nil && atA.LagSeconds != nil {
				lags = append(lags, atA.GetLagSeconds())
			}
			syncBytes = max(syncBytes, atA.GetSyncTotalBytes())
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return func() (time.Duration, int, uint64, error) {
		cancel()
		<-done
		if len(lags) == 0 {
			return 0, 0, syncBytes, fmt.Errorf("the lag was never known: %w", failed)
		}
		slices.Sort(lags)
		return time.Duration(lags[len(lags)*99/100] * float64(time.Second)), len(lags), syncBytes, failed
	}
}

// A test failover on real devices, while a shop with two databases is open at the primary: the databases in the view
// are of one instant and whole, the view takes writes, outlives a kill of its replicator, and leaves clean file
// systems. The copy goes on, and no byte is copied by a sync afterwards.
func TestTestFailoverUnderLoad(t *testing.T) {
	fsck := testenv.RequireTool(t, "e2fsck")
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	p := newPair(t, ctx)
	dirs := shopVolumes(t, ctx, p, "shop")
	caughtUp(t, ctx, p, "shop")
	stop := shopping(t, ctx, dirs)
	defer stop()

	const phase = 3 * time.Second
	sample := lagSampler(ctx, p, "shop")
	time.Sleep(phase)
	before, n, _, err := sample()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("lag without a view: p99 %v of %d samples", before, n)

	sample = lagSampler(ctx, p, "shop")
	out := mustSlipctl(t, ctx, p.B, "group", "test", "start", "shop", "-o", "json")
	var view struct {
		Name    string
		Volumes []struct{ VolumeID, Device string }
	}
	if err := json.Unmarshal(out, &view); err != nil || len(view.Volumes) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	dir := filepath.Join(p.B.Config.Dir, "mnt", "view") // swept with the site
	out = mustSlipctl(t, ctx, p.B, "view", "mount", "shop", view.Name, dir)
	mounts := strings.Fields(string(out))
	shown := workload.Dirs{Run: t.TempDir()}
	for _, m := range mounts {
		if _, err := os.Stat(filepath.Join(m, "stock.db")); err == nil {
			shown.Stock = m
		} else {
			shown.Sales = m
		}
	}
	result, err := workload.Check(ctx, workload.SQLite, shown, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the view has %d orders", result.Orders)
	if result.Orders == 0 || result.OrdersWithoutStock > 0 || result.MovementsWithoutOrder > 1 || len(result.Damage) > 0 {
		t.Errorf("the databases in the view: %+v", result)
	}

	time.Sleep(phase)
	during, n, syncBytes, err := sample()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("lag with the view: p99 %v of %d samples", during, n)
	if syncBytes > 0 {
		t.Errorf("a sync of %d bytes ran", syncBytes)
	}

	if err := p.B.Replicator().Kill(); err != nil {
		t.Fatal(err)
	}
	written := bytes.Repeat([]byte("written to the view "), 1<<19)
	file := filepath.Join(shown.Stock, "note")
	noted := make(chan error, 1)
	go func() { noted <- os.WriteFile(file, written, 0o644) }() // waits for the replicator where it has to
	if err := p.B.LaunchReplicator(); err != nil {
		t.Fatal(err)
	}
	if err := p.B.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-noted; err != nil {
		t.Fatal(err)
	}
	mustSlipctl(t, ctx, p.B, "view", "list")
	if out, err := slipctl(t, ctx, p.B, "group", "test", "stop", "shop", "--yes"); err == nil {
		t.Errorf("a view that is mounted was deleted: %s", out)
	}
	mustSlipctl(t, ctx, p.B, "view", "unmount", "shop", view.Name)
	for _, v := range view.Volumes {
		if out, err := exec.CommandContext(ctx, fsck, "-fn", v.Device).CombinedOutput(); err != nil {
			t.Errorf("volume %s of the view: %v: %s", v.VolumeID, err, out)
		}
	}
	sample = lagSampler(ctx, p, "shop")
	mustSlipctl(t, ctx, p.B, "group", "test", "stop", "shop", "--yes")
	time.Sleep(phase)
	after, n, syncBytes, err := sample()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("lag after the view: p99 %v of %d samples", after, n)
	t.Logf("%d orders were placed", stop())
	caughtUp(t, ctx, p, "shop")
	if st, err := p.A.Group(ctx, "shop"); err != nil || syncBytes > 0 || st.GetChangeMapBytes() > 0 {
		t.Errorf("after the test %d bytes were copied by a sync: %v %v", syncBytes, st, err)
	}
	if left, err := filepath.Glob(filepath.Join(p.B.Config.Dir, "*", "views", "*")); err != nil || len(left) > 0 {
		t.Errorf("left of the view: %v %v", left, err)
	}
}
