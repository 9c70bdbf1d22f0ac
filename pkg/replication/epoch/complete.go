package epoch

import "slices"

// FindMark returns where the mark of an epoch is among marks that ascend, or would be, and whether it is there.
func FindMark(marks []Mark, epoch ID) (at int, ok bool) {
	return slices.BinarySearchFunc(marks, epoch, func(m Mark, e ID) int { return m.Epoch.Compare(e) })
}

func has(r *Report, epoch ID) bool {
	_, ok := FindMark(r.Marks, epoch)
	return ok
}

// floor is the highest epoch before which a copy cannot be cut any more. Earlier ones do not matter.
func (c *Collector) floor() (highest ID) {
	for i := range c.views {
		if r := c.views[i].report; r != nil && highest.Before(r.Floor) {
			highest = r.Floor
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
		from, _ := FindMark(r.Marks, floor)
		list = append(list, namedBy(r.Marks[from:])...)
	}
	slices.Sort(list)
	list = slices.Compact(list)
	return slices.DeleteFunc(list, c.givenUp)
}

// givenUp reports whether a person said that a copy is lost.
func (c *Collector) givenUp(s ShardID) bool {
	return c.promote != nil && slices.Contains(c.promote.Without, s)
}

// complete is a mark of the last epoch whose marks all its shards have, but those without. A copy reports marks of its
// own shard, which is one of the epoch's.
func (c *Collector) complete(without []ShardID) (last Mark, ok bool) {
	floor := c.floor()
	for i, s := range c.copies {
		r := c.views[i].report
		if r == nil || slices.Contains(without, s) {
			continue
		}
		for _, m := range slices.Backward(r.Marks) {
			if m.Epoch.Before(floor) || ok && !last.Epoch.Before(m.Epoch) {
				break
			}
			if c.marked(m, without) {
				last, ok = m, true
				break
			}
		}
	}
	return last, ok
}

// marked reports whether all shards of a mark's epoch, but those without, have its mark.
func (c *Collector) marked(m Mark, without []ShardID) bool {
	return !slices.ContainsFunc(m.Config.Shards, func(s ShardID) bool {
		if slices.Contains(without, s) {
			return false
		}
		v := c.view(s)
		return v == nil || v.report == nil || !has(v.report, m.Epoch)
	})
}

// reaches reports whether an epoch has what the promotion needs.
func (c *Collector) reaches(epoch ID) bool {
	for s, ordinal := range c.promote.AtLeast {
		v := c.view(s)
		if v == nil || v.report == nil {
			return false
		}
		i, marked := FindMark(v.report.Marks, epoch)
		if !marked || v.report.Marks[i].Boundary < ordinal {
			return false
		}
	}
	return true
}
