package engine

import (
	"context"
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/router"
)

const (
	// LookInterval is how often the nodes are asked for their groups.
	LookInterval = 2 * time.Second
	// LookTimeout is how long a node gets for its answer.
	LookTimeout = 10 * time.Second
	// CallTimeout bounds a call that changes something.
	CallTimeout = 2 * time.Minute
)

// Replicators is the way to the replicators of the nodes. router.Replicators implements it.
type Replicators interface {
	// All returns the replicators by node, or an error as long as the nodes are not known.
	All() ([]router.Replicator, error)
}

// Node is what a node last said.
type Node struct {
	// Client calls the node's replicator; nil without an address.
	Client sidecarpb.SidecarClient
	// Err is why the node does not answer. Groups are then those of its last answer, if there was one.
	Err error
	// Without: the node answers and has no replicator.
	Without bool
	// Retired: the node is gone for good.
	Retired bool
	Groups  map[string]*sidecarpb.GroupStatus

	// asked is the number of the question that this answers. A later question has a higher one.
	asked uint64
}

// Silent reports that the node may hold what it has not told of.
func (n *Node) Silent() bool { return n.Err != nil && !n.Retired }

// Untold reports that the node may hold groups that it does not tell of: it does not answer, or it has no replicator
// that could tell.
func (n *Node) Untold() bool { return n.Silent() || n.Without && !n.Retired }

// Place is where a group is.
type Place struct {
	Node  string
	Group *sidecarpb.GroupStatus
}

// View is what all nodes last said. It does not change once it is made.
type View struct {
	// Known: every node was asked at least once.
	Known   bool
	Nodes   map[string]*Node
	groups  map[string][]Place
	volumes map[string]Place
}

func newView(known bool, nodes map[string]*Node) *View {
	v := &View{Known: known, Nodes: nodes, groups: map[string][]Place{}, volumes: map[string]Place{}}
	for name, node := range nodes {
		for _, g := range node.Groups {
			at := Place{Node: name, Group: g}
			v.groups[g.GetName()] = append(v.groups[g.GetName()], at)
			for _, volume := range g.GetVolumes() {
				v.volumes[volume.GetVolumeId()] = at
			}
		}
	}
	return v
}

// Group returns where a group is; on several nodes only after a mistake.
func (v *View) Group(name string) []Place { return v.groups[name] }

// Shards returns the shards of a group over several nodes.
func (v *View) Shards(whole string) (places []Place) {
	for _, at := range v.groups {
		for _, place := range at {
			if shard := place.Group.GetShard(); shard != nil && shard.GetGroup() == whole {
				places = append(places, place)
			}
		}
	}
	return places
}

// Volume returns the group that a volume is in.
func (v *View) Volume(id string) (Place, bool) {
	at, ok := v.volumes[id]
	return at, ok
}

// Silent returns the nodes that do not answer.
func (v *View) Silent() (names []string) {
	for name, node := range v.Nodes {
		if node.Silent() {
			names = append(names, name)
		}
	}
	return names
}

// Watcher keeps the view. Make it with NewWatcher.
type Watcher struct {
	replicators Replicators
	changed     func(before, now *View)

	mu   sync.Mutex
	view *View
	// asked is the number of the last question. An answer takes the place of answers to earlier questions only.
	asked uint64
	// looks makes looks at one node follow each other: of two questions that are under way at the same time, the node may
	// answer the later one first.
	looks map[string]*sync.Mutex
}

// NewWatcher calls changed after each look at which something differs.
func NewWatcher(replicators Replicators, changed func(before, now *View)) *Watcher {
	return &Watcher{replicators: replicators, changed: changed, view: &View{}, looks: map[string]*sync.Mutex{}}
}

// View returns the last view.
func (w *Watcher) View() *View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view
}

// Start looks until ctx is done. It implements manager.Runnable.
func (w *Watcher) Start(ctx context.Context) error {
	ticker := time.NewTicker(LookInterval)
	defer ticker.Stop()
	for {
		w.Look(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Look asks all nodes. It waits for all of them, so a Refresh of one of them can be over before; its answer stays then.
func (w *Watcher) Look(ctx context.Context) {
	w.mu.Lock()
	before := w.asked
	w.mu.Unlock()
	all, err := w.replicators.All()
	if err != nil {
		klog.V(2).InfoS("The nodes are not known yet", "err", err)
		return
	}
	answers := make([]*Node, len(all))
	var wg sync.WaitGroup
	for i, replicator := range all {
		wg.Go(func() { answers[i] = w.ask(ctx, replicator) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	w.replace(true, func(nodes map[string]*Node) {
		listed := map[string]bool{}
		for i, replicator := range all {
			listed[replicator.Node] = true
			put(nodes, replicator.Node, answers[i])
		}
		// A node that is not listed is gone, unless it came after the list was made.
		maps.DeleteFunc(nodes, func(name string, node *Node) bool { return !listed[name] && node.asked <= before })
	})
}

// Refresh asks one node, after something was changed there, and returns the view with what it said, or with a newer
// answer.
func (w *Watcher) Refresh(ctx context.Context, node string) (*View, error) {
	all, err := w.replicators.All()
	if err != nil {
		return nil, err
	}
	for _, replicator := range all {
		if replicator.Node != node {
			continue
		}
		answer := w.ask(ctx, replicator)
		if answer.Err != nil {
			return nil, answer.Err
		}
		return w.replace(false, func(nodes map[string]*Node) { put(nodes, node, answer) }), nil
	}
	return nil, status.Errorf(codes.Unavailable, "there is no node %s", node)
}

// put makes an answer that of its node, unless there is the answer to a later question. A node that did not answer has
// the groups of its last answer.
func put(nodes map[string]*Node, name string, answer *Node) {
	last := nodes[name]
	if last != nil && last.asked > answer.asked {
		return
	}
	if last != nil && answer.Silent() {
		answer.Groups = last.Groups
	}
	nodes[name] = answer
}

// replace makes the next view of a copy of the nodes of the last one. known: every node was asked.
func (w *Watcher) replace(known bool, change func(map[string]*Node)) *View {
	w.mu.Lock()
	before := w.view
	nodes := make(map[string]*Node, len(before.Nodes))
	maps.Copy(nodes, before.Nodes)
	change(nodes)
	now := newView(known || before.Known, nodes)
	w.view = now
	w.mu.Unlock()
	w.changed(before, now)
	return now
}

func (w *Watcher) ask(ctx context.Context, replicator router.Replicator) *Node {
	w.mu.Lock()
	look := w.looks[replicator.Node]
	if look == nil {
		look = &sync.Mutex{}
		w.looks[replicator.Node] = look
	}
	w.mu.Unlock()
	look.Lock()
	defer look.Unlock()
	answer := &Node{Client: replicator.Client, Retired: replicator.Retired}
	w.mu.Lock()
	w.asked++
	answer.asked = w.asked
	w.mu.Unlock()
	if replicator.Client == nil {
		answer.Err = status.Errorf(codes.Unavailable, "node %s: its driver has no address: see that the driver's pod runs "+
			"there",
			replicator.Node)
		return answer
	}
	ctx, cancel := context.WithTimeout(ctx, LookTimeout)
	defer cancel()
	response, err := replicator.Client.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
	switch {
	case status.Code(err) == codes.FailedPrecondition:
		answer.Without = true
	case err != nil:
		answer.Err = err
	}
	answer.Groups = byName(response.GetGroups())
	return answer
}

func byName(groups []*sidecarpb.GroupStatus) map[string]*sidecarpb.GroupStatus {
	named := make(map[string]*sidecarpb.GroupStatus, len(groups))
	for _, g := range groups {
		named[g.GetName()] = g
	}
	return named
}
