package main

import "slices"

// entry is what took an ordinal. One without anything changed no content: a bookmark, or a record of the engine.
type entry struct {
	op     *op
	member *memberChange
}

// memberChange is a volume that came (blocks are its own), went (gone), or grew to blocks.
type memberChange struct {
	volume, blocks int
	gone           bool
}

// lineContent is what the group's volumes hold after the first n entries of a line.
func (h *history) lineContent(line []entry, n uint64) content {
	models := h.models()
	img := make(content, len(models))
	for i := range img {
		img[i] = shownVolume{absent: true, perBlock: 1}
	}
	for _, e := range line[:n] {
		if m := e.member; m != nil {
			v := &img[m.volume]
			switch {
			case m.gone:
				*v = shownVolume{absent: true, perBlock: 1}
			case v.absent:
				*v = shownVolume{perBlock: 1, units: slices.Clone(models[m.volume].initial)}
			default:
				v.units = append(v.units, make([]*op, max(0, m.blocks-len(v.units)))...)
			}
		}
		if o := e.op; o != nil {
			// A copy may have grown before it had the record that says so.
			if v := &img[o.volume]; len(v.units) < o.block+o.n {
				v.units = append(v.units, make([]*op, o.block+o.n-len(v.units))...)
			}
			for b := o.block; b < o.block+o.n; b++ {
				img[o.volume].units[b] = nil
				if o.kind == opWrite {
					img[o.volume].units[b] = o
				}
			}
		}
	}
	return img
}
