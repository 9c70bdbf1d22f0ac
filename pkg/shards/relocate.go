package shards

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// Relocate moves all shards of a group to the other site without loss: it demotes the group, and has the other site
// promote it as a whole. It returns when all shards follow, and how long the group was demoted. A group that follows
// already is no error.
//
// Errors are those of Demote; or they say that the group is demoted, and name the shard at which the call stopped. Then
// a repetition at any node goes on, and Promote takes the demotion back, if the other site has not taken over.
func (n *Node) Relocate(ctx context.Context, group string) (took time.Duration, err error) {
	if _, err := n.Demote(ctx, group); err != nil {
		return 0, err
	}
	began := time.Now()
	for {
		places, err := n.whole(ctx, group)
		if err != nil {
			return 0, fmt.Errorf("group %s is demoted here: %w", group, err)
		}
		left := 0
		for _, id := range shardsOf(places) {
			p := places[id]
			if p.shard.role == core.RoleSecondary {
				continue
			}
			left++
			// The first one has all taken over; the others follow by themselves, or ask again.
			if _, err := n.do(ctx, group, p, &shardpb.DoRequest{Part: shardpb.Part_PART_HAND_OVER}); err != nil {
				return 0, fmt.Errorf("%w; the whole group is demoted here: repeat the relocation, or take it back by promoting "+
					"the group here", err)
			}
		}
		if left == 0 {
			return time.Since(began), nil
		}
	}
}

// takeOver promotes a group whose demoted site asks for it. The shards that ask are ahead of others, whose last writes
// are on their way.
func (n *Node) takeOver(ctx context.Context, group string) error {
	return n.PromotePatiently(ctx, group, math.MaxInt64)
}
