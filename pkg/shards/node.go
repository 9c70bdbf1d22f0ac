// Package shards lets the nodes of one site work on groups that are on several of them. Each node's replicator has a
// Node: it finds out which shards the other nodes have, carries the messages of package epoch between them, and
// promotes a group as a whole. What is decided is package epoch's, what is done to a journal or an image is package
// replication's.
//
// The nodes call each other by gRPC, with pkg/api/shardpb, on the port of the link and with the certificate of the site
// itself. Nothing here is durable: a node that starts asks the others.
//
// # Concurrency
//
// All methods of Node are safe for concurrent use. One goroutine asks the other nodes. Each group has one that runs its
// coordinator and its collector; what these send is sent by goroutines of their own, a few for each shard.
package shards

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// Neighbour is another node of the site.
type Neighbour interface {
	// Address says where it is, for people.
	Address() string
	ListShards(ctx context.Context, r *shardpb.ListShardsRequest) (*shardpb.ListShardsResponse, error)
	Deliver(ctx context.Context, r *shardpb.DeliverRequest) (*shardpb.DeliverResponse, error)
	Do(ctx context.Context, r *shardpb.DoRequest) (*shardpb.DoResponse, error)
	FixEpoch(ctx context.Context, r *shardpb.FixEpochRequest) (*shardpb.FixEpochResponse, error)
	ReleaseEpoch(ctx context.Context, r *shardpb.ReleaseEpochRequest) (*shardpb.ReleaseEpochResponse, error)
}

// Options configure a Node.
type Options struct {
	// Name is the node's.
	Name string
	Site *replication.Site
	// Neighbours returns the other nodes; this one may be among them. A name may resolve to other addresses later, so it
	// is asked again and again. Nil: there are none.
	Neighbours func(ctx context.Context) ([]Neighbour, error)
	// PollInterval is the time between two questions to the other nodes; default 500 ms.
	PollInterval time.Duration
}

const (
	defaultPoll = 500 * time.Millisecond
	// callTimeout bounds a call. Answers that come later count no more anyway.
	callTimeout = 2 * time.Second
)

// place is where a shard was seen.
type place struct {
	node      string
	neighbour Neighbour // nil: this node
	shard     shardInfo
}

// shardInfo is a shard as its node describes it.
type shardInfo struct {
	group     string
	id        epoch.ShardID
	groupName string
	role      core.Role
	config    epoch.Config
	shown     epoch.ID
	newest    epoch.ID
	arrived   bool
	decided   bool
	standing  epoch.Standing
	suspended bool
	separate  bool
	heard     bool
}

// Node works on the groups of this node that are shards. Use New, and Close in the end.
type Node struct {
	opts Options
	// alone: there is no way to other nodes.
	alone bool

	mu     sync.Mutex
	places map[string]map[epoch.ShardID]place // by group
	silent map[string]error                   // addresses of nodes that did not answer last
	// polls counts the rounds of questions that are complete.
	polls   uint64
	polled  chan struct{} // closed and replaced with each round
	runners map[string]*runner
	// viewer opens the views of this node; nil for the site itself.
	viewer Viewer

	wake chan struct{}
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// New starts a node.
func New(opts Options) *Node {
	if opts.PollInterval <= 0 {
		opts.PollInterval = defaultPoll
	}
	alone := opts.Neighbours == nil
	if alone {
		opts.Neighbours = func(context.Context) ([]Neighbour, error) { return nil, nil }
	}
	n := &Node{opts: opts, alone: alone, places: map[string]map[epoch.ShardID]place{}, silent: map[string]error{},
		runners: map[string]*runner{}, polled: make(chan struct{}), wake: make(chan struct{}, 1)}
	n.ctx, n.stop = context.WithCancel(context.Background())
	opts.Site.TakesOver(n.takeOver)
	n.wg.Go(n.pollLoop)
	return n
}

// Close ends the node's work. What shards hold they release by themselves.
func (n *Node) Close() {
	n.stop()
	n.wg.Wait()
}

func (n *Node) pollLoop() {
	ticker := time.NewTicker(n.opts.PollInterval)
	defer ticker.Stop()
	for {
		n.poll()
		select {
		case <-n.ctx.Done():
			return
		case <-ticker.C:
		case <-n.wake:
		}
	}
}

// poll asks all nodes which shards they have.
func (n *Node) poll() {
	local := n.local()
	if len(local) == 0 && n.idle() {
		n.done(map[string]map[epoch.ShardID]place{}, nil)
		return
	}
	places := map[string]map[epoch.ShardID]place{}
	add := func(p place) {
		if places[p.shard.group] == nil {
			places[p.shard.group] = map[epoch.ShardID]place{}
		}
		if other, twice := places[p.shard.group][p.shard.id]; twice {
			klog.ErrorS(nil, "Two nodes say that they have the same shard; give one of them another number",
				"group", p.shard.group, "shard", p.shard.id, "nodes", []string{other.node, p.node})
			return
		}
		places[p.shard.group][p.shard.id] = p
	}
	for _, s := range local {
		add(place{node: n.opts.Name, shard: s})
	}
	silent := map[string]error{}
	neighbours, err := n.opts.Neighbours(n.ctx)
	if err != nil {
		silent["other nodes"] = err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, other := range neighbours {
		wg.Go(func() {
			node, list, err := n.ask(other)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[other.Address()] = err
			}
			if node == n.opts.Name {
				return // a name of the site's nodes stands for this one too
			}
			for _, s := range list {
				add(place{node: node, neighbour: other, shard: s})
			}
		})
	}
	wg.Wait()
	n.done(places, silent)
}

// idle reports whether no group needs the other nodes.
func (n *Node) idle() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.runners) == 0
}

func (n *Node) ask(other Neighbour) (node string, list []shardInfo, err error) {
	ctx, cancel := context.WithTimeout(n.ctx, callTimeout)
	defer cancel()
	answer, err := other.ListShards(ctx, &shardpb.ListShardsRequest{})
	if err != nil {
		return "", nil, err
	}
	for _, w := range answer.GetShards() {
		s, err := infoFromWire(w)
		if err != nil {
			return "", nil, fmt.Errorf("node at %s: %w", other.Address(), err)
		}
		list = append(list, s)
	}
	return answer.GetNode(), list, nil
}

// done takes the answers of a round, and brings the runners up to it.
func (n *Node) done(places map[string]map[epoch.ShardID]place, silent map[string]error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for address, err := range silent {
		if n.silent[address] == nil && n.ctx.Err() == nil {
			klog.InfoS("A node of this site does not answer", "address", address, "reason", err)
		}
	}
	n.places, n.silent = places, silent
	n.polls++
	close(n.polled)
	n.polled = make(chan struct{})
	for group, list := range places {
		here := false
		for _, p := range list {
			here = here || p.neighbour == nil
		}
		if r := n.runners[group]; here && r == nil && n.ctx.Err() == nil {
			r = newRunner(n, group)
			n.runners[group] = r
			n.wg.Go(r.loop)
		} else if !here && r != nil {
			r.stop()
			delete(n.runners, group)
		}
	}
	for group, r := range n.runners {
		if places[group] == nil {
			r.stop()
			delete(n.runners, group)
			continue
		}
		r.refresh()
	}
}

// ErrAlone: the node was started without the addresses of other nodes.
var ErrAlone = errors.New("this node does not know the other nodes of its site")

// Others asks the other nodes now. It returns the names of those that answered, and for each of those that did not its
// address with the reason, both in order. ErrAlone: there is no way to other nodes.
func (n *Node) Others(ctx context.Context) (answering, silent []string, err error) {
	if n.alone {
		return nil, nil, ErrAlone
	}
	neighbours, err := n.opts.Neighbours(ctx)
	if err != nil {
		silent = append(silent, untrusted.Reason(err.Error()))
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, other := range neighbours {
		wg.Go(func() {
			node, _, err := n.ask(other)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, other.Address()+": "+untrusted.Reason(err.Error()))
			} else if node != n.opts.Name {
				answering = append(answering, node)
			}
		})
	}
	wg.Wait()
	slices.Sort(answering)
	slices.Sort(silent)
	return slices.Compact(answering), silent, nil
}

// Name is the node's.
func (n *Node) Name() string { return n.opts.Name }

// fresh waits for a round of questions that began after the call.
func (n *Node) fresh(ctx context.Context) error {
	n.mu.Lock()
	want := n.polls + 2 // the one that runs may have begun before
	n.mu.Unlock()
	for {
		select {
		case n.wake <- struct{}{}:
		default:
		}
		n.mu.Lock()
		polled, now := n.polled, n.polls
		n.mu.Unlock()
		if now >= want {
			return nil
		}
		select {
		case <-polled:
		case <-ctx.Done():
			return ctx.Err()
		case <-n.ctx.Done():
			return replication.ErrClosed
		}
	}
}

// of returns where the shards of a group were seen.
func (n *Node) of(group string) map[epoch.ShardID]place {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.places[group])
}

// Place is where a shard of a group is at this site, as it was seen last.
type Place struct {
	ID              epoch.ShardID
	Node, GroupName string
	Role            core.Role
	// Joined: the epochs of the group include it.
	Joined bool
	// Shown is the epoch that a copy shows, Newest the last one that has arrived there; zero for none.
	Shown, Newest epoch.ID
	// Closed: it takes no writes, because the group is being demoted. Suspended: nothing is sent to its peer.
	Closed, Suspended bool
}

// Places returns the shards of a group, by their numbers, and the addresses of nodes that did not answer.
func (n *Node) Places(group string) (list []Place, silent []string) {
	places := n.of(group)
	config := newestConfig(places)
	for id, p := range places {
		list = append(list, Place{ID: id, Node: p.node, GroupName: p.shard.groupName, Role: p.shard.role,
			Joined: p.shard.config.Has(id) && config.Has(id), Shown: p.shard.shown, Newest: p.shard.newest,
			Closed: p.shard.standing.Stand == epoch.StandClosed, Suspended: p.shard.suspended})
	}
	slices.SortFunc(list, func(a, b Place) int { return cmp.Compare(a.ID, b.ID) })
	return list, n.silentNodes()
}

// silentNodes are the addresses of nodes that did not answer, in order.
func (n *Node) silentNodes() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.silent))
}

// local are the shards of this node.
func (n *Node) local() (list []shardInfo) {
	for _, s := range n.opts.Site.Shards() {
		if id, ok := s.Identity(); ok {
			p := s.Progress()
			list = append(list, shardInfo{group: id.Group, id: id.ID, groupName: id.GroupName, role: id.Role, config: id.Config,
				shown: p.Shown, newest: p.Newest, arrived: p.Arrived, decided: id.Decided, standing: s.Standing(),
				suspended: id.Suspended, separate: s.Separate(), heard: s.Heard()})
		}
	}
	return list
}

// shard is a shard of this node, or nil.
func (n *Node) shard(group string, id epoch.ShardID) *replication.Shard {
	for _, s := range n.opts.Site.Shards() {
		if now, ok := s.Identity(); ok && now.Group == group && now.ID == id {
			return s
		}
	}
	return nil
}

// deliver carries a message to a shard, wherever it is; nil is no answer.
func (n *Node) deliver(ctx context.Context, group string, to epoch.ShardID, m epoch.Message) (epoch.Message, error) {
	if s := n.shard(group, to); s != nil {
		return s.Deliver(m)
	}
	p, ok := n.of(group)[to]
	if !ok || p.neighbour == nil {
		return nil, fmt.Errorf("%w: shard %d of %s is on no node that answers", replication.ErrNoShard, to, group)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := p.neighbour.Deliver(ctx, request(group, to, m))
	if err != nil {
		return nil, err
	}
	return answerOf(answer)
}
