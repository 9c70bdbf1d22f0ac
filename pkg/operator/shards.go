package operator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/plan"
)

// recordShards writes the new numbers of a group into its status, before any shard is made with them, if the nodes can
// have one group. It reports false if they cannot; in.Unable has the reason then.
func (r *NamespaceReconciler) recordShards(ctx context.Context, in *plan.Input, gp *plan.Group) (bool, error) {
	if !gp.Shards.Added {
		return true, nil
	}
	if why := r.unable(ctx, in, gp.Shards.Nodes); why != "" {
		klog.InfoS("The nodes cannot have one group", "group", klog.KObj(gp.Group), "reason", why)
		if in.Unable == nil {
			in.Unable = map[string]string{}
		}
		in.Unable[gp.Group.Name] = why
		return false, nil
	}
	next := gp.Group.Status.DeepCopy()
	next.Shards = gp.Shards.Record.DeepCopy()
	if err := kube.ApplyStatusAt(ctx, r.Client, "ConsistencyGroup", gp.Group, gp.Group.ResourceVersion,
		next); err != nil {
		return false, err
	}
	gp.Group.Status.Shards = next.Shards
	return true, nil
}

// unable asks the nodes whether each of them reaches the others, and returns why not.
func (r *NamespaceReconciler) unable(ctx context.Context, in *plan.Input, nodes []string) string {
	for _, node := range nodes {
		known := in.View.Nodes[node]
		if known == nil || known.Client == nil || known.Err != nil {
			return fmt.Sprintf("node %s does not answer", node)
		}
		ctx, cancel := context.WithTimeout(ctx, engine.LookTimeout)
		answer, err := known.Client.SiteNodes(ctx, &sidecarpb.SiteNodesRequest{})
		cancel()
		switch {
		case status.Code(err) == codes.Unimplemented:
			return fmt.Sprintf("the driver or the replicator of node %s is of a version without groups over several nodes: "+
				"upgrade it", node)
		case err != nil:
			return fmt.Sprintf("node %s: %s", node, status.Convert(err).Message())
		}
		for _, other := range nodes {
			if other != node && !slices.Contains(answer.GetAnswering(), other) {
				return fmt.Sprintf("the replicator of node %s does not reach that of node %s at replication.siteNodes of the "+
					"chart (no answer: %s)", node, other, cmp.Or(strings.Join(answer.GetSilent(), "; "), "none of the addresses is "+
					"that node"))
			}
		}
	}
	return ""
}

// settleTime is how long an empty shard stays: some epochs, and the time to send them.
const settleTime = 8 * time.Second

// settled reports whether an empty shard was first seen long enough ago.
func (r *NamespaceReconciler) settled(group string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first, seen := r.empty[group]
	switch {
	case !seen:
		if r.empty == nil {
			r.empty = map[string]time.Time{}
		}
		r.empty[group] = r.now()
		return false
	case r.now().Sub(first) < settleTime:
		return false
	}
	delete(r.empty, group)
	return true
}
