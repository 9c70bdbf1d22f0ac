package core

import "slices"

// Clone returns a copy that no later Step of either changes.
func (g *Group) Clone() *Group {
	c := *g
	c.heard, c.told, c.following = pointed(c.heard), pointed(c.told), pointed(c.following)
	m := &c.Meta
	m.Timelines, m.Members, m.Places = slices.Clone(m.Timelines), slices.Clone(m.Members), slices.Clone(m.Places)
	m.Openings, m.Bookmarks = slices.Clone(m.Openings), slices.Clone(m.Bookmarks)
	if m.Base = pointed(m.Base); m.Base != nil {
		b := m.Base
		b.Timelines, b.Members = slices.Clone(b.Timelines), slices.Clone(b.Members)
		b.Tail, b.RollBack, b.Epoch = pointed(b.Tail), pointed(b.RollBack), pointed(b.Epoch)
		if b.Epoch != nil {
			b.Epoch.Config.Shards = slices.Clone(b.Epoch.Config.Shards)
		}
	}
	m.Loss, m.Divergence, m.Tail = pointed(m.Loss), pointed(m.Divergence), pointed(m.Tail)
	m.Epochs = m.Epochs.clone()
	m.Yield, m.PeerYield = pointed(m.Yield), pointed(m.PeerYield)
	if y := m.Yield; y != nil {
		y.Tail = pointed(y.Tail)
	}
	if l := m.Loss; l != nil {
		l.LostOrdinals, l.LostWrites = pointed(l.LostOrdinals), pointed(l.LostWrites)
		l.LostBytes, l.LostSeconds = pointed(l.LostBytes), pointed(l.LostSeconds)
	}
	return &c
}

// pointed returns a pointer to a copy; nil of nil.
func pointed[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}
