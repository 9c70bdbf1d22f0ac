package shards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// A view of a group over several nodes is a view of each shard, of one name and at one epoch. Each view's record has
// both, and the numbers of all shards. So a call that was interrupted leaves views of which one is missing. They are
// deleted when a view of that name is made, or deleted.

// Viewer opens and deletes the views of the groups on this node, by the groups' names there. Errors are those of
// package replication.
type Viewer interface {
	OpenView(ctx context.Context, group string, spec replication.ViewSpec) error
	// CloseView is replication.ErrNotFound if there is no such view.
	CloseView(ctx context.Context, group, name string) error
}

// SetViewer has a viewer open what the other nodes ask for. Without it, views have no devices.
func (n *Node) SetViewer(v Viewer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.viewer = v
}

func (n *Node) getViewer() Viewer {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.viewer == nil {
		return siteViewer{n.opts.Site}
	}
	return n.viewer
}

// siteViewer makes views without devices.
type siteViewer struct{ site *replication.Site }

func (v siteViewer) OpenView(ctx context.Context, group string, spec replication.ViewSpec) error {
	g, err := v.site.Group(group)
	if err == nil {
		_, err = g.CreateView(ctx, spec)
	}
	return err
}

func (v siteViewer) CloseView(_ context.Context, group, name string) error {
	g, err := v.site.Group(group)
	if err == nil {
		err = g.DeleteView(name)
	}
	return err
}

// OpenViews opens all shards of a group at one complete epoch, under one name, and returns it. The specification has
// no point but a bookmark of all shards. Errors are replication.ErrExists for a name that is taken, and those of Fix;
// after an error none of the views is left, as far as the nodes answer. It may be repeated after an interruption.
func (n *Node) OpenViews(ctx context.Context, group string, spec replication.ViewSpec) (name string, err error) {
	if spec.Name == "" {
		spec.Name = uuid.NewString()[:8]
	}
	if err := n.clearViews(ctx, group, spec.Name); err != nil {
		return "", err
	}
	f, err := n.fixFor(ctx, group, spec.Point.Bookmark)
	if err != nil {
		return "", err
	}
	defer f.Release()
	r := &shardpb.ViewSpec{Name: spec.Name, Writable: spec.Writable, Test: spec.Test, LimitBytes: spec.LimitBytes,
		Shards: shardsToWire(f.Shards)}
	for _, id := range f.Shards {
		_, err := n.do(ctx, group, f.places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_OPEN_VIEW,
			Epoch: idToWire(f.Epoch), View: r, Label: spec.Point.Bookmark})
		if err == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fixTimeout)
		defer cancel()
		if _, gone := n.closeViews(ctx, group, spec.Name, f.places); gone != nil {
			err = fmt.Errorf("%w; of the view %s some shards are left: repeat the call, or delete it: %w", err, spec.Name, gone)
		}
		return "", err
	}
	return spec.Name, nil
}

// clearViews deletes what an interrupted call left of a view. A view that is there is replication.ErrExists.
func (n *Node) clearViews(ctx context.Context, group, name string) error {
	places, err := n.whole(ctx, group)
	if err != nil {
		return err
	}
	found := map[epoch.ShardID]*shardpb.ViewFound{}
	for _, id := range shardsOf(places) {
		answer, err := n.do(ctx, group, places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_FIND_VIEW,
			View: &shardpb.ViewSpec{Name: name}})
		if err != nil {
			return err
		}
		if answer.GetView() != nil {
			found[id] = answer.GetView()
		}
	}
	for _, id := range shardsOf(places) {
		v := found[id]
		if v == nil || v.GetEpoch() != "" && !wholeView(v, found) {
			continue
		}
		return fmt.Errorf("%w: group %s has a view %s on shard %d (group %s on node %s); delete it, or give another name",
			replication.ErrExists, group, name, id, places[id].shard.groupName, places[id].node)
	}
	if len(found) == 0 {
		return nil
	}
	_, err = n.closeViews(ctx, group, name, places)
	return err
}

// wholeView reports whether all shards have the view that one of them has.
func wholeView(v *shardpb.ViewFound, found map[epoch.ShardID]*shardpb.ViewFound) bool {
	return !slices.ContainsFunc(v.GetShards(), func(w uint32) bool {
		return found[epoch.ShardID(w)].GetEpoch() != v.GetEpoch()
	})
}

// CloseViews deletes the view of a name at all shards that were opened together. replication.ErrNotFound: none has one.
// Errors name the shard at which it stopped; a repetition, at any node, goes on.
func (n *Node) CloseViews(ctx context.Context, group, name string) error {
	if err := n.fresh(ctx); err != nil {
		return err
	}
	places := n.of(group)
	changed, err := n.closeViews(ctx, group, name, places)
	if err != nil {
		return err
	}
	var missing []string
	for _, id := range unseen(places, shardsOf(places)) {
		missing = append(missing, fmt.Sprint(id))
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("%w: view %s is deleted at all shards of %s that answer; shard %s may have it%s; repeat the call",
			core.ErrPrecondition, name, group, strings.Join(missing, ", "), n.silence())
	case !changed:
		return fmt.Errorf("%w: group %s has no view %q; see slipctl view list", replication.ErrNotFound, group, name)
	}
	return nil
}

// closeViews deletes the view of a name wherever it is. All shards are asked, whatever one of them says.
func (n *Node) closeViews(ctx context.Context, group, name string, places map[epoch.ShardID]place) (changed bool,
	err error) {
	for _, id := range shardsOf(places) {
		p, seen := places[id]
		if !seen {
			continue
		}
		answer, failure := n.do(ctx, group, p, &shardpb.DoRequest{Part: shardpb.Part_PART_CLOSE_VIEW,
			View: &shardpb.ViewSpec{Name: name}})
		changed = changed || answer.GetChanged()
		err = errors.Join(err, failure)
	}
	return changed, err
}

// viewPart does what is done to a view of a shard of this node.
func (n *Node) viewPart(ctx context.Context, s *replication.Shard, r *shardpb.DoRequest) (*shardpb.DoResponse, error) {
	id, _ := s.Identity()
	name := r.GetView().GetName()
	g, err := n.opts.Site.Group(id.GroupName)
	if err != nil {
		return nil, err
	}
	answer := &shardpb.DoResponse{}
	view, err := g.View(name)
	if err != nil && !errors.Is(err, replication.ErrNotFound) {
		return nil, err
	}
	switch r.GetPart() {
	case shardpb.Part_PART_FIND_VIEW:
		if err == nil {
			st := view.Status()
			answer.View = &shardpb.ViewFound{Epoch: st.Epoch}
			for _, number := range st.Shards {
				answer.View.Shards = append(answer.View.Shards, uint32(number))
			}
		}
		return answer, nil
	case shardpb.Part_PART_CLOSE_VIEW:
		if err != nil || view.Status().Epoch == "" {
			return answer, nil // there is none, or one of this shard alone
		}
		err := n.getViewer().CloseView(ctx, id.GroupName, name)
		answer.Changed = err == nil
		if errors.Is(err, replication.ErrNotFound) {
			err = nil
		}
		return answer, err
	}
	spec := replication.ViewSpec{Name: name, Writable: r.GetView().GetWritable(), Test: r.GetView().GetTest(),
		LimitBytes: r.GetView().GetLimitBytes()}
	at := idFromWire(r.GetEpoch())
	if spec.Epoch = at.String(); r.GetLabel() != "" {
		spec.Point.Bookmark = r.GetLabel()
	} else {
		spec.Point.Epoch = at
	}
	if at.IsZero() {
		return nil, fmt.Errorf("%w: view %s of group %s: no epoch is given", core.ErrPrecondition,
			untrusted.Escape(name, untrusted.MaxNameBytes), id.GroupName)
	}
	if spec.Shards, err = shardsFromWire(r.GetView().GetShards()); err != nil {
		return nil, fmt.Errorf("%w: view %s: %w", core.ErrPrecondition, untrusted.Escape(name, untrusted.MaxNameBytes), err)
	}
	if err := n.getViewer().OpenView(ctx, id.GroupName, spec); err != nil {
		return nil, err
	}
	return answer, nil
}
