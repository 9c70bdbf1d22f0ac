package replication

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
)

// maxWriteBytes is the largest write that becomes one record. It is the largest request of the shim, and atomic at the
// secondary; larger ones are split.
const maxWriteBytes = 1 << 20

// maxRangeBytes is the largest range of one record without data: Length is 32 bits.
const maxRangeBytes = 1 << 30

// WriteAt implements blockdev.Device: the write has its ordinal and is in the journal when it returns.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), v.size.Load()); err != nil {
		return 0, fmt.Errorf("volume %s: write of %d bytes at %d: %w", v.id, len(p), off, err)
	}
	limit := int(v.group.maxRecordBytes())
	for done := 0; done < len(p); {
		n := min(len(p)-done, limit)
		h := journal.Header{Kind: journal.KindWrite, Volume: v.index, Offset: off + int64(done), Length: uint32(n)}
		if err := v.group.append(v, h, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Discard implements blockdev.Device.
func (v *Volume) Discard(off, n int64) error { return v.emptyRange(journal.KindDiscard, off, n) }

// Zero implements blockdev.Device.
func (v *Volume) Zero(off, n int64) error { return v.emptyRange(journal.KindZero, off, n) }

func (v *Volume) emptyRange(kind journal.Kind, off, n int64) error {
	if err := blockdev.CheckRange(off, n, v.size.Load()); err != nil {
		return fmt.Errorf("volume %s: range of %d bytes at %d: %w", v.id, n, off, err)
	}
	for n > 0 {
		length := min(n, maxRangeBytes)
		h := journal.Header{Kind: kind, Volume: v.index, Offset: off, Length: uint32(length)}
		if err := v.group.append(v, h, nil); err != nil {
			return err
		}
		off, n = off+length, n-length
	}
	return nil
}

// append gives a record its ordinal, puts it into the journal and into the volume's index, in one step as seen by
// everybody else. It waits when the journal is full and can get room; it returns the disk's error when it cannot.
func (g *Group) append(v *Volume, h journal.Header, data []byte) error {
	for {
		room := g.roomChanged()
		err := g.tryAppend(v, h, data)
		if bug.Enabled(bug.StallOnLink) && v != nil && err == nil {
			g.waitForAck(g.journal.Head())
		}
		if !errors.Is(err, journal.ErrFull) {
			return err
		}
		g.trimWork.send()
		g.applyWork.send()
		if stuck := g.applyStuck.Load(); stuck != nil {
			return fmt.Errorf("group %s: the journal is full and cannot be applied: %w", g.Name(), *stuck)
		}
		select {
		case <-room:
		case <-g.ctx.Done():
			return ErrClosed
		}
	}
}

func (g *Group) tryAppend(v *Volume, h journal.Header, data []byte) error {
	g.appendMu.Lock()
	defer g.appendMu.Unlock()
	if !g.writable.Load() {
		return g.notWritable()
	}
	now := g.cfg.Now()
	h.UnixNanos = now.UnixNano()
	h, loc, err := g.journal.Append(h, data)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			g.trimWork.send()
		}
		return err
	}
	if v != nil {
		v.indexRecord(h, loc)
		if bug.Enabled(bug.ApplyBeforeDurable) {
			_, _ = v.image.WriteAt(data, h.Offset)
		}
	}
	g.clock.wrote(h.Ordinal, h.UnixNanos)
	return nil
}

// indexRecord makes a record the newest content of its range. The caller holds appendMu, so records come in stream order.
func (v *Volume) indexRecord(h journal.Header, loc journal.Location) {
	v.overlay.Insert(h.Offset, int64(h.Length), overlay.Value{Loc: loc, Zero: !h.Kind.HasData(), Ordinal: h.Ordinal})
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
	return fmt.Errorf("%w: %s is %s at %s", ErrNotPrimary, g.core.Meta.Name, g.core.Meta.Role, g.core.Meta.Site)
}

// waitForAck is the deliberate fault StallOnLink.
func (g *Group) waitForAck(ordinal uint64) {
	_ = g.journal.Sync()
	g.shipWork.send()
	_ = g.WaitFor(g.ctx, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.core.Acked() >= ordinal
	})
}
