package journal

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Sync returns when everything that was appended before the call is on stable storage. Concurrent calls share their
// fdatasyncs (group commit): the first one does it in its own goroutine, since a hand-over to another thread costs more
// than the call saves; those that come meanwhile wait, and one of them then does the next for all of them.
//
// When an fdatasync fails, this and all later appends and syncs return ErrFailed. The kernel reports a lost write once and
// marks its pages clean, so a second fdatasync would succeed without having written them; nothing short of opening the
// journal again, which writes the unproven part again, is safe.
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
			break
		}
		j.cond.Wait()
	}

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
	j.syncing = true
	j.mu.Unlock()

	var err error
	for _, p := range parts {
		if err = p.s.f.Datasync(); err != nil {
			err = fmt.Errorf("%w: syncing %s: %w", ErrFailed, p.s.name, err)
			break
		}
	}

	j.mu.Lock()
	j.syncing = false
	if err != nil {
		j.failed = err
	} else {
		for _, p := range parts {
			p.s.synced = p.to
		}
		j.durable, j.durableEnd, j.durableAppended = head, end, appended
	}
	j.cond.Broadcast()
	return err
}

// StartSync begins to write what a Sync would have to wait for. It does not wait and promises nothing.
func (j *Journal) StartSync() {
	j.mu.Lock()
	cur := j.currentLocked()
	if cur == nil || cur.synced >= cur.end || j.usableLocked() != nil {
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
