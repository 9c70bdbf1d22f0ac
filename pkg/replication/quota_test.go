package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// helloOf is the Hello of a new group.
func helloOf(name string, journalBytes int64) *linkpb.Hello {
	h := goodHello()
	h.GroupId, h.GroupName, h.JournalSizeBytes = uuid.NewString(), name, journalBytes
	return h
}

// sendMember gives a secondary the record of a member.
func sendMember(r *receiver, ordinal uint64, m core.Member) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	h := journal.Header{Kind: journal.KindVolume, Volume: m.Index, Ordinal: ordinal, Length: uint32(len(data)),
		DataCRC: journal.DataCRC(data)}
	return r.special(context.Background(), h, data)
}

// Each limit refuses what is one too many, by its flag, and makes nothing of it; another peer has limits of its own.
func TestPeerLimits(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-b", func(c *Config) {
		c.ApplyInterval = time.Hour
		c.Limits = Limits{Groups: 2, Members: 3, PoolPercent: 50}
	})
	s.fs.SetCapacity(1 << 30)
	refused := func(err error, flag string) {
		t.Helper()
		if !errors.Is(err, ErrQuota) || !strings.Contains(err.Error(), flag) {
			t.Fatalf("%v; want one that names %s", err, flag)
		}
	}
	var first *Group
	for i := range 2 {
		g, err := s.site.groupForHello("site-a", helloOf(fmt.Sprint("g", i), MinJournalBytes))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = g
		}
	}
	_, err := s.site.groupForHello("site-a", helloOf("g2", MinJournalBytes))
	refused(err, "--peer-max-groups")
	if _, err := s.site.groupForHello("site-c", helloOf("g2", MinJournalBytes)); err != nil {
		t.Fatalf("another peer: %v", err)
	}

	r := &receiver{g: first, ackWork: newSignal()}
	ordinal := uint64(0)
	member := func(index uint32, size int64) core.Member {
		return core.Member{Index: index, VolumeID: fmt.Sprint("v", index), SizeBytes: size}
	}
	add := func(m core.Member) error {
		err := sendMember(r, ordinal+1, m)
		if err == nil {
			ordinal++
		}
		return err
	}
	for i := range uint32(3) {
		if err := add(member(i, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	refused(add(member(3, 1<<20)), "--peer-max-volumes")
	// One that has left its group keeps its place, since its copy is still there.
	gone := member(2, 1<<20)
	gone.Drop()
	if err := add(gone); err != nil {
		t.Fatal(err)
	}
	refused(add(member(3, 1<<20)), "--peer-max-volumes")
	// Growing counts, and so do the journals.
	refused(add(member(0, 512<<20)), "--peer-max-percent")
	if err := add(member(0, 400<<20)); err != nil {
		t.Fatal(err)
	}
	// What a sync would begin with is refused before the copy counts as none.
	if _, err := first.step(core.SyncEndDurable{}, nil); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(syncManifest{Members: []core.Member{member(0, 600<<20), member(1, 1<<20)}})
	if err != nil {
		t.Fatal(err)
	}
	h := journal.Header{Kind: journal.KindSyncBegin, Ordinal: ordinal, Length: uint32(len(data)),
		DataCRC: journal.DataCRC(data)}
	refused(r.special(context.Background(), h, data), "--peer-max-percent")
	if !first.Status().Promotable {
		t.Fatal("the copy is given up for a sync that was refused")
	}
	recs, err := s.pool.List()
	if err != nil || len(recs) != 3 || len(s.site.Groups()) != 3 {
		t.Fatalf("%d volumes, %d groups, %v", len(recs), len(s.site.Groups()), err)
	}
	if err := first.copies.admit(make([]core.Member, maxListedMembers+1)); !errors.Is(err, ErrQuota) {
		t.Fatalf("a list without end: %v", err)
	}
}

// A copy's journal is this site's decision: the primary's size is taken up to a limit, when the group is made and when
// it changes.
func TestJournalOfACopyIsLimited(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-b", func(c *Config) { c.Limits.JournalBytes = 64 << 20 })
	s.fs.SetCapacity(8 << 30)
	size := func(hint int64) int64 {
		t.Helper()
		g, err := s.site.groupForHello("site-a", helloOf("g"+uuid.NewString(), hint))
		if err != nil {
			t.Fatal(err)
		}
		return g.Status().JournalSizeBytes
	}
	if n := size(32 << 20); n != 32<<20 {
		t.Errorf("a small one becomes %d", n)
	}
	if n := size(core.MaxJournalBytes); n != 64<<20 {
		t.Errorf("1 TiB becomes %d", n)
	}
	g, err := s.site.groupForHello("site-a", helloOf("grows", MinJournalBytes))
	if err != nil {
		t.Fatal(err)
	}
	g.settings.follow(settingsFromWire(helloOf("grows", core.MaxJournalBytes)))
	if n := g.Status().JournalSizeBytes; n != 64<<20 {
		t.Errorf("1 TiB later becomes %d", n)
	}
	small, err := s.site.groupForHello("site-a", helloOf("small", MinJournalBytes))
	if err != nil {
		t.Fatal(err)
	}
	s.fs.SetCapacity(256 << 20)
	if n := s.site.copyJournalBytes(core.MaxJournalBytes); n != 16<<20 {
		t.Errorf("1 TiB on a small file system becomes %d", n)
	}
	// The quota counts for a journal that grows as for a new one.
	small.settings.follow(settingsFromWire(helloOf("small", core.MaxJournalBytes)))
	if n := small.Status().JournalSizeBytes; n != MinJournalBytes {
		t.Errorf("it grew to %d past the quota", n)
	}
}

// Copies leave space free for this site's own volumes, which go on when the copies have stopped; what gives space back
// is taken.
func TestCopiesLeaveAReserve(t *testing.T) {
	s, r := secondaryWithVolume(t)
	own := s.createGroup("own", "", 0, 0, nil)
	if err := own.AddVolume(s.createVolume("w0", 1<<20), nil); err != nil {
		t.Fatal(err)
	}
	_, free, err := s.pool.Space()
	if err != nil {
		t.Fatal(err)
	}
	used := int64(1<<50) - free
	s.fs.SetCapacity(used + 1<<20)
	s.site.cfg.Limits.ReservePercent = 99
	batch := func(h journal.Header, data []byte) error {
		h.Ordinal, h.Length = r.g.journal.Head()+1, uint32(max(len(data), 4096))
		h.DataCRC = journal.DataCRC(data)
		enc, err := link.NewEncoder(linkpb.Codec_CODEC_NONE)
		if err != nil {
			return err
		}
		enc.Add(h, data)
		return r.batch(context.Background(), enc.Batch(1))
	}
	head := r.g.journal.Head()
	if err := batch(journal.Header{Kind: journal.KindWrite}, block('x', 4096)); !errors.Is(err, ErrQuota) ||
		!strings.Contains(err.Error(), "--copies-reserve-percent") {
		t.Fatalf("a write: %v", err)
	}
	if got := r.g.journal.Head(); got != head {
		t.Fatalf("the journal went on to %d", got)
	}
	if err := batch(journal.Header{Kind: journal.KindDiscard}, nil); err != nil {
		t.Fatalf("a discard: %v", err)
	}
	mustWrite(t, volumeOf(t, own, "w0"), 0, block('w', 4096))
	mustFlush(t, volumeOf(t, own, "w0"))
	s.site.cfg.Limits.ReservePercent = 5
	s.fs.SetCapacity(0)
	if err := batch(journal.Header{Kind: journal.KindWrite}, block('x', 4096)); err != nil {
		t.Fatalf("with room: %v", err)
	}
}

func TestLimitsAreChecked(t *testing.T) {
	l := DefaultLimits
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*Limits){
		func(l *Limits) { l.Groups = -1 }, func(l *Limits) { l.Members = -1 }, func(l *Limits) { l.PoolPercent = -1 },
		func(l *Limits) { l.ReservePercent = 100 }, func(l *Limits) { l.JournalBytes = 1 },
		func(l *Limits) { l.Timelines = core.MaxTimelines + 1 },
	} {
		bad := DefaultLimits
		change(&bad)
		if bad.Check() == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}
