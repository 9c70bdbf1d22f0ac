package replication

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// skewed is a pair of sites whose wall clocks are apart, in a world whose time a test can move on.
type skewed struct {
	a, b   *testSite
	net    *link.Network
	passed atomic.Int64
	boot   atomic.Pointer[string] // of b
}

func newSkewed(t *testing.T, apart time.Duration) *skewed {
	s := &skewed{net: link.NewNetwork(nil)}
	t.Cleanup(s.net.Close)
	s.boot.Store(new("boot1"))
	conf := func(off time.Duration, boot func() string) func(*Config) {
		return func(c *Config) {
			c.Now = func() time.Time { return time.Now().Add(off + time.Duration(s.passed.Load())) }
			c.Clock = func() clocks.Instant {
				i := clocks.Read(c.Now)
				i.BootNanos, i.RawNanos, i.BootID = i.BootNanos+s.passed.Load(), i.RawNanos+s.passed.Load(), boot()
				return i
			}
		}
	}
	s.a = newTestSite(t, s.net, "site-a", conf(apart, func() string { return "boot-a" }))
	s.b = newTestSite(t, s.net, "site-b", conf(0, func() string { return *s.boot.Load() }))
	return s
}

func (s *skewed) pass(d time.Duration) { s.passed.Add(int64(d)) }

// A bound is one whatever the clocks of the sites say, and across a restart of the secondary; where it cannot be, it is
// unknown, and so is the lag. Neither is ever zero because nothing is known.
func TestLossIsBoundedAcrossARestart(t *testing.T) {
	for name, apart := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour, "together": 0} {
		for _, restart := range []string{"none", "process", "machine", "file lost"} {
			t.Run(name+", restart of "+restart, func(t *testing.T) {
				s := newSkewed(t, apart)
				g := s.a.createGroup("shop", "site-b", 1, 1<<20, nil)
				v := volumeOf(t, g, "v0")
				mustWrite(t, v, 0, block('a', 4096))
				mustFlush(t, v)
				gb := caughtUp(t, g, s.b)
				eventually(t, "both sites know lag and clocks", func() bool {
					return knowsAll(g.Status()) &&
						knowsAll(gb.Status())
				})
				for site, want := range map[*Group]time.Duration{g: -apart, gb: apart} {
					st := site.Status()
					if off := orZero(st.ClockDifferenceSeconds) - want.Seconds(); max(off,
						-off) > orZero(st.ClockDifferenceErrorSeconds) {
						t.Fatalf("the peer's clock is %v ahead, measured %v to within %v", want, orZero(st.ClockDifferenceSeconds),
							orZero(st.ClockDifferenceErrorSeconds))
					}
				}
				s.net.Cut("site-a")
				mustWrite(t, v, 0, block('z', 4096))
				mustFlush(t, v)
				s.pass(6 * time.Second)
				mustWrite(t, v, 0, block('z', 4096))
				mustFlush(t, v)
				switch restart {
				case "none":
				case "machine":
					s.b.kill() // before the boot: a running process would note the new one
					s.boot.Store(new("boot2"))
					s.b.open()
				case "file lost":
					s.b.kill()
					if err := s.b.fs.Remove(gb.path(rememberedName)); err != nil {
						t.Fatal(err)
					}
					s.b.open()
				default:
					s.b.restart()
				}
				gb = s.b.group("shop")
				provable := restart == "none" || restart == "process"
				lag := gb.Status().LagSeconds
				loss, err := gb.Promote(true)
				if err != nil {
					t.Fatal(err)
				}
				if provable != (loss.LostSeconds != nil) || provable != (lag != nil) {
					t.Fatalf("lag %v, loss %+v", lag, loss)
				}
				if provable && (*loss.LostSeconds < 6 || *loss.LostSeconds > 3000 || *lag < 6) {
					t.Fatalf("at most %v s are lost and the lag is %v s; the oldest lost write is 6 s old", *loss.LostSeconds, *lag)
				}
				if loss.LostWrites != nil || loss.LostBytes != nil {
					t.Fatalf("counted before the old primary is back: %+v", loss)
				}
				s.net.Heal("site-a")
				eventually(t, "the loss is exact", func() bool { l := gb.Status().Loss; return l != nil && l.Exact })
				l := gb.Status().Loss
				if orZero(l.LostOrdinals) != 2 || orZero(l.LostSeconds) < 6 || l.Partial || provable &&
					orZero(l.LostSeconds) > *loss.LostSeconds {
					t.Fatalf("exact %v, the bound was %+v", l, loss)
				}
			})
		}
	}
}

func knowsAll(s *Status) bool {
	return s.LagSeconds != nil && s.LagOrdinals != nil && s.LagBytes != nil && s.LastReplicatedUnixNanos != nil &&
		s.ClockDifferenceSeconds != nil
}

// A primary that is restarted while its peer is away goes on knowing how far the copy is behind, and does not know it
// after a reboot.
func TestLagAcrossARestartOfThePrimary(t *testing.T) {
	s := newSkewed(t, 0)
	g := s.a.createGroup("shop", "site-b", 1, 1<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block('a', 4096))
	mustFlush(t, v)
	caughtUp(t, g, s.b)
	s.net.Cut("site-a")
	mustWrite(t, v, 0, block('b', 4096))
	mustFlush(t, v)
	eventually(t, "what is lacking is applied",
		func() bool { st := g.Status(); return st.AppliedOrdinal == st.HeadOrdinal })
	s.pass(10 * time.Second)
	s.a.restart()
	st := s.a.group("shop").Status()
	if st.LagSeconds == nil || orZero(st.LagSeconds) < 10 || st.LagOrdinals == nil || orZero(st.LagOrdinals) == 0 ||
		orZero(st.LagOrdinals) == st.HeadOrdinal {
		t.Fatalf("a write of 10 s ago is missing at the peer: %v", st)
	}
	s.a.kill()
	if err := s.a.fs.Remove(g.path(rememberedName)); err != nil {
		t.Fatal(err)
	}
	s.a.open()
	if st = s.a.group("shop").Status(); st.LagSeconds != nil || st.LagOrdinals != nil || st.LagBytes != nil ||
		st.AcknowledgedOrdinal != nil || st.LastReplicatedUnixNanos != nil {
		t.Fatalf("nothing is known: %v", st)
	}
	s.net.Heal("site-a")
	g = s.a.group("shop")
	caughtUp(t, g, s.b)
	eventually(t, "the lag is known again", func() bool { return knowsAll(g.Status()) })
}
