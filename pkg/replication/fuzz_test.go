package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

func FuzzCheckpointSlot(f *testing.F) {
	valid := numbered(7).encodeAs(3)
	f.Add(valid[:checkpointUsedBytes])
	f.Add(valid[:checkpointUsedBytes-1])
	f.Add(make([]byte, checkpointUsedBytes))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCheckpointSlot(b)
		if err == nil && string(c.encode()[:checkpointUsedBytes]) != string(b[:checkpointUsedBytes]) {
			t.Fatalf("%x is taken for %+v", b, c)
		}
	})
}

func FuzzMeta(f *testing.F) {
	meta := core.Meta{
		Version: core.MetaVersion, GroupID: uuid.NewString(), Name: "shop", Site: "site-a", Role: core.RolePrimary,
		Timelines: []core.Timeline{{ID: uuid.NewString()}}, Settings: core.Settings{JournalSizeBytes: MinJournalBytes,
			JournalFull: core.PolicyTrack}, Sync: core.SyncNever,
		Members: []core.Member{{VolumeID: "v0", SizeBytes: 4096}},
	}
	for range 2 {
		valid, err := recordfile.Encode(core.MetaKind, &meta)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(valid)
		f.Add(valid[:len(valid)/2])
		meta.Timelines = nil
	}
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		meta, err := decodeMeta("/pool/groups/x/group.json", data)
		if err != nil {
			if !strings.Contains(err.Error(), "/pool/groups/x/group.json") {
				t.Fatalf("the error does not name the file: %v", err)
			}
			return
		}
		again, err := recordfile.Encode(core.MetaKind, &meta)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeMeta("again", again)
		if err != nil || cmp.Diff(meta, back) != "" {
			t.Fatalf("%v\n%s", err, cmp.Diff(meta, back))
		}
	})
}

// FuzzMember: a member that passes is a record that the pool takes, whose file system is one of the two, and whose
// texts can be shown.
func FuzzMember(f *testing.F) {
	for _, data := range hostileMembers {
		f.Add([]byte(data))
	}
	f.Add([]byte(`{"index":1,"volumeID":"v1","name":"pvc-1","sizeBytes":4096,"fsType":"xfs","order":"ack","joins":3,` +
		`"format":{"state":"formatted","fsType":"xfs","uuid":"0b0e2f5e-52a4-4a8c-9b38-2f2f0f0f0f0f"},` +
		`"claim":{"name":"orders","namespace":"shop","manifest":{"storageClass":"fast","accessModes":["ReadWriteOnce"],` +
		`"requestBytes":4096,"labels":{"app":"shop"}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m core.Member
		if json.Unmarshal(data, &m) != nil || checkDescriptions([]core.Member{m}) != nil ||
			core.CheckMembers(nil, []core.Member{m}) != nil || m.Removed() {
			return
		}
		rec, err := describe(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := blockdev.EncodeVolumeRecord(rec.WithDefaults()); err != nil {
			t.Fatal(err)
		}
		types := []string{rec.FSType}
		if rec.Format != nil && rec.Format.FSType != blockdev.FSRaw {
			types = append(types, rec.Format.FSType)
		}
		for _, fsType := range types {
			if fsType != "" && blockdev.ValidateFSType(fsType) != nil {
				t.Fatalf("file system %q", fsType)
			}
		}
		again, err := memberOf(rec, m.Index)
		if err != nil {
			t.Fatal(err)
		}
		if again.Joins <= m.Joins {
			t.Fatalf("after %d joins comes %d", m.Joins, again.Joins)
		}
		if back, err := describe(again); err != nil || back.FSType != rec.FSType {
			t.Fatalf("%v: %s became %s", err, rec, back)
		}
	})
}

// secondaryWithVolume is a site with a secondary group, in sync, with one volume of 1 MiB at member 0.
func secondaryWithVolume(t *testing.T) (*testSite, *receiver) {
	t.Helper()
	s := newTestSite(t, link.NewNetwork(nil), "site-b", func(c *Config) { c.ApplyInterval = time.Hour })
	g, err := s.site.groupForHello("site-a", goodHello())
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{g: g, ackWork: newSignal()}
	manifest, err := json.Marshal(syncManifest{Members: []core.Member{{VolumeID: "v0", SizeBytes: 1 << 20}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []journal.Header{{Kind: journal.KindSyncBegin, Ordinal: 5},
		{Kind: journal.KindSyncEnd, Ordinal: 5}} {
		var data []byte
		if h.Kind == journal.KindSyncBegin {
			data = manifest
		}
		h.Length, h.DataCRC = uint32(len(data)), journal.DataCRC(data)
		if err := r.records(context.Background(), []link.Record{{Header: h, Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	return s, r
}

func goodHello() *linkpb.Hello {
	return &linkpb.Hello{
		ProtocolVersion: protocolVersion, GroupId: "0b0e2f5e-52a4-4a8c-9b38-2f2f0f0f0f0f", GroupName: "shop",
		Timelines: []*linkpb.Timeline{{Id: "1c0e2f5e-52a4-4a8c-9b38-2f2f0f0f0f0f"}}, DurableOrdinal: 5,
		JournalSizeBytes: MinJournalBytes,
	}
}

// stillWhole checks what no message of a peer may break: the group works, opens again, and nothing was made outside of
// the pool's rules.
func stillWhole(t *testing.T, s *testSite) {
	t.Helper()
	for _, g := range s.site.Groups() {
		if st := g.Status(); st.State == "failed" {
			t.Fatalf("the group failed: %s", st.StateReason)
		}
	}
	n := len(s.site.Groups())
	s.restart()
	if broken := s.site.Broken(); len(broken) > 0 || len(s.site.Groups()) != n {
		t.Fatalf("%d of %d groups open again; broken: %v", len(s.site.Groups()), n, broken)
	}
	volumes, err := s.pool.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes {
		if v.SizeBytes > core.MaxVolumeBytes || v.Group != "shop" {
			t.Fatalf("a peer made volume %s", v)
		}
	}
}

// secondaryInSync is secondaryWithVolume in a sync that began after the copy was whole, with member 2 that has left.
func secondaryInSync(t *testing.T) (*testSite, *receiver) {
	t.Helper()
	s, r := secondaryWithVolume(t)
	manifest, err := json.Marshal(syncManifest{Members: []core.Member{{VolumeID: "v0", SizeBytes: 1 << 20},
		{Index: 2, VolumeID: "v2", State: core.MemberRemoved}}})
	if err != nil {
		t.Fatal(err)
	}
	err = sendRecords(t, r, link.Record{Header: journal.Header{Kind: journal.KindSyncBegin, Ordinal: 5}, Data: manifest})
	if err != nil {
		t.Fatal(err)
	}
	if base, images := r.g.resync.current(); base == nil || images == nil || !r.g.copies.removed(2) {
		t.Fatalf("a sync with base %v", base)
	}
	return s, r
}

// sendRecords has a receiver take a batch of records, whose checksums are right.
func sendRecords(t *testing.T, r *receiver, records ...link.Record) error {
	t.Helper()
	encoder, err := link.NewEncoder(linkpb.Codec_CODEC_NONE)
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		h := record.Header
		if len(record.Data) > 0 {
			h.Length = uint32(len(record.Data))
		}
		h.DataCRC = journal.DataCRC(record.Data)
		if !encoder.Add(h, record.Data) {
			t.Skip("no batch has room for it")
		}
	}
	return r.batch(context.Background(), encoder.Batch(1))
}

// Records of ranges that no volume has are refused, of a member, of one that has left, and of none. Nothing is taken
// from their batch.
func TestHostileRanges(t *testing.T) {
	s, r := secondaryInSync(t)
	end := r.g.journal.End()
	good := link.Record{Header: journal.Header{Kind: journal.KindExtent, Ordinal: 5}, Data: block('x', 4096)}
	for _, kind := range []journal.Kind{journal.KindWrite, journal.KindDiscard, journal.KindZero, journal.KindExtent,
		journal.KindHole} {
		for _, volume := range []uint32{0, 2, 7, math.MaxUint32} {
			for _, off := range []int64{core.MaxVolumeBytes - 4095, core.MaxVolumeBytes, 1 << 62, math.MaxInt64 - 1, -1,
				math.MinInt64} {
				h := journal.Header{Kind: kind, Volume: volume, Offset: off, Length: 4096, Ordinal: 5}
				if kind.TakesOrdinal() {
					h.Ordinal = 6
				}
				var data []byte
				if kind == journal.KindWrite || kind == journal.KindExtent {
					data = block('x', 4096)
				}
				if err := sendRecords(t, r, good, link.Record{Header: h, Data: data}); err == nil || r.g.journal.End() != end {
					t.Errorf("%s of member %d at %d was taken: %v", kind, volume, off, err)
				}
			}
		}
	}
	stillWhole(t, s)
}

// The journal of an earlier release has a record of a range that no volume has, of a member that had left. The group
// opens, is promoted, and folds the journal.
func TestHostileRangeInTheJournal(t *testing.T) {
	s, r := secondaryInSync(t)
	h := journal.Header{Kind: journal.KindDiscard, Volume: 2, Offset: 1 << 62, Length: 4096, Ordinal: 6,
		DataCRC: journal.DataCRC(nil)}
	if err := r.g.log.appendCopies(context.Background(), []*Volume{nil}, []journal.Entry{{Header: h}}); err != nil {
		t.Fatal(err)
	}
	err := sendRecords(t, r, link.Record{Header: journal.Header{Kind: journal.KindSyncEnd, Ordinal: 6}})
	if err != nil {
		t.Fatal(err)
	}
	stillWhole(t, s)
	g := s.group("shop")
	if _, err := g.Promote(true); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, volumeOf(t, g, "v0"), 4096, block('x', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	if err := g.applier.applyAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, segment := range g.journal.Segments() {
		if err := g.trimmer.foldIntoMap(segment); err != nil {
			t.Fatal(err)
		}
		found = found || segment.LastOrdinal >= 7
	}
	if runs := g.changes.runs(); !found || len(runs) != 1 || runs[0].volume != 0 {
		t.Fatalf("the folded journal changes %+v", runs)
	}
	stillWhole(t, s)
}

// FuzzReceivedRecord gives a secondary, in a sync and outside of one, one record with any header and data whose
// checksums are right.
func FuzzReceivedRecord(f *testing.F) {
	for _, data := range hostileMembers {
		f.Add(uint8(journal.KindVolume), uint32(1), uint64(6), int64(0), uint32(len(data)), []byte(data))
		f.Add(uint8(journal.KindSyncBegin), uint32(0), uint64(9), int64(0), uint32(len(data)),
			[]byte(`{"members":[`+data+`]}`))
	}
	for kind := range uint8(12) {
		f.Add(kind, uint32(0), uint64(6), int64(4096), uint32(4096), []byte("abcd"))
		f.Add(kind, uint32(0), uint64(5), int64(-1), uint32(1<<31), []byte{})
		f.Add(kind, uint32(1<<31), uint64(1<<63), int64(1<<62), uint32(1<<20), []byte{})
	}
	f.Fuzz(func(t *testing.T, kind uint8, volume uint32, ordinal uint64, off int64, length uint32, data []byte) {
		for _, begin := range []func(*testing.T) (*testSite, *receiver){secondaryWithVolume, secondaryInSync} {
			s, r := begin(t)
			h := journal.Header{Kind: journal.Kind(kind), Volume: volume, Ordinal: ordinal, Offset: off, Length: length}
			err := sendRecords(t, r, link.Record{Header: h, Data: data})
			if err == nil && !h.Kind.TakesOrdinal() && h.Kind != journal.KindSyncBegin && ordinal != 5 {
				t.Fatalf("%+v was taken out of order", h)
			}
			stillWhole(t, s)
		}
	})
}

var hostileMembers = []string{
	`null`, `[]`, `{}`, `"v1"`, `{"index":1}`, `{"index":-1,"volumeID":"v1","sizeBytes":4096}`,
	`{"index":1,"volumeID":"../../etc","sizeBytes":4096}`,
	`{"index":1,"volumeID":"a/b","sizeBytes":4096}`,
	`{"index":1,"volumeID":"v1","sizeBytes":-4096}`,
	`{"index":1,"volumeID":"v1","sizeBytes":0}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4611686018427387904}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4097}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"blockSizeBytes":3}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"order":"whatever"}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"format":{"state":7}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"format":{"state":"odd"}}`,
	`{"index":1,"volumeID":"v0","sizeBytes":4096}`,
	`{"index":0,"volumeID":"v1","sizeBytes":4096}`,
	`{"index":1,"volumeID":"","sizeBytes":4096,"removed":true}`,
	`{"index":1,"volumeID":"v1","sizeBytes":-1,"removed":true}`,
	`{"index":0,"volumeID":"v0","sizeBytes":9223372036854775807}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"fsType":"fuse.sh"}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"fsType":"raw"}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"fsType":"-o"}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"format":{"state":"formatted","fsType":"fuse.sh"}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"format":{"state":"formatted","fsType":""}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"format":{"state":"formatting","fsType":"xfs","uuid":"x,reflink=0"}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"format":{"state":"formatted","fsType":"xfs","options":["\u001b[2J"]}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"format":{"state":"formatted","fsType":"xfs","uuid":"` +
		strings.Repeat("x", 1<<20) + `"}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"name":"\u001b]0;owned\u0007"}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"name":"` + strings.Repeat("x", 4096) + `"}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"claim":{"name":"../orders","namespace":"shop"}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"claim":{"name":"orders","namespace":"shop\n---\nkind: Pod"}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"claim":{"volume":"` + strings.Repeat("x", 4096) + `"}}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"joins":18446744073709551615}`,
	`{"index":4294967295,"volumeID":"v1","sizeBytes":4096}`,
	`{"index":1,"volumeID":"` + strings.Repeat("x", 1<<20) + `","sizeBytes":4096}`,
	`{"index":1,"volumeID":"v1","sizeBytes":4096,"removed":true,"name":"\u001b[2J"}`,
}

// Every hostile member is refused, alone and in a manifest, before anything is made from it; the same member is taken
// when it comes right.
func TestHostileMembers(t *testing.T) {
	for i, data := range hostileMembers {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			s, r := secondaryWithVolume(t)
			before, err := s.pool.List()
			if err != nil {
				t.Fatal(err)
			}
			send := func(kind journal.Kind, data string) error {
				h := journal.Header{Kind: kind, Volume: 1, Ordinal: 6, Length: uint32(len(data)),
					DataCRC: journal.DataCRC([]byte(data))}
				return r.special(context.Background(), h, []byte(data))
			}
			for kind, data := range map[journal.Kind]string{
				journal.KindVolume:    data,
				journal.KindSyncBegin: `{"members":[{"index":0,"volumeID":"v0","sizeBytes":1048576},` + data + `]}`,
			} {
				if err := send(kind, data); err == nil {
					t.Errorf("%s %s was taken", kind, data)
				} else if text := err.Error(); len(text) > 1000 || untrusted.Escape(text, len(text)) != text {
					t.Errorf("%.100s: the error is of %d bytes: %.200q", data, len(text), text)
				}
			}
			after, err := s.pool.List()
			if err != nil || cmp.Diff(before, after) != "" {
				t.Fatalf("%s: %v\n%s", data, err, cmp.Diff(before, after))
			}
			if head := r.g.journal.Head(); head != 5 {
				t.Fatalf("%s: the journal went on to %d", data, head)
			}
			if err := send(journal.KindVolume, `{"index":1,"volumeID":"v1","sizeBytes":4096}`); err != nil {
				t.Fatalf("after %s: %v", data, err)
			}
			stillWhole(t, s)
			if _, err := s.group("shop").Volume("v1"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestHostileHello(t *testing.T) {
	for name, change := range map[string]func(*linkpb.Hello){
		"no id":              func(h *linkpb.Hello) { h.GroupId = "" },
		"path as id":         func(h *linkpb.Hello) { h.GroupId = "../../../../etc" },
		"id in braces":       func(h *linkpb.Hello) { h.GroupId = "{" + h.GroupId + "}" },
		"id without dashes":  func(h *linkpb.Hello) { h.GroupId = strings.ReplaceAll(h.GroupId, "-", "") },
		"id in upper case":   func(h *linkpb.Hello) { h.GroupId = strings.ToUpper(h.GroupId) },
		"no name":            func(h *linkpb.Hello) { h.GroupName = "" },
		"path as name":       func(h *linkpb.Hello) { h.GroupName = "../x" },
		"long name":          func(h *linkpb.Hello) { h.GroupName = strings.Repeat("x", 1000) },
		"no timeline":        func(h *linkpb.Hello) { h.Timelines = nil },
		"nil timeline":       func(h *linkpb.Hello) { h.Timelines = []*linkpb.Timeline{nil} },
		"odd timeline":       func(h *linkpb.Hello) { h.Timelines[0].Id = "main" },
		"timelines descend":  func(h *linkpb.Hello) { h.Timelines = append(descending(), h.Timelines...) },
		"negative journal":   func(h *linkpb.Hello) { h.JournalSizeBytes = -1 },
		"tiny journal":       func(h *linkpb.Hello) { h.JournalSizeBytes = 1 },
		"absurd journal":     func(h *linkpb.Hello) { h.JournalSizeBytes = 1 << 62 },
		"another group's":    func(h *linkpb.Hello) { h.GroupName = "taken" },
		"newline in name":    func(h *linkpb.Hello) { h.GroupName = "a\nb" },
		"dots as group name": func(h *linkpb.Hello) { h.GroupName = ".." },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestSite(t, link.NewNetwork(nil), "site-b", nil)
			s.createGroup("taken", "", 0, 0, nil)
			hello := goodHello()
			change(hello)
			if _, err := s.site.groupForHello("site-a", hello); !errors.Is(err, ErrInvalid) && !errors.Is(err, errForeign) {
				t.Fatalf("%v", err)
			}
			s.restart()
			if n := len(s.site.Groups()); n != 1 || len(s.site.Broken()) > 0 {
				t.Fatalf("%d groups, broken %v", n, s.site.Broken())
			}
		})
	}
}

func descending() []*linkpb.Timeline {
	return []*linkpb.Timeline{{Id: uuid.NewString(), ForkOrdinal: 0}, {Id: uuid.NewString(), ForkOrdinal: 9}}
}

// FuzzHello: whatever a known peer calls itself a primary of, the site opens again with all that it has.
func FuzzHello(f *testing.F) {
	good := goodHello()
	f.Add(good.GroupId, good.GroupName, good.Timelines[0].Id, uint64(0), int64(MinJournalBytes))
	f.Add("../x", "..", "", uint64(1), int64(-1))
	f.Fuzz(func(t *testing.T, id, name, timeline string, fork uint64, journalBytes int64) {
		s := newTestSite(t, link.NewNetwork(nil), "site-b", nil)
		// Above this the journal's first segment would be a large file, which says nothing about decoding.
		if journalBytes > 1<<30 && journalBytes <= core.MaxJournalBytes {
			journalBytes = MinJournalBytes
		}
		_, err := s.site.groupForHello("site-a", &linkpb.Hello{
			ProtocolVersion: protocolVersion, GroupId: id, GroupName: name, JournalSizeBytes: journalBytes,
			Timelines: []*linkpb.Timeline{{Id: timeline, ForkOrdinal: fork}},
		})
		if n := len(s.site.Groups()); (err == nil) != (n == 1) {
			t.Fatalf("%v, %d groups", err, n)
		}
		stillWhole(t, s)
	})
}
