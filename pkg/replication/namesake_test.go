package replication

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// A group is deleted after its volumes have left, and made again under its name. What is left of it at the peer makes
// way, and the volumes are copied again.
func TestGroupMadeAgain(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	old := caughtUp(t, g, b).ID()
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	// At once: the deletion waits until the peer has heard of the departure.
	if err := a.site.DeleteGroup("shop", false); err != nil {
		t.Fatal(err)
	}
	if n := len(b.group("shop").Volumes()); n != 0 {
		t.Fatalf("the copy of the deleted group has %d volumes", n)
	}
	again := a.createGroup("shop", "site-b", 0, 0, nil)
	located, err := b.site.Locate(&linkpb.LocateRequest{GroupId: again.ID(), GroupName: "shop", Peer: "site-a"})
	if err != nil || !located.Holds {
		t.Fatalf("the node with the empty copy is not chosen for the new group: %v, %v", located, err)
	}
	rec, err := a.pool.Get("v0")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, volumeOf(t, again, "v0"), 4096, block('b', 4096))
	mustFlush(t, volumeOf(t, again, "v0"))
	eventually(t, "the new group is at the peer", func() bool {
		g, err := b.site.Group("shop")
		return err == nil && g.ID() == again.ID()
	})
	if old == again.ID() {
		t.Fatal("the new group has the identifier of the old one")
	}
	sameContent(t, again, caughtUp(t, again, b))
	b.restart()
	sameContent(t, again, caughtUp(t, again, b))
}

// A group is deleted while the peer is away, so the peer does not hear that the volumes left. Its copy may be the last
// good one: another group with the name does not take its place.
func TestNamesakeKeepsACopy(t *testing.T) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	kept := caughtUp(t, g, b)
	net.Cut("site-a")
	eventually(t, "the cut is seen", func() bool { return !g.Status().Connected })
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	if err := a.site.DeleteGroup("shop", false); err != nil {
		t.Fatal(err)
	}
	again := a.createGroup("shop", "site-b", 0, 0, nil)
	net.Heal("site-a")
	eventually(t, "the new group is refused", func() bool {
		return strings.Contains(again.Status().StateReason, "is another one")
	})
	if got := b.group("shop"); got != kept || len(got.Volumes()) != 1 {
		t.Fatal("the copy of the deleted group is gone")
	}
}
