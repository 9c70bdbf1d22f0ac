package replication

import (
	"bytes"
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// An older copy that was written over an image leaves the file the one it was. But the journal still has the last
// records that were applied: their content is in the image, unless newer records overwrite it. So recovery compares.

const (
	// appliedTailRecords is how many of the last applied records of a volume are compared.
	appliedTailRecords = 64
	// appliedTailBytes bounds what is compared of one record.
	appliedTailBytes = 64 << 10
)

// appliedTail is the last records of a volume before the checkpoint: a ring, in which next is the oldest once it is
// full.
type appliedTail struct {
	records []appliedRecord
	next    int
}

type appliedRecord struct {
	header journal.Header
	loc    journal.Location
}

func (t *appliedTail) add(h journal.Header, loc journal.Location) {
	if len(t.records) < appliedTailRecords {
		t.records = append(t.records, appliedRecord{h, loc})
		return
	}
	t.records[t.next] = appliedRecord{h, loc}
	t.next = (t.next + 1) % appliedTailRecords
}

// check compares an image with the tail. What the index has is not applied for good: the image may have it or not.
func (t *appliedTail) check(v *Volume) error {
	newest := overlay.New()
	ordered := append(append([]appliedRecord(nil), t.records[t.next:]...), t.records[:t.next]...)
	for _, r := range ordered {
		indexInto(newest, r.header, r.loc)
	}
	for _, r := range ordered {
		n := min(int64(r.header.Length), appliedTailBytes)
		for _, own := range newest.Lookup(r.header.Offset, n, nil) {
			if !own.Found || own.Loc != r.loc {
				continue
			}
			for _, p := range v.overlay.Lookup(own.Off, own.Len, nil) {
				if p.Found {
					continue
				}
				if err := v.checkApplied(r, own, p.Off, p.Len); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (v *Volume) checkApplied(r appliedRecord, own overlay.Piece, off, n int64) error {
	have, want := make([]byte, n), make([]byte, n)
	if _, err := v.image.ReadAt(have, off); err != nil {
		return fmt.Errorf("volume %s: %w", v.id, err)
	}
	if !own.Zero {
		if err := v.group.journal.ReadData(r.loc, off-r.header.Offset, want); err != nil {
			return fmt.Errorf("volume %s: %w", v.id, err)
		}
	} else if vfs.AllZero(have) {
		return nil
	}
	if !bytes.Equal(have, want) {
		return stale(v.image.Path(),
			"it does not have the write with ordinal %d at offset %d of volume %s, which it had: an older copy, or damage",
			r.header.Ordinal, off, v.id)
	}
	return nil
}
