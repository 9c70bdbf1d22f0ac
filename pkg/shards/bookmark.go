package shards

import (
	"context"
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// A bookmark of a group over several nodes names an epoch. Each shard has it, with the ordinal of its own boundary, and
// its copy gets it in order. So the shards can be opened there together for as long as each has its history.

// Bookmark names the present of all shards, at the primary site, and returns the epoch: one that has all that was
// written before. Errors are replication.ErrExists for a label that is taken, and those of Fix. A label that an
// interrupted call left at some shards is taken over.
func (n *Node) Bookmark(ctx context.Context, group, label string) (epoch.ID, error) {
	if err := core.CheckLabel(label); err != nil {
		return epoch.ID{}, fmt.Errorf("%w: group %s: %w", replication.ErrInvalid, group, err)
	}
	places, err := n.whole(ctx, group)
	if err != nil {
		return epoch.ID{}, err
	}
	if err := openPrimaries(group, places); err != nil {
		return epoch.ID{}, fmt.Errorf("%w; a bookmark is made at the primary site", err)
	}
	found, err := n.findBookmark(ctx, group, label, places)
	if err != nil {
		return epoch.ID{}, err
	}
	whole := len(found) == len(places)
	for _, at := range found {
		whole = whole && at == found[shardsOf(places)[0]]
	}
	for _, id := range shardsOf(places) {
		if at, ok := found[id]; ok && (at == "" || whole) {
			return epoch.ID{}, fmt.Errorf("%w: group %s has a bookmark %s at shard %d (group %s on node %s); give another label",
				replication.ErrExists, group, label, id, places[id].shard.groupName, places[id].node)
		}
	}
	f, err := n.Fix(ctx, group)
	if err != nil {
		return epoch.ID{}, err
	}
	defer f.Release()
	for _, id := range f.Shards {
		if _, err := n.do(ctx, group, f.places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_BOOKMARK,
			Epoch: idToWire(f.Epoch), Label: label}); err != nil {
			return epoch.ID{}, fmt.Errorf("%w; other shards have the bookmark; repeat the call", err)
		}
	}
	return f.Epoch, nil
}

// findBookmark returns the epochs that a label names, by shard; empty for a bookmark of one shard alone.
func (n *Node) findBookmark(ctx context.Context, group, label string,
	places map[epoch.ShardID]place) (map[epoch.ShardID]string, error) {
	found := map[epoch.ShardID]string{}
	for _, id := range shardsOf(places) {
		answer, err := n.do(ctx, group, places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_FIND_BOOKMARK, Label: label})
		if err != nil {
			return nil, err
		}
		if answer.GetView() != nil {
			found[id] = answer.GetView().GetEpoch()
		}
	}
	return found, nil
}

// fixFor is Fix, or for a bookmark of all shards has them keep their history.
func (n *Node) fixFor(ctx context.Context, group, label string) (*Fixed, error) {
	if label == "" {
		return n.Fix(ctx, group)
	}
	places, err := n.whole(ctx, group)
	if err != nil {
		return nil, err
	}
	found, err := n.findBookmark(ctx, group, label, places)
	if err != nil {
		return nil, err
	}
	list := shardsOf(places)
	for _, id := range list {
		if at, ok := found[id]; !ok || at != found[list[0]] {
			return nil, fmt.Errorf("%w: bookmark %s of %s is not the same at shard %d (group %s on node %s), or is not there "+
				"yet", core.ErrPrecondition, label, group, id, places[id].shard.groupName, places[id].node)
		}
	}
	at, err := epoch.ParseID(found[list[0]])
	if err != nil {
		return nil, fmt.Errorf("%w: bookmark %s of %s: %w", core.ErrPrecondition, label, group, err)
	}
	f := &Fixed{node: n, group: group, Holder: newLife(), places: places, Epoch: at, Shards: list}
	if _, err := f.each(ctx, epoch.ID{}); err != nil {
		f.Release()
		return nil, err
	}
	return f, nil
}
