package core

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// Bookmark is an ordinal with a name, which the primary put into the group's order.
type Bookmark struct {
	Label     string `json:"label"`
	Ordinal   uint64 `json:"ordinal"`
	UnixNanos int64  `json:"unixNanos"`
	// Epoch is set in a shard where the label names an epoch of the whole group (epoch.ID): Ordinal is its boundary.
	Epoch string `json:"epoch,omitempty"`
}

// MaxBookmarks is how many bookmarks a group remembers. The oldest one goes when there is one more.
const MaxBookmarks = 64

// labelPattern: a label is neither an ordinal nor a time nor a duration.
var labelPattern = regexp.MustCompile(`^[a-z][-a-z0-9.]{0,62}$`)

// CheckLabel says what is wrong with the name of a bookmark.
func CheckLabel(label string) error {
	if !labelPattern.MatchString(label) {
		return fmt.Errorf("bookmark %.80q: want 1 to 63 of a-z, 0-9, - and ., beginning with a letter", label)
	}
	return nil
}

// Bookmark returns the bookmark with a label, or nil.
func (m *Meta) Bookmark(label string) *Bookmark {
	for i := range m.Bookmarks {
		if m.Bookmarks[i].Label == label {
			return &m.Bookmarks[i]
		}
	}
	return nil
}

// forgetBookmarks takes out those behind an ordinal, which the group went back to.
func (m *Meta) forgetBookmarks(last uint64) {
	m.Bookmarks = slices.DeleteFunc(slices.Clone(m.Bookmarks), func(b Bookmark) bool { return b.Ordinal > last })
}

// checkBookmarks says what is wrong with the bookmarks of a group.json.
func checkBookmarks(list []Bookmark) error {
	if len(list) > MaxBookmarks {
		return fmt.Errorf("%s, the limit is %d", words.Count(len(list), "bookmark"), MaxBookmarks)
	}
	for _, b := range list {
		if err := CheckLabel(b.Label); err != nil {
			return err
		}
	}
	return nil
}

// bookmarked adds a bookmark whose record is durable. The caller has checked the label. One with the same label goes: a
// peer may use a label again that it has forgotten.
func (g *Group) bookmarked(b Bookmark) {
	m := &g.Meta
	if old := m.Bookmark(b.Label); old != nil && *old == b {
		return
	}
	list := slices.DeleteFunc(slices.Clone(m.Bookmarks), func(old Bookmark) bool { return old.Label == b.Label })
	list = append(list, b)
	m.Bookmarks = list[max(0, len(list)-MaxBookmarks):]
	g.persist()
}
