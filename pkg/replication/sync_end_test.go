package replication

import (
	"slices"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// endStream is a peer that acknowledges a sync-end while it is being sent, if atOnce. Before that it calls before.
type endStream struct {
	keptStream
	g      *Group
	atOnce bool
	before func()
}

func (s *endStream) Send(m *linkpb.ToSecondary) error {
	if err := s.keptStream.Send(m); err != nil || m.GetBatch() == nil || !s.ended() {
		return err
	}
	if before := s.before; before != nil {
		s.before = nil
		before()
	}
	if s.atOnce {
		return s.g.shipper.extentsAcked(m.GetBatch().Sequence, core.Delivery{})
	}
	return nil
}

// ended reports whether the last sync that was begun was ended.
func (s *endStream) ended() bool {
	begin, end := -1, -1
	for i, kind := range s.kinds {
		switch kind {
		case journal.KindSyncBegin:
			begin = i
		case journal.KindSyncEnd:
			end = i
		}
	}
	return end > begin
}

// A volume with content joins a group and leaves it again, or its content is marked, at the moments at which a sync
// begins and ends. The primary's sync ends each time: with nothing left to send no one would end it later.
func TestEverySyncEnds(t *testing.T) {
	for _, when := range []string{"before the sync begins", "in the sync", "while the end is sent",
		"before the end is acknowledged", "marked before the end is acknowledged"} {
		for _, atOnce := range []bool{false, true} {
			name := when
			if atOnce {
				name += ", acknowledged at once"
			}
			t.Run(name, func(t *testing.T) { testEverySyncEnds(t, when, atOnce) })
		}
	}
}

func testEverySyncEnds(t *testing.T, when string, atOnce bool) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a := newTestSite(t, net, "a", nil)
	g := a.createGroup("shop", "b", 1, 64<<10, nil)
	v0 := volumeOf(t, g, "v0")
	mustWrite(t, v0, 0, block(1, 4096))
	mustFlush(t, v0)
	if _, err := g.shipper.onWelcome(&linkpb.Welcome{NeedsSync: true, Instance: "copy"}); err != nil {
		t.Fatal(err)
	}
	rec := a.contentVolume("v1", 64<<10, block(7, 4096))
	join := func() {
		t.Helper()
		if err := g.AddVolume(rec, nil); err != nil {
			t.Fatal(err)
		}
	}
	leave := func() {
		t.Helper()
		if err := g.RemoveVolume("v1", nil); err != nil {
			t.Fatal(err)
		}
	}

	stream := &endStream{keptStream: keptStream{t: t}, g: g, atOnce: atOnce}
	s := newTestSender(t, g, stream)
	if err := s.begin(core.Ship{Begin: true}); err != nil {
		t.Fatal(err)
	}
	defer func() { s.cursor.Close() }()
	// settle sends what there is, and acknowledges it.
	settle := func() {
		t.Helper()
		for range 1000 {
			sent, err := s.sendSome()
			if err != nil {
				t.Fatal(err)
			}
			if !sent && s.sync.active() {
				continue // every extent was read
			}
			if !sent {
				break
			}
		}
		if err := g.shipper.extentsAcked(s.sequence, core.Delivery{}); err != nil {
			t.Fatal(err)
		}
	}
	switch when {
	case "before the sync begins":
		settle()
		join()
		leave()
	case "in the sync":
		join()
		if _, err := s.sendSome(); err != nil {
			t.Fatal(err)
		}
		leave()
	case "while the end is sent":
		stream.before = func() { join(); leave() }
	case "before the end is acknowledged":
		stream.before = join
		for !slices.Contains(stream.kinds, journal.KindSyncEnd) {
			if _, err := s.sendSome(); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.shipper.extentsAcked(s.sequence, core.Delivery{}); err != nil {
			t.Fatal(err)
		}
		leave()
	case "marked before the end is acknowledged":
		stream.before = join
	}
	settle()
	settle()
	st := g.Status()
	if st.State != "streaming" || st.ChangeMapBytes != 0 || orZero(st.SyncTotalBytes) != 0 || !stream.ended() {
		t.Fatalf("sent %v: the group is %s, with %d bytes of the sync left and %d of %d done", stream.kinds, st.State,
			st.ChangeMapBytes, orZero(st.SyncDoneBytes), orZero(st.SyncTotalBytes))
	}
}
