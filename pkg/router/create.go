package router

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// leaseAttempts is how often a name is leased when another controller's lease is in the way, before the sidecar is
// told to come back. Two controllers that lease at the same instant on different nodes first both give way.
const leaseAttempts = 3

// creation is one CreateVolume on its way to a node.
type creation struct {
	req   *csi.CreateVolumeRequest
	group string // consistency group; empty for none
	// source is what the volume is a copy of; nil for an empty volume.
	source *locatepb.Key
}

// CreateVolume:
//
//  1. lease name and group on all nodes, and ask who has name, group and source
//  2. a node that has the name gets the call
//  3. else the first of the candidates that has room; candidates are the nodes of the topology, preferred ones first,
//     cut down to the source's node and the group's, or, of a volume that has neither, to the node that the scheduler
//     chose
//
// A copy's node, and a group's, is what it is: when the scheduler has chosen another one for the pod, the volume is
// created there all the same. Kubernetes sees from the volume that the pod cannot run where it was to run, and
// schedules it again, now to the volume's node. The rejected way is to refuse, after which the scheduler chooses again;
// it does not learn why, and chooses the same node forever.
//
// A silent node concerns the call when the volume could be there by an earlier call: when it is a candidate, or, for a
// volume in a group, any node, since the group could be there and a group must not be in two places.
func (s *controllerServer) CreateVolume(ctx context.Context,
	req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if req.GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume name is missing")
	}
	c := creation{req: req}
	var err error
	if c.group, err = parameter.RequestedGroup(req); err != nil {
		return nil, err
	}
	if c.source, err = sourceKey(req.GetVolumeContentSource()); err != nil {
		return nil, err
	}
	unlock, err := s.r.locks.try("volume name " + req.GetName())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if c.group != "" {
		unlock, err := s.r.locks.wait(ctx, "consistency group "+c.group)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	for attempt := 1; ; attempt++ {
		response, leased, err := s.r.create(ctx, c)
		if leased || attempt == leaseAttempts || status.Code(err) != codes.Aborted {
			return response, err
		}
		if !pause.For(ctx, 20*time.Millisecond+rand.N(100*time.Millisecond)) {
			return nil, err
		}
	}
}

func sourceKey(source *csi.VolumeContentSource) (*locatepb.Key, error) {
	switch {
	case source == nil:
		return nil, nil
	case source.GetSnapshot().GetSnapshotId() != "":
		return key(locatepb.Key_SNAPSHOT_ID, source.GetSnapshot().GetSnapshotId()), nil
	case source.GetVolume().GetVolumeId() != "":
		return key(locatepb.Key_VOLUME_ID, source.GetVolume().GetVolumeId()), nil
	}
	return nil, status.Error(codes.InvalidArgument, "the volume content source names neither a snapshot nor a volume")
}

// create is one attempt; leased is false when nothing was tried because another lease was in the way.
func (r *Router) create(ctx context.Context, c creation) (response *csi.CreateVolumeResponse, leased bool, err error) {
	lease := uuid.NewString()
	keys := []*locatepb.Key{key(locatepb.Key_VOLUME_NAME, c.req.GetName())}
	leasedKeys := keys
	if c.group != "" {
		leasedKeys = append(leasedKeys, key(locatepb.Key_CONSISTENCY_GROUP, c.group))
	}
	all, err := r.ask(ctx, lease, leasedKeys...)
	if err != nil {
		return nil, true, err
	}
	defer r.endLease(ctx, all, lease)
	if err := all.aborted(); err != nil {
		return nil, false, err
	}
	candidates, err := r.place(ctx, c, all)
	if err != nil {
		return nil, true, err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, plugin.LeaseMetadata, lease)
	for _, n := range candidates {
		response, err = n.controller.CreateVolume(ctx, c.req)
		// Nothing was made there, and the lease keeps others from making it: the next one may have room.
		if status.Code(err) != codes.ResourceExhausted {
			break
		}
	}
	return response, true, err
}

// place returns the nodes that the volume may be created on, the best first, at least one. all are the answers about
// the name and, if there is one, the group.
func (r *Router) place(ctx context.Context, c creation, all answers) ([]*node, error) {
	name := c.req.GetName()
	what := "volume name " + name
	requirement := c.req.GetAccessibilityRequirements()
	h, err := all.only(0, what)
	if err != nil {
		return nil, err
	}
	if h != nil {
		if !accessible(h.node, requirement) {
			return nil, status.Errorf(codes.ResourceExhausted, "volume %q is on node %s (%s), which is none of the nodes "+
				"asked for: its pod has to run there", name, h.node.name, h.id)
		}
		return []*node{h.node}, nil
	}
	ranked := rank(name, all, requirement)
	candidates := chosen(ranked, all, requirement)
	concerns := func(n *node) bool { return slices.Contains(candidates, n) }
	if c.group != "" {
		concerns, what = anyNode, what+" or consistency group "+c.group
	}
	if c.source != nil {
		at, err := r.locate(ctx, c.source.GetKind(), c.source.GetValue(), "volume source "+c.source.GetValue())
		if err != nil {
			return nil, err
		}
		if at == nil {
			return nil, status.Errorf(codes.NotFound, "volume %q: its source %s is on no node", name, c.source.GetValue())
		}
		if ranked, err = restrict(ranked, at, name, "its source "+c.source.GetValue()); err != nil {
			return nil, err
		}
		candidates = ranked
	}
	if err := all.silence(what, concerns); err != nil {
		return nil, err
	}
	if c.group != "" {
		g, err := all.only(1, "consistency group "+c.group)
		if err != nil {
			return nil, err
		}
		if g != nil {
			candidates, err = restrict(ranked, g.node, name, "consistency group "+c.group)
			if status.Code(err) == codes.ResourceExhausted {
				return nil, status.Errorf(codes.ResourceExhausted, "%s; %s", status.Convert(err).Message(), severalNodes)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if len(candidates) == 0 {
		return nil, status.Errorf(codes.ResourceExhausted, "volume %q: none of the nodes asked for runs the driver: %v", name,
			segments(requirement))
	}
	return candidates, nil
}

// severalNodes says how claims on several nodes get one order of writes. A class cannot do that: who makes a shard has
// to know all shards that the group ever had, and which claims belong to it.
const severalNodes = "claims on several nodes are one group if the operator makes it: use a class with " +
	parameter.KeyReplicable + `: "true" and without ` + parameter.KeyConsistencyGroup + ", and label the namespace with " +
	"slipstream.dev/replicate-to=SITE"

// restrict leaves the node that something is on, which the volume has to be beside.
func restrict(candidates []*node, at *node, name, what string) ([]*node, error) {
	if slices.Contains(candidates, at) {
		return []*node{at}, nil
	}
	if at.retired {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %q: %s is on node %s, which is retired: no volumes "+
			"are made there", name, what, at.name)
	}
	return nil, status.Errorf(codes.ResourceExhausted, "volume %q: %s is on node %s, which is none of the nodes asked "+
		"for: "+
		"a volume has to be on one node with it, so its pod has to run there", name, what, at.name)
}

// rank returns the nodes of a topology requirement: preferred ones first, in that order, the others by a hash of the
// name, so that names spread and every controller chooses alike. Retired nodes are none.
func rank(name string, all answers, requirement *csi.TopologyRequirement) []*node {
	place := func(n *node) int {
		i := slices.IndexFunc(requirement.GetPreferred(), func(t *csi.Topology) bool { return inSegment(n, t) })
		if i < 0 {
			return len(requirement.GetPreferred())
		}
		return i
	}
	weight := func(n *node) uint64 {
		h := fnv.New64a()
		h.Write([]byte(name + "\x00" + n.name))
		return h.Sum64()
	}
	var nodes []*node
	for _, a := range all {
		if !a.node.retired && accessible(a.node, requirement) {
			nodes = append(nodes, a.node)
		}
	}
	slices.SortFunc(nodes, func(a, b *node) int {
		if d := place(a) - place(b); d != 0 {
			return d
		}
		if wa, wb := weight(a), weight(b); wa != wb {
			if wa < wb {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	return nodes
}

// chosen cuts candidates down to the node that the scheduler chose for the volume's pod, which is the first that is
// preferred, where the requirement is that of a claim that waited for its pod: all nodes, one of them preferred.
// Another node might not do for the pod; where the chosen one has no room, the scheduler has to choose again. A
// requirement of fewer nodes is one of a StorageClass's (allowedTopologies); whether a pod waits is not to be seen
// then, and every node is one that the class allows.
func chosen(candidates []*node, all answers, requirement *csi.TopologyRequirement) []*node {
	if len(requirement.GetPreferred()) == 0 || slices.ContainsFunc(all, func(a answer) bool {
		return !a.node.retired &&
			!accessible(a.node, requirement)
	}) {
		return candidates
	}
	return slices.DeleteFunc(slices.Clone(candidates), func(n *node) bool {
		return !inSegment(n,
			requirement.GetPreferred()[0])
	})
}

// accessible: a requirement without requisite terms is met everywhere.
func accessible(n *node, requirement *csi.TopologyRequirement) bool {
	return len(requirement.GetRequisite()) == 0 || slices.ContainsFunc(requirement.GetRequisite(),
		func(t *csi.Topology) bool { return inSegment(n, t) })
}

// inSegment: segments of other drivers do not matter.
func inSegment(n *node, t *csi.Topology) bool {
	at, ok := t.GetSegments()[plugin.TopologyKey]
	return !ok || at == n.name
}

func segments(requirement *csi.TopologyRequirement) []string {
	var names []string
	for _, t := range requirement.GetRequisite() {
		names = append(names, t.GetSegments()[plugin.TopologyKey])
	}
	return names
}
