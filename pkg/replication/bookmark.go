package replication

import (
	"encoding/json"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
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
}

// maxBookmarkBytes bounds the data that is taken from a peer.
const maxBookmarkBytes = 1 << 10

// Bookmark names the present: everything that was written before is in the point that it names. It is durable here when
// it returns, and goes to the peer in order. ErrExists for a label that is there; it also says where.
func (g *Group) Bookmark(label string) (core.Bookmark, error) { return g.bookmarks.set(label) }

// set is Group.Bookmark.
func (bm *bookmarks) set(label string) (core.Bookmark, error) {
	g := bm.g
	if err := core.CheckLabel(label); err != nil {
		return core.Bookmark{}, fmt.Errorf("%w: group %s: %w", ErrInvalid, g.Name(), err)
	}
	bm.mu.Lock()
	defer bm.mu.Unlock()
	g.mu.Lock()
	old := g.core.Meta.Bookmark(label)
	g.mu.Unlock()
	if old != nil {
		return core.Bookmark{}, fmt.Errorf("%w: group %s: bookmark %s, at ordinal %v; give another label", ErrExists,
			g.Name(), label, RecoveryPoint{Ordinal: old.Ordinal, UnixNanos: old.UnixNanos})
	}
	if err := g.CheckWritable(); err != nil {
		return core.Bookmark{}, fmt.Errorf("%w; set bookmarks at its primary", err)
	}
	data, err := json.Marshal(bookmarkRecord{Label: label})
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
	b := core.Bookmark{Label: label, Ordinal: entries[0].Header.Ordinal, UnixNanos: entries[0].Header.UnixNanos}
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
		return core.Bookmark{}, fmt.Errorf("bookmark of %d bytes, the limit is %d", len(data), maxBookmarkBytes)
	}
	var r bookmarkRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return core.Bookmark{}, fmt.Errorf("bookmark: %w", err)
	}
	return core.Bookmark{Label: r.Label, Ordinal: h.Ordinal, UnixNanos: h.UnixNanos}, core.CheckLabel(r.Label)
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

// ordinal is the ordinal of a label.
func (bm *bookmarks) ordinal(label string) (uint64, error) {
	g := bm.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.core.Meta.Bookmark(label); b != nil {
		return b.Ordinal, nil
	}
	return 0, fmt.Errorf("%w: group %s has no bookmark %.80q here; see slipctl group points %[2]s", ErrNotFound, g.Name(),
		label)
}
