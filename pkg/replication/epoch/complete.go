package epoch

import "slices"

func has(r *Report, epoch ID) bool {
	_, ok := slices.BinarySearchFunc(r.Marks, epoch, func(m Mark, e ID) int { return m.Epoch.Compare(e) })
	return ok
}

// floor is the highest epoch that a copy shows. Earlier ones do not matter any more.
func (c *Collector) floor() (highest ID) {
	for i := range c.views {
		if r := c.views[i].report; r != nil && highest.Before(r.Shown) {
			highest = r.Shown
		}
	}
	return highest
}

// more reports whether a copy has marks that it has not reported.
func (c *Collector) more() bool {
	return slices.ContainsFunc(c.views, func(v copyView) bool { return v.report != nil && v.report.More })
}

// required are the copies that have to be heard before it is known that no epoch later than the last one found can be
// complete: all that a mark of the floor or later names. A complete epoch has marks on all its shards. So if one of
// them is among those that were heard, then all are.
func (c *Collector) required() (list []ShardID) {
	floor := c.floor()
	for i := range c.views {
		r := c.views[i].report
		if r == nil {
			continue
		}
		for _, m := range r.Marks {
			if !m.Epoch.Before(floor) {
				list = append(list, m.Config.Shards...)
			}
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	if c.promote != nil {
		list = slices.DeleteFunc(list, func(s ShardID) bool { return slices.Contains(c.promote.Without, s) })
	}
	return list
}

// complete is a mark of the last epoch whose marks all its shards have, but those without.
func (c *Collector) complete(without []ShardID) (last Mark, ok bool) {
	floor := c.floor()
	for i := range c.views {
		r := c.views[i].report
		if r == nil {
			continue
		}
		for _, m := range slices.Backward(r.Marks) {
			if m.Epoch.Before(floor) || ok && m.Epoch.Compare(last.Epoch) <= 0 {
				break
			}
			if c.everywhere(m, without) {
				last, ok = m, true
				break
			}
		}
	}
	return last, ok
}

func (c *Collector) everywhere(m Mark, without []ShardID) bool {
	for _, s := range m.Config.Shards {
		if slices.Contains(without, s) {
			continue
		}
		if v := c.view(s); v == nil || v.report == nil || !has(v.report, m.Epoch) {
			return false
		}
	}
	return true
}

// reaches reports whether an epoch has what the promotion needs.
func (c *Collector) reaches(epoch ID) bool {
	for s, ordinal := range c.promote.AtLeast {
		v := c.view(s)
		if v == nil || v.report == nil {
			return false
		}
		i := slices.IndexFunc(v.report.Marks, func(m Mark) bool { return m.Epoch == epoch })
		if i < 0 || v.report.Marks[i].Boundary < ordinal {
			return false
		}
	}
	return true
}
