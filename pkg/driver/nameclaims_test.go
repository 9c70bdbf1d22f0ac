package driver

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"
)

func TestNameClaims(t *testing.T) {
	now := time.Unix(0, 0)
	c := newNameClaims(func() time.Time { return now })
	name, group := claimKey{locatepb.Key_VOLUME_NAME, "v"}, claimKey{locatepb.Key_CONSISTENCY_GROUP, "g"}
	want := func(what string, err error, code codes.Code) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("%s: error %v, want %s", what, err, code)
		}
	}
	want("first", c.take("one", []claimKey{name}), codes.OK)
	want("the same again", c.take("one", []claimKey{name}), codes.OK)
	want("another claimant", c.take("two", []claimKey{group, name}), codes.Aborted)
	want("what the refused one asked for is free", c.take("three", []claimKey{group}), codes.OK)
	_, err := c.use("two", []claimKey{name})
	want("creation under no claim", err, codes.Aborted)
	_, err = c.use("one", []claimKey{name, group})
	want("creation of more than was claimed", err, codes.Aborted)

	// A creation keeps the claim in force past its time and its release.
	done, err := c.use("one", []claimKey{name})
	want("creation", err, codes.OK)
	now = now.Add(2 * claimLife)
	c.release("one")
	want("while it is at work", c.take("two", []claimKey{name}), codes.Aborted)
	done()
	want("when it has ended", c.take("two", []claimKey{name}), codes.OK)
	_, err = c.use("one", []claimKey{name})
	want("creation under a claim that ended", err, codes.Aborted)

	now = now.Add(claimLife)
	_, err = c.use("two", []claimKey{name})
	want("creation under a claim that has run out", err, codes.Aborted)
	want("take after", c.take("one", []claimKey{name}), codes.OK)
	c.release("one")
	c.release("one")
	want("take after release", c.take("two", []claimKey{name}), codes.OK)
	now = now.Add(claimLife)
	c.release("")
	if len(c.byKey) != 0 || len(c.byToken) != 0 {
		t.Errorf("left behind: %v %v", c.byKey, c.byToken)
	}
}

// TestClaimsKeepNamesUnique runs controllers step by step in any order, on nodes that each have their own claims: a name is created
// once, whoever sleeps for how long and dies where.
func TestClaimsKeepNamesUnique(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const nodes = 3
		now := time.Unix(0, 0)
		var claims [nodes]*nameClaims
		for i := range claims {
			claims[i] = newNameClaims(func() time.Time { return now })
		}
		var holds [nodes]bool
		created := 0
		name := []claimKey{{locatepb.Key_VOLUME_NAME, "v"}}

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
				running = append(running, &controller{token: fmt.Sprint(next), toAsk: order, target: rapid.IntRange(0, nodes-1).Draw(t, "target")})
			},
			"step": func(t *rapid.T) {
				if len(running) == 0 {
					t.Skip("nobody is there")
				}
				i := rapid.IntRange(0, len(running)-1).Draw(t, "who")
				c := running[i]
				switch {
				case len(c.toAsk) > 0:
					at := c.toAsk[0]
					c.toAsk = c.toAsk[1:]
					// The answer is looked up after the claim.
					c.over = claims[at].take(c.token, name) != nil || holds[at]
				case c.done == nil:
					var err error
					c.done, err = claims[c.target].use(c.token, name)
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
					for _, at := range claims {
						at.release(c.token)
					}
					running = slices.Delete(running, i, i+1)
				}
			},
			"die": func(t *rapid.T) {
				if len(running) == 0 {
					t.Skip("nobody is there")
				}
				i := rapid.IntRange(0, len(running)-1).Draw(t, "who")
				if c := running[i]; c.done != nil {
					t.Skip("the node's own creation goes on")
				}
				running = slices.Delete(running, i, i+1)
			},
			"sleep": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*claimLife)).Draw(t, "for")))
			},
			"restart": func(t *rapid.T) {
				at := rapid.IntRange(0, nodes-1).Draw(t, "node")
				for _, c := range running {
					if c.done != nil && c.target == at {
						t.Skip("a creation there is at work; a crash in it is the pool's to test")
					}
				}
				claims[at] = newNameClaims(func() time.Time { return now })
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
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""), map[string]string{parameter.KeyConsistencyGroup: "shop"})
	locate := func(claim string, keys ...*locatepb.Key) (string, error) {
		t.Helper()
		response, err := l.Locate(context.Background(), &locatepb.LocateRequest{Keys: keys, Claim: claim})
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
	got, err := locate("", key(locatepb.Key_VOLUME_ID, id), key(locatepb.Key_VOLUME_ID, "vol-none"), key(locatepb.Key_VOLUME_ID, "../x"),
		key(locatepb.Key_VOLUME_NAME, "v"), key(locatepb.Key_VOLUME_NAME, "w"), key(locatepb.Key_CONSISTENCY_GROUP, "shop"),
		key(locatepb.Key_CONSISTENCY_GROUP, "park"), key(locatepb.Key_SNAPSHOT_ID, "snap-none"), key(locatepb.Key_SNAPSHOT_NAME, "s"),
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
		t.Errorf("a claimed name: %v", err)
	}
	if _, err := l.Release(context.Background(), &locatepb.ReleaseRequest{Claim: "one"}); err != nil {
		t.Error(err)
	}
	if _, err := locate("two", key(locatepb.Key_VOLUME_NAME, "n")); err != nil {
		t.Errorf("a released name: %v", err)
	}
	// A group without volumes is the replicator's to know; without its answer nobody can say that the group is not here.
	s.stop()
	if _, err := locate("", key(locatepb.Key_CONSISTENCY_GROUP, "park")); status.Code(err) != codes.Unavailable {
		t.Errorf("without the replicator: %v", err)
	}
	if got, err := locate("", key(locatepb.Key_CONSISTENCY_GROUP, "shop")); err != nil || got != "0=shop " {
		t.Errorf("a group with volumes, without the replicator: %q, %v", got, err)
	}
}
