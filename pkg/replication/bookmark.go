package replication

import (
	"encoding/json"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A bookmark is a record of the group's order that names its ordinal (journal.KindBookmark). Each site notes it in
// group.json when the record is durable, so it outlives the record. A crash between the two is mended at the next
// start, from the journal.

// bookmarks are a group's; group.json has them.
type bookmarks struct {
	g *Group
	// mu makes additions one after another. It comes before the locks of append and of members.
	mu sync.Mutex
}

// bookmarkRecord is the data of the record.
type bookmarkRecord struct {
	Label string `json:"label"`
	// Ordinal is the boundary of an epoch of the whole group, in a shard, and UnixNanos its time. Without Epoch the label
	// names the record's own ordinal and time.
	Ordinal   uint64 `json:"ordinal,omitempty"`
	UnixNanos int64  `json:"unixNanos,omitempty"`
	Epoch     string `json:"epoch,omitempty"`
}

// maxBookmarkBytes bounds the data that is taken from a peer.
const maxBookmarkBytes = 1 << 10

// Bookmark names the present: everything that was written before is in the point that it names. It is durable here when
// it returns, and goes to the peer in order. ErrExists for a label that is there; it also says where.
func (g *Group) Bookmark(label string) (core.Bookmark, error) {
	return g.bookmarks.set(bookmarkRecord{Label: label})
}

// set is Group.Bookmark. With an epoch it replaces a bookmark of another epoch: that was interrupted at other shards.
func (bm *bookmarks) set(record bookmarkRecord) (core.Bookmark, error) {
	g, label := bm.g, record.Label
	if err := core.CheckLabel(label); err != nil {
		return core.Bookmark{}, fmt.Errorf("%w: group %s: %w", ErrInvalid, g.Name(), err)
	}
	bm.mu.Lock()
	defer bm.mu.Unlock()
	g.mu.Lock()
	old := g.core.Meta.Bookmark(label)
	g.mu.Unlock()
	if old != nil && record.Epoch != "" && old.Epoch == record.Epoch {
		return *old, nil
	}
	if old != nil && (record.Epoch == "" || old.Epoch == "") {
		return core.Bookmark{}, fmt.Errorf("%w: group %s: bookmark %s, at ordinal %v; give another label", ErrExists,
			g.Name(), label, RecoveryPoint{Ordinal: old.Ordinal, UnixNanos: old.UnixNanos})
	}
	if err := g.CheckWritable(); err != nil {
		return core.Bookmark{}, err
	}
	data, err := json.Marshal(record)
	if err != nil {
		return core.Bookmark{}, err
	}
	entries := []journal.Entry{{Header: journal.Header{Kind: journal.KindBookmark, Length: uint32(len(data))}, Data: data}}
	if _, err := g.log.append(nil, entries); err != nil {
		return core.Bookmark{}, err
	}
	if err := g.log.commit(); err != nil {
		return core.Bookmark{}, err
	}
	b := record.of(entries[0].Header)
	_, err = g.step(core.Bookmarked{Bookmark: b}, nil)
	return b, err
}

// Bookmarks returns the group's bookmarks, oldest first.
func (g *Group) Bookmarks() []core.Bookmark { return g.bookmarks.list() }

// list is Group.Bookmarks.
func (bm *bookmarks) list() []core.Bookmark {
	g := bm.g
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]core.Bookmark(nil), g.core.Meta.Bookmarks...)
}

// parseBookmark reads a record's data. What a peer sent wrong is an error, and names nothing.
func parseBookmark(h journal.Header, data []byte) (core.Bookmark, error) {
	if len(data) > maxBookmarkBytes {
		return core.Bookmark{}, fmt.Errorf("bookmark of %s, the limit is %d", words.Count(len(data), "byte"),
			maxBookmarkBytes)
	}
	var r bookmarkRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return core.Bookmark{}, fmt.Errorf("bookmark: %w", err)
	}
	err := core.CheckLabel(r.Label)
	if err == nil && r.Epoch != "" {
		_, err = epoch.ParseID(r.Epoch)
	}
	if err == nil && r.Epoch != "" && r.Ordinal >= h.Ordinal {
		err = fmt.Errorf("bookmark of ordinal %d in the record %d", r.Ordinal, h.Ordinal)
	}
	return r.of(h), err
}

// of is the bookmark of a record.
func (r *bookmarkRecord) of(h journal.Header) core.Bookmark {
	if r.Epoch != "" {
		return core.Bookmark{Label: r.Label, Ordinal: r.Ordinal, UnixNanos: r.UnixNanos, Epoch: r.Epoch}
	}
	return core.Bookmark{Label: r.Label, Ordinal: h.Ordinal, UnixNanos: h.UnixNanos}
}

// take notes a bookmark of the primary whose record is durable here. One that is wrong is left out: its record
// has an ordinal, so the stream goes on with it.
func (bm *bookmarks) take(h journal.Header, data []byte) error {
	b, err := parseBookmark(h, data)
	if err != nil {
		klog.ErrorS(err, "A bookmark of the primary is not taken", "group", bm.g.Name(), "ordinal", h.Ordinal)
		return nil
	}
	_, err = bm.g.step(core.Bookmarked{Bookmark: b}, nil)
	return err
}

// foundBookmark is a record that recovery saw.
type foundBookmark struct {
	header journal.Header
	loc    journal.Location
}

// recover notes what a crash kept from being noted. The group is not in use yet.
func (bm *bookmarks) recover(found []foundBookmark) error {
	g := bm.g
	last := uint64(0)
	for _, b := range g.core.Meta.Bookmarks {
		last = max(last, b.Ordinal)
	}
	for _, f := range found {
		if f.header.Ordinal <= last || f.header.Length > maxBookmarkBytes {
			continue
		}
		data := make([]byte, f.header.Length)
		if err := g.journal.ReadData(f.loc, 0, data); err != nil {
			return err
		}
		if journal.DataCRC(data) != f.header.DataCRC {
			return fmt.Errorf("group %s: bookmark at ordinal %d does not match its checksum", g.Name(), f.header.Ordinal)
		}
		b, err := parseBookmark(f.header, data)
		if err != nil {
			continue // it was not taken before either
		}
		if _, err := g.stepLocked(core.Bookmarked{Bookmark: b}, nil); err != nil {
			return err
		}
	}
	return nil
}

// find returns the bookmark of a label, or ErrNotFound.
func (bm *bookmarks) find(label string) (core.Bookmark, error) {
	g := bm.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.core.Meta.Bookmark(label); b != nil {
		return *b, nil
	}
	return core.Bookmark{}, fmt.Errorf("%w: group %s has no bookmark %.80q here; see slipctl group points %[2]s",
		ErrNotFound, g.Name(), label)
}
