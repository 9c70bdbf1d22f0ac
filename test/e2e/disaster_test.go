//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// disaster runs a shop with two databases on two claims of one group at site a, destroys the site under load, promotes
// at site b, makes volumes there from what slipctl prints, and has the shop check its databases.
func (s *suite) disaster(t *testing.T, shown func(string, ...any)) {
	node := s.nodes("a")[0]
	claims := []string{"stock", "sales"}
	s.startShop(t)
	eventually(t, "the shop has orders, and site b sees the lag", func() error {
		if n := strings.Count(s.a.run(t, "-n", namespace, "logs", "shop"), "\n"); n < 100 {
			return fmt.Errorf("%d orders", n)
		}
		g, err := s.a.group(t, node, "shop")
		if err == nil && g.DurableOrdinal == "0" {
			err = errNotYet
		}
		return err
	})
	g, err := s.a.group(t, node, "shop")
	if err != nil {
		t.Fatal(err)
	}
	shown("lag under load %.0f ms", g.LagSeconds*1000)
	// The acknowledged orders up to here; those between this and the end are not known to have been lost or not.
	acks := s.a.run(t, "-n", namespace, "logs", "shop")
	if s.protectedRuns {
		s.protectedOrders = s.a.run(t, "-n", protected, "logs", "shop")
	}
	s.destroyA(t)
	began := time.Now()
	promoted := s.b.outside(t, "group", "promote", "shop", "--force", "--yes")
	t.Logf("promote: %s", promoted)
	shown("site a destroyed under load, group promoted at site b")

	s.b.apply(t, s.b.outside(t, "group", "pvs", "shop", "--storage-class", "shop"))
	s.b.apply(t, pod{name: "check", claims: claims, command: "trap exit TERM; while :; do sleep 1; done"}.manifest())
	s.b.phase(t, "pod", "check", "Running")
	shown("volumes and claims made from what slipctl prints; the pod runs %.0f s after the disaster",
		time.Since(began).Seconds())

	result := s.b.checkShop(t, namespace, "check", acks, "/stock", "/sales", 1)
	if result.Orders == 0 || result.OrdersWithoutStock != 0 {
		t.Errorf("found %+v", result)
	}
	shown("%d orders in the copy, %d without stock movement, %d acknowledged ones lost", result.Orders,
		result.OrdersWithoutStock, result.LostOrders)
	s.b.run(t, "-n", namespace, "delete", "pod", "check")
	s.b.apply(t,
		pod{name: "shop", claims: claims,
			command: "exec shop run --stock /stock --sales /sales --first-id 1000000"}.manifest())
	s.b.phase(t, "pod", "shop", "Running")
	eventually(t, "the shop sells at site b", func() error {
		if n := strings.Count(s.b.run(t, "-n", namespace, "logs", "shop"), "\n"); n < 10 {
			return fmt.Errorf("%d orders", n)
		}
		return nil
	})
	shown("the application sells at site b")
}

// destroyA destroys site a.
func (s *suite) destroyA(t *testing.T) {
	t.Helper()
	s.destroyed = true
	if err := s.destroy(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
}

// startShop starts the shop at site a, unless it runs, and waits until it is replicated.
func (s *suite) startShop(t *testing.T) {
	t.Helper()
	node := s.nodes("a")[0]
	s.a.apply(t, claim("stock", "shop", "Filesystem", "128Mi")+claim("sales", "shop", "Filesystem", "128Mi")+
		pod{name: "shop", claims: []string{"stock", "sales"}, node: node,
			command: "exec shop run --stock /stock --sales /sales"}.manifest())
	s.a.phase(t, "pod", "shop", "Running")
	s.inSync(t, "shop", node)
}
