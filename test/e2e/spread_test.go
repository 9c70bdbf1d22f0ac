//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// spread is the namespace of a shop whose databases are on two nodes of site a.
const spread = "spread"

// inSpread moves a manifest of this package into that namespace.
func inSpread(manifest string) string {
	return strings.ReplaceAll(manifest, "namespace: "+namespace, "namespace: "+spread)
}

// shopOnTwoNodes has the operator make one group of claims on two nodes, of the stock and of the sales of a shop. The
// node of the stock is cut off from site b while the shop sells on, then the site is destroyed. More sales than stock
// have arrived at site b. The group shows none of those sales there, since the movements that caused them are missing.
// Programs built with the fault of SLIPSTREAM_E2E_FAULT have to show them: otherwise this step could not fail.
func (s *suite) shopOnTwoNodes(t *testing.T, shown func(string, ...any)) {
	nodes := s.nodes("a")
	if !central() || len(nodes) < 2 {
		t.Skip("the operator needs controller.mode controller, and the shop two nodes")
	}
	if s.destroyed {
		s.startAgain(t, shown)
	}
	for _, c := range []cluster{s.a, s.b} {
		c.ready(t, system, "app.kubernetes.io/component=operator")
	}
	s.introduce(t)
	stock, sales := nodes[len(nodes)-1], nodes[0]
	s.spreadShop(t, stock, sales)

	s.a.run(t, "label", "namespace", spread, "slipstream.dev/replicate-to=site-b")
	s.a.replicates(t, spread, 2)
	s.a.condition(t, spread, "WriteOrder", "True")
	s.oneGroup(t, stock, sales)
	for _, name := range []string{"stock", "sales"} {
		s.b.waits(t, spread, name)
	}
	shown("two claims on two nodes are one group with one order of writes, after a namespace was labelled under load")

	s.a.sells(t, 100)
	s.a.onNode(t, stock, "ip", "route", "add", "blackhole", s.address(s.nodes("b")[0])+"/32")
	before := s.a.sold(t)
	s.a.sells(t, before+300)
	acks := s.a.run(t, "-n", spread, "logs", "sales")
	s.destroyA(t)
	action := s.failOver(t, spread, "failover", func() {})
	shown("the node of the stock cut off from site b for at least %d orders, then site a destroyed under load; failed "+
		"over by a GroupAction: RTO %s, loss: %s", strings.Count(acks, "\n")-before,
		field(action.Status, "result", "rto"), field(action.Status, "result", "loss", "text"))

	s.b.apply(t, inSpread(pod{name: "check", claims: []string{"stock", "sales"},
		command: "trap exit TERM; while :; do sleep 1; done"}.manifest()))
	s.b.podRuns(t, spread, "check")
	result, err := s.b.findShop(spread, "check", acks, "/stock", "/sales", 1)
	found := fmt.Sprintf("%d orders at site b, %d without stock movement, %d movements without order, %d acknowledged "+
		"orders lost", result.Orders, result.OrdersWithoutStock, result.MovementsWithoutOrder, result.LostOrders)
	if fault := os.Getenv("SLIPSTREAM_E2E_FAULT"); fault != "" {
		if result.OrdersWithoutStock == 0 {
			t.Fatalf("with the fault %s no order is without its stock movement: %s; %v", fault, found, err)
		}
		shown("with the fault %s, as it has to be: %s", fault, found)
		return
	}
	if err != nil || result.Orders == 0 {
		t.Fatalf("%s; %v", found, err)
	}
	shown("%s", found)
}

// spreadShop starts the stock of the shop on one node and its sales on another one.
func (s *suite) spreadShop(t *testing.T, stock, sales string) {
	t.Helper()
	const port = 8090
	s.a.apply(t, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: "+spread+"}\n"+
		inSpread(claim("stock", "replicable", "Filesystem", "128Mi")+
			claim("sales", "replicable", "Filesystem", "128Mi")+
			pod{name: "stock", claims: []string{"stock"}, node: stock,
				command: fmt.Sprintf("exec shop stock --stock /stock --listen :%d", port)}.manifest()))
	s.a.podRuns(t, spread, "stock")
	ip := field(s.a.get(t, "-n", spread, "pod", "stock").Status, "podIP")
	s.a.apply(t, inSpread(pod{name: "sales", claims: []string{"sales"}, node: sales,
		command: fmt.Sprintf("until nc -w 1 %[1]s %[2]d < /dev/null; do sleep 0.2; done; "+
			"exec shop run --stock-at %[1]s:%[2]d --sales /sales", ip, port)}.manifest()))
	s.a.podRuns(t, spread, "sales")
	s.a.sells(t, 10)
}

// sold is how many orders the shop on two nodes has acknowledged.
func (c cluster) sold(t *testing.T) int {
	t.Helper()
	return strings.Count(c.run(t, "-n", spread, "logs", "sales"), "\n")
}

// sells waits until the shop on two nodes has acknowledged so many orders.
func (c cluster) sells(t *testing.T, orders int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the shop on two nodes has %d orders", orders), func() error {
		if n := c.sold(t); n < orders {
			return fmt.Errorf("%d orders", n)
		}
		return nil
	})
}

// oneGroup looks whether the group of the shop on two nodes has a shard on each.
func (s *suite) oneGroup(t *testing.T, nodes ...string) {
	t.Helper()
	status := s.a.get(t, "-n", spread, "cg", spread).Status
	groups, _ := status["engineGroups"].([]any)
	shards, _ := status["shards"].(map[string]any)
	numbers, _ := shards["numbers"].([]any)
	on := map[string]bool{}
	for _, g := range groups {
		if m, ok := g.(map[string]any); ok {
			on[field(m, "node")] = true
		}
	}
	if len(groups) != len(nodes) || len(numbers) != len(nodes) || len(on) != len(nodes) {
		t.Errorf("the group has %v at the engine, and shards %v", groups, shards)
	}
}
