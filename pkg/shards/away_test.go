package shards

import (
	"bytes"
	"context"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// The copy of one shard is away until another one has more marks than fit into a report. Then the group can be promoted
// without it. Or the copy comes back, also for a resync: all copies show epochs, and can be opened together again.
func TestCopyAwayForManyEpochs(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for more than 256 epochs")
	}
	for _, then := range []string{"promoted without it", "it comes back", "it comes back for a resync"} {
		t.Run(then, func(t *testing.T) {
			t.Parallel()
			testCopyAway(t, then)
		})
	}
}

func testCopyAway(t *testing.T, then string) {
	c := newCluster(t, 2)
	c.create(func(s *core.Settings) { s.Shard.EpochMillis = core.MinEpochMillis })
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	w.writes(20)
	last := c.waitShown("b")
	stays, away := c.sites["b"][0], c.sites["b"][1]
	away.kill()
	w.writes(20)
	if then == "it comes back for a resync" {
		overflow(t, c.sites["a"][1].group())
	}
	c.eventually("one copy is many epochs ahead", func() bool {
		return stays.group().Shard().Progress().Newest.Number > last.Number+epoch.MaxReportMarks+20
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if then == "promoted without it" {
		if err := stays.node.Promote(ctx, "shop", true, 1); err != nil {
			t.Fatal(err)
		}
		w.wholeAt(stays)
		return
	}
	away.start()
	c.eventually("the copies show a later epoch", func() bool { return c.waitShown("b").Number > last.Number })
	// A copy that needs a resync may show an epoch first that it had before it was away.
	c.eventually("an epoch can be fixed", func() bool {
		f, err := stays.node.Fix(ctx, "shop")
		if err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
		if err == nil {
			f.Release()
		}
		return err == nil
	})
	w.writes(20)
	at := c.waitShown("b")
	c.eventually("the writes are in an epoch", func() bool { return c.waitShown("b").Number > at.Number+1 })
	for _, m := range c.sites["a"] {
		m.kill()
	}
	c.promote("b", 0, true)
	if n := c.check("b"); n != w.next {
		t.Fatalf("the promoted copies have %d of %d writes", n, w.next)
	}
}

// overflow writes more to the end of a primary's volume than its journal holds, while its peer is away.
func overflow(t *testing.T, g *replication.Group) {
	t.Helper()
	v := g.Volumes()[0]
	p := bytes.Repeat(make([]byte, blockBytes), 32)
	p[len(p)-1] = 1 // not of the chain: its blocks begin with zeros
	for range 3 * replication.MinJournalBytes / len(p) {
		if _, err := v.WriteAt(p, volumeBytes-int64(len(p))); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	if g.Status().ChangeMapBytes == 0 {
		t.Fatal("the journal did not overflow")
	}
}
