package shards

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// The images of one copy go past the epoch that it shows, twice in a row, while the copy of the other shard lags: for a
// sync, or for room in its journal. The marks between the two are no state that the copy can become any more. When the
// other one has caught up, the group is still promoted, at an epoch that both can become.
func TestCopyGoesPastItsEpochTwice(t *testing.T) {
	goPast := map[string]func(*cluster){
		"for a sync": func(c *cluster) {
			a, net := c.sites["a"][0], c.sites["a"][0].net
			net.Cut("b")
			c.eventually("the line is cut", func() bool { return !a.group().Status().Connected })
			overflow(c.t, a.group())
			net.Heal("b")
			c.eventually("the sync has ended", func() bool {
				s := a.group().Status()
				return s.Connected && s.ChangeMapBytes == 0 && s.SyncTotalBytes != nil && *s.SyncTotalBytes == 0
			})
		},
		"for room in the journal": func(c *cluster) {
			g := c.sites["a"][0].group()
			v := g.Volumes()[0]
			p := make([]byte, 256<<10)
			p[len(p)-1] = 1 // not of the chain: its blocks begin with zeros
			for range 3 * replication.MinJournalBytes / (2 * len(p)) {
				if _, err := v.WriteAt(p, volumeBytes-int64(len(p))); err != nil {
					c.t.Fatal(err)
				}
				if err := v.Flush(); err != nil {
					c.t.Fatal(err)
				}
				c.eventually("the copy has it", func() bool { return acknowledged(g) })
			}
			if g.Status().ChangeMapBytes > 0 {
				c.t.Fatal("the journal of the primary did overflow, too")
			}
		},
	}
	for name, past := range goPast {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testGoesPastTwice(t, past)
		})
	}
}

// acknowledged reports whether the peer has all that a primary has.
func acknowledged(g *replication.Group) bool {
	s := g.Status()
	return s.AcknowledgedOrdinal != nil && *s.AcknowledgedOrdinal == s.HeadOrdinal
}

func testGoesPastTwice(t *testing.T, past func(*cluster)) {
	c := newCluster(t, 2)
	c.create(nil)
	c.waitShown("b")
	var stopped atomic.Bool
	a1 := c.sites["a"][1]
	a1.mu.Lock()
	a1.deliver = func(r *shardpb.DeliverRequest) error {
		if stopped.Load() && r.GetPrepare() != nil {
			return errors.New("no epoch")
		}
		return nil
	}
	a1.mu.Unlock()
	w := &chain{c: c, site: "a"}
	newest := func() uint64 { return c.sites["b"][0].group().Shard().Progress().Newest.Number }
	marked := func() {
		t.Helper()
		before := newest()
		c.eventually("the copy has marks of later epochs", func() bool { return newest() > before+1 })
	}
	w.writes(20)
	a1.net.Cut("b")
	w.writes(20)
	marked()
	past(c)
	w.writes(20)
	marked()
	stopped.Store(true)
	w.writes(20)
	past(c)

	a1.net.Heal("b")
	c.eventually("the other copy has caught up", func() bool { return acknowledged(a1.group()) })
	for _, m := range c.sites["a"] {
		m.kill()
	}
	c.promote("b", 0, true)
	c.check("b")
}
