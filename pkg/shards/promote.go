package shards

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// settlePoll is how often a promotion looks whether all shards are primary.
const settlePoll = 50 * time.Millisecond

// Promote makes all shards of a group primary at this site. A demotion is taken back, if the other site did not take
// over, or by force. Of copies: forced, as of the last complete epoch, the same at all of them; the nodes of all
// copies have to answer, but those of lost ones, which a person gave up. Otherwise: with everything that their
// primaries wrote, if all were demoted and everything has arrived. Errors are core.ErrPrecondition, with the shard
// and the node that are missing, or the context's. It may be repeated, and goes on with what an earlier call began.
func (n *Node) Promote(ctx context.Context, group string, force bool, lost ...epoch.ShardID) error {
	if err := n.fresh(ctx); err != nil {
		return err
	}
	places := n.of(group)
	for _, id := range lost {
		if p, seen := places[id]; seen || !force {
			return fmt.Errorf("%w: shard %d of %s is not lost, or the promotion is not forced (group %s on node %s); promote "+
				"without naming it", core.ErrPrecondition, id, group, p.shard.groupName, p.node)
		}
	}
	if len(places) == 0 {
		return fmt.Errorf("%w: this node has no shard of %q", replication.ErrNotFound, group)
	}
	if mustTakeBack(places) {
		return n.takeBack(ctx, group, force)
	}
	if force || slices.ContainsFunc(slices.Collect(maps.Values(places)), func(p place) bool { return p.shard.decided }) {
		return n.promoteAtEpoch(ctx, group, &wish{lost: lost, found: !force})
	}
	return n.promotePlanned(ctx, group, places)
}

// arrivalPoll is the time between two looks at whether everything has arrived.
const arrivalPoll = 100 * time.Millisecond

// PromotePatiently is Promote without force, and waits for what is on its way: it tries again until patience or the
// context has ended, while the error is core.ErrNotYet. Then it returns that error.
func (n *Node) PromotePatiently(ctx context.Context, group string, patience time.Duration) error {
	for began := time.Now(); ; {
		err := n.Promote(ctx, group, false)
		if !errors.Is(err, core.ErrNotYet) || time.Since(began) >= patience || !pause.For(ctx, arrivalPoll) {
			return err
		}
	}
}

// secondaries are the shards that were seen as copies, in order.
func secondaries(places map[epoch.ShardID]place) (list []epoch.ShardID) {
	for id, p := range places {
		if p.shard.role == core.RoleSecondary {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// shardsOf are all shards of a group: those of its last configuration, and those that were seen and have not joined
// yet. What only earlier configurations name has left the group, or was given up.
func shardsOf(places map[epoch.ShardID]place) []epoch.ShardID {
	config := newestConfig(places)
	list := slices.Clone(config.Shards)
	for id, p := range places {
		if p.shard.config.Version.Number == 0 {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// unseen are those of a list whose node did not answer.
func unseen(places map[epoch.ShardID]place, list []epoch.ShardID) []epoch.ShardID {
	return slices.DeleteFunc(slices.Clone(list), func(id epoch.ShardID) bool {
		_, seen := places[id]
		return seen
	})
}

// without are shards but some.
func without(list, lost []epoch.ShardID) []epoch.ShardID {
	return slices.DeleteFunc(slices.Clone(list), func(id epoch.ShardID) bool { return slices.Contains(lost, id) })
}

func (n *Node) promotePlanned(ctx context.Context, group string, places map[epoch.ShardID]place) error {
	list := shardsOf(places)
	for _, id := range list {
		p, seen := places[id]
		switch {
		case !seen:
			return n.missing(group, []epoch.ShardID{id})
		case p.shard.role == core.RoleDemoted:
			return fmt.Errorf("%w: shard %d of %s (group %s on node %s) is demoted here, and the other site has taken over "+
				"other shards; promote the group there", core.ErrPrecondition, id, group, p.shard.groupName, p.node)
		case p.shard.role == core.RoleSecondary && !p.shard.arrived:
			return fmt.Errorf("%w: shard %d of %s (group %s on node %s) was not demoted at the other site, or not everything "+
				"has arrived; demote all shards there first, or promote with force", core.ErrNotYet, id, group,
				p.shard.groupName, p.node)
		}
	}
	for _, id := range list {
		if places[id].shard.role == core.RolePrimary {
			continue
		}
		if _, err := n.do(ctx, group, places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_PROMOTE}); err != nil {
			return fmt.Errorf("%w; repeat the promotion", err)
		}
	}
	return nil
}

// wishAgain is the time after which a promotion that has not ended is asked for again.
const wishAgain = 5 * time.Second

// unseenPatience is how long a promotion waits for the node of a copy that does not answer. A node that starts may take
// some seconds. One that is gone is not waited for: a person has to know which it is.
const unseenPatience = 15 * time.Second

// promoteAtEpoch has the collector of this node decide at the last complete epoch, or carry out what was decided. When
// it returns, it wants no promotion any more; an error says whether the group may be promoted nevertheless.
func (n *Node) promoteAtEpoch(ctx context.Context, group string, w *wish) error {
	n.mu.Lock()
	r := n.runners[group]
	n.mu.Unlock()
	if r == nil {
		return fmt.Errorf("%w: this node has no shard of %q", replication.ErrNotFound, group)
	}
	separate, err := n.promoted(ctx, r, w)
	outlook := r.giveUp(w)
	switch {
	case err == nil && separate != nil && outlook != promotionOff:
		err = fmt.Errorf("%w: group %s cannot be promoted as before it had shards; repeat the promotion",
			core.ErrPrecondition, group)
	case err == nil && separate != nil:
		return n.promoteSeparate(ctx, group, separate)
	case err == nil:
		return nil
	}
	return errors.Join(fmt.Errorf("%w; %s", err, outlook), ctx.Err())
}

// promoted waits until all shards are primary. It returns places where they have to be promoted separately.
func (n *Node) promoted(ctx context.Context, r *runner, w *wish) (separate map[epoch.ShardID]place, err error) {
	group := r.group
	var wished time.Time
	began := time.Now()
	ticker := time.NewTicker(settlePoll)
	defer ticker.Stop()
	for {
		if err := n.fresh(ctx); err != nil && ctx.Err() == nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, n.unfinished(r, group)
		}
		places := n.of(group)
		if !w.found && n.allSeparate(places, time.Since(began)) {
			return places, nil
		}
		if time.Since(wished) > wishAgain {
			r.want(w)
			wished = time.Now()
		}
		done := len(places) > 0
		// Also those that only the epochs name: a node that has just started does not tell of its shards yet.
		wanted := without(shardsOf(places), w.lost)
		for _, id := range wanted {
			p, seen := places[id]
			done = done && seen && p.shard.role != core.RoleSecondary
		}
		if away := unseen(places, wanted); len(away) > 0 && time.Since(began) > unseenPatience {
			return nil, fmt.Errorf("%w; if a node is lost for good, leave its shard out (slipctl group promote --force "+
				"--without)", n.missing(group, away))
		}
		if done && (len(n.silentNodes()) == 0 || len(w.lost) > 0) {
			return nil, nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// unfinished says what a promotion waits for.
func (n *Node) unfinished(r *runner, group string) error {
	missing := make(chan []epoch.ShardID, 1)
	if r.do(func() {
		var list []epoch.ShardID
		if r.collector != nil {
			list = r.collector.Missing()
		}
		missing <- list
	}) {
		select {
		case list := <-missing:
			if len(list) > 0 {
				return n.missing(group, list)
			}
		case <-r.ctx.Done():
		}
	}
	return fmt.Errorf("%w: group %s has no complete epoch at this site that all shards can be promoted at, or a shard is "+
		"still being promoted%s; repeat the promotion", core.ErrPrecondition, group, n.silence())
}

// missing is the error for shards that were not heard of.
func (n *Node) missing(group string, list []epoch.ShardID) error {
	var names []string
	places := n.of(group)
	for _, id := range list {
		name := fmt.Sprintf("shard %d", id)
		if p, ok := places[id]; ok {
			name += fmt.Sprintf(" (group %s on node %s)", p.shard.groupName, p.node)
		}
		names = append(names, name)
	}
	return fmt.Errorf("%w: %s of %s did not answer%s; see that the replicators of all nodes of this site run, and repeat "+
		"the promotion", core.ErrPrecondition, strings.Join(names, ", "), group, n.silence())
}

func (n *Node) silence() string {
	silent := n.silentNodes()
	if len(silent) == 0 {
		return ""
	}
	return "; no answer from " + strings.Join(silent, ", ")
}
