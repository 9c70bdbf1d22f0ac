package core

import "slices"

// Clone returns a copy that no later Step of either changes.
func (g *Group) Clone() *Group {
	c := *g
	c.heard, c.told, c.following = pointed(c.heard), pointed(c.told), pointed(c.following)
	m := &c.Meta
	m.Timelines, m.Members, m.Places = slices.Clone(m.Timelines), slices.Clone(m.Members), slices.Clone(m.Places)
	m.Openings, m.Bookmarks = slices.Clone(m.Openings), slices.Clone(m.Bookmarks)
	m.Base = m.Base.clone()
	m.Epochs = m.Epochs.clone()
	m.Trial = m.Trial.clone()
	m.Loss, m.Yield = m.Loss.clone(), m.Yield.clone()
	m.Divergence, m.Tail, m.PeerYield = pointed(m.Divergence), pointed(m.Tail), pointed(m.PeerYield)
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

func (l *Loss) clone() *Loss {
	c := pointed(l)
	if c != nil {
		c.LostOrdinals, c.LostWrites = pointed(c.LostOrdinals), pointed(c.LostWrites)
		c.LostBytes, c.LostSeconds = pointed(c.LostBytes), pointed(c.LostSeconds)
	}
	return c
}

func (y *Yield) clone() *Yield {
	c := pointed(y)
	if c != nil {
		c.Tail = pointed(c.Tail)
	}
	return c
}

func (b *Base) clone() *Base {
	c := pointed(b)
	if c == nil {
		return nil
	}
	c.Timelines, c.Members = slices.Clone(c.Timelines), slices.Clone(c.Members)
	c.Tail, c.RollBack, c.Epoch = pointed(c.Tail), pointed(c.RollBack), pointed(c.Epoch)
	if c.Epoch != nil {
		c.Epoch.Config.Shards = slices.Clone(c.Epoch.Config.Shards)
	}
	return c
}
