package testsite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/bug/inject"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// startPair builds the commands and starts two sites.
func startPair(t *testing.T, ctx context.Context) *Pair {
	t.Helper()
	testenv.RequireLoop(t)
	testenv.RequireFUSE(t)
	binDir := t.TempDir()
	var flags []string
	if bug.Available {
		var err error
		if flags, err = inject.Flags(t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if err := Build(ctx, binDir, flags...); err != nil {
		t.Fatal(err)
	}
	pair, err := New(Options{BinDir: binDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, s := range []*Site{pair.A, pair.B} {
				for _, p := range []*Process{s.Replicator(), s.Driver(), s.Keeper()} {
					if p != nil {
						t.Logf("end of %s's log:\n%s", p.name, p.logTail())
					}
				}
			}
		}
		if err := pair.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(pair.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", pair.Dir, err)
		}
	})
	if err := pair.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return pair
}

func writeSynced(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	// The name is in the directory.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Fsync(int(dir.Fd())); err != nil {
		t.Fatal(err)
	}
}

// TestJoinWhileMounted takes a volume through its life with real processes: used without a group, joined while mounted,
// written to while either process is killed and comes back, failed over.
func TestJoinWhileMounted(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the commands and runs two sites")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	pair := startPair(t, ctx)
	a, b := pair.A, pair.B

	v, err := a.CreateVolume(ctx, VolumeOptions{Name: "v", SizeBytes: 256 << 20, FSType: "ext4", Parameters: Replicable()})
	if err != nil {
		t.Fatal(err)
	}
	path, err := a.Mount(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	writeSynced(t, filepath.Join(path, "before"), "before")

	if _, err := a.Sidecar.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{
		Name: "g", Settings: &sidecarpb.GroupSettings{Remote: new(b.Config.Name), JournalSizeBytes: new(int64(64 << 20))},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sidecar.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: "g", VolumeId: v.ID}); err != nil {
		t.Fatal(err)
	}
	waitStreaming := func() {
		t.Helper()
		waitCtx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if _, err := a.WaitGroup(waitCtx, "g", "streaming", Streaming); err != nil {
			t.Fatal(err)
		}
	}
	waitStreaming()
	writeSynced(t, filepath.Join(path, "joined"), "joined")

	// One process at a time; the other carries the volume.
	for i, kill := range []func() error{a.Replicator().Kill, a.Driver().Kill} {
		if err := kill(); err != nil {
			t.Fatal(err)
		}
		if err := a.Start(ctx); err != nil {
			t.Fatal(err)
		}
		writeSynced(t, filepath.Join(path, fmt.Sprintf("killed-%d", i)), "still here")
	}
	waitStreaming()
	waitCtx, cancelWait := context.WithTimeout(ctx, time.Minute)
	defer cancelWait()
	last, err := a.WaitGroup(waitCtx, "g", "acknowledged", func(g *sidecarpb.GroupStatus) bool {
		return g.GetAcknowledgedOrdinal() == g.GetHeadOrdinal()
	})
	if err != nil {
		t.Fatal(err)
	}

	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	promoted, err := b.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: "g", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := promoted.GetLoss().GetRecoveredOrdinal(); got < last.GetHeadOrdinal() {
		t.Errorf("recovered up to ordinal %d, %d were acknowledged", got, last.GetHeadOrdinal())
	}
	copied, err := b.Mount(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"before", "joined", "killed-0", "killed-1"} {
		if text, err := os.ReadFile(filepath.Join(copied, name)); err != nil || len(text) == 0 {
			t.Errorf("%s in the copy: %q, %v", name, text, err)
		}
	}
}

// TestCopyAnewAfterDivergence is the way back that docs/limitations.md describes: after a forced promotion the old
// primary gives its group and volumes up and gets a new copy.
func TestCopyAnewAfterDivergence(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the commands and runs two sites")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	pair := startPair(t, ctx)
	a, b := pair.A, pair.B
	v, err := a.CreateVolume(ctx, VolumeOptions{Name: "v", SizeBytes: 256 << 20, FSType: "ext4", Parameters: Replicable()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sidecar.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{
		Name: "g", Settings: &sidecarpb.GroupSettings{Remote: new(b.Config.Name), JournalSizeBytes: new(int64(64 << 20))},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sidecar.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: "g", VolumeId: v.ID}); err != nil {
		t.Fatal(err)
	}
	path, err := a.Mount(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	writeSynced(t, filepath.Join(path, "shared"), "shared")
	wait := func(s *Site, what string, ok func(*sidecarpb.GroupStatus) bool) {
		t.Helper()
		waitCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if _, err := s.WaitGroup(waitCtx, "g", what, ok); err != nil {
			t.Fatal(err)
		}
	}
	wait(a, "acknowledged", func(g *sidecarpb.GroupStatus) bool {
		return Streaming(g) && g.GetAcknowledgedOrdinal() == g.GetHeadOrdinal()
	})
	// Site B goes first, so that site A surely has writes that B never saw.
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	writeSynced(t, filepath.Join(path, "lost"), "lost")
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: "g", Force: true}); err != nil {
		t.Fatal(err)
	}
	copied, err := b.Mount(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	writeSynced(t, filepath.Join(copied, "new"), "new")

	if err := a.PowerCycle(); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	wait(b, "sure of its loss", func(g *sidecarpb.GroupStatus) bool {
		return g.GetLoss().GetExact() && g.GetLoss().GetLostWrites() > 0
	})
	wait(a, "diverged", func(g *sidecarpb.GroupStatus) bool {
		return g.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED
	})

	if _, err := a.Sidecar.DeleteGroup(ctx, &sidecarpb.DeleteGroupRequest{Name: "g", Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	wait(b, "streaming", Streaming)
	wait(a, "promotable", func(g *sidecarpb.GroupStatus) bool { return g.GetPromotable() })

	// And back, without loss.
	if err := b.Unmount(ctx, v); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Sidecar.Demote(ctx, &sidecarpb.DemoteRequest{Group: "g"}); err != nil {
		t.Fatal(err)
	}
	wait(a, "complete", func(g *sidecarpb.GroupStatus) bool {
		_, err := a.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: "g"})
		return err == nil
	})
	if path, err = a.Mount(ctx, v); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shared", "new"} {
		if _, err := os.Stat(filepath.Join(path, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(path, "lost")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was lost is back: %v", err)
	}
}
