package epoch

import "slices"

// Clone returns a copy that no later Step of either changes.
func (s *Shard) Clone() *Shard { c := *s; return &c }

// Clone returns a copy that no later Step of either changes.
func (c *Coordinator) Clone() *Coordinator {
	d := *c
	d.shards = slices.Clone(c.shards)
	return &d
}

// Clone returns a copy that no later Step of either changes.
func (c *Copy) Clone() *Copy {
	d := *c
	d.marks = slices.Clone(c.marks)
	return &d
}

// Clone returns a copy that no later Step of either changes.
func (c *Collector) Clone() *Collector {
	d := *c
	d.copies, d.views = slices.Clone(c.copies), slices.Clone(c.views)
	for i := range d.views {
		if r := d.views[i].report; r != nil {
			report := *r
			report.Marks = slices.Clone(r.Marks)
			d.views[i].report = &report
		}
	}
	return &d
}
