package replication

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// stream is the one that the group receives on.
func (g *Group) stream() *receiver {
	g.streams.mu.Lock()
	defer g.streams.mu.Unlock()
	return g.streams.incoming
}

// groupRecords are the group records of a site, which say all that is durable about its groups besides data.
func (s *testSite) groupRecords() map[string]string {
	s.t.Helper()
	records := map[string]string{}
	ids, err := s.fs.ReadDir(s.pool.GroupsDir())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, id := range ids {
		data, err := vfs.ReadFile(s.fs, s.pool.GroupsDir()+"/"+id+"/"+core.MetaFile, 1<<30)
		if err != nil {
			s.t.Fatal(err)
		}
		records[id] = string(data)
	}
	return records
}

// A peer of the site that has no part in a group gets the same answer whatever the group is, and changes nothing: no
// stream ends, and no record changes.
func TestStrangerChangesNothing(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a, b := newTestSite(t, net, "a", nil), newTestSite(t, net, "b", nil)
	groups := map[string]*Group{}
	groups["copy"] = caughtUp(t, a.createGroup("copy", "b", 1, 1<<20, nil), b)
	groups["primary"] = b.createGroup("primary", "a", 0, 0, nil)
	groups["alone"] = b.createGroup("alone", "", 0, 0, nil)
	ended := a.createGroup("promoted", "b", 0, 0, nil)
	groups["promoted"] = caughtUp(t, ended, b)
	if _, err := groups["promoted"].Promote(true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old primary of group promoted knows", func() bool { return ended.Status().State == "diverged" })
	broken := caughtUp(t, a.createGroup("broken", "b", 0, 0, nil), b)
	// The other site is silent from here on, but for the stream of group copy.
	for _, name := range []string{"promoted", "broken"} {
		a.group(name).streams.hold()
	}
	for _, name := range []string{"primary", "promoted"} {
		groups[name].streams.hold()
	}
	b.site.mu.Lock()
	b.site.broken[broken.dir] = io.ErrUnexpectedEOF
	delete(b.site.groups, "broken")
	b.site.mu.Unlock()
	t.Cleanup(broken.Kill)
	groups["broken"] = broken

	before := b.groupRecords()
	stream := groups["copy"].stream()
	if stream == nil {
		t.Fatal("there is no stream to end")
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		for what, hello := range map[string]*linkpb.Hello{
			"its id and name": {GroupId: groups[name].ID(), GroupName: name},
			"its id":          {GroupId: groups[name].ID(), GroupName: "other"},
			"its name":        {GroupId: uuid.NewString(), GroupName: name},
		} {
			if what == "its name" && name == "broken" {
				continue // a group that cannot be opened has none
			}
			hello.ProtocolVersion, hello.Term, hello.DurableOrdinal = protocolVersion, 99, 1<<40
			hello.JournalSizeBytes = MinJournalBytes
			hello.Timelines = []*linkpb.Timeline{{Id: groups[name].core.Meta.Timeline()}}
			answer, err := call(t, net, "c", "b", hello)
			want := &linkpb.ToPrimary{Message: &linkpb.ToPrimary_Refusal{Refusal: link.RefuseForeign("b", "c", hello)}}
			if err != io.EOF || cmp.Diff(want, answer, protocmp.Transform()) != "" {
				t.Errorf("%s of group %s: the stream ended with %v, answer (-want +got):\n%s", what, name, err,
					cmp.Diff(want, answer, protocmp.Transform()))
			}
			// What is wrong with the call itself is said first, as for a group that does not exist.
			bad := proto.CloneOf(hello)
			bad.JournalSizeBytes = -1
			if answer, _ := call(t, net, "c", "b", bad); !strings.Contains(answer.GetRefusal().GetMessage(), "journal size -1") {
				t.Errorf("%s of group %s, with a wrong size: %v", what, name, answer)
			}
		}
	}
	if groups["copy"].stream() != stream {
		t.Error("a stranger ended the stream of the group's peer")
	}
	if diff := cmp.Diff(before, b.groupRecords()); diff != "" {
		t.Errorf("a stranger changed groups (-before +after):\n%s", diff)
	}

	// The group's own peer is told what is wrong.
	answer, err := call(t, net, "a", "b", &linkpb.Hello{ProtocolVersion: protocolVersion, GroupId: broken.ID(),
		GroupName: "broken"})
	if err != io.EOF || !strings.Contains(answer.GetRefusal().GetMessage(), "cannot be opened") {
		t.Errorf("the peer of a broken group hears %v, %v", answer, err)
	}
	answer, err = call(t, net, "a", "b", &linkpb.Hello{ProtocolVersion: protocolVersion, GroupId: uuid.NewString(),
		GroupName: "primary"})
	if err != io.EOF || !strings.Contains(answer.GetRefusal().GetMessage(), "is another one ("+groups["primary"].ID()) {
		t.Errorf("the peer of another group of the name hears %v, %v", answer, err)
	}
}

// A stranger that was the group's peer when its call began is turned away before it ends anything.
func TestPeerChangesDuringACall(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	s := newTestSite(t, net, "b", nil)
	g := s.createGroup("g", "a", 0, 0, nil)
	r := &receiver{g: g, cancel: func() { t.Error("the stream of the group's peer was ended") }, done: make(chan struct{})}
	g.streams.incoming = r
	_, peer, cut := link.Pipe() // of a site without a name
	defer cut()
	if err := g.receive(peer, &linkpb.Hello{}); err == nil || !strings.Contains(err.Error(), errForeign.Error()) {
		t.Errorf("a stranger is served: %v", err)
	}
	g.streams.incoming = nil
}

// TestLocateForAPeer: the gateway learns of a group what its peer may know.
func TestLocateForAPeer(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	b := newTestSite(t, net, "b", nil)
	g := b.createGroup("g", "a", 0, 0, nil)
	for _, tc := range []struct {
		peer, id, name string
		holds, foreign bool
		other          string
	}{
		{peer: "a", id: g.ID(), name: "g", holds: true},
		{peer: "a", id: uuid.NewString(), name: "g", other: g.ID()},
		{peer: "a", id: uuid.NewString(), name: "new"},
		{peer: "c", id: g.ID(), name: "g", foreign: true},
		{peer: "c", id: uuid.NewString(), name: "g", foreign: true},
		{peer: "c", id: uuid.NewString(), name: "new"},
		{id: g.ID(), name: "g", holds: true}, // an older gateway
	} {
		r, err := b.site.Locate(&linkpb.LocateRequest{GroupId: tc.id, GroupName: tc.name, Peer: tc.peer})
		if err != nil || r.Holds != tc.holds || r.Foreign != tc.foreign || r.OtherGroupId != tc.other {
			t.Errorf("for %q: %v, %v; want %+v", tc.peer, r, err, tc)
		}
	}
}
