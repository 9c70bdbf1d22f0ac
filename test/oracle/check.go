package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// violation is a broken guarantee. Any other error of a round is a failure of the round itself.
type violation struct {
	what    string
	history string
}

func (v *violation) Error() string { return v.what + "\nhistory:\n" + v.history }

// explain adds the history to an error that has none.
func (h *history) explain(err error) error {
	var v *violation
	if err == nil || errors.As(err, &v) {
		return err
	}
	return fmt.Errorf("%w\nhistory:\n%s", err, h.narration())
}

func (h *history) violation(format string, args ...any) error {
	return &violation{what: fmt.Sprintf(format, args...), history: h.narration()}
}

// shownVolume is what a copy of a volume holds: for each unit the operation that wrote it, nil for zeros. A unit is a
// block, or a sector where a block's sectors may be of different age. absent: the copy does not have the volume.
type shownVolume struct {
	absent   bool
	perBlock int // units in a block
	units    []*op
}

// content is what a copy of a group holds, by the volumes' numbers.
type content []shownVolume

type readerAt interface {
	ReadAt(p []byte, off int64) (int, error)
	Size() int64
}

// readChunkBlocks is how much is read at once.
const readChunkBlocks = 64

// read returns what a copy of a volume holds. wholeBlocks demands that a block's sectors are of one operation.
func (h *history) read(round uint64, number int, v readerAt, wholeBlocks bool) (shownVolume, error) {
	blocks := int(v.Size() / blockBytes)
	shown := shownVolume{perBlock: sectorsPerBlock}
	if wholeBlocks {
		shown.perBlock = 1
	}
	buf := alignedBuffer(readChunkBlocks * blockBytes)
	for from := 0; from < blocks; from += readChunkBlocks {
		p := buf[:min(readChunkBlocks, blocks-from)*blockBytes]
		if _, err := v.ReadAt(p, int64(from)*blockBytes); err != nil {
			return shown, fmt.Errorf("reading volume %d at block %d: %w", number, from, err)
		}
		for i := 0; i < len(p); i += sectorBytes {
			block, sector := from+i/blockBytes, i%blockBytes/sectorBytes
			id, err := readStamp(p[i:i+sectorBytes], round, number, block, sector)
			if err != nil {
				return shown, h.violation("%v", err)
			}
			o, ok := h.byID(id)
			if !ok {
				return shown, h.violation("volume %d, block %d shows op %d, which was never issued", number, block, id)
			}
			if wholeBlocks && sector != 0 {
				if before := shown.units[len(shown.units)-1]; before != o {
					return shown, h.violation("volume %d, block %d is torn: sector 0 is of %v, sector %d of %v", number,
						block, before, sector, o)
				}
				continue
			}
			shown.units = append(shown.units, o)
		}
	}
	return shown, nil
}

// image is what the group's volumes hold at an ordinal: exactly the operations up to it. Volumes that joined later are
// absent.
func (h *history) image(ordinal uint64) content {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(content, len(h.volumes))
	for i, v := range h.volumes {
		c[i] = shownVolume{perBlock: 1, absent: v.addedAt > ordinal}
		c[i].units = make([]*op, v.blocksAt(ordinal))
		copy(c[i].units, v.initial)
	}
	for _, o := range h.log[:min(ordinal, uint64(len(h.log)))] {
		if o.kind == opOther {
			continue
		}
		units := c[o.volume].units
		for b := o.block; b < o.block+o.n; b++ {
			units[b] = nil
			if o.kind == opWrite {
				units[b] = o
			}
		}
	}
	return c
}

// checkImage demands that a copy is exactly what want says. A volume may be there, or larger, before the record that
// says so is: then it shows its content from before, or zeros.
func (h *history) checkImage(who string, got, want content) error {
	for v := range want {
		if want[v].absent {
			continue
		}
		if got[v].absent {
			return h.violation("%s lacks volume %d", who, v)
		}
		if len(got[v].units) < len(want[v].units) {
			return h.violation("%s has %d blocks of volume %d, not %d", who, len(got[v].units), v, len(want[v].units))
		}
		var bad []string
		for b, o := range got[v].units {
			var w *op
			if b < len(want[v].units) {
				w = want[v].units[b]
			}
			if o != w {
				bad = append(bad, fmt.Sprintf("  block %d shows %v\n    instead of %v", b, o, w))
			}
		}
		if len(bad) > 0 {
			const most = 8
			return h.violation("%s is not the prefix: %d blocks of volume %d are wrong\n%s", who, len(bad), v,
				strings.Join(bad[:min(most, len(bad))], "\n"))
		}
	}
	return nil
}

// happensBefore is what makes an earlier operation one that a later one depends on.
type happensBefore int

const (
	// afterAck: it had returned before the later one was issued.
	afterAck happensBefore = iota
	// afterFlush: a flush that covers it had ended before the later one was issued.
	afterFlush
)

// checkOrder demands guarantee G1 of a copy, for a history without ordinals: whatever happened before anything that it
// shows, is there, or something later in its place; and so is everything that had returned before the clock time must.
func (h *history) checkOrder(who string, got content, must uint64, rule happensBefore) error {
	h.mu.Lock()
	var latest *op
	for v := range got {
		for _, o := range got[v].units {
			if o != nil && (latest == nil || o.issued > latest.issued) {
				latest = o
			}
		}
	}
	covered := must
	if latest != nil {
		if rule == afterAck {
			covered = max(covered, latest.issued)
		} else {
			covered = max(covered, h.coveredLocked(latest.issued))
		}
	}
	var bad string
	wrong := 0
	for v := range got {
		if joined := h.volumes[v].joined; (joined == 0 || joined >= covered) && got[v].blank() {
			continue // known to the copy, and not a member yet at its ordinal
		}
		for unit, o := range got[v].units {
			ops := h.perBlock[v][unit/got[v].perBlock]
			at := indexOf(ops, o)
			if at == -2 {
				wrong++
				bad = fmt.Sprintf("volume %d, block %d shows %v, which its primary does not have", v, unit/got[v].perBlock, o)
				continue
			}
			for i := len(ops) - 1; i > at; i-- {
				if ops[i].acked != 0 && ops[i].acked < covered {
					wrong++
					bad = fmt.Sprintf(
						"volume %d, block %d shows %v\n  instead of at least %v\n  which happened before %v, which is "+
							"shown (or was acknowledged: everything before %d has to be there)",
						v, unit/got[v].perBlock, o, ops[i], latest, must)
					break
				}
			}
		}
	}
	h.mu.Unlock()
	if wrong > 0 {
		return h.violation("%s breaks the order in %d places, the last: %s", who, wrong, bad)
	}
	return nil
}

// blank reports whether nothing was ever written to a volume.
func (v *shownVolume) blank() bool {
	return !slices.ContainsFunc(v.units, func(o *op) bool { return o != nil })
}

// checkSame demands that two copies are identical.
func (h *history) checkSame(who string, a, b content) error {
	for v := range a {
		if len(a[v].units) != len(b[v].units) {
			return h.violation("%s: volume %d has %d blocks at one, %d at the other", who, v, len(a[v].units), len(b[v].units))
		}
		for u := range a[v].units {
			if a[v].units[u] != b[v].units[u] {
				return h.violation("%s: volume %d differs in block %d: %v and %v", who, v, u/a[v].perBlock,
					a[v].units[u], b[v].units[u])
			}
		}
	}
	return nil
}
