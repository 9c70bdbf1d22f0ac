package replication

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// A suspended group ships nothing, also after a crash; its writers and its copy do not notice. Resumed, it sends what
// was written meanwhile, and not everything.
func TestSuspend(t *testing.T) {
	rng := seeded(t)
	_, a, b := pair(t)
	g, copied := startCopied(t, a, b, nil)
	if changed, err := copied.Suspend(); !errors.Is(err, core.ErrPrecondition) || changed {
		t.Errorf("suspending a secondary: %v, %v", changed, err)
	}
	for _, want := range []bool{true, false} {
		if changed, err := g.Suspend(); err != nil || changed != want {
			t.Fatalf("changed %v, %v", changed, err)
		}
	}
	a.crash(rng.IntN(101), rng)
	g = a.group("shop")
	st := g.Status()
	if st.State != core.StateSuspended || st.SuspendedUnixNanos == nil || st.Connected ||
		!strings.Contains(st.StateReason, "slipctl group resume shop") {
		t.Fatalf("%s", st)
	}
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 128<<10, block('s', 64<<10))
	mustFlush(t, v)
	at := copied.Status().DurableOrdinal
	time.Sleep(50 * time.Millisecond) // several heartbeats
	if s := copied.Status(); s.DurableOrdinal != at || s.Connected || !s.Promotable {
		t.Fatalf("the copy while its group is suspended: %s", s)
	}
	if _, err := g.Demote(); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("demoting a suspended group: %v", err)
	}
	for _, want := range []bool{true, false} {
		if changed, err := g.Resume(); err != nil || changed != want {
			t.Fatalf("changed %v, %v", changed, err)
		}
	}
	sameContent(t, g, caughtUp(t, g, b))
	if raw, _ := g.ShippedBytes(); raw > 128<<10 {
		t.Errorf("%d bytes were sent for 64 KiB", raw)
	}
	a.restart()
	if s := a.group("shop").Status(); s.SuspendedUnixNanos != nil {
		t.Errorf("resumed, and after a restart suspended: %s", s)
	}
}

// What does not fit into the journal while a group is suspended comes from the change map.
func TestSuspendedLongerThanTheJournal(t *testing.T) {
	_, a, b := pair(t)
	g, copied := startCopied(t, a, b, func(s *GroupSpec) { s.JournalSizeBytes = MinJournalBytes })
	if _, err := g.Suspend(); err != nil {
		t.Fatal(err)
	}
	v := volumeOf(t, g, "v1")
	for i := range 100 {
		mustWrite(t, v, int64(i%4)<<18, block(byte('a'+i%26), 256<<10))
		mustFlush(t, v)
	}
	if !copied.Status().Promotable {
		t.Error("the copy cannot be promoted")
	}
	if _, err := g.Resume(); err != nil {
		t.Fatal(err)
	}
	sameContent(t, g, caughtUp(t, g, b))
}

// The rate follows the time of day.
func TestShipSchedule(t *testing.T) {
	var now atomic.Pointer[time.Time]
	at := func(clock string) {
		when, err := time.Parse(time.DateTime, "2026-01-05 "+clock)
		if err != nil {
			t.Fatal(err)
		}
		now.Store(&when)
	}
	at("07:59:00")
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a := newTestSite(t, net, "site-a", func(c *Config) { c.Now = func() time.Time { return *now.Load() } })
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	limit := func(want int64) {
		t.Helper()
		if got := g.Status().ShipLimitBytesPerSecond; got != want {
			t.Errorf("at %s: %d, want %d", now.Load(), got, want)
		}
	}
	mustModify(t, g, func(s *core.Settings) { s.ShipBytesPerSecond = 5 << 20 })
	limit(5 << 20)
	mustModify(t, g, func(s *core.Settings) { s.ShipSchedule = "08:00-18:00=20MiB,18:00-19:00=unlimited" })
	limit(5 << 20)
	at("08:00:00")
	limit(20 << 20)
	at("18:00:00")
	limit(0)
	a.restart()
	g = a.group("shop")
	at("08:00:00")
	limit(20 << 20)
	mustModify(t, g, func(s *core.Settings) { s.ShipSchedule = "08:00-18:00=1MiB" })
	limit(1 << 20)
	err := g.Modify(func(s *core.Settings) { s.ShipSchedule = "8-18=1MiB" })
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "08:00-18:00") && !strings.Contains(err.Error(),
		"time of day") {
		t.Errorf("a schedule that is none: %v", err)
	}
	mustModify(t, g, func(s *core.Settings) { s.ShipSchedule = "" })
	limit(5 << 20)
}
