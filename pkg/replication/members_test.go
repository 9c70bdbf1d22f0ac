package replication

import (
	"errors"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// Adding a volume to a group that takes no writes here is refused before anything is changed: the volume stays usable
// on its own.
func TestAddVolumeToDemotedGroup(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	gb := caughtUp(t, g, b)
	if _, err := g.Demote(); err != nil {
		t.Fatal(err)
	}
	for s, g := range map[*testSite]*Group{a: g, b: gb} {
		rec := s.createVolume("late", 1<<20)
		if err := g.AddVolume(rec, nil); !errors.Is(err, ErrNotPrimary) {
			t.Errorf("%s: %v", s.name, err)
		}
		if rec, err := s.pool.Get("late"); err != nil || rec.Group != "" {
			t.Errorf("%s: the volume's record is %v, %v", s.name, rec, err)
		}
		if _, err := g.Volume("late"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: the volume is a member: %v", s.name, err)
		}
	}
}

// A removed volume keeps everything and works alone; added again it is a new member, here and at the peer.
func TestRemoveAndAddAgain(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 8192, block('x', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	caughtUp(t, g, b)
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatalf("removing again: %v", err)
	}
	image, err := a.pool.OpenImage("v0")
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	if _, err := image.ReadAt(p, 8192); err != nil || p[0] != 'x' {
		t.Fatalf("the image has %q: %v", p[0], err)
	}
	if _, err := image.WriteAt(block('y', 4096), 16384); err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer dropped it", func() bool {
		_, err := b.group("shop").Volume("v0")
		return errors.Is(err, ErrNotFound)
	})
	rec, err := a.pool.Get("v0")
	if err != nil || rec.Group != "" {
		t.Fatalf("the removed volume's record is %v, %v", rec, err)
	}
	if err := g.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.AddVolume(rec, nil); err != nil {
		t.Fatalf("adding again: %v", err)
	}
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('z', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	sameContent(t, g, caughtUp(t, g, b))
	a.restart()
	b.restart()
	sameContent(t, a.group("shop"), caughtUp(t, a.group("shop"), b))
}

// A demotion that is taken back forks a timeline. What is written then reaches the peer under that timeline, on a new
// stream: were it shipped on the old one, the peer's history would look diverged at the next contact.
func TestDemotionTakenBack(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block('a', 4096))
	mustFlush(t, v)
	gb := caughtUp(t, g, b)
	if _, err := g.Demote(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer heard of the demotion", func() bool {
		gb.mu.Lock()
		defer gb.mu.Unlock()
		return gb.core.Heard().Demoted
	})
	if _, err := g.Promote(true); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, v, 4096, block('b', 4096))
	mustFlush(t, v)
	sameContent(t, g, caughtUp(t, g, b))
	if p, s := g.Status(), gb.Status(); p.Timeline != s.Timeline {
		t.Fatalf("the peer has the records of timeline %s and says that it is on %s", p.Timeline, s.Timeline)
	}
	if _, err := gb.Promote(false); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("a planned promotion on a demotion that was taken back: %v", err)
	}
	b.restart()
	mustWrite(t, v, 8192, block('c', 4096))
	mustFlush(t, v)
	sameContent(t, g, caughtUp(t, g, b))
}

// A stale primary's application goes on, also when the replicator is restarted under it; a new one does not begin.
func TestReattachToStalePrimary(t *testing.T) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	if _, err := g.Attach("v0"); err != nil {
		t.Fatal(err)
	}
	gb := caughtUp(t, g, b)
	net.Cut("site-a")
	if _, err := gb.Promote(true); err != nil {
		t.Fatal(err)
	}
	net.Heal("site-a")
	eventually(t, "the old primary knows", func() bool { return g.Status().State == "diverged" })
	a.restart()
	g = a.group("shop")
	if _, err := g.Attach("v0"); !errors.Is(err, ErrNotPrimary) {
		t.Fatalf("a new application at a stale primary: %v", err)
	}
	v, err := g.Reattach("v0")
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, v, 4096, block('b', 4096))
	mustFlush(t, v)
	if _, err := g.Demote(); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("demotion under an application: %v", err)
	}
}

// A member is never larger than a change map can describe, whatever asks for it: nothing is changed, and nothing
// panics.
func TestMemberTooLarge(t *testing.T) {
	_, a, _ := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	if err := g.Resize("v0", core.MaxVolumeBytes+4096); !errors.Is(err, ErrInvalid) {
		t.Errorf("resize: %v", err)
	}
	if size := volumeOf(t, g, "v0").Size(); size != 1<<20 {
		t.Errorf("refused, but the volume has %d bytes", size)
	}
	rec := a.createVolume("huge", core.MaxVolumeBytes+4096)
	if err := g.AddVolume(rec, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("add: %v", err)
	}
	if rec, err := a.pool.Get("huge"); err != nil || rec.Group != "" {
		t.Errorf("refused, but the volume's record is %v, %v", rec, err)
	}
}

// A volume whose addition was interrupted before its content was marked is resized: the peer hears of it only when the
// addition is repeated, and gets the content then.
func TestResizeOfInterruptedAddition(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	caughtUp(t, g, b)
	rec := a.createVolume("late", 1<<20)
	image, err := a.pool.OpenImage("late")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(block('x', 4096), 8192); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(image.Flush(), image.Close()); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	member, err := memberOf(rec, g.core.Meta.NextIndex())
	g.mu.Unlock()
	if err := errors.Join(err, member.Add(), g.members.upsert(member)); err != nil {
		t.Fatal(err)
	}
	if err := g.Resize("late", 2<<20); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	caughtUp(t, g, b)
	if _, err := b.group("shop").Volume("late"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the peer has heard of the volume: %v", err)
	}
	if err := g.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	gb := caughtUp(t, g, b)
	sameContent(t, g, gb)
	if v := volumeOf(t, gb, "late"); v.Size() != 2<<20 {
		t.Errorf("the copy has %d bytes", v.Size())
	}
}
