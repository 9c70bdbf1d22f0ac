package router

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
)

// locateTimeout bounds how long a node gets to say what it holds.
const locateTimeout = 5 * time.Second

// holder is a node that has an object.
type holder struct {
	node *node
	id   string
}

// answer is what one node said.
type answer struct {
	node *node
	held []*locatepb.LocateResponse_Held
	err  error
}

// answers are those of all nodes, sorted by name.
type answers []answer

func key(kind locatepb.Key_Kind, value string) *locatepb.Key {
	return &locatepb.Key{Kind: kind, Value: value}
}

// ask asks all nodes at once. An error means that no node was asked. With a lease, the caller releases it.
func (r *Router) ask(ctx context.Context, lease string, keys ...*locatepb.Key) (answers, error) {
	nodes, err := r.nodes.all()
	if err != nil {
		return nil, err
	}
	all := make(answers, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { all[i] = r.askOne(ctx, n, lease, keys) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return all, nil
}

func (r *Router) askOne(ctx context.Context, n *node, lease string, keys []*locatepb.Key) answer {
	a := answer{node: n}
	// A retired node is not waited for. A retired node that answers is asked.
	if n.conn == nil || n.retired && !n.ready() {
		a.err = n.errUnreachable()
	} else {
		ctx, cancel := context.WithTimeout(ctx, locateTimeout)
		defer cancel()
		response, err := n.locator.Locate(ctx, &locatepb.LocateRequest{Keys: keys, Lease: lease})
		switch {
		case err != nil && ctx.Err() != nil:
			a.err = status.Errorf(codes.Unavailable, "node %s: no answer within %v: %s", n.name, locateTimeout,
				status.Convert(err).Message())
		case err != nil:
			a.err = err
		case response.GetNodeId() != n.name:
			a.err = status.Errorf(codes.Unavailable, "node %s: at its address %s is node %s", n.name, n.address,
				response.GetNodeId())
		default:
			a.held = response.GetHeld()
		}
	}
	if a.err != nil && status.Code(a.err) != codes.Aborted {
		r.meter.silent.WithLabelValues(n.name, status.Code(a.err).String()).Inc()
		klog.V(4).InfoS("A node does not say what it holds", "node", n.name, "retired", n.retired, "err", a.err)
	}
	return a
}

// endLease gives a lease up on all nodes that may have it, whatever becomes of the call.
func (r *Router) endLease(ctx context.Context, all answers, lease string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), locateTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range all {
		if a.node.conn == nil || !a.node.ready() {
			continue // its lease ends by itself
		}
		wg.Go(func() {
			if _, err := a.node.locator.Release(ctx, &locatepb.ReleaseRequest{Lease: lease}); err != nil {
				klog.V(2).InfoS("A lease was not released and ends by itself", "node", a.node.name, "err", err)
			}
		})
	}
	wg.Wait()
}

// holders are those of the key with that index, by node.
func (all answers) holders(index int) []holder {
	var found []holder
	for _, a := range all {
		for _, h := range a.held {
			if int(h.GetIndex()) == index {
				found = append(found, holder{a.node, h.GetId()})
			}
		}
	}
	return found
}

// only returns the holder of a key, nil if no node has it, or FailedPrecondition if several have.
func (all answers) only(index int, what string) (*holder, error) {
	found := all.holders(index)
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return &found[0], nil
	}
	var places []string
	for _, h := range found {
		places = append(places, fmt.Sprintf("%s on node %s", h.id, h.node.name))
	}
	return nil, status.Errorf(codes.FailedPrecondition, "%s is there more than once: %s; find out which one is in use, "+
		"and delete the others on their nodes",
		what, strings.Join(places, ", "))
}

// aborted is the first refusal of a lease.
func (all answers) aborted() error {
	for _, a := range all {
		if status.Code(a.err) == codes.Aborted {
			return a.err
		}
	}
	return nil
}

// silence is Unavailable when a node that concerns the call has not answered: it may hold what was not found.
func (all answers) silence(what string, concerns func(*node) bool) error {
	var names []string
	var first error
	for _, a := range all {
		if a.err == nil || a.node.retired || !concerns(a.node) {
			continue
		}
		names = append(names, a.node.name)
		if first == nil {
			first = a.err
		}
	}
	if first == nil {
		return nil
	}
	return status.Errorf(codes.Unavailable, "%s is on none of the nodes that answer, and may be on %s: %s; bring the "+
		"driver there back, or name a node that is gone for good with --retired-node",
		what, strings.Join(names, ", "), status.Convert(first).Message())
}

func anyNode(*node) bool { return true }

// locate returns the node that has an object, or nil when no node has it. What is silent may have it: then the error is
// Unavailable.
func (r *Router) locate(ctx context.Context, kind locatepb.Key_Kind, id, what string) (*node, error) {
	all, err := r.ask(ctx, "", key(kind, id))
	if err != nil {
		return nil, err
	}
	h, err := all.only(0, what)
	if err != nil {
		return nil, err
	}
	if h != nil {
		return h.node, nil
	}
	if err := all.silence(what, anyNode); err != nil {
		return nil, err
	}
	if gone := all.retiredSilent(); len(gone) > 0 {
		klog.InfoS("Not found, and not looked for on retired nodes", "object", what, "retired", gone)
	}
	return nil, nil
}

// retiredSilent are the retired nodes that were not asked.
func (all answers) retiredSilent() []string {
	var names []string
	for _, a := range all {
		if a.err != nil && a.node.retired {
			names = append(names, a.node.name)
		}
	}
	slices.Sort(names)
	return names
}
