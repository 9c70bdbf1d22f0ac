package router

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// TestChaos lets two routers work on the same names while nodes go silent and routers are killed in the middle of
// calls, and compares what was promised with what is on disk:
//
//   - a name is on one node at most
//   - what was created, and not asked to be deleted since, is there, under the id that was returned
//   - what was deleted, and not asked for since, is not
//   - a consistency group is on one node
//
// Everything that is random but the order of goroutines comes from the seed.
func TestChaos(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	c := newCluster(t, "a", "b", "c")
	names := []string{"n0", "n1", "n2", "n3", "g0", "g1", "g2"} // those with a g are in one consistency group
	model := map[string]*promise{}
	for _, name := range names {
		model[name] = &promise{}
	}
	outcomes := map[codes.Code]int{}
	for range rounds {
		for _, n := range c.nodes {
			n.start()
		}
		routers := []*testRouter{c.router(), c.router()}
		for _, r := range routers {
			r.connected(t, "a", "b", "c")
		}
		nodes := slices.Sorted(maps.Keys(c.nodes))
		silent := nodes[random.IntN(len(nodes))]
		var victim *testRouter
		if random.IntN(2) == 0 {
			victim = routers[random.IntN(2)]
		}
		delay := time.Duration(random.Int64N(int64(40 * time.Millisecond)))
		var mu sync.Mutex
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		victimCtx, kill := context.WithCancel(ctx)
		for _, name := range names {
			remove := random.IntN(3) == 0
			// Both routers get the same call, at the same time.
			for _, r := range routers {
				callCtx := ctx
				if r == victim {
					callCtx = victimCtx
				}
				wg.Go(func() {
					p := model[name]
					var err error
					if remove {
						err = p.delete(callCtx, r)
					} else {
						err = p.create(callCtx, r, name)
					}
					mu.Lock()
					defer mu.Unlock()
					outcomes[status.Code(err)]++
				})
			}
		}
		wg.Go(func() {
			time.Sleep(delay)
			c.nodes[silent].kill()
			kill()
			if victim != nil {
				victim.close()
			}
		})
		wg.Wait()
		cancel()
		for _, r := range routers {
			r.close()
		}
		// A call whose caller is gone may be at work still; a node that stops lets it end.
		for _, n := range c.nodes {
			n.kill()
		}
		check(t, c, model)
		if t.Failed() {
			return
		}
	}
	t.Logf("calls by result: %v", outcomes)
	if outcomes[codes.OK] == 0 || outcomes[codes.Unavailable] == 0 {
		t.Errorf("a test in which nothing succeeds, or no node is missed, shows nothing: %v", outcomes)
	}
}

// promise is what callers were told of a name.
type promise struct {
	mu      sync.Mutex
	id      string // as last returned
	created bool   // the last answers say that it is there
	deleted bool   // the last answers say that it is not
}

func (p *promise) create(ctx context.Context, r *testRouter, name string) error {
	p.mu.Lock()
	p.deleted = false // it may be there from here on
	p.mu.Unlock()
	var parameters map[string]string
	if strings.HasPrefix(name, "g") {
		parameters = map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "16Mi"}
	}
	response, err := r.CreateVolume(ctx, createReq(name, on("a", "b", "c"), parameters))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id, p.created = response.GetVolume().GetVolumeId(), true
	return nil
}

// delete deletes what a caller knows the id of.
func (p *promise) delete(ctx context.Context, r *testRouter) error {
	p.mu.Lock()
	id := p.id
	p.created = false // it may be gone from here on
	p.mu.Unlock()
	if id == "" {
		return status.Error(codes.NotFound, "nothing was created")
	}
	_, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deleted = true
	return nil
}

func check(t *testing.T, c *cluster, model map[string]*promise) {
	t.Helper()
	disk := c.onDisk()
	groupOn := map[string]bool{}
	for name, places := range disk {
		if len(places) > 1 {
			t.Errorf("%s is on %v", name, places)
		}
		if strings.HasPrefix(name, "g") {
			node, _, _ := strings.Cut(places[0], "/")
			groupOn[node] = true
		}
	}
	if len(groupOn) > 1 {
		t.Errorf("the group is on %v", slices.Sorted(maps.Keys(groupOn)))
	}
	for name, p := range model {
		switch places := disk[name]; {
		case p.created && (len(places) != 1 || !strings.HasSuffix(places[0], "/"+p.id)):
			t.Errorf("%s was created as %s, and there is %v", name, p.id, places)
		case p.deleted && len(places) > 0 && strings.HasSuffix(places[0], "/"+p.id):
			t.Errorf("%s (%s) was deleted, and is on %v", name, p.id, places)
		}
	}
}
