package replication

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// shardOfTwo is a primary that is shard 0 of two, as its coordinator sees it.
type shardOfTwo struct {
	t      *testing.T
	site   *testSite
	g      *Group
	v      *Volume
	config epoch.Config
	life   epoch.Life
}

func newShardOfTwo(t *testing.T) *shardOfTwo {
	t.Helper()
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	s := newTestSite(t, net, "a", nil)
	g := s.createGroup("shop-0", "", 1, 1<<20, func(spec *GroupSpec) { spec.Shard = core.Shard{Group: "shop"} })
	o := &shardOfTwo{t: t, site: s, g: g, v: volumeOf(t, g, "v0")}
	o.config = epoch.Config{Version: epoch.Version{Number: 2}, Shards: []epoch.ShardID{0, 1}}
	o.ask()
	return o
}

func (o *shardOfTwo) deliver(m epoch.Message) epoch.Message {
	o.t.Helper()
	answer, err := o.g.Shard().Deliver(m)
	if err != nil {
		o.t.Fatal(err)
	}
	return answer
}

func (o *shardOfTwo) ask() epoch.Answer {
	o.t.Helper()
	answer := o.deliver(epoch.Ask{Round: 1, Config: o.config}).(epoch.Answer)
	o.life = answer.Life
	return answer
}

// prepare has the shard hold for the next epoch.
func (o *shardOfTwo) prepare() epoch.ID {
	o.t.Helper()
	id := epoch.ID{Number: o.ask().Last.Number + 1, Run: 7}
	ready, ok := o.deliver(epoch.Prepare{Epoch: id, Life: o.life, Version: o.config.Version}).(epoch.Ready)
	if !ok || ready.Boundary != o.g.journal.Head() {
		o.t.Fatalf("answer to prepare: %+v, head %d", ready, o.g.journal.Head())
	}
	return id
}

// write begins a write, and returns where its answer comes.
func (o *shardOfTwo) write(off int64) <-chan error {
	o.t.Helper()
	mustWrite(o.t, o.v, off, block(1, 4096))
	answers := make(chan error, 1)
	if lead := o.v.Commit(func(err error) { answers <- err }); lead != nil {
		lead()
	}
	return answers
}

func (o *shardOfTwo) answered(answers <-chan error, what string) {
	o.t.Helper()
	select {
	case err := <-answers:
		if err != nil {
			o.t.Fatal(err)
		}
	case <-time.After(patience):
		o.t.Fatalf("%s was not answered", what)
	}
}

func (o *shardOfTwo) held(answers <-chan error, what string) {
	o.t.Helper()
	select {
	case <-answers:
		o.t.Fatalf("%s was answered while its epoch is cut", what)
	default:
	}
}

// longHolds keeps holds from expiring, so that a slow machine does not end them.
func longHolds(t *testing.T) {
	before := holdBound
	holdBound = time.Minute
	t.Cleanup(func() { holdBound = before })
}

// TestAnswersAreHeldForAnEpoch cuts epochs: what is written behind the boundary is answered with the commit or the
// abort, and the mark names the boundary.
func TestAnswersAreHeldForAnEpoch(t *testing.T) {
	longHolds(t)
	o := newShardOfTwo(t)
	o.answered(o.write(0), "a write before the epoch")
	boundary := o.g.journal.Head()

	id := o.prepare()
	if o.g.shard.hold.current.Load() == nil {
		t.Fatal("nothing is held")
	}
	flushed := make(chan error, 1)
	o.v.FlushAsync(func(err error) { flushed <- err })
	o.answered(flushed, "a flush that covers nothing behind the boundary")
	write, flush := o.write(4096), make(chan error, 1)
	o.v.FlushAsync(func(err error) { flush <- err })
	waiting := make(chan error, 1)
	go func() { waiting <- o.v.Flush() }()
	time.Sleep(20 * time.Millisecond)
	o.held(write, "a write")
	o.held(flush, "a flush")
	o.held(waiting, "a flush of a thread that waits")
	if o.g.journal.Durable() != o.g.journal.Head() {
		t.Error("what is held did not become durable")
	}
	p := make([]byte, 4096)
	if _, err := o.v.ReadAt(p, 4096); err != nil || p[0] != 1 {
		t.Errorf("a read while answers are held: %v, %v", p[0], err)
	}
	if _, ok := o.deliver(epoch.Commit{Epoch: id, Life: o.life}).(epoch.Committed); !ok {
		t.Fatal("the epoch was not committed")
	}
	o.answered(write, "the write")
	o.answered(flush, "the flush")
	o.answered(waiting, "the flush of a thread")
	marks := o.g.shard.marks.all()
	if len(marks) != 1 || marks[0].Epoch != id || marks[0].Boundary != boundary || marks[0].ordinal != boundary+2 {
		t.Fatalf("marks %+v, want one of %s for boundary %d", marks, id, boundary)
	}

	id = o.prepare()
	write = o.write(8192)
	o.held(write, "a write")
	o.deliver(epoch.Abort{Epoch: id, Life: o.life})
	o.answered(write, "the write of an epoch that was given up")
	if times := o.g.Shard().HoldTimes(); times.Count != 2 {
		t.Errorf("%d holds were measured, want 2", times.Count)
	}
}

// TestLateCommitHasNoMark waits until a hold has expired: the answers go, and the epoch never gets its mark.
func TestLateCommitHasNoMark(t *testing.T) {
	o := newShardOfTwo(t)
	id := o.prepare()
	began := time.Now()
	o.answered(o.write(0), "a write in an epoch of which nothing is heard")
	if d := time.Since(began); d < holdBound/2 || d > 10*time.Second {
		t.Errorf("answered after %v, the bound is %v", d, holdBound)
	}
	answer := o.deliver(epoch.Commit{Epoch: id, Life: o.life})
	if refused, ok := answer.(epoch.Refused); !ok || len(o.g.shard.marks.all()) != 0 {
		t.Errorf("the late commit: %+v, marks %v", refused, o.g.shard.marks.all())
	}
}

// TestExpiryDoesNotWaitForDecisions has a hold expire while the shard's lock is taken, as by a slow
// file.
func TestExpiryDoesNotWaitForDecisions(t *testing.T) {
	o := newShardOfTwo(t)
	id := o.prepare()
	o.g.shard.mu.Lock()
	o.answered(o.write(0), "a write")
	o.g.shard.mu.Unlock()
	answer, err := o.g.Shard().Deliver(epoch.Commit{Epoch: id, Life: o.life})
	if _, committed := answer.(epoch.Committed); committed || len(o.g.shard.marks.all()) != 0 {
		t.Errorf("a commit behind the expiry: %v, %v", answer, err)
	}
}

// TestMarksSurvive has a shard find its marks again after a crash, and refuse what an earlier process promised.
func TestMarksSurvive(t *testing.T) {
	longHolds(t)
	o := newShardOfTwo(t)
	first := o.prepare()
	o.deliver(epoch.Commit{Epoch: first, Life: o.life})
	o.answered(o.write(0), "a write")
	second := o.prepare()
	life := o.life
	o.site.crash(0, seeded(t))
	o.g = o.site.group("shop-0")
	if marks := o.g.shard.marks.all(); len(marks) != 1 || marks[0].Epoch != first {
		t.Fatalf("marks after a power loss: %+v, want that of %s", marks, first)
	}
	if id, ok := o.g.Shard().Identity(); !ok || id.Config.Version != o.config.Version {
		t.Errorf("after a power loss: %+v", id)
	}
	for _, l := range []epoch.Life{life, o.ask().Life} {
		if refused, ok := o.deliver(epoch.Commit{Epoch: second, Life: l}).(epoch.Refused); !ok {
			t.Errorf("commit of an epoch of an earlier process: %+v", refused)
		}
	}
	if last := o.ask().Last; last.Before(first) {
		t.Errorf("numbers go back: %v after %v", last, first)
	}
}

// TestWrongMarksAreLeftOut reads marks that a peer made up.
func TestWrongMarksAreLeftOut(t *testing.T) {
	o := newShardOfTwo(t)
	good := epoch.Mark{Epoch: epoch.ID{Number: 1, Run: 1}, Config: o.config, Boundary: 5}
	behind, other := good, good
	behind.Boundary = 7
	other.Shard = 9
	for what, data := range map[string][]byte{
		"no JSON": []byte("rubbish"), "a boundary behind the record": behind.Encode(), "another shard": other.Encode(),
		"too long": make([]byte, maxMarkBytes+1),
	} {
		o.g.shard.noteMark(journal.Header{Kind: journal.KindEpoch, Ordinal: 7}, data)
		if len(o.g.shard.marks.all()) != 0 {
			t.Fatalf("%s: the mark was taken", what)
		}
	}
	o.g.shard.noteMark(journal.Header{Kind: journal.KindEpoch, Ordinal: 7}, good.Encode())
	if len(o.g.shard.marks.all()) != 1 {
		t.Error("a good mark was not taken")
	}
}

// TestShardRefuses has calls that a group over several nodes does not allow.
func TestShardRefuses(t *testing.T) {
	o := newShardOfTwo(t)
	if err := o.g.Modify(func(s *core.Settings) { s.Shard = core.Shard{} }); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("leaving the group: %v", err)
	}
	if _, err := o.g.Repair(); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("repairing: %v", err)
	}
	if _, err := o.g.Relocate(t.Context()); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("relocating: %v", err)
	}
	for _, s := range []core.Shard{{ID: 3}, {Group: "Shop"}, {Group: "shop", EpochMillis: 1}} {
		spec := GroupSpec{Name: "other", Settings: core.Settings{Shard: s}}
		if _, err := o.site.site.CreateGroup(spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("shard %+v: %v", s, err)
		}
	}
	if _, err := o.g.Shard().Deliver(epoch.Gather{}); !errors.Is(err, ErrNoShard) {
		t.Errorf("a message for a copy at a primary: %v", err)
	}
}

// Two groups of a node cannot be one shard: only one of them would ever join.
func TestShardIsThereAlready(t *testing.T) {
	o := newShardOfTwo(t)
	spec := GroupSpec{Name: "again", Settings: o.g.Settings()}
	if _, err := o.site.site.CreateGroup(spec); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "shop-0") {
		t.Fatalf("a second shard 0: %v", err)
	}
	spec.Settings.Shard.ID = 1
	if _, err := o.site.site.CreateGroup(spec); err != nil {
		t.Fatal(err)
	}
}
