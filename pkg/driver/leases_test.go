package driver

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/lease"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// TestLeasesKeepNamesUnique runs controllers step by step in any order, on nodes that each have their own leases: a
// name is created once, however long controllers sleep and wherever they die.
func TestLeasesKeepNamesUnique(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const nodes = 3
		now := time.Unix(0, 0)
		var leases [nodes]*lease.Table
		for i := range leases {
			leases[i] = lease.NewTable(func() time.Time { return now })
		}
		var holds [nodes]bool
		created := 0
		name := []lease.Key{{Kind: locatepb.Key_VOLUME_NAME, Value: "v"}}

		// controller is one attempt: it asks the nodes in any order, then creates on one in two steps.
		type controller struct {
			token  string
			toAsk  []int
			target int
			done   func() // its creation is at work
			over   bool
		}
		var running []*controller
		next := 0
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				next++
				order := rapid.Permutation([]int{0, 1, 2}).Draw(t, "order")
				running = append(running, &controller{token: fmt.Sprint(next), toAsk: order,
					target: rapid.IntRange(0, nodes-1).Draw(t, "target")})
			},
			"step": func(t *rapid.T) {
				if len(running) == 0 {
					t.Skip("no controller runs")
				}
				i := rapid.IntRange(0, len(running)-1).Draw(t, "who")
				c := running[i]
				switch {
				case len(c.toAsk) > 0:
					at := c.toAsk[0]
					c.toAsk = c.toAsk[1:]
					// The answer is looked up after the lease.
					c.over = leases[at].Take(c.token, name) != nil || holds[at]
				case c.done == nil:
					var err error
					c.done, err = leases[c.target].Use(c.token, name)
					c.over = err != nil
				default:
					if !holds[c.target] { // else the same node finds the name itself
						holds[c.target] = true
						created++
					}
					c.done()
					c.over = true
				}
				if c.over {
					for _, at := range leases {
						at.GiveUp(c.token)
					}
					running = slices.Delete(running, i, i+1)
				}
			},
			"die": func(t *rapid.T) {
				if len(running) == 0 {
					t.Skip("no controller runs")
				}
				i := rapid.IntRange(0, len(running)-1).Draw(t, "who")
				if c := running[i]; c.done != nil {
					t.Skip("the node's own creation goes on")
				}
				running = slices.Delete(running, i, i+1)
			},
			"sleep": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*lease.Life)).Draw(t, "for")))
			},
			"restart": func(t *rapid.T) {
				at := rapid.IntRange(0, nodes-1).Draw(t, "node")
				for _, c := range running {
					if c.done != nil && c.target == at {
						t.Skip("a creation there is at work; a crash in it is the pool's to test")
					}
				}
				leases[at] = lease.NewTable(func() time.Time { return now })
			},
			"": func(t *rapid.T) {
				if created > 1 {
					t.Fatalf("the name is on %d nodes", created)
				}
			},
		})
	})
}

func TestLocate(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	l := &locator{d: h.d}
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""),
		map[string]string{parameter.KeyConsistencyGroup: "shop"})
	locate := func(lease string, keys ...*locatepb.Key) (string, error) {
		t.Helper()
		response, err := l.Locate(context.Background(), &locatepb.LocateRequest{Keys: keys, Lease: lease})
		if err == nil && response.GetNodeId() != h.d.opts.NodeID {
			t.Errorf("node %q", response.GetNodeId())
		}
		var held string
		for _, x := range response.GetHeld() {
			held += fmt.Sprintf("%d=%s ", x.GetIndex(), x.GetId())
		}
		return held, err
	}
	key := func(kind locatepb.Key_Kind, value string) *locatepb.Key {
		return &locatepb.Key{Kind: kind, Value: value}
	}
	got, err := locate("", key(locatepb.Key_VOLUME_ID, id), key(locatepb.Key_VOLUME_ID, "vol-none"),
		key(locatepb.Key_VOLUME_ID, "../x"),
		key(locatepb.Key_VOLUME_NAME, "v"), key(locatepb.Key_VOLUME_NAME, "w"), key(locatepb.Key_CONSISTENCY_GROUP, "shop"),
		key(locatepb.Key_CONSISTENCY_GROUP, "park"), key(locatepb.Key_SNAPSHOT_ID,
			"snap-none"), key(locatepb.Key_SNAPSHOT_NAME, "s"),
		key(locatepb.Key_GROUP_SNAPSHOT_ID, ""), key(locatepb.Key_GROUP_SNAPSHOT_NAME, ""))
	if want := fmt.Sprintf("0=%s 3=%s 5=shop ", id, id); err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if _, err := locate("", &locatepb.Key{Value: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a key of no kind: %v", err)
	}
	if _, err := locate("", make([]*locatepb.Key, maxLocateKeys+1)...); status.Code(err) != codes.InvalidArgument {
		t.Errorf("too many keys: %v", err)
	}
	if _, err := locate("one", key(locatepb.Key_VOLUME_NAME, "n")); err != nil {
		t.Error(err)
	}
	if _, err := locate("two", key(locatepb.Key_VOLUME_NAME, "n")); status.Code(err) != codes.Aborted {
		t.Errorf("a leased name: %v", err)
	}
	if _, err := l.Release(context.Background(), &locatepb.ReleaseRequest{Lease: "one"}); err != nil {
		t.Error(err)
	}
	if _, err := locate("two", key(locatepb.Key_VOLUME_NAME, "n")); err != nil {
		t.Errorf("a released name: %v", err)
	}
	// A group without volumes is the replicator's to know; without its answer the group may be here.
	s.stop()
	if _, err := locate("", key(locatepb.Key_CONSISTENCY_GROUP, "park")); status.Code(err) != codes.Unavailable {
		t.Errorf("without the replicator: %v", err)
	}
	if got, err := locate("", key(locatepb.Key_CONSISTENCY_GROUP, "shop")); err != nil || got != "0=shop " {
		t.Errorf("a group with volumes, without the replicator: %q, %v", got, err)
	}
}
