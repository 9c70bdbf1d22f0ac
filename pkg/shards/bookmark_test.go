package shards

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// TestBookmarkOfAllShards names an epoch while a writer goes from node to node, with a call that is interrupted before.
// The copies, which keep history, are opened there together later.
func TestBookmarkOfAllShards(t *testing.T) {
	c := newCluster(t, 2)
	c.create(func(s *core.Settings) { s.HistoryMillis = time.Hour.Milliseconds() })
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	w.writes(30)
	broken := c.sites["a"][1]
	broken.mu.Lock()
	broken.hook = func(r *shardpb.DoRequest) error {
		if r.GetPart() == shardpb.Part_PART_BOOKMARK {
			return status.Error(codes.Internal, "the node broke off")
		}
		return nil
	}
	broken.mu.Unlock()
	node := c.sites["a"][0].node
	if _, err := node.Bookmark(t.Context(), "shop", "before"); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("a call that breaks off: %v", err)
	}
	broken.mu.Lock()
	broken.hook = nil
	broken.mu.Unlock()
	w.writes(30)
	named := w.next
	at, err := c.sites["a"][1].node.Bookmark(t.Context(), "shop", "before")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.Bookmark(t.Context(), "shop", "before"); !errors.Is(err, replication.ErrExists) {
		t.Errorf("again: %v", err)
	}
	w.writes(40)
	c.eventually("the copies have the bookmark and later epochs", func() bool {
		for _, m := range c.sites["b"] {
			b, err := m.group().Shard().BookmarkOf("before")
			if err != nil || b.Epoch != at.String() || !at.Before(m.shown()) {
				return false
			}
		}
		return true
	})
	name, err := c.sites["b"][1].node.OpenViews(t.Context(), "shop", replication.ViewSpec{LimitBytes: 1 << 30,
		Point: replication.Point{Bookmark: "before"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.checkView("b", name); got != named {
		t.Errorf("the view at the bookmark has %d writes, it was made behind %d", got, named)
	}
	if epochs := c.views("b", name); epochs[0] != at.String() || epochs[1] != at.String() {
		t.Errorf("the views are of the epochs %q, the bookmark of %s", epochs, at)
	}
	for _, label := range []string{"other", "UPPER"} {
		if _, err := c.sites["b"][0].node.OpenViews(t.Context(), "shop", replication.ViewSpec{
			Point: replication.Point{Bookmark: label}}); !errors.Is(err, core.ErrPrecondition) {
			t.Errorf("a view at %s: %v", label, err)
		}
	}
	// The label survives a restart of a primary and of a copy.
	for _, m := range []*member{c.sites["a"][0], c.sites["b"][0]} {
		m.kill()
		m.start()
		if b, err := m.group().Shard().BookmarkOf("before"); err != nil || b.Epoch != at.String() {
			t.Errorf("node %s after a restart: %+v, %v", m.Address(), b, err)
		}
	}
}
