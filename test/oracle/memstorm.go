package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// A storm is a round in which the peer falls further behind than the journal holds, again and again, while a few pages
// are rewritten all the time: segments are folded while a sync sends extents, and a range is in the change map and in
// the journal at the same time. It ends in a planned move, after which both copies have to be the same byte for byte.

// stormJournalBytes makes segments that are larger than a batch: the sender is in the middle of one when it is folded.
const stormJournalBytes = 32 << 20

// logRewrites is how often a page of a storm's log is written before the next one, as a database does with its log.
// After that it keeps what it has: an older version in the copy is not hidden by a later write. Other writes come
// between, so that the versions are in more than one batch.
const logRewrites = 32

// drawStorm turns a round into a storm.
func (p *params) drawStorm() {
	p.storm, p.overflow, p.exact = true, true, true
	p.journalBytes, p.policy = stormJournalBytes, core.PolicyTrack
	p.hotPercent, p.maxBlocks, p.discardPercent = 0, chunkBlocks, 0
	p.events = 2
	p.blocks, p.filled = []int{256 * chunkBlocks}, []bool{false}
}

// stormRound is a round in memory that is a storm.
func stormRound(ctx context.Context, seed uint64, t *tally) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	p := drawParams(seed, rng)
	p.drawStorm()
	return runMemRound(ctx, rng, p, t)
}

// shipRate bounds the link of a storm, so that it does not keep up with the writers.
func (w *world) shipRate(bytesPerSecond int64) error {
	return w.a.group().Modify(func(s *core.Settings) { s.ShipBytesPerSecond = bytesPerSecond })
}

// storm is one outage that is longer than the journal, and a sync under load after it.
func (w *world) storm() error {
	if err := w.shipRate(int64(pick(w.rng, 2, 4, 16)) << 20); err != nil {
		return err
	}
	if !w.cut {
		w.toggleLink()
	}
	const opsOfAJournal = stormJournalBytes / (chunkBlocks * blockBytes / 2)
	if err := w.write(opsOfAJournal + w.rng.IntN(opsOfAJournal/4)); err != nil {
		return err
	}
	w.heal()
	// Under load until the journal was folded again in the middle of the sync.
	for range 2 + w.rng.IntN(6) {
		if err := w.write(opsOfAJournal / 8); err != nil {
			return err
		}
		if err := w.pause(time.Duration(w.rng.IntN(20)) * time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// write has the writers do n operations, and waits until they have begun all of them.
func (w *world) write(n int) error {
	w.ws.ask(n)
	return w.eventually("room for the writers", func() (bool, string) {
		return len(w.ws.tokens) == 0, w.a.group().Status().String()
	})
}
