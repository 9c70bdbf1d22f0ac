package shim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	powerVolumes = 3
	powerPages   = 32
)

// openSite starts a site on a file system in memory. end is as SIGKILL.
func openSite(t *testing.T, fs *vfs.MemFS) (site *replication.Site, pool *blockdev.Pool, end func()) {
	t.Helper()
	pool, err := blockdev.OpenPool(fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	site, err = replication.Open(replication.Config{
		FS: fs, Pool: pool, Site: "site-a", PeerAddress: func(string) string { return "memory" },
		Dialer: link.NewNetwork(nil).Dialer("site-a"),
		// A write without a waiting call is not durable soon.
		CommitInterval: time.Hour, ApplyInterval: 5 * time.Millisecond, HeartbeatInterval: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return site, pool, func() {
		site.Kill()
		pool.Close()
	}
}

// TestPowerLoss writes to volumes of one group through the workers and the engine, and loses power at moments when
// some writes are answered and others are not: of each page at least what was answered is there afterwards, and
// nothing that was never written.
func TestPowerLoss(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	fs := vfs.NewMem()
	site, pool, end := openSite(t, fs)
	defer end()
	g, err := site.CreateGroup(replication.GroupSpec{
		Name: "shop", Settings: core.Settings{Peer: "site-b", JournalSizeBytes: replication.MinJournalBytes}})
	if err != nil {
		t.Fatal(err)
	}
	var conns []*connection
	for i := range powerVolumes {
		id := fmt.Sprintf("v%d", i)
		rec, err := pool.Create(blockdev.VolumeRecord{
			ID: id, Name: id, SizeBytes: powerPages * pageSize, Replicable: true, Order: blockdev.OrderAck})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.AddVolume(rec, nil); err != nil {
			t.Fatal(err)
		}
		v, err := g.Attach(id)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, connect(t, v))
	}
	var sent, answered [powerVolumes][powerPages]byte // generations
	var inFlight [powerVolumes]int
	reply := func(v int) {
		unique, errno, _ := conns[v].reply()
		if errno != 0 {
			t.Fatalf("write %#x: %v", unique, errno)
		}
		answered[v][unique>>8] = byte(unique)
		inFlight[v]--
	}
	for range 40 {
		for v, c := range conns {
			for range 1 + rng.IntN(8) {
				page := rng.IntN(powerPages)
				if sent[v][page] != answered[v][page] || sent[v][page] == 255 {
					continue
				}
				sent[v][page]++
				inFlight[v]++
				c.write(uint64(page)<<8|uint64(sent[v][page]), int64(page), sent[v][page])
			}
		}
		for v, c := range conns {
			for inFlight[v] > 0 && (rng.IntN(4) > 0 || c.answered(0)) {
				reply(v)
			}
		}
		powerLoss(t, fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng}), &sent, &answered)
	}
	for v := range conns {
		for inFlight[v] > 0 {
			reply(v)
		}
	}
	powerLoss(t, fs.CrashClone(vfs.CrashConfig{RNG: rng}), &sent, &answered)
}

// powerLoss opens what a loss of power has left, and looks at each page.
func powerLoss(t *testing.T, fs *vfs.MemFS, sent, answered *[powerVolumes][powerPages]byte) {
	t.Helper()
	site, _, end := openSite(t, fs)
	defer end()
	g, err := site.Group("shop")
	if err != nil {
		t.Fatal(err)
	}
	for i := range powerVolumes {
		v, err := g.Volume(fmt.Sprintf("v%d", i))
		if err != nil {
			t.Fatal(err)
		}
		page := make([]byte, pageSize)
		for n := range powerPages {
			if _, err := v.ReadAt(page, int64(n)*pageSize); err != nil {
				t.Fatal(err)
			}
			if page[0] < answered[i][n] || page[0] > sent[i][n] || !bytes.Equal(page, bytes.Repeat(page[:1], pageSize)) {
				t.Fatalf("volume %d, page %d: generation %d after the loss of power, answered was %d, sent %d",
					i, n, page[0], answered[i][n], sent[i][n])
			}
		}
	}
}

// TestFaultsOfThePathAreCaught: with the deliberate faults built in, the test above fails.
func TestFaultsOfThePathAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	for _, fault := range []bug.Name{bug.AnswerBeforeDurable, bug.FlushNothing} {
		testenv.Catches(t, fault, "TestPowerLoss")
	}
}
