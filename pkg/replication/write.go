package replication

import (
	"errors"
	"fmt"
	"sync"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// maxWriteBytes is the largest write that becomes one record. It is the largest request of the shim, and atomic at the
// secondary; larger ones are split.
const maxWriteBytes = 1 << 20

// maxRangeBytes is the largest range of one record without data: Length is 32 bits.
const maxRangeBytes = 1 << 30

// WriteAt implements blockdev.Device: the write has its ordinal and is in the journal when it returns.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	w := [1]blockdev.Write{{Data: p, Off: off}}
	done, err := v.writeAll(w[:])
	return int(done), err
}

// WriteBatch implements blockdev.BatchWriter: the writes get successive ordinals.
func (v *Volume) WriteBatch(writes []blockdev.Write) (int, error) {
	bytes, err := v.writeAll(writes)
	done := 0
	for done < len(writes) && bytes >= int64(len(writes[done].Data)) {
		bytes -= int64(len(writes[done].Data))
		done++
	}
	return done, err
}

// writeAll appends the writes, split into records where they are too large for one, and returns how many bytes it got
// into the journal.
func (v *Volume) writeAll(writes []blockdev.Write) (bytes int64, err error) {
	limit := int(v.group.log.maxRecordBytes())
	scratch := entryPool.Get().(*[]journal.Entry)
	entries := (*scratch)[:0]
	defer func() {
		clear(entries)
		*scratch = entries[:0]
		entryPool.Put(scratch)
	}()
	for _, w := range writes {
		if err = blockdev.CheckRange(w.Off, int64(len(w.Data)), v.size.Load()); err != nil {
			err = fmt.Errorf("volume %s: write of %s at %d: %w", v.id, words.Count(len(w.Data), "byte"), w.Off, err)
			break // after those before it
		}
		for p, off := w.Data, w.Off; len(p) > 0; {
			n := min(len(p), limit)
			header := journal.Header{Kind: journal.KindWrite, Volume: v.index, Offset: off}
			entries = append(entries, journal.Entry{Header: header, Data: p[:n]})
			p, off = p[n:], off+int64(n)
		}
	}
	n, appendErr := v.group.log.append(v, entries)
	for i := range entries[:n] {
		bytes += int64(len(entries[i].Data))
	}
	if appendErr != nil {
		err = appendErr
	}
	return bytes, err
}

// entryPool keeps what writeAll needs for a moment: garbage for each write would have the collector run all the time.
var entryPool = sync.Pool{New: func() any { return new([]journal.Entry) }}

// Discard implements blockdev.Device.
func (v *Volume) Discard(off, n int64) error { return v.emptyRange(journal.KindDiscard, off, n) }

// Zero implements blockdev.Device.
func (v *Volume) Zero(off, n int64) error { return v.emptyRange(journal.KindZero, off, n) }

func (v *Volume) emptyRange(kind journal.Kind, off, n int64) error {
	if err := blockdev.CheckRange(off, n, v.size.Load()); err != nil {
		return fmt.Errorf("volume %s: range of %s at %d: %w", v.id, words.Count(n, "byte"), off, err)
	}
	var entries []journal.Entry
	for n > 0 {
		length := min(n, maxRangeBytes)
		header := journal.Header{Kind: kind, Volume: v.index, Offset: off, Length: uint32(length)}
		entries = append(entries, journal.Entry{Header: header})
		off, n = off+length, n-length
	}
	_, err := v.group.log.append(v, entries)
	return err
}

// indexRecord makes a record the newest content of its range. The caller holds log.mu, so records come in stream
// order.
func (v *Volume) indexRecord(h journal.Header, loc journal.Location) {
	indexInto(v.overlay, h, loc)
}

func indexInto(m *overlay.Map, h journal.Header, loc journal.Location) {
	m.Insert(h.Offset, int64(h.Length), overlay.Value{Loc: loc, Zero: !h.Kind.HasData()})
}

func (g *Group) notWritable() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failure != nil {
		return g.failure
	}
	if g.ctx.Err() != nil {
		return ErrClosed
	}
	m := &g.core.Meta
	if m.Closed() {
		return fmt.Errorf("%w: %s takes no writes at %s, because %s is being demoted as a whole", ErrNotPrimary, m.Name,
			m.Site, m.Shard.Group)
	}
	if m.Role == core.RoleSecondary {
		return fmt.Errorf("%w: %s is secondary at %s; do this at its primary, %s", ErrNotPrimary, m.Name, m.Site,
			m.Peer)
	}
	if m.Role == core.RoleDemoted {
		return fmt.Errorf("%w: %s was demoted at %s; go on with %s", ErrNotPrimary, m.Name, m.Site,
			core.Command{Site: m.Peer, Verb: core.CommandPromote, Name: m.Name})
	}
	return fmt.Errorf("%w: %s is %s at %s", ErrNotPrimary, m.Name, m.Role, m.Site)
}

// CheckWritable returns why the group takes no writes here, or nil.
func (g *Group) CheckWritable() error {
	if g.writable.Load() {
		return nil
	}
	return g.notWritable()
}

// append gives records their ordinals, puts them into the journal and into the volume's index, in one step as seen by
// everybody else. It waits when the journal is full and can get room; it returns the disk's error when it cannot, and
// how many records are in.
func (l *groupLog) append(v *Volume, entries []journal.Entry) (int, error) {
	g := l.g
	for done := 0; ; {
		room := l.room.wait()
		n, err := l.tryAppend(v, entries[done:])
		done += n
		if !errors.Is(err, journal.ErrFull) {
			return done, err
		}
		g.trimmer.work.send()
		g.applier.work.send()
		if stuck := g.applier.stuck.Load(); stuck != nil {
			return done, fmt.Errorf("group %s: the journal is full and cannot be applied: %w", g.Name(), *stuck)
		}
		select {
		case <-room:
		case <-g.ctx.Done():
			return done, ErrClosed
		}
	}
}

func (l *groupLog) tryAppend(v *Volume, entries []journal.Entry) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.g.CheckWritable(); err != nil {
		return 0, err
	}
	return l.appendLocked(v, entries)
}

// appendMark is tryAppend for the mark of an epoch, which a shard takes that is closed for writes, too.
func (l *groupLog) appendMark(entries []journal.Entry) error {
	g := l.g
	l.mu.Lock()
	defer l.mu.Unlock()
	g.mu.Lock()
	markable := g.core.Markable() && g.failure == nil && g.ctx.Err() == nil
	g.mu.Unlock()
	if !markable {
		return g.notWritable()
	}
	_, err := l.appendLocked(nil, entries)
	return err
}

// appendLocked is tryAppend for a caller that holds mu and has looked at the role.
func (l *groupLog) appendLocked(v *Volume, entries []journal.Entry) (int, error) {
	g := l.g
	if err := l.appendQueued(); err != nil {
		return 0, err
	}
	first := g.journal.Head() + 1
	g.clock.claim(g.journal.Head()+uint64(len(entries)), g.cfg.Now())
	now := g.cfg.Now().UnixNano()
	for i := range entries {
		entries[i].Header.UnixNanos = now
	}
	n, err := g.journal.AppendAll(entries)
	if vfs.NoSpace(err) {
		g.trimmer.work.send()
	}
	for i := range entries[:n] {
		e := &entries[i]
		if v != nil {
			v.indexRecord(e.Header, e.Loc)
		}
	}
	if n == 0 {
		first = 0
	}
	g.clock.wrote(first)
	return n, err
}

// appendQueued appends the queued records. The caller holds log.mu, and the group is writable.
func (l *groupLog) appendQueued() error {
	g := l.g
	for len(l.queued) > 0 {
		first := g.journal.Head() + 1
		g.clock.claim(g.journal.Head()+uint64(len(l.queued)), g.cfg.Now())
		n, err := g.journal.AppendAll(l.queued)
		if n == 0 {
			first = 0
		}
		g.clock.wrote(first)
		l.queued = l.queued[n:]
		if err != nil {
			return err
		}
	}
	return nil
}
