package gateway

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

func has(node string) answer { return room(node, 100, 100, &linkpb.LocateResponse{Holds: true}) }
func nothing(node string) answer {
	return room(node, 100, 100, &linkpb.LocateResponse{})
}
func silent(node string) answer {
	return answer{node: link.Node{Name: node}, err: errors.New("node " + node + ": no route to host")}
}
func room(node string, total, free int64, r *linkpb.LocateResponse) answer {
	r.TotalBytes, r.FreeBytes, r.JournalFreeBytes = total, free, free
	return answer{node: link.Node{Name: node, Address: node + ":1"}, response: r}
}

func TestDecide(t *testing.T) {
	const failed, foreign = linkpb.Refusal_REASON_FAILED, linkpb.Refusal_REASON_FOREIGN_GROUP
	other := nothing("b")
	other.response.OtherGroupId = "another"
	stranger := nothing("b")
	stranger.response.Foreign = true
	for what, tc := range map[string]struct {
		answers []answer
		retired string
		node    string // of the decision, or
		reason  linkpb.Refusal_Reason
		want    string
	}{
		"one has it":                      {answers: []answer{nothing("a"), has("b")}, node: "b"},
		"one has it, the other is silent": {answers: []answer{silent("a"), has("b")}, node: "b"},
		"one has it, another its name":    {answers: []answer{has("a"), other}, node: "a"},
		"one has it that is retired":      {answers: []answer{has("a"), nothing("b")}, retired: "a", node: "a"},
		"two have it":                     {answers: []answer{has("a"), has("b")}, reason: failed, want: "nodes a, b"},
		"a silent one may have it": {answers: []answer{nothing("a"), silent("b")}, reason: failed,
			want: "may be on b: node b: no route to host"},
		"several silent ones": {answers: []answer{silent("a"), silent("b")}, reason: failed,
			want: "may be on a, b"},
		"a retired one is silent":          {answers: []answer{nothing("a"), silent("b")}, retired: "b", node: "a"},
		"a retired one is there and empty": {answers: []answer{nothing("a"), nothing("b")}, retired: "b", node: "a"},
		"all are retired": {answers: []answer{silent("a")}, retired: "a", reason: failed,
			want: "no node has room"},
		"no nodes": {reason: failed, want: "no nodes"},
		"the name is taken": {answers: []answer{nothing("a"), other}, reason: foreign,
			want: "on node b of site site-b is another one (another)"},
		"the name is taken on a silent one, which is asked first": {answers: []answer{silent("a"), other}, reason: failed,
			want: "may be on a"},
		"it is another peer's": {answers: []answer{nothing("a"), stranger}, reason: foreign,
			want: "not the caller's"},
		"it is another peer's, and the caller's has it": {answers: []answer{has("a"), stranger}, node: "a"},
		"it is another peer's, and another is silent": {answers: []answer{silent("a"), stranger}, reason: failed,
			want: "may be on a"},
		"no room": {answers: []answer{room("a", 100, 9, &linkpb.LocateResponse{})}, reason: failed,
			want: "10 bytes: a were asked"},
		"room on one": {answers: []answer{room("a", 1000, 9, &linkpb.LocateResponse{}),
			room("b", 20, 10, &linkpb.LocateResponse{})}, node: "b"},
		"no room, has it": {answers: []answer{room("a", 100, 0, &linkpb.LocateResponse{Holds: true})}, node: "a"},
	} {
		g := New(Options{Site: "site-b", Retired: []string{tc.retired}})
		node, err := g.decide(&linkpb.Hello{GroupId: "id", GroupName: "shop", JournalSizeBytes: 10}, tc.answers)
		var refused *refusal
		switch {
		case tc.node != "" && (err != nil || node.Name != tc.node):
			t.Errorf("%s: node %v, %v; want %s", what, node, err, tc.node)
		case tc.node == "" && (!errors.As(err, &refused) || refused.reason != tc.reason ||
			!strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "site-b")):
			t.Errorf("%s: node %v, error %v; want %v with %q", what, node, err, tc.reason, tc.want)
		}
	}
}

// TestPlace: groups are spread in proportion to the pools' sizes, whichever node is asked first, and hardly move when
// a node is added.
func TestPlace(t *testing.T) {
	sizes := map[string]int64{"a": 1 << 40, "b": 1 << 40, "c": 3 << 40, "empty": 0}
	var nodes []answer
	for name, size := range sizes { // in any order
		nodes = append(nodes, room(name, size, 1<<40, &linkpb.LocateResponse{}))
	}
	const groups = 20000
	count := map[string]int{}
	moved := 0
	for i := range groups {
		hello := &linkpb.Hello{GroupId: fmt.Sprintf("%032x", i)}
		n, ok := place(hello, nodes)
		if !ok {
			t.Fatal("no node")
		}
		count[n.Name]++
		nodes[0], nodes[3] = nodes[3], nodes[0]
		if again, _ := place(hello, nodes); again != n {
			t.Fatalf("group %d is on %s or %s, by the order of the question", i, n.Name, again.Name)
		}
		if more, _ := place(hello, append(nodes[:len(nodes):len(nodes)],
			room("d", 5<<40, 1<<40, &linkpb.LocateResponse{}))); more != n {
			moved++
			if more.Name != "d" {
				t.Fatalf("group %d goes from %s to %s when d comes", i, n.Name, more.Name)
			}
		}
	}
	for name, share := range map[string]float64{"a": 0.2, "b": 0.2, "c": 0.6, "empty": 0} {
		if got := float64(count[name]) / groups; math.Abs(got-share) > 0.015 {
			t.Errorf("%s has a share of %.3f, want %.1f", name, got, share)
		}
	}
	if got := float64(moved) / groups; math.Abs(got-0.5) > 0.015 {
		t.Errorf("%.3f would go to a node with half of all space", got)
	}
	if n, ok := place(&linkpb.Hello{}, nil); ok {
		t.Errorf("%v of nothing", n)
	}
}

// The gateway's tests can fail: one that forgets about silent nodes is caught.
func TestFaultIsCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the gateway with a deliberate fault")
	}
	testenv.Catches(t, bug.IgnoreSilent, "TestDecide")
}
