// Package gateway is a site's front door where the site has several nodes: peers reach the site by one address, and a
// group's copy is on one of its nodes. The gateway takes the streams of the link, asks the nodes which of them has the
// group, and passes the stream on to that one, message by message.
//
// The nodes are the truth, as for the controller (package router): the gateway keeps nothing, may be killed at any
// moment, and may run more than once at a time. A node that does not answer is silent, and may have the group: a
// stream of a group that no other node has is refused then, and the primary calls again. Otherwise every restart of a
// node would begin a second copy on another one.
//
// A group that no node has is new. Its node is chosen by a hash that prefers large pools (place.go), so that two
// gateways choose the same one.
//
// It does not touch what is replicated: order, loss and acknowledgement are between the two nodes, as package link
// describes them.
//
// # Concurrency
//
// All methods may be called concurrently.
package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/lograte"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// Nodes are how the gateway calls the nodes of its site; link.Client is one.
type Nodes interface {
	Locate(ctx context.Context, node link.Node, request *linkpb.LocateRequest) (*linkpb.LocateResponse, error)
	DialNode(ctx context.Context, node link.Node, peer string) (link.Stream, error)
}

// Options configure a Gateway.
type Options struct {
	// Site is this site's name.
	Site string
	// Nodes are how its nodes are called.
	Nodes Nodes
	// Retired are nodes that are gone for good: that they do not answer means that they have nothing, and nothing is put
	// there.
	Retired []string
	// Timeout is how long a node gets to answer; default 3 s.
	Timeout time.Duration
}

// Gateway passes streams on. Use New, and Update before the first stream.
type Gateway struct {
	opts    Options
	retired map[string]bool
	metrics *Metrics
	log     lograte.Log // of refusals

	mu    sync.Mutex
	nodes map[string]string // addresses by name, empty if unknown
	// last is the node that took a group's stream last. It only saves questions.
	last map[string]string
}

// New returns a gateway that knows no nodes yet.
func New(opts Options) *Gateway {
	if opts.Timeout <= 0 {
		opts.Timeout = 3 * time.Second
	}
	g := &Gateway{opts: opts, retired: map[string]bool{}, last: map[string]string{}, metrics: NewMetrics()}
	for _, name := range opts.Retired {
		g.retired[name] = true
	}
	return g
}

// Update tells which nodes there are, as nodes.Source does: addresses by name, an empty one for a node that cannot be
// reached.
func (g *Gateway) Update(nodes map[string]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nodes = maps.Clone(nodes)
	klog.InfoS("Nodes", "site", g.opts.Site, "nodes", nodes, "retired", g.opts.Retired)
}

// Metrics are the gateway's own.
func (g *Gateway) Metrics() *Metrics { return g.metrics }

// all returns the nodes by name.
func (g *Gateway) all() []link.Node {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []link.Node
	for _, name := range slices.Sorted(maps.Keys(g.nodes)) {
		list = append(list, link.Node{Name: name, Address: g.nodes[name]})
	}
	return list
}

// refusal is why a stream is not passed on, for the primary. With foreign, the text is for this site's log alone.
type refusal struct {
	reason  linkpb.Refusal_Reason
	text    string
	foreign bool
}

func (r *refusal) Error() string { return r.text }

func refuse(reason linkpb.Refusal_Reason, format string, args ...any) error {
	return &refusal{reason: reason, text: fmt.Sprintf(format, args...)}
}

// node returns the node that has the group of a Hello, or that shall have it. An error is a refusal.
func (g *Gateway) node(ctx context.Context, peer string, hello *linkpb.Hello) (link.Node, error) {
	nodes := g.all()
	request := &linkpb.LocateRequest{GroupId: hello.GetGroupId(), GroupName: hello.GetGroupName(), Peer: peer}
	g.mu.Lock()
	last := g.last[hello.GetGroupId()]
	g.mu.Unlock()
	for _, n := range nodes {
		if n.Name == last && n.Address != "" {
			if a := g.ask(ctx, n, request); a.err == nil && a.response.GetHolds() {
				return n, nil
			}
		}
	}
	answers := make([]answer, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { answers[i] = g.ask(ctx, n, request) })
	}
	wg.Wait()
	return g.decide(hello, answers)
}

// answer is what a node said.
type answer struct {
	node     link.Node
	response *linkpb.LocateResponse
	err      error
}

func (g *Gateway) ask(ctx context.Context, n link.Node, request *linkpb.LocateRequest) answer {
	a := answer{node: n}
	if n.Address == "" {
		a.err = fmt.Errorf("node %s has no address: see that the node's pod runs there", n.Name)
	} else {
		ctx, cancel := context.WithTimeout(ctx, g.opts.Timeout)
		defer cancel()
		a.response, a.err = g.opts.Nodes.Locate(ctx, n, request)
	}
	if a.err != nil {
		g.metrics.unanswered.WithLabelValues(n.Name).Inc()
		klog.V(2).InfoS("A node does not say what it has", "node", n.Name, "retired", g.retired[n.Name], "err", a.err)
	}
	return a
}

// decide is what follows from the answers of all nodes.
func (g *Gateway) decide(hello *linkpb.Hello, answers []answer) (link.Node, error) {
	group := hello.GetGroupName()
	var holders, silent, candidates []answer
	for _, a := range answers {
		switch {
		case a.err != nil:
			if !g.retired[a.node.Name] {
				silent = append(silent, a)
			}
		case a.response.GetHolds():
			holders = append(holders, a)
		case !g.retired[a.node.Name]:
			candidates = append(candidates, a)
		}
	}
	switch {
	case len(holders) == 1:
		return holders[0].node, nil
	case len(holders) > 1:
		return link.Node{}, refuse(linkpb.Refusal_REASON_FAILED, "group %s is on nodes %s of site %s: find out which copy "+
			"is to stay, and delete the group on the others "+
			"(slipctl group delete --force)", group, names(holders), g.opts.Site)
	case len(silent) > 0:
		return link.Node{}, refuse(linkpb.Refusal_REASON_FAILED, "group %s is on no node of site %s that answers, and may "+
			"be on %s: %v; bring the replicator there back, or name "+
			"a node that is gone for good with --retired-node", group, g.opts.Site, names(silent), silent[0].err)
	case len(answers) == 0:
		return link.Node{}, refuse(linkpb.Refusal_REASON_FAILED, "site %s has no nodes", g.opts.Site)
	}
	for _, a := range answers {
		if a.response.GetForeign() {
			return link.Node{}, &refusal{reason: linkpb.Refusal_REASON_FOREIGN_GROUP, foreign: true,
				text: fmt.Sprintf("site %s: the name or the id of group %.128q (%s) is on node %s that of a group that is not "+
					"the caller's", g.opts.Site, group,
					hello.GetGroupId(), a.node.Name)}
		}
		if other := a.response.GetOtherGroupId(); other != "" {
			return link.Node{}, refuse(linkpb.Refusal_REASON_FOREIGN_GROUP, "group %s on node %s of site %s is another one "+
				"(%s) than that of the caller (%s); delete one of them",
				group, a.node.Name, g.opts.Site, other, hello.GetGroupId())
		}
	}
	chosen, ok := place(hello, candidates)
	if !ok {
		return link.Node{}, refuse(linkpb.Refusal_REASON_FAILED, "group %s is new at site %s, and no node has room for "+
			"its journal of %s: %s were asked",
			group, g.opts.Site, words.Count(hello.GetJournalSizeBytes(), "byte"), names(candidates))
	}
	klog.InfoS("New group", "group", group, "groupID", hello.GetGroupId(), "node", chosen.Name)
	return chosen, nil
}

func names(answers []answer) string {
	var list []string
	for _, a := range answers {
		list = append(list, a.node.Name)
	}
	return strings.Join(list, ", ")
}
