package engine

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode answers with its groups, with err, or not before it is let go.
type fakeNode struct {
	sidecarpb.SidecarClient // nil: other calls are a mistake

	mu     sync.Mutex
	groups []string
	err    error
	hangs  chan struct{} // nil: it answers at once
}

func (n *fakeNode) set(err error, groups ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.groups, n.err = groups, err
}

// hang makes the next question hang until the function that it returns is called, or until its context ends. It is
// answered with what the node has by then.
func (n *fakeNode) hang() (letGo func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(chan struct{})
	n.hangs = c
	return func() { close(c) }
}

func (n *fakeNode) ListGroups(ctx context.Context, _ *sidecarpb.ListGroupsRequest,
	_ ...grpc.CallOption) (*sidecarpb.ListGroupsResponse, error) {
	n.mu.Lock()
	hangs := n.hangs
	n.hangs = nil
	n.mu.Unlock()
	if hangs != nil {
		select {
		case <-hangs:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil, n.err
	}
	r := &sidecarpb.ListGroupsResponse{}
	for _, name := range n.groups {
		r.Groups = append(r.Groups, &sidecarpb.GroupStatus{Name: name})
	}
	return r, nil
}

// fakeNodes are the nodes of a cluster, by name.
type fakeNodes struct {
	mu    sync.Mutex
	nodes map[string]*fakeNode
}

func (f *fakeNodes) All() (all []router.Replicator, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, n := range f.nodes {
		all = append(all, router.Replicator{Node: name, Client: n})
	}
	return all, nil
}

func (f *fakeNodes) put(name string, n *fakeNode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes[name] = n
}

// world is a watcher of nodes a and b that has looked at both. Node a has a group old, and b a group other.
func world(t *testing.T) (w *Watcher, nodes *fakeNodes, a, b *fakeNode) {
	t.Helper()
	a, b = &fakeNode{groups: []string{"old"}}, &fakeNode{groups: []string{"other"}}
	nodes = &fakeNodes{nodes: map[string]*fakeNode{"a": a, "b": b}}
	w = NewWatcher(nodes, func(_, _ *View) {})
	w.Look(t.Context())
	want(t, w.View(), "after the first look", "a/old", "b/other")
	return w, nodes, a, b
}

// want wants the groups of a view by node, and each of them where its name is looked up.
func want(t *testing.T, v *View, when string, groups ...string) {
	t.Helper()
	var got []string
	for node, n := range v.Nodes {
		for name := range n.Groups {
			got = append(got, node+"/"+name)
			if !slices.ContainsFunc(v.Group(name), func(at Place) bool { return at.Node == node }) {
				t.Errorf("%s: group %s of node %s is not found by its name", when, name, node)
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, groups) {
		t.Errorf("%s the view has %q, want %q", when, got, groups)
	}
}

func refresh(t *testing.T, w *Watcher, node string) *View {
	t.Helper()
	v, err := w.Refresh(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestNewerAnswerStays: a look that waits for one node does not undo what another one said meanwhile, nor that a node
// came meanwhile.
func TestNewerAnswerStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, nodes, a, b := world(t)
		letGo := b.hang()
		done := make(chan struct{})
		go func() { w.Look(t.Context()); close(done) }()
		synctest.Wait() // a has answered, b hangs

		a.set(nil, "new")
		want(t, refresh(t, w, "a"), "the refresh of a:", "a/new", "b/other")
		nodes.put("c", &fakeNode{groups: []string{"late"}})
		want(t, refresh(t, w, "c"), "the refresh of c:", "a/new", "b/other", "c/late")
		letGo()
		<-done
		want(t, w.View(), "after the look", "a/new", "b/other", "c/late")

		nodes.mu.Lock()
		delete(nodes.nodes, "c")
		nodes.mu.Unlock()
		a.set(nil, "newer")
		w.Look(t.Context())
		want(t, w.View(), "after the next look", "a/newer", "b/other")
	})
}

// TestSilentNode: a node that hangs is silent with the groups of its last answer, also if that was given while the look
// at it was under way. It does not hold up the others.
func TestSilentNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, a, b := world(t)
		b.hang() // until its time is over
		w.Look(t.Context())
		want(t, w.View(), "while b hangs", "a/old", "b/other")
		if silent := w.View().Silent(); !slices.Equal(silent, []string{"b"}) {
			t.Errorf("silent: %q", silent)
		}

		// The look finds a silent, and its answer comes while the look waits for b.
		a.set(status.Error(codes.Unavailable, "no answer"))
		letGo := b.hang()
		done := make(chan struct{})
		go func() { w.Look(t.Context()); close(done) }()
		synctest.Wait()
		if _, err := w.Refresh(t.Context(), "a"); status.Code(err) != codes.Unavailable {
			t.Errorf("a refresh of a silent node: %v", err)
		}
		a.set(nil, "new")
		refresh(t, w, "a")
		letGo()
		<-done
		want(t, w.View(), "after the look", "a/new", "b/other")
		if silent := w.View().Silent(); len(silent) > 0 {
			t.Errorf("silent: %q", silent)
		}
	})
}

// TestKnown: what one node says does not make the others known.
func TestKnown(t *testing.T) {
	nodes := &fakeNodes{nodes: map[string]*fakeNode{"a": {groups: []string{"one"}}, "b": {groups: []string{"two"}}}}
	w := NewWatcher(nodes, func(_, _ *View) {})
	if v := refresh(t, w, "a"); v.Known {
		t.Error("known after a refresh of one node")
	}
	w.Look(t.Context())
	if v := refresh(t, w, "a"); !v.Known {
		t.Error("not known after a look and a refresh")
	}
	if _, err := w.Refresh(t.Context(), "c"); status.Code(err) != codes.Unavailable {
		t.Errorf("a refresh of a node that is not there: %v", err)
	}
}
