package replication

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// forkAgain promotes the secondary, has both sites write, and lets the promoted site give way: one more tail there.
func forkAgain(t *testing.T, net *link.Network, rng *rand.Rand, primary, secondary *testSite) {
	t.Helper()
	net.Cut("site-a")
	eventually(t, "the link is cut", func() bool { return !primary.group("shop").Status().Connected })
	if _, err := secondary.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	writeSome(t, secondary.group("shop"), rng, 5)
	writeSome(t, primary.group("shop"), rng, 5)
	net.Heal("site-a")
	awaitFork(t, secondary)
	mustYield(t, secondary)
	caughtUp(t, primary.group("shop"), secondary)
}

func tailIDs(t *testing.T, s *testSite) (ids []string) {
	t.Helper()
	for _, tail := range tailsOf(t, s) {
		ids = append(ids, tail.ID)
	}
	return ids
}

// awaitTails waits until the tails of a site are those, and demands that it stays so.
func awaitTails(t *testing.T, s *testSite, what string, want []string) {
	t.Helper()
	eventually(t, what, func() bool { return slices.Equal(tailIDs(t, s), want) })
	if err := s.group("shop").tailPolicy.apply(); err != nil {
		t.Fatal(err)
	}
	if got := tailIDs(t, s); !slices.Equal(got, want) {
		t.Fatalf("%s: %v instead of %v", what, got, want)
	}
}

// A site deletes the tails that its own settings do not keep, by number and by age: at once when they are set, when one
// more is made, and after a restart, also in the middle of a deletion. The newest stays.
func TestTailPolicy(t *testing.T) {
	rng := seeded(t)
	net, a, b, _ := forkedPair(t, rng, true)
	var ahead atomic.Int64
	a.conf = func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } }
	mustYield(t, a)
	caughtUp(t, b.group("shop"), a)
	a.restart() // with that clock
	caughtUp(t, b.group("shop"), a)
	for range 3 {
		forkAgain(t, net, rng, b, a)
	}
	all := tailIDs(t, a) // the newest first
	if len(all) != 4 {
		t.Fatalf("tails %v", all)
	}
	set := func(change Change) {
		if err := a.group("shop").Modify(change); err != nil {
			t.Fatal(err)
		}
	}
	set(func(s *core.Settings) { s.TailsMost = 3 })
	awaitTails(t, a, "three are kept", all[:3])
	if st := b.group("shop").Status(); st.TailsMost != 0 {
		t.Errorf("the other site keeps %d", st.TailsMost)
	}

	// A crash between the two snapshots of a deletion.
	second := tailsOf(t, a)[2].Snapshots[1].ID
	a.fails = func(op vfs.Op, name string) error {
		if strings.Contains(name, second) && (op == vfs.OpRemove || op == vfs.OpRename) {
			return errors.New("not yet")
		}
		return nil
	}
	a.restart()
	caughtUp(t, b.group("shop"), a)
	set(func(s *core.Settings) { s.TailsMost = 2 })
	eventually(t, "one of two snapshots is deleted", func() bool {
		list := tailsOf(t, a)
		return len(list) == 3 && len(list[2].Snapshots) == 1
	})
	a.fails = nil
	a.crash(0, rng)
	awaitTails(t, a, "the rest is deleted after the crash", all[:2])

	// One more takes the place of the oldest.
	caughtUp(t, b.group("shop"), a)
	forkAgain(t, net, rng, b, a)
	now := tailIDs(t, a)
	awaitTails(t, a, "two are kept", []string{now[0], all[0]})

	// By age: the newest stays, however old it is.
	set(func(s *core.Settings) { s.TailsMost, s.TailsMillis = 0, time.Hour.Milliseconds() })
	awaitTails(t, a, "none is old", []string{now[0], all[0]})
	ahead.Store(int64(2 * time.Hour))
	if err := a.group("shop").tailPolicy.apply(); err != nil {
		t.Fatal(err)
	}
	awaitTails(t, a, "the newest is kept", now[:1])

	// Asked for, it goes.
	if err := a.site.DeleteTail(now[0]); err != nil {
		t.Fatal(err)
	}
	if left := tailIDs(t, a); len(left) != 0 {
		t.Errorf("tails %v", left)
	}
	for _, wrong := range []int64{-1, core.MaxTailsMillis + 1} {
		if err := a.group("shop").Modify(func(s *core.Settings) { s.TailsMillis = wrong }); err == nil {
			t.Errorf("tails are kept for %d ms", wrong)
		}
	}
}
