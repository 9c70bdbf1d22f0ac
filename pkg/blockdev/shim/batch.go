package shim

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// batch is requests of a volume that the Device has done and that wait to be durable. The Device is held until they are
// answered, so that it is not exchanged for one that knows nothing of them.
type batch struct {
	s       *Server
	answers []answer
	done    func(error) // b.answer
}

type answer struct {
	header inHeader
	size   uint32 // of a write
	start  time.Time
	outcome
}

// spareBatches keeps what writing needs for a moment: garbage for each write would have the collector run all the time.
var spareBatches sync.Pool

// newBatch returns an empty batch. The caller holds the Device, which from then on is the batch's to let go.
func newBatch(s *Server) *batch {
	b, _ := spareBatches.Get().(*batch)
	if b == nil {
		b = new(batch)
		b.done = b.answer
	}
	b.s = s
	return b
}

// commit makes batches durable and answers them.
func commit(batches []*batch) { lead(enlist(batches)) }

// enlist has batches answered when they are durable, and returns the syncs that no goroutine runs yet.
func enlist(batches []*batch) (leads []func()) {
	for _, b := range batches {
		if l := b.commit(); l != nil {
			leads = append(leads, l)
		}
	}
	return leads
}

// lead does syncs side by side, one of them in place.
func lead(leads []func()) {
	for i, l := range leads {
		if i < len(leads)-1 {
			go l()
		} else {
			l()
		}
	}
}

// commit is blockdev.Committer's for any Device.
func (b *batch) commit() (lead func()) {
	if d, ok := b.s.device.(blockdev.Committer); ok {
		return d.Commit(b.done)
	}
	return func() { b.answer(b.s.device.Flush()) }
}

// answer answers the batch's requests, with the error of making them durable, and lets the Device go.
func (b *batch) answer(err error) {
	s := b.s
	var failed unix.Errno
	if err != nil {
		failed = s.errno(OpFlush, 0, s.device.Size(), err)
	}
	for i := range b.answers {
		a := &b.answers[i]
		if err != nil && (a.errno == 0 || a.op == OpFlush) {
			a.errno, a.err = failed, err
		}
		a.observe(s, a.start)
		var buf [replySize]byte
		if a.header.opcode == opWrite {
			s.limited(a.header, a.size, a.errno, writeReply(buf[:], a.header.unique, a.size, a.errno))
			continue
		}
		putOutHeader(buf[:], outHeaderSize, -int32(a.errno), a.header.unique)
		s.reply(a.header, buf[:outHeaderSize])
	}
	clear(b.answers) // errors
	b.s, b.answers = nil, b.answers[:0]
	spareBatches.Put(b)
	s.deviceMu.RUnlock()
}
