package journal

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Sync returns when everything that was appended before the call is on stable storage. Concurrent calls, and those of
// SyncAsync, share their fdatasyncs (group commit): the first one does it in its own goroutine, since a hand-over to
// another thread costs more than the call saves; those that come meanwhile wait, and the next is done for all of them.
//
// When an fdatasync fails, this and all later appends and syncs return ErrFailed. The kernel reports a lost write once
// and marks its pages clean, so a second fdatasync would succeed without having written them; nothing short of opening
// the journal again, which writes the unproven part again, is safe.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	target := j.appended
	for {
		if err := j.usableLocked(); err != nil {
			return err
		}
		if j.durableAppended >= target {
			return nil
		}
		if !j.syncing {
			j.syncing = true
			return j.leadLocked()
		}
		j.cond.Wait()
	}
}

// SyncAsync calls done with what Sync would return: before it returns itself, or later from another goroutine. No
// goroutine sleeps for it, so many volumes can wait for one fdatasync without a thread being woken for each. done is
// called without locks and must not block.
func (j *Journal) SyncAsync(done func(error)) {
	if !j.enlist(done) {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_ = j.leadLocked() // done has it
}

// SyncLater is SyncAsync for a caller that decides where the fdatasync is done. If it returns a function, no sync runs
// yet: the caller must call it, once. The function syncs for done, and continues for callers that arrive meanwhile,
// because handing over to another thread costs more than it saves. Until it is called, all callers that sync wait.
func (j *Journal) SyncLater(done func(error)) (lead func()) {
	if !j.enlist(done) {
		return nil
	}
	return j.lead
}

// enlist registers done with the next fdatasync, and reports whether the caller has to run it. It calls done itself if
// there is nothing to wait for.
func (j *Journal) enlist(done func(error)) (leads bool) {
	j.mu.Lock()
	err := j.usableLocked()
	if err != nil || j.durableAppended >= j.appended {
		j.mu.Unlock()
		done(err)
		return false
	}
	defer j.mu.Unlock()
	j.waiters = append(j.waiters, waiter{j.appended, done})
	leads = !j.syncing
	j.syncing = true
	return leads
}

// waiter waits for the first so many appended records.
type waiter struct {
	appended uint64
	done     func(error)
}

// leadLocked does one fdatasync for all who wait. For those who came meanwhile another goroutine goes on: the caller's
// own work must not wait for theirs. The caller has set syncing.
func (j *Journal) leadLocked() error {
	err := j.syncOnceLocked()
	if len(j.waiters) > 0 {
		go j.lead()
		return err
	}
	j.endSyncLocked()
	return err
}

// lead does one fdatasync after the other until no caller waits. The caller has set syncing, or took it over.
func (j *Journal) lead() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.waiters) > 0 {
		_ = j.syncOnceLocked()
	}
	j.endSyncLocked()
}

func (j *Journal) endSyncLocked() {
	j.syncing = false
	j.cond.Broadcast()
}

// syncOnceLocked makes everything durable that is appended, and tells who waited for it. mu is released meanwhile.
func (j *Journal) syncOnceLocked() error {
	err := j.usableLocked()
	if err == nil {
		err = j.datasyncLocked()
	}
	var ready []waiter
	rest := j.waiters[:0]
	for _, w := range j.waiters {
		if err != nil || w.appended <= j.durableAppended {
			ready = append(ready, w)
		} else {
			rest = append(rest, w)
		}
	}
	clear(j.waiters[len(rest):])
	j.waiters = rest
	j.cond.Broadcast()
	if len(ready) > 0 {
		j.mu.Unlock()
		for _, w := range ready {
			w.done(err)
		}
		j.mu.Lock()
	}
	return err
}

func (j *Journal) datasyncLocked() error {
	type part struct {
		s  *segment
		to int64
	}
	var parts []part // oldest first: a newer segment is never durable before an older one that precedes it in the stream
	for _, s := range j.live {
		if s.synced < s.end && s.end > segmentHeaderBytes {
			parts = append(parts, part{s, s.end})
		}
	}
	head, end, appended := j.head, j.end, j.appended
	mark, begun := j.markLocked(), j.prev.Segment > j.durableMark.End.Segment
	j.mu.Unlock()
	var err error
	for _, p := range parts {
		if err = p.s.f.Datasync(); err != nil {
			err = fmt.Errorf("%w: syncing %s: %w", ErrFailed, p.s.name, err)
			break
		}
	}
	var unannounced error
	if err == nil && begun && j.o.Announce != nil {
		unannounced = j.o.Announce(mark)
	}
	j.mu.Lock()
	if err != nil {
		j.failed = err
		return err
	}
	for _, p := range parts {
		p.s.synced = p.to
	}
	if unannounced != nil {
		return fmt.Errorf("journal %s: announcing segment %d: %w", j.o.Dir, mark.End.Segment, unannounced)
	}
	j.durable, j.durableEnd, j.durableAppended = head, end, appended
	j.durableMark = mark
	return nil
}

// markLocked names the last record.
func (j *Journal) markLocked() Mark {
	return Mark{Ordinal: j.head, End: j.prev, Chain: j.chain, File: j.prevFile}
}

// StartSync begins to write what a Sync would have to wait for. It does not wait and promises nothing. While a sync
// runs it does nothing: the next one takes all at once.
func (j *Journal) StartSync() {
	j.mu.Lock()
	cur := j.currentLocked()
	if cur == nil || j.syncing || cur.synced >= cur.end || j.usableLocked() != nil {
		j.mu.Unlock()
		return
	}
	off := max(cur.synced, segmentHeaderBytes)
	n := cur.end - off
	j.pinLocked(cur)
	j.mu.Unlock()
	defer j.unpin(cur)
	if f, ok := cur.f.(vfs.WritebackStarter); ok {
		f.StartWriteback(off, n)
	}
}
