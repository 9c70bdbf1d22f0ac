package sidecar

import (
	"context"
	"errors"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// Views of a group over several nodes: pkg/shards decides at which epoch, and calls the service of each node.

// createViews opens all shards of a group at one epoch, and returns the view of this one.
func (s *Service) createViews(ctx context.Context, g *replication.Group, id replication.Identity,
	spec replication.ViewSpec) (*sidecarpb.View, error) {
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	name, err := s.opts.Shards.OpenViews(ctx, id.Group, spec)
	if err != nil {
		return nil, toStatus(err)
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	view, err := g.View(name)
	if err != nil {
		return nil, toStatus(err)
	}
	return s.viewToAPI(view.Status()), nil
}

// OpenView implements shards.Viewer.
func (s *Service) OpenView(ctx context.Context, group string, spec replication.ViewSpec) error {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	g, err := s.opts.Site.Group(group)
	if err == nil {
		_, err = s.createView(ctx, g, spec)
	}
	return err
}

// CloseView implements shards.Viewer.
func (s *Service) CloseView(ctx context.Context, group, name string) error {
	if err := s.waitAdopted(ctx, "view "+name); err != nil {
		return err
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	view, g, err := s.view(group, name)
	if err != nil {
		return err
	}
	return s.deleteView(ctx, g, view)
}

// viewOfShards returns the group over several nodes that a view is deleted at. One that this shard does not have may be
// left at others.
func (s *Service) viewOfShards(group, name string) (whole string, ok bool) {
	view, g, err := s.view(group, name)
	if g == nil || err != nil && !errors.Is(err, replication.ErrNotFound) {
		return "", false
	}
	id, ok := s.shardOf(g)
	return id.Group, ok && (err != nil || view.Status().Epoch != "")
}

// shardsOfView says which shards were opened together.
func shardsOfView(v *sidecarpb.View, st replication.ViewStatus) {
	if at, err := epoch.ParseID(st.Epoch); err == nil {
		v.Epoch = &at.Number
	}
	for _, id := range st.Shards {
		v.Shards = append(v.Shards, uint32(id))
	}
}

// bookmarkOfShards reports whether a label names an epoch of all shards.
func bookmarkOfShards(g *replication.Group, label string) bool {
	b, err := g.Shard().BookmarkOf(label)
	return err == nil && b.Epoch != ""
}

// bookmarkShards names an epoch of all shards of a group, and returns the bookmark of this one.
func (s *Service) bookmarkShards(ctx context.Context, g *replication.Group, id replication.Identity,
	label string) (*sidecarpb.Bookmark, error) {
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	if _, err := s.opts.Shards.Bookmark(ctx, id.Group, label); err != nil {
		return nil, toStatus(err)
	}
	b, err := g.Shard().BookmarkOf(label)
	if err != nil {
		return nil, toStatus(err)
	}
	return bookmarkToAPI(b, true), nil
}
