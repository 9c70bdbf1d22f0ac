package shards

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// separatePatience is how long a promotion looks for a complete epoch where copies have heard of epochs. Their
// collector needs some rounds of messages.
const separatePatience = 5 * time.Second

// allSeparate reports whether no shard at this site has shown an epoch, and one of them at least has the copy that it
// had before it became a shard. What is left of an earlier call is primary. waited is how long a complete epoch was
// looked for.
func (n *Node) allSeparate(places map[epoch.ShardID]place, waited time.Duration) bool {
	separate := false
	for _, p := range places {
		s := p.shard
		if s.role != core.RoleSecondary {
			continue
		}
		if s.decided || !s.shown.IsZero() || s.heard && waited < separatePatience {
			return false
		}
		separate = separate || s.separate
	}
	return separate && len(n.silentNodes()) == 0
}

// promoteSeparate promotes by force what was whole before it became a shard. The copy of a shard that never was whole
// stays what it is, and the error names it.
func (n *Node) promoteSeparate(ctx context.Context, group string, places map[epoch.ShardID]place) error {
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(places)) {
		p := places[id]
		if p.shard.role != core.RoleSecondary {
			continue
		}
		if !p.shard.separate {
			errs = append(errs, fmt.Errorf("%w: shard %d of %s (group %s on node %s): the group has no complete epoch at this "+
				"site, and this copy was never whole; it stays a copy, and the others are primary", core.ErrPrecondition, id, group,
				p.shard.groupName, p.node))
			continue
		}
		_, err := n.do(ctx, group, p, &shardpb.DoRequest{Part: shardpb.Part_PART_PROMOTE_SEPARATE})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
