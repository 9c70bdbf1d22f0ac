package replication

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// flip changes one byte of an image behind the back of its group, as a disk does.
func (s *testSite) flip(id string, off int64) {
	s.t.Helper()
	path, err := s.pool.ImagePath(id)
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := s.fs.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 1)
	if _, err := f.ReadAt(p, off); err != nil {
		s.t.Fatal(err)
	}
	p[0] ^= 0x10
	if _, err := f.WriteAt(p, off); err != nil {
		s.t.Fatal(err)
	}
}

// verifyNow compares both sites and returns what the primary found; the secondary has to have heard the same.
func verifyNow(t *testing.T, primary, secondary *Group) VerifyStatus {
	t.Helper()
	before := orZero(primary.Status().Verify.FinishedUnixNanos)
	eventually(t, "a comparison begins", func() bool { return primary.Verify() == nil })
	return verified(t, primary, secondary, before)
}

// verified waits for a comparison that ends after an instant.
func verified(t *testing.T, primary, secondary *Group, before int64) VerifyStatus {
	t.Helper()
	var s VerifyStatus
	eventually(t, "the comparison ended", func() bool {
		s = primary.Status().Verify
		if s.Error != "" {
			t.Fatalf("the comparison failed: %s", s.Error)
		}
		return !s.Running && orZero(s.FinishedUnixNanos) > before
	})
	eventually(t, "the secondary heard of it", func() bool {
		theirs := secondary.Status().Verify
		return !theirs.Running && orZero(theirs.Ordinal) == *s.Ordinal &&
			fmt.Sprint(theirs.Differences) == fmt.Sprint(s.Differences)
	})
	if n := len(primary.preserved.of(ownerVerify)) + len(secondary.preserved.of(ownerVerify)); n > 0 {
		t.Errorf("%d sets of preserved images are left", n)
	}
	return s
}

func wantDifferences(t *testing.T, s VerifyStatus, want ...string) {
	t.Helper()
	var got []string
	for _, d := range s.Differences {
		got = append(got, fmt.Sprintf("%s@%d+%d", d.VolumeID, d.OffsetBytes, d.LengthBytes))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || orZero(s.DifferenceCount) != uint64(len(want)) {
		t.Fatalf("differences %v (%d), want %v", got, orZero(s.DifferenceCount), want)
	}
}

// A comparison finds one flipped byte at either site, names volume and extent, and nothing else. It is repaired from
// the other side, and found equal afterwards. Both sites know, also after a restart.
func TestVerifyFindsAFlippedByte(t *testing.T) {
	for _, where := range []string{"secondary", "primary"} {
		t.Run(where, func(t *testing.T) {
			_, a, b := pair(t)
			// More than one run of extents, and an end that is no whole extent.
			const size = 20<<20 + 4096
			g := a.createGroup("shop", "site-b", 2, size, nil)
			for off := int64(0); off < size; off += 3 << 20 {
				mustWrite(t, volumeOf(t, g, "v1"), off, block('x', 4096))
			}
			mustFlush(t, volumeOf(t, g, "v1"))
			copied := caughtUp(t, g, b)
			wantDifferences(t, verifyNow(t, g, copied))
			damaged := b
			if where == "primary" {
				damaged = a
			}
			// Where nothing was written lately: the start looks at the newest writes.
			damaged.flip("v1", 9<<20+8192)
			damaged.flip("v1", size-1)
			wanted := []string{fmt.Sprintf("v1@%d+65536", 9<<20), fmt.Sprintf("v1@%d+4096", 20<<20)}
			wantDifferences(t, verifyNow(t, g, copied), wanted...)

			a.restart()
			b.restart()
			g = a.group("shop")
			copied = caughtUp(t, g, b)
			wantDifferences(t, g.Status().Verify, wanted...)
			wantDifferences(t, copied.Status().Verify, wanted...)

			// At the site that yields.
			at := damaged.group("shop")
			if where == "primary" {
				if _, err := g.Attach("v1"); err != nil {
					t.Fatal(err)
				}
				if _, err := at.Repair(); !errors.Is(err, ErrInUse) {
					t.Fatalf("repairing below an application: %v", err)
				}
				if err := g.Detach("v1"); err != nil {
					t.Fatal(err)
				}
			}
			raw, _ := g.ShippedBytes()
			if n, err := at.Repair(); err != nil || n != 2 {
				t.Fatalf("%d, %v", n, err)
			}
			eventually(t, "the repair ended at both sites", func() bool {
				s := g.Status().Verify
				if s.Error != "" {
					t.Fatal(s.Error)
				}
				return !s.Running && orZero(s.DifferenceCount) == 0 && orZero(copied.Status().Verify.DifferenceCount) == 0
			})
			if after, _ := g.ShippedBytes(); after-raw > 256<<10 {
				t.Errorf("%d bytes were sent for two extents", after-raw)
			}
			copied = caughtUp(t, g, b)
			wantDifferences(t, verifyNow(t, g, copied))
			sameContent(t, g, copied)
			if got := content(t, volumeOf(t, g, "v1")); got[9<<20] != 'x' || got[9<<20+8192] != 0 || got[size-1] != 0 {
				t.Errorf("%s was repaired with %q %q %q", damaged.name, got[9<<20], got[9<<20+8192], got[size-1])
			}
			if _, err := at.Repair(); !errors.Is(err, core.ErrPrecondition) {
				t.Errorf("repairing what does not differ: %v", err)
			}
			if _, err := g.Attach("v1"); err != nil {
				t.Errorf("attaching after a repair: %v", err)
			}
		})
	}
}

// While writers go on, both sites are compared at one ordinal: nothing is found that is not there, and what is there is
// found.
func TestVerifyUnderLoad(t *testing.T) {
	rng := seeded(t)
	_, a, b := pair(t)
	const size = 12 << 20
	g := a.createGroup("shop", "site-b", 2, size, func(s *GroupSpec) { s.JournalSizeBytes = 16 << 20 })
	copied := caughtUp(t, g, b)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	defer func() { close(stop); writers.Wait() }()
	for i := range 2 {
		v, seed := volumeOf(t, g, fmt.Sprintf("v%d", i)), rng.Uint64()
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				time.Sleep(time.Millisecond)          // so that the link keeps up
				off := rng.Int64N(size/2/4096) * 4096 // the damage is behind that
				var err error
				switch rng.IntN(8) {
				case 0:
					err = v.Discard(off, 64<<10)
				case 1:
					err = v.Flush()
				default:
					_, err = v.WriteAt(block(byte(rng.Uint32()), 4096<<rng.IntN(4)), off)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 10 {
		if i == 9 {
			b.flip("v0", size-100)
			wantDifferences(t, verifyNow(t, g, copied), fmt.Sprintf("v0@%d+65536", size-changemap.ExtentBytes))
			return
		}
		wantDifferences(t, verifyNow(t, g, copied))
	}
}

// A hole and written zeros are the same.
func TestVerifyTakesHolesForZeros(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 4<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('x', 256<<10))
	copied := caughtUp(t, g, b)
	mustWrite(t, volumeOf(t, g, "v0"), 1<<20, make([]byte, 128<<10))
	if err := volumeOf(t, g, "v0").Discard(0, 128<<10); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, volumeOf(t, g, "v0"))
	copied = caughtUp(t, g, b)
	eventually(t, "all is applied", func() bool {
		s := copied.Status()
		return s.AppliedOrdinal == s.DurableOrdinal
	})
	path, err := b.pool.ImagePath("v0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := b.fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 64<<10), 64<<10); err != nil { // zeros in place of a hole
		t.Fatal(err)
	}
	if err := f.PunchHole(1<<20, 64<<10); err != nil { // a hole in place of zeros
		t.Fatal(err)
	}
	wantDifferences(t, verifyNow(t, g, copied))
}

// A comparison that a crash or the link ends has no result, leaves nothing, and can be repeated.
func TestVerifyInterrupted(t *testing.T) {
	rng := seeded(t)
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 32<<20, func(s *GroupSpec) {
		s.VerifyBytesPerSecond = core.MinVerifyBytesPerSecond
	})
	for off := int64(0); off < 32<<20; off += 64 << 10 {
		mustWrite(t, volumeOf(t, g, "v0"), off, block('x', 4096))
	}
	mustFlush(t, volumeOf(t, g, "v0"))
	copied := caughtUp(t, g, b)
	for name, interrupt := range map[string]func(){
		"link":      func() { net.Cut("site-b"); time.Sleep(time.Millisecond); net.Heal("site-b") },
		"primary":   func() { a.crash(rng.IntN(101), rng) },
		"secondary": func() { b.crash(rng.IntN(101), rng) },
		"suspend": func() {
			if _, err := g.Suspend(); err != nil {
				t.Fatal(err)
			}
			if _, err := g.Resume(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		eventually(t, "a comparison begins", func() bool { return g.Verify() == nil })
		eventually(t, "it compares", func() bool {
			return g.Status().Verify.TotalBytes > 0 && copied.Status().Verify.Running
		})
		if err := g.Verify(); !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "runs") {
			t.Errorf("%s: a second one: %v", name, err)
		}
		interrupt()
		g = a.group("shop")
		eventually(t, name+": it ends", func() bool { return !g.Status().Verify.Running })
		copied = caughtUp(t, g, b)
		eventually(t, name+": the secondary ended it", func() bool {
			return !copied.Status().Verify.Running && len(copied.preserved.of(ownerVerify)) == 0
		})
		if s := g.Status().Verify; s.FinishedUnixNanos != nil || len(g.preserved.of(ownerVerify)) > 0 {
			t.Errorf("%s: %+v, %d sets", name, s, len(g.preserved.of(ownerVerify)))
		}
	}
	mustModify(t, g, func(s *core.Settings) { s.VerifyBytesPerSecond = 1 << 30 })
	wantDifferences(t, verifyNow(t, g, copied))
}

// The rate bounds how fast a comparison reads, and the schedule begins comparisons by itself.
func TestVerifyRateAndSchedule(t *testing.T) {
	var skew struct {
		sync.Mutex
		d time.Duration
	}
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	clock := func(c *Config) {
		c.Now = func() time.Time { skew.Lock(); defer skew.Unlock(); return time.Now().Add(skew.d) }
	}
	a, b := newTestSite(t, net, "site-a", clock), newTestSite(t, net, "site-b", clock)
	g := a.createGroup("shop", "site-b", 1, 4<<20, func(s *GroupSpec) {
		s.VerifyBytesPerSecond = 4 << 20
	})
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('x', 1<<20))
	mustWrite(t, volumeOf(t, g, "v0"), 1<<20, block('y', 1<<20))
	mustFlush(t, volumeOf(t, g, "v0"))
	copied := caughtUp(t, g, b)
	start := time.Now()
	verifyNow(t, g, copied)
	if elapsed, least := time.Since(start), 500*time.Millisecond-verifyBurst; elapsed < least {
		t.Errorf("2 MiB were compared in %v, at 4 MiB/s it takes %v", elapsed, least)
	}
	first := *g.Status().Verify.FinishedUnixNanos
	mustModify(t, g, func(s *core.Settings) { s.VerifyEveryMillis = 60_000 })
	time.Sleep(2 * verifyTick)
	if again := *g.Status().Verify.FinishedUnixNanos; again != first {
		t.Error("a comparison began before its time")
	}
	skew.Lock()
	skew.d = time.Hour
	skew.Unlock()
	verified(t, g, copied, first)
}

// Where a comparison is no use it says what is to be done.
func TestVerifyRefused(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("alone", "", 0, 0, nil)
	if err := g.Verify(); !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "no peer") {
		t.Error(err)
	}
	g, copied := startCopied(t, a, b, nil)
	if err := copied.Verify(); !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(),
		"slipctl group verify shop") {
		t.Error(err)
	}
	b.kill()
	eventually(t, "the stream ended", func() bool { return !g.Status().Connected })
	if err := g.Verify(); !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "not connected") {
		t.Error(err)
	}
	if _, err := g.Repair(); !errors.Is(err, core.ErrPrecondition) {
		t.Error(err)
	}
	// A damaged file of results is no reason not to serve.
	a.kill()
	if err := vfs.WriteFileAtomic(a.fs, "/pool/groups/"+g.ID()+"/"+verifiedName, []byte("{")); err != nil {
		t.Fatal(err)
	}
	a.open()
	if s := a.group("shop").Status().Verify; s.FinishedUnixNanos != nil {
		t.Errorf("%+v", s)
	}
}
