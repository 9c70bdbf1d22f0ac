package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// target is one run of the primary, as writers see it.
type target struct {
	volumes []*replication.Volume
	// dead: an operation failed, so the run is over; what comes is the next run's. Guarded by the turn.
	dead bool
	// ending: the site is being ended, so operations may fail.
	ending atomic.Bool
}

// writers are the application. They run through the whole round; while there is no target they do nothing.
type writers struct {
	w      *world
	tokens chan struct{} // one for each operation
	done   chan struct{}
	wg     sync.WaitGroup

	// gate is held by each operation for reading, so that the driver, holding it for writing, knows that none runs.
	gate   sync.RWMutex
	target *target
	// logged counts the operations of a storm.
	logged atomic.Int64
	// turn makes the writers of an exact history take turns.
	turn sync.Mutex

	mu     sync.Mutex
	broken error // the first error that is none of a site that ends
}

// maxTokens bounds the operations that were asked for and not begun.
const maxTokens = 1 << 14

func startWriters(w *world) *writers {
	ws := &writers{w: w, tokens: make(chan struct{}, maxTokens), done: make(chan struct{})}
	for i := range w.p.writers {
		rng := rand.New(rand.NewPCG(w.p.seed, uint64(i)+1))
		ws.wg.Go(func() { ws.run(i, rng) })
	}
	return ws
}

// ask lets the writers do n more operations.
func (ws *writers) ask(n int) {
	for range n {
		select {
		case ws.tokens <- struct{}{}:
		default:
			return
		}
	}
}

// drop takes back what was asked for and not begun.
func (ws *writers) drop() {
	for {
		select {
		case <-ws.tokens:
		default:
			return
		}
	}
}

// point sets what the writers write to; nil for nothing. It returns when no operation on the earlier target runs.
func (ws *writers) point(t *target) {
	ws.gate.Lock()
	defer ws.gate.Unlock()
	ws.target = t
}

// ending announces that the target's operations may fail from now on.
func (ws *writers) ending() {
	ws.gate.RLock()
	defer ws.gate.RUnlock()
	if ws.target != nil {
		ws.target.ending.Store(true)
	}
}

func (ws *writers) stop() { close(ws.done); ws.wg.Wait() }

func (ws *writers) err() error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.broken
}

func (ws *writers) run(number int, rng *rand.Rand) {
	buf := make([]byte, ws.w.p.maxBlocks*blockBytes)
	for {
		select {
		case <-ws.done:
			return
		case <-ws.tokens:
		}
		ws.gate.RLock()
		err := ws.operation(number, rng, buf)
		expected := ws.target != nil && ws.target.ending.Load()
		ws.gate.RUnlock()
		var v *violation
		if err != nil && (!expected || errors.As(err, &v)) {
			ws.mu.Lock()
			if ws.broken == nil {
				ws.broken = err
			}
			ws.mu.Unlock()
		}
	}
}

// chunkBlocks is the unit in which blocks belong to writers where these do not take turns.
const chunkBlocks = 16

// place draws where to write: mostly a few hot blocks, so that writes meet in the journal, the index and the change
// map.
func (ws *writers) place(number int, rng *rand.Rand, blocks int) (block, n int) {
	p := &ws.w.p
	if p.storm && rng.IntN(2) == 0 {
		return int(ws.logged.Add(1)/logRewrites) % blocks, 1
	}
	n = 1 + rng.IntN(p.maxBlocks)
	within := blocks
	if rng.IntN(100) < p.hotPercent {
		within = min(blocks, 2*chunkBlocks*p.writers)
	}
	if p.exact {
		n = min(n, within)
		return rng.IntN(within - n + 1), n
	}
	chunks := within / chunkBlocks / p.writers
	if chunks == 0 {
		return 0, 0
	}
	n = min(n, chunkBlocks)
	chunk := rng.IntN(chunks)*p.writers + number
	return chunk*chunkBlocks + rng.IntN(chunkBlocks-n+1), n
}

func (ws *writers) operation(number int, rng *rand.Rand, buf []byte) error {
	t, h, p := ws.target, ws.w.h, &ws.w.p
	if t == nil {
		return nil
	}
	if p.exact {
		ws.turn.Lock()
		if t.dead {
			ws.turn.Unlock()
			return nil
		}
	}
	volume := rng.IntN(len(t.volumes))
	v := t.volumes[volume]
	block, n := ws.place(number, rng, int(v.Size()/blockBytes))
	kind := opWrite
	switch draw := rng.IntN(100); {
	case draw < p.discardPercent:
		kind = opDiscard
	case draw < 2*p.discardPercent:
		kind = opZero
	}
	var err error
	if n > 0 {
		o := h.issue(kind, number, volume, block, n)
		if err = ws.carryOut(o, v, buf); err == nil {
			h.returned(o)
		} else if p.exact {
			t.dead = true
		}
	}
	if p.exact {
		ws.turn.Unlock()
	}
	if err != nil {
		return err
	}
	if n > 0 && rng.IntN(8) == 0 && !p.exact {
		if err := ws.readBack(number, rng, v, volume, block, n); err != nil {
			return err
		}
	}
	if rng.IntN(p.flushEvery) != 0 {
		return nil
	}
	started, covers := h.beginFlush()
	if err := t.volumes[rng.IntN(len(t.volumes))].Flush(); err != nil {
		return err
	}
	h.endFlush(started, covers)
	return nil
}

func (ws *writers) carryOut(o *op, v *replication.Volume, buf []byte) error {
	off, n := int64(o.block)*blockBytes, int64(o.n)*blockBytes
	switch o.kind {
	case opDiscard:
		return v.Discard(off, n)
	case opZero:
		return v.Zero(off, n)
	}
	p := buf[:n]
	stamp(p, ws.w.p.seed, o)
	_, err := v.WriteAt(p, off)
	return err
}

// readBack demands that a writer reads its own last write, while records go from the journal to the image under it.
func (ws *writers) readBack(number int, rng *rand.Rand, v *replication.Volume, volume, block, n int) error {
	b := block + rng.IntN(n)
	p := make([]byte, blockBytes)
	if _, err := v.ReadAt(p, int64(b)*blockBytes); err != nil {
		return err
	}
	h := ws.w.h
	h.mu.Lock()
	ops := h.perBlock[volume][b]
	want := ops[len(ops)-1] // this writer's own, and it does nothing else meanwhile
	h.mu.Unlock()
	for s := range sectorsPerBlock {
		id, err := readStamp(p[s*sectorBytes:][:sectorBytes], ws.w.p.seed, volume, b, s)
		if err != nil {
			return h.violation("the primary: %v", err)
		}
		if want.kind == opWrite && id != want.id || want.kind != opWrite && id != 0 {
			return h.violation("writer %d reads op %d at volume %d, block %d, sector %d after it wrote %v", number, id,
				volume, b, s, want)
		}
	}
	return nil
}

var errNoVolume = fmt.Errorf("the group lacks a volume")

// volumesOf returns a group's volumes in the order of the history's.
func volumesOf(h *history, g *replication.Group) ([]*replication.Volume, error) {
	var list []*replication.Volume
	for _, m := range h.models() {
		v, err := g.Volume(m.id)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoVolume, err)
		}
		list = append(list, v)
	}
	return list, nil
}
