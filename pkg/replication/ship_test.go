package replication

import (
	"slices"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// keptStream keeps the kinds of the records that are sent on it.
type keptStream struct {
	t       *testing.T
	decoder link.Decoder
	kinds   []journal.Kind
}

func (s *keptStream) Send(m *linkpb.ToSecondary) error {
	batch := m.GetBatch()
	if batch == nil {
		return nil
	}
	records, err := s.decoder.Decode(batch)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range records {
		s.kinds = append(s.kinds, records[i].Header.Kind)
	}
	return nil
}

func (s *keptStream) Recv() (*linkpb.ToPrimary, error) { return nil, link.ErrClosed }
func (s *keptStream) Close() error                     { return nil }

// delayedSource calls before once before it reads.
type delayedSource struct {
	recordSource
	before func()
}

func (d *delayedSource) Next(maxBytes int) ([]journal.Record, error) {
	if before := d.before; before != nil {
		d.before = nil
		before()
	}
	return d.recordSource.Next(maxBytes)
}

// A volume with content joins while the sender is about to read the journal. Its record must not go out before the
// beginning of the sync that brings the content: the peer would take the volume's zeros for the primary's.
func TestVolumeWithContentJoinsWhileTheSenderReads(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a := newTestSite(t, net, "a", nil)
	g := a.createGroup("shop", "b", 0, 0, nil)
	rec := a.contentVolume("v0", 1<<20, block(7, 4096))
	enc, err := link.NewEncoder(g.cfg.Codec)
	if err != nil {
		t.Fatal(err)
	}
	stream := &keptStream{t: t}
	s := &sender{g: g, stream: stream, enc: enc, wake: newSignal(), receiveEnded: make(chan struct{}), port: &verifyPort{},
		timeline: g.core.Meta.Timeline()}
	if err := s.begin(core.Ship{}); err != nil {
		t.Fatal(err)
	}
	s.cursor = &delayedSource{s.cursor, func() {
		if err := g.AddVolume(rec, nil); err != nil {
			t.Fatal(err)
		}
	}}
	for range 100 {
		if _, err := s.sendSome(); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(stream.kinds, journal.KindSyncEnd) {
			break
		}
	}
	s.cursor.Close()
	begin, volume := slices.Index(stream.kinds, journal.KindSyncBegin), slices.Index(stream.kinds, journal.KindVolume)
	extent, end := slices.Index(stream.kinds, journal.KindExtent), slices.Index(stream.kinds, journal.KindSyncEnd)
	if begin != 0 || volume < begin || extent < begin || end < volume || end < extent {
		t.Fatalf("sent %v: the volume and its content do not both lie between the beginning and the end of a sync",
			stream.kinds)
	}
}

// A link that does not come up says why, for as long as it is down.
func TestStatusSaysWhyTheLinkIsDown(t *testing.T) {
	net := link.NewNetwork(nil)
	a := newTestSite(t, net, "site-a", nil)
	newTestSite(t, net, "site-b", nil)
	net.Cut("site-b")
	g := a.createGroup("g", "site-b", 1, 1<<20, nil)
	eventually(t, "the status has the reason", func() bool {
		st := g.Status()
		return st.State == "connecting" && strings.Contains(st.StateReason, "link cut")
	})
	net.Heal("site-b")
	eventually(t, "the link is up", func() bool {
		st := g.Status()
		return st.State == "streaming" && st.StateReason == ""
	})
}
