package replication

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A bookmark is a point of the primary's order with a name, at both sites, also after restarts and a promotion.
func TestBookmarks(t *testing.T) {
	a, b, g, _ := historyPair(t, time.Hour, nil)
	copied := caughtUp(t, g, b)
	rng := seeded(t)
	l := newCutLog(g)
	write := func() {
		for range 10 {
			if err := l.do(rng, g, 64<<10); err != nil {
				t.Fatal(err)
			}
		}
	}
	write()
	mark, err := g.Bookmark("before-upgrade")
	if err != nil {
		t.Fatal(err)
	}
	l.note(cutOp{}) // the record has an ordinal
	if mark.Ordinal != g.journal.Head() || mark.UnixNanos == 0 {
		t.Errorf("the bookmark is %+v of a group at %d", mark, g.journal.Head())
	}
	write()
	mustFlush(t, g.Volumes()[0])
	caughtUp(t, g, b)
	if got := copied.Bookmarks(); !slices.Equal(got, []core.Bookmark{mark}) {
		t.Fatalf("the peer has %+v", got)
	}
	if view := checkView(t, copied, l, Point{Bookmark: "before-upgrade"}); view.rec.Ordinal != mark.Ordinal {
		t.Errorf("the view of the bookmark has ordinal %d, not %d", view.rec.Ordinal, mark.Ordinal)
	}
	for label, want := range map[string]error{
		"before-upgrade": ErrExists, "": ErrInvalid, "1234": ErrInvalid, "-10m": ErrInvalid, "a b": ErrInvalid,
		"../x": ErrInvalid, strings.Repeat("x", 64): ErrInvalid,
	} {
		if _, err := g.Bookmark(label); !errors.Is(err, want) {
			t.Errorf("bookmark %q: %v", label, err)
		}
	}
	if _, err := copied.Bookmark("here"); !errors.Is(err, ErrNotPrimary) {
		t.Errorf("a bookmark at the secondary: %v", err)
	}
	a.restart()
	b.restart()
	for _, s := range []*testSite{a, b} {
		if got := s.group("shop").Bookmarks(); !slices.Equal(got, []core.Bookmark{mark}) {
			t.Errorf("after a restart %s has %+v", s.name, got)
		}
	}
	g = a.group("shop")
	for i := range core.MaxBookmarks {
		if _, err := g.Bookmark(fmt.Sprintf("n%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	copied = caughtUp(t, g, b)
	for _, list := range [][]core.Bookmark{g.Bookmarks(), copied.Bookmarks()} {
		if len(list) != core.MaxBookmarks || list[0].Label != "n0" {
			t.Errorf("%d bookmarks, the first is %+v", len(list), list[0])
		}
	}
	points, err := copied.Points()
	if err != nil || len(points.Bookmarks) != core.MaxBookmarks {
		t.Errorf("points: %+v, %v", points, err)
	}
}

// A bookmark whose record is durable is noted, also if the site lost power before it was.
func TestBookmarkSurvivesPowerLoss(t *testing.T) {
	a, _, g, _ := historyPair(t, 0, nil)
	data := []byte(`{"label":"found"}`)
	// What a power loss leaves: the record without the note.
	entries := []journal.Entry{{Header: journal.Header{Kind: journal.KindBookmark, Length: uint32(len(data))}, Data: data}}
	if _, err := g.log.append(nil, entries); err != nil {
		t.Fatal(err)
	}
	if err := g.log.commit(); err != nil {
		t.Fatal(err)
	}
	a.crash(0, seeded(t))
	got := a.group("shop").Bookmarks()
	if len(got) != 1 || got[0].Label != "found" || got[0].Ordinal != entries[0].Header.Ordinal {
		t.Fatalf("after the power loss: %+v", got)
	}
}

// What a peer sends as a bookmark is checked, and the stream goes on behind what is wrong.
func TestBookmarkFromAHostilePeer(t *testing.T) {
	_, b, g, _ := historyPair(t, 0, nil)
	copied := caughtUp(t, g, b)
	for _, data := range []string{`{"label":"../../x"}`, `{"label":"\u001b[2J"}`, `not json`, strings.Repeat("x", 1<<20),
		`{"label":"fine"}`} {
		entries := []journal.Entry{{Header: journal.Header{Kind: journal.KindBookmark}, Data: []byte(data)}}
		if _, err := g.log.append(nil, entries); err != nil {
			t.Fatal(err)
		}
	}
	mustFlush(t, g.Volumes()[0])
	caughtUp(t, g, b)
	eventually(t, "the good one is noted", func() bool { return len(copied.Bookmarks()) == 1 })
	if got := copied.Bookmarks(); got[0].Label != "fine" {
		t.Fatalf("taken: %+v", got)
	}
	b.restart()
	if got := b.group("shop").Bookmarks(); len(got) != 1 {
		t.Fatalf("after a restart: %+v", got)
	}
}
