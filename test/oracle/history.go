package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

type opKind uint8

const (
	opWrite opKind = iota
	opDiscard
	opZero
	// opOther took an ordinal without touching content: a volume was added or grown.
	opOther
)

func (k opKind) String() string { return [...]string{"write", "discard", "zero", "member"}[k] }

// op is one operation of a writer.
type op struct {
	id     uint64 // 1, 2, ...: index in history.ops + 1
	kind   opKind
	writer int
	volume int
	block  int
	n      int // blocks
	// issued and acked are clock times; acked is 0 until the operation returned without an error.
	issued, acked uint64
	ordinal       uint64 // where the history has ordinals
}

func (o *op) String() string {
	if o == nil {
		return "nothing (zeros)"
	}
	s := fmt.Sprintf("op %d: %s by writer %d, volume %d, blocks %d to %d, issued at %d", o.id, o.kind, o.writer,
		o.volume, o.block, o.block+o.n-1, o.issued)
	if o.acked != 0 {
		s += fmt.Sprintf(", returned at %d", o.acked)
	} else {
		s += ", never returned"
	}
	if o.ordinal != 0 {
		s += fmt.Sprintf(", ordinal %d", o.ordinal)
	}
	return s
}

// flush is a completed flush of any volume of the group: what had returned before started is durable from ended on.
type flush struct{ started, ended uint64 }

// volumeModel is what the oracle knows of a volume beside its operations.
type volumeModel struct {
	id     string
	blocks int
	// initial is the content before it joined the group.
	initial []*op
	// joined is the clock time at which it had become a member; 0 before that.
	joined uint64
	// addedAt is the ordinal of its first record; grown are its later sizes. Only where the history has ordinals.
	addedAt uint64
	grown   []growth
}

type growth struct {
	ordinal uint64
	blocks  int
}

// blocksAt is the volume's size at an ordinal.
func (v *volumeModel) blocksAt(ordinal uint64) int {
	for i := len(v.grown) - 1; i >= 0; i-- {
		if v.grown[i].ordinal <= ordinal {
			return v.grown[i].blocks
		}
	}
	return len(v.initial)
}

// history is everything that was asked of a group, in one order: the clock ticks once for every operation issued or
// returned and every flush begun or ended, so that of two clock times the lower one happened before.
//
// An exact history also knows each operation's ordinal, because its writers take turns. All methods are safe for
// concurrent use.
type history struct {
	exact bool

	mu      sync.Mutex
	clock   uint64
	ops     []*op
	log     []*op // exact: log[i] has ordinal i+1; the last one may be in doubt
	flushes []flush
	volumes []*volumeModel
	// perBlock are the operations on each block, oldest first: each block has one writer. Not for exact histories.
	perBlock [][][]*op
	// ackedLog is the last ordinal whose operation returned, flushedLog the last that a completed flush covers.
	ackedLog, flushedLog uint64
	events               []string
}

// maxEvents bounds the narration that a violation shows.
const maxEvents = 60

// note narrates what the round did, for the report of a violation.
func (h *history) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.events = append(h.events, fmt.Sprintf("%6d  ", h.clock)+fmt.Sprintf(format, args...))
	if len(h.events) > 2*maxEvents {
		h.events = slices.Delete(h.events, 0, maxEvents)
	}
}

func (h *history) narration() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.events[max(0, len(h.events)-maxEvents):], "\n")
}

// now is a clock time before which everything that returned has returned.
func (h *history) now() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

// addVolume makes room for a volume whose content is what initial says.
func (h *history) addVolume(id string, blocks int) *volumeModel {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := &volumeModel{id: id, blocks: blocks, initial: make([]*op, blocks)}
	h.volumes = append(h.volumes, v)
	h.perBlock = append(h.perBlock, make([][]*op, blocks))
	return v
}

// initialWrite is content from before the volume joined the group.
func (h *history) initialWrite(volume, block, n int) *op {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o := &op{id: uint64(len(h.ops) + 1), kind: opWrite, writer: initialWriter, volume: volume, block: block, n: n,
		issued: h.clock, acked: h.clock}
	h.ops = append(h.ops, o)
	for b := block; b < block+n; b++ {
		h.volumes[volume].initial[b] = o
		if !h.exact {
			h.perBlock[volume][b] = append(h.perBlock[volume][b], o)
		}
	}
	return o
}

const initialWriter = 0xffff

// issue notes that an operation is about to begin. In an exact history the caller lets no other begin before returned
// was called for this one.
func (h *history) issue(kind opKind, writer, volume, block, n int) *op {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o := &op{id: uint64(len(h.ops) + 1), kind: kind, writer: writer, volume: volume, block: block, n: n, issued: h.clock}
	h.ops = append(h.ops, o)
	if h.exact {
		h.log = append(h.log, o)
		o.ordinal = uint64(len(h.log))
		return o
	}
	for b := block; b < block+n; b++ {
		h.perBlock[volume][b] = append(h.perBlock[volume][b], o)
	}
	return o
}

// draft is a write that is about to begin, for who keeps the order of writes itself.
func (h *history) draft(volume, block, n int) *op {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o := &op{id: uint64(len(h.ops) + 1), writer: 1, volume: volume, block: block, n: n, issued: h.clock}
	h.ops = append(h.ops, o)
	return o
}

// returned notes that an operation returned without an error. One that returned with an error stays in doubt.
func (h *history) returned(o *op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	o.acked = h.clock
	if h.exact {
		h.ackedLog = max(h.ackedLog, o.ordinal)
	}
}

// other notes ordinals up to head that the engine took for itself, all of them durable.
func (h *history) other(head uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for uint64(len(h.log)) < head {
		h.clock++
		o := &op{id: uint64(len(h.ops) + 1), kind: opOther, issued: h.clock, acked: h.clock, ordinal: uint64(len(h.log) + 1)}
		h.ops = append(h.ops, o)
		h.log = append(h.log, o)
	}
	h.ackedLog, h.flushedLog = max(h.ackedLog, head), max(h.flushedLog, head)
}

// beginFlush and endFlush note a flush; endFlush only if it succeeded.
func (h *history) beginFlush() (started, covers uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock, h.ackedLog
}

func (h *history) endFlush(started, covers uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.flushes = append(h.flushes, flush{started, h.clock})
	h.flushedLog = max(h.flushedLog, covers)
}

// flushed is the last ordinal that is known to be durable, and the clock time up to which what had returned is.
func (h *history) flushed() (ordinal, clock uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.flushedLog, h.coveredLocked(h.clock + 1)
}

// coveredLocked is the clock time such that everything that returned before it was durable before the time t.
func (h *history) coveredLocked(t uint64) uint64 {
	// Flushes are in the order of their ends.
	i, _ := slices.BinarySearchFunc(h.flushes, t, func(f flush, t uint64) int {
		if f.ended < t {
			return -1
		}
		return 1
	})
	var covered uint64
	for _, f := range h.flushes[:i] {
		covered = max(covered, f.started)
	}
	return covered
}

// acknowledged is the last ordinal that returned, and the present clock time.
func (h *history) acknowledged() (ordinal, clock uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.ackedLog, h.clock
}

// byID returns an operation, nil for 0. ok is false for one that was never issued.
func (h *history) byID(id uint64) (o *op, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id > uint64(len(h.ops)) {
		return nil, false
	}
	if id == 0 {
		return nil, true
	}
	return h.ops[id-1], true
}

// length is the highest ordinal that was issued.
func (h *history) length() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uint64(len(h.log))
}

// forget drops the ordinals past head: a crash of the primary took them, and the next operations get them again.
func (h *history) forget(head uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = h.log[:min(head, uint64(len(h.log)))]
	h.ackedLog, h.flushedLog = head, min(h.flushedLog, head)
}

// forgetBeyond is forget for a history without ordinals: shown is what the primary has after the crash.
func (h *history) forgetBeyond(shown content) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v, blocks := range h.perBlock {
		for b, ops := range blocks {
			last := shown[v].units[b*shown[v].perBlock]
			blocks[b] = ops[:indexOf(ops, last)+1]
		}
	}
}

// indexOf is the place in a block's operations of the newest one that explains what it shows; -1 for the state before
// all of them, -2 if there is none.
func indexOf(ops []*op, shown *op) int {
	if shown == nil {
		for i := len(ops) - 1; i >= 0; i-- {
			if ops[i].kind == opDiscard || ops[i].kind == opZero {
				return i
			}
		}
		if len(ops) > 0 && ops[0].writer == initialWriter {
			return -2
		}
		return -1
	}
	if i := slices.Index(ops, shown); i >= 0 {
		return i
	}
	return -2
}

// lost counts what the ordinals after fork are, up to head.
func (h *history) lost(fork, head uint64) (writes, bytes uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.log[fork:head] {
		if o.kind == opWrite {
			writes++
			bytes += uint64(o.n) * blockBytes
		}
	}
	return writes, bytes
}

// models are the volumes so far.
func (h *history) models() []*volumeModel {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.volumes)
}
