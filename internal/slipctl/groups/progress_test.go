package groups

import (
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func TestStatusLine(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	g := &sidecarpb.GroupStatus{
		Name: "g", Role: sidecarpb.Role_ROLE_PRIMARY, Peer: "p", State: sidecarpb.GroupState_GROUP_STATE_SYNCING,
		StateReason: "first copy", LagSeconds: new(0.02), LagBytes: new(uint64(4096)), LagOrdinals: new(uint64(1)),
		JournalUsedBytes: 1 << 20, SyncDoneBytes: new(uint64(1 << 20)), SyncTotalBytes: new(uint64(4 << 20)),
	}
	var m syncMeter
	m.observe(at, g)
	line := "03:04:05.006  g  primary  syncing: first copy  lag 20 ms, 4.00 KiB, 1 ordinal  journal 1.00 MiB  "
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
