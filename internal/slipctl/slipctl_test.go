package slipctl

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"slipctl": func() { os.Exit(Main("test", os.Args[1:])) },
	})
}

// leakChecked looks for goroutines that the tests left.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			return 1
		}
	}
	return code
}

// TestScripts runs the scripts in testdata against a fake replicator of their own and a pool with two volumes.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *rewrite, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			// Not in the work directory: a socket's path is short.
			dir, err := os.MkdirTemp("", "ctl")
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			stop, err := serveFake(filepath.Join(dir, "s"))
			if err != nil {
				return err
			}
			env.Defer(stop)
			env.Setenv("SLIPSTREAM_SIDECAR", "unix://"+filepath.Join(dir, "s"))
			env.Setenv("SHORT", dir)
			return makePool(filepath.Join(env.WorkDir, "pool"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exit": expectExit},
	})
}

// expectExit is `exit STATUS slipctl ARGS...`: it runs the command and compares its exit status.
func expectExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit STATUS COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		// testscript shows the status of a failed command only in the error's text.
		_, got, _ = strings.Cut(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s: %v", got, args[0], err)
	}
}

func makePool(dir string) error {
	pool, err := blockdev.OpenPool(vfs.OS, dir, blockdev.WhoDriver)
	if err != nil {
		return err
	}
	for _, record := range []blockdev.VolumeRecord{
		{ID: "vol-1", Name: "pvc-1", SizeBytes: 1 << 20, Replicable: true, Group: "shop", State: blockdev.VolumeReady},
		{ID: "vol-2", Name: "pvc-2", SizeBytes: 2 << 20, State: blockdev.VolumeReady},
	} {
		if _, err := pool.Create(record); err != nil {
			return err
		}
	}
	return pool.Close()
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "17": 17, "512Ki": 512 << 10, "64Mi": 64 << 20, "1Gi": 1 << 30,
		"2Ti": 2 << 40} {
		if got, err := parseBytes(s); err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "Gi", "-1", "1G", "1.5Gi", "9999999999Ti", "1 Gi"} {
		if got, err := parseBytes(s); err == nil {
			t.Errorf("parseBytes(%q) = %d", s, got)
		}
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1536: "1.50 KiB",
		1 << 30: "1.00 GiB", 1020 << 20: "1.00 GiB", 300 << 20: "300 MiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0 ms", 0.0124: "12 ms", 1.5: "1.5 s", 90: "1m30s"} {
		if got := formatSeconds(s); got != want {
			t.Errorf("formatSeconds(%v) = %q, want %q", s, got, want)
		}
	}
}

func TestStatusLine(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	g := &sidecarpb.GroupStatus{
		Name: "g", Role: sidecarpb.Role_ROLE_PRIMARY, Peer: "p", State: sidecarpb.GroupState_GROUP_STATE_SYNCING,
		StateReason: "first copy", LagSeconds: new(0.02), LagBytes: new(uint64(4096)), LagOrdinals: new(uint64(1)),
		JournalUsedBytes: 1 << 20, SyncDoneBytes: new(uint64(1 << 20)), SyncTotalBytes: new(uint64(4 << 20)),
	}
	var m syncMeter
	m.observe(at, g)
	line := "03:04:05.006  g  primary  syncing: first copy  lag 20 ms, 4.00 KiB, 1 ordinals  journal 1.00 MiB  "
	if got, want := statusLine(at, g, m.text()), line+"sync 1.00 MiB of 4.00 MiB, 25 %"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	g.SyncDoneBytes = new(uint64(2 << 20))
	m.observe(at.Add(2*time.Second), g)
	want := line + "sync 2.00 MiB of 4.00 MiB, 50 %, 512 KiB/s, 4.0 s left"
	if got := statusLine(at, g, m.text()); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// The rate is that of the last seconds, of the sync that runs.
func TestSyncMeter(t *testing.T) {
	var m syncMeter
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	observe := func(seconds int, done, total uint64) string {
		m.observe(at.Add(time.Duration(seconds)*time.Second),
			&sidecarpb.GroupStatus{SyncDoneBytes: &done, SyncTotalBytes: &total})
		return m.speed()
	}
	for i, step := range []struct {
		seconds     int
		done, total uint64
		want        string
	}{
		{0, 0, 1000 << 20, ""},
		{10, 100 << 20, 1000 << 20, "10.0 MiB/s, 1m30s left"},
		{20, 110 << 20, 1000 << 20, "1.00 MiB/s, 14m50s left"}, // slower now
		{30, 110 << 20, 1000 << 20, "0 B/s, time left unknown"},
		{31, 10 << 20, 50 << 20, ""}, // another sync
		{33, 30 << 20, 50 << 20, "10.0 MiB/s, 2.0 s left"},
		{34, 0, 0, ""}, // none
	} {
		if got := observe(step.seconds, step.done, step.total); got != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
}

// In the middle of a sync the question before a forced promotion names the state before the sync.
func TestForceTextInASync(t *testing.T) {
	g := &sidecarpb.GroupStatus{Name: "shop", Role: sidecarpb.Role_ROLE_SECONDARY, Peer: "site-a", Promotable: true,
		DurableOrdinal: 90, BeforeSync: &sidecarpb.BeforeSync{Ordinal: 40, UnixNanos: 1e18}}
	text := forceText(g)
	want := "opens the copy as it was before the sync that runs (2001-09-09T01:46:40Z), at ordinal 40"
	if !strings.Contains(text, want) || strings.Contains(text, "90") {
		t.Errorf("got %s\nwant %s", text, want)
	}
}
