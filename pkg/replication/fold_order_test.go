package replication

import (
	"bytes"
	"slices"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// copyStream is a naive secondary: one volume in memory, changed by each record as it arrives.
type copyStream struct {
	keptStream
	image []byte
}

func (s *copyStream) Send(m *linkpb.ToSecondary) error {
	batch := m.GetBatch()
	if batch == nil {
		return nil
	}
	records, err := s.decoder.Decode(batch)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range records {
		h := &records[i].Header
		s.kinds = append(s.kinds, h.Kind)
		if !touchesImage(h) {
			continue
		}
		target := s.image[h.Offset:][:h.Length]
		clear(target)
		copy(target, records[i].Data)
	}
	return nil
}

// newTestSender returns a sender of g to a stream, as ship makes one, before its begin.
func newTestSender(t *testing.T, g *Group, stream link.Stream) *sender {
	t.Helper()
	enc, err := link.NewEncoder(g.cfg.Codec)
	if err != nil {
		t.Fatal(err)
	}
	return &sender{
		port: &verifyPort{},
		g:    g, stream: stream, enc: enc, wake: newSignal(), receiveEnded: make(chan struct{}),
		timeline: g.core.Meta.Timeline(),
	}
}

// sendUntilSyncEnd lets a sender work until it has ended its sync.
func sendUntilSyncEnd(t *testing.T, s *sender, stream *keptStream) {
	t.Helper()
	for range 1000 {
		if _, err := s.sendSome(); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(stream.kinds, journal.KindSyncEnd) {
			return
		}
	}
	t.Fatal("the sync does not end")
}

// A segment is folded in the middle of a sync. The sender works at the moment when the segment's extents are in the
// change map and its records are still in the journal. An extent that it sends then has the newest content. If it
// shipped older records of the segment behind the extent, and the newest record left the journal, the copy would keep
// the older content for good.
func TestFoldDuringSyncShipsNothingOlderBehindAnExtent(t *testing.T) {
	const size, journalBytes = 4 << 20, 32 << 20
	for _, atOp := range []string{"segment still in the journal", "records read before the fold"} {
		t.Run(atOp, func(t *testing.T) {
			net := link.NewNetwork(nil)
			t.Cleanup(net.Close)
			a := &testSite{t: t, name: "a", fs: vfs.NewMem(), net: net}
			a.open()
			t.Cleanup(a.kill)
			g := a.createGroup("shop", "b", 1, size, func(s *GroupSpec) { s.JournalSizeBytes = journalBytes })
			v := volumeOf(t, g, "v0")
			// The peer has been welcomed, and has everything so far: the journal keeps what comes now for it.
			if _, err := g.shipper.onWelcome(&linkpb.Welcome{NeedsSync: true, Instance: "copy"}); err != nil {
				t.Fatal(err)
			}
			g.changes.clear(v.index, 0, size/changemap.ExtentBytes)
			start := g.journal.Durable()
			// One page twice, with more than a batch of other writes between, all in the first segment.
			mustWrite(t, v, 0, block(1, 4096))
			for off := int64(1 << 20); off < 1<<20+3*batchBytes/2; off += 64 << 10 {
				mustWrite(t, v, off, block(2, 64<<10))
			}
			mustWrite(t, v, 0, block(3, 4096))
			for len(g.journal.Segments()) < 3 {
				mustWrite(t, v, 2<<20, block(4, 64<<10))
			}
			mustFlush(t, v)
			if err := g.applier.applyAll(t.Context()); err != nil {
				t.Fatal(err)
			}

			stream := &copyStream{keptStream: keptStream{t: t}, image: make([]byte, size)}
			s := newTestSender(t, g, stream)
			if err := s.begin(core.Ship{After: start, Begin: true}); err != nil {
				t.Fatal(err)
			}
			first := g.journal.Segments()[0]
			step := func() {
				if _, err := s.sendSome(); err != nil {
					t.Fatal(err)
				}
			}
			switch atOp {
			case "segment still in the journal":
				if err := g.trimmer.foldIntoMap(first); err != nil {
					t.Fatal(err)
				}
				step()
				if err := g.trimmer.truncateThrough(first, 0); err != nil {
					t.Fatal(err)
				}
			case "records read before the fold":
				records := s.cursor
				s.cursor = &hookedSource{recordSource: records, after: func() {
					if err := g.trimmer.fold(first); err != nil {
						t.Fatal(err)
					}
				}}
				step()
				s.cursor = records
			}
			sendUntilSyncEnd(t, s, &stream.keptStream)
			s.cursor.Close()
			if want := content(t, v); !bytes.Equal(stream.image, want) {
				for off := 0; off < size; off += 4096 {
					if !bytes.Equal(stream.image[off:off+4096], want[off:off+4096]) {
						t.Fatalf("the copy at offset %d has %d, the primary %d", off, stream.image[off], want[off])
					}
				}
			}
		})
	}
}

// hookedSource calls after when it has read.
type hookedSource struct {
	recordSource
	after func()
}

func (h *hookedSource) Next(maxBytes int) ([]journal.Record, error) {
	records, err := h.recordSource.Next(maxBytes)
	h.after()
	return records, err
}
