package datapath

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// pageBytes is what the loads of these tests write at a time.
const pageBytes = 4096

// writePages writes pages at random places of a device until it is stopped, and returns how many bytes were written.
// Each write is durable when it returns.
func writePages(t *testing.T, device string, sizeBytes int64, seed uint64) (stop func() (written uint64)) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY|syscall.O_DSYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan uint64, 1)
	go func() {
		var written uint64
		page := make([]byte, pageBytes)
		for ctx.Err() == nil {
			for i := range page {
				page[i] = byte(rng.Uint32())
			}
			if _, err := f.WriteAt(page, rng.Int64N(sizeBytes/pageBytes)*pageBytes); err != nil {
				t.Errorf("write to %s: %v", device, err)
				break
			}
			written += pageBytes
		}
		done <- written
	}()
	return sync.OnceValue(func() uint64 {
		cancel()
		written := <-done
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		return written
	})
}

// After ten seconds in which both sites wrote, the old primary gives way: no more than twice what was written is
// copied. Then the idle group moves home. How long both take is in the log.
func TestYieldAfterDivergentLoad(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	p := newPair(t, ctx)
	const size = 256 << 20
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{Name: "shop",
		Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(512 << 20))}})
	v, devA := blockVolume(t, ctx, p.A, "stock", "shop", size, "ack")
	first := writePages(t, devA, size, 1)
	time.Sleep(time.Second)
	first()
	caughtUp(t, ctx, p, "shop")

	if _, err := p.B.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: "shop", Force: true}); err != nil {
		t.Fatal(err)
	}
	devB, err := p.B.Mount(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	duration := 10 * time.Second
	if testing.Short() {
		duration = time.Second
	}
	atA, atB := writePages(t, devA, size, 2), writePages(t, devB, size, 3)
	time.Sleep(duration)
	written := atA() + atB()

	if err := p.A.Unmount(ctx, v); err != nil {
		t.Fatal(err)
	}
	_, err = p.A.WaitGroup(ctx, "shop", "diverged", func(g *sidecarpb.GroupStatus) bool {
		return g.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED
	})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := p.A.Sidecar.Yield(ctx, &sidecarpb.YieldRequest{Group: "shop"}); err != nil {
		t.Fatal(err)
	}
	_, err = p.B.WaitGroup(ctx, "shop", "streaming", func(g *sidecarpb.GroupStatus) bool {
		return testsite.Streaming(g) && g.GetAcknowledgedOrdinal() == g.GetHeadOrdinal() && g.GetChangeMapBytes() == 0
	})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	g, err := p.A.WaitGroup(ctx, "shop", "a copy", func(g *sidecarpb.GroupStatus) bool {
		return g.GetYield().GetStage() == "done"
	})
	if err != nil {
		t.Fatal(err)
	}
	y := g.GetYield()
	t.Logf("both sites wrote %d bytes in %v; the yield copied %d (%.2f times that) of a volume of %d, and took %v",
		written, duration, y.GetCopiedBytes(), float64(y.GetCopiedBytes())/float64(written), size, took)
	if y.GetAll() || y.GetCopiedBytes() == 0 || y.GetCopiedBytes() > 2*written {
		t.Errorf("%d bytes were written, and the yield copied %d: %v", written, y.GetCopiedBytes(), y)
	}

	mustSlipctl(t, ctx, p.A, "group", "set", "shop", "--keep-tails", "1", "--keep-tails-for", "720h")
	if out := mustSlipctl(t, ctx, p.A, "group", "status", "shop"); !strings.Contains(string(out),
		"kept at most 1 and for 720h0m0s") {
		t.Errorf("the settings for tails are not in the status")
	}

	if err := p.B.Unmount(ctx, v); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	moved, err := p.B.Sidecar.Relocate(ctx, &sidecarpb.RelocateRequest{Group: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the relocation of the idle group took %v; without a primary for %d ms", time.Since(began),
		moved.GetTookMillis())
	if devA, err = p.A.Mount(ctx, v); err != nil {
		t.Fatal(err)
	}
	if err := p.WaitApplied(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	sameDevices(t, devA, p.B.Image(v))
}

// A byte of an image changes at one of the sites: a comparison names the volume and the extent, and health says so. A
// repair at that site says whose extents it takes, replaces the one that differs, and leaves both sites equal.
func TestFlippedByte(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	p := newPair(t, ctx)
	const size, extent = 16 << 20, 64 << 10
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{Name: "shop",
		Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(64 << 20))}})
	var volumes []*testsite.Volume
	for i, name := range []string{"stock", "sales"} {
		v, dev := blockVolume(t, ctx, p.A, name, "shop", size, "ack")
		stop := writePages(t, dev, size, uint64(i))
		time.Sleep(200 * time.Millisecond)
		stop()
		volumes = append(volumes, v)
		if err := p.A.Unmount(ctx, v); err != nil { // a repair at the primary needs it
			t.Fatal(err)
		}
	}
	for n, c := range []struct {
		at             *testsite.Site
		text           string
		volume, offset int
	}{
		{p.B, "at THIS site, the secondary, 1 extent by those of site-a", 1, 3*extent + 1234},
		{p.A, "at THIS site, the primary, 1 extent by those of site-b", 0, 100*extent + 4321},
	} {
		if err := p.WaitApplied(ctx, "shop"); err != nil {
			t.Fatal(err)
		}
		v := volumes[c.volume]
		before := readFile(t, c.at.Image(v))
		flip(t, c.at.Image(v), int64(c.offset))
		out, err := slipctl(t, ctx, p.A, "group", "verify", "shop", "--wait")
		place := fmt.Sprintf("%s  %d", v.ID, c.offset/extent*extent)
		if err == nil || strings.Count(string(out), "vol-") != 1 ||
			!strings.Contains(strings.Join(strings.Fields(string(out)), "  "), place) {
			t.Fatalf("case %d: the comparison does not name %s: %v", n, place, err)
		}
		for _, other := range volumes {
			reasons, err := p.A.Health(ctx, other)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Contains(reasons, "SitesDiffer"); got != (other == v) {
				t.Errorf("case %d: health of %s: %v", n, other.ID, reasons)
			}
		}
		out, text, err := slipctlTexts(t, ctx, c.at, "group", "repair", "shop", "--yes")
		if err != nil || !strings.Contains(string(text), c.text) || !strings.Contains(string(out), "1 extent replaced") {
			t.Errorf("case %d: the repair says %s%s, %v", n, text, out, err)
		}
		if err := p.WaitApplied(ctx, "shop"); err != nil {
			t.Fatal(err)
		}
		mustSlipctl(t, ctx, p.A, "group", "verify", "shop", "--wait")
		if !bytes.Equal(readFile(t, c.at.Image(v)), before) {
			t.Errorf("case %d: the image of %s is not what it was", n, v.ID)
		}
		if reasons, err := p.A.Health(ctx, v); err != nil || slices.Contains(reasons, "SitesDiffer") {
			t.Errorf("case %d: health after the repair: %v, %v", n, reasons, err)
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// flip changes a bit of a file.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
