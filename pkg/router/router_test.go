package router

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestCreateAndDelete(t *testing.T) {
	c := newCluster(t, "a", "b", "c")
	r, ctx := c.router(), testContext(t)

	// Where the topology says, the preferred node first.
	for _, node := range []string{"a", "b", "c"} {
		if _, at := r.create(t, createReq("on-"+node, on(node), nil)); at != node {
			t.Errorf("a volume for node %s is on %s", node, at)
		}
	}
	where := on("a", "b", "c")
	where.Preferred = []*csi.Topology{segment("c"), segment("a")}
	if _, at := r.create(t, createReq("preferred", where, nil)); at != "c" {
		t.Errorf("a volume that prefers c is on %s", at)
	}

	// The same name is the same volume, for another router too, and wherever the request would put a new one.
	id, at := r.create(t, createReq("twice", nil, nil))
	other := c.router()
	for range 3 {
		if again, where := other.create(t, createReq("twice", nil, nil)); again != id || where != at {
			t.Errorf("the same name again: %s on %s, want %s on %s", again, where, id, at)
		}
	}
	elsewhere := slices.DeleteFunc([]string{"a", "b", "c"}, func(n string) bool { return n == at })
	_, err := r.CreateVolume(ctx, createReq("twice", on(elsewhere...), nil))
	wantCode(t, "a name that is on another node", err, codes.ResourceExhausted)
	if !strings.Contains(status.Convert(err).Message(), "node "+at) {
		t.Errorf("the error does not say where it is: %v", err)
	}
	larger := createReq("twice", nil, nil)
	larger.CapacityRange.RequiredBytes = 1 << 30
	_, err = r.CreateVolume(ctx, larger)
	wantCode(t, "a name with another size", err, codes.AlreadyExists)

	for what, req := range map[string]*csi.CreateVolumeRequest{
		"no name":           createReq("", nil, nil),
		"unknown parameter": createReq("x", nil, map[string]string{"slipstream.dev/remot": "b"}),
		"no capability":     {Name: "x"},
	} {
		_, err := r.CreateVolume(ctx, req)
		wantCode(t, what, err, codes.InvalidArgument)
	}
	_, err = r.CreateVolume(ctx, createReq("nowhere", on("x"), nil))
	wantCode(t, "a node that is not there", err, codes.ResourceExhausted)
	huge := createReq("huge", nil, nil)
	huge.CapacityRange.RequiredBytes = 1 << 60
	_, err = r.CreateVolume(ctx, huge)
	wantCode(t, "too large for any node", err, codes.ResourceExhausted)

	for range 2 {
		if _, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	_, err = r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{})
	wantCode(t, "delete without id", err, codes.InvalidArgument)
	_, err = r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
	wantCode(t, "get what is deleted", err, codes.NotFound)
	if on := c.onDisk()["twice"]; len(on) != 0 {
		t.Errorf("after deletion it is still on %v", on)
	}
}

func TestConsistencyGroup(t *testing.T) {
	c := newCluster(t, "a", "b", "c")
	r, ctx := c.router(), testContext(t)
	shop := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "16Mi"}
	_, at := r.create(t, createReq("one", on("b"), shop))
	if at != "b" {
		t.Fatalf("the first member is on %s", at)
	}
	for _, name := range []string{"two", "three", "four"} {
		if _, at := r.create(t, createReq(name, nil, shop)); at != "b" {
			t.Errorf("member %s is on %s, the group on b", name, at)
		}
	}
	_, err := r.CreateVolume(ctx, createReq("five", on("a", "c"), shop))
	wantCode(t, "a member for other nodes", err, codes.ResourceExhausted)
	m := status.Convert(err).Message()
	for what, want := range map[string]string{"where the group is": "consistency group shop is on node b",
		"how claims on several nodes are one group": "label the namespace with slipstream.dev/replicate-to="} {
		if !strings.Contains(m, want) {
			t.Errorf("the error does not say %s: %s", what, m)
		}
	}
	advised := map[string]string{parameter.KeyReplicable: "true"}
	if _, at := r.create(t, createReq("five", on("a", "c"), advised)); at == "b" {
		t.Error("the volume of a class without a group, which the error advises, is on node b")
	}

	// A VolumeAttributesClass names a group as well as a StorageClass does, and takes a volume out of the class's.
	for _, name := range []string{"six", "seven", "eight"} {
		req := createReq(name, nil, map[string]string{parameter.KeyReplicable: "true"})
		req.MutableParameters = shop
		if _, at := r.create(t, req); at != "b" {
			t.Errorf("member %s, by its VolumeAttributesClass, is on %s, the group on b", name, at)
		}
	}
	first := createReq("attributes", on("c"), map[string]string{parameter.KeyConsistencyGroup: "shop",
		parameter.KeyJournalSize: "16Mi"})
	first.MutableParameters = map[string]string{parameter.KeyConsistencyGroup: "yard"}
	if _, at := r.create(t, first); at != "c" {
		t.Errorf("the first of a group, by its VolumeAttributesClass, is on %s", at)
	}
	if _, at := r.create(t, createReq("yard-2", nil,
		map[string]string{parameter.KeyConsistencyGroup: "yard"})); at != "c" {
		t.Errorf("the second is on %s", at)
	}
	out := createReq("out", on("a"), shop)
	out.MutableParameters = map[string]string{parameter.KeyReplication: parameter.ReplicationOff}
	if _, at := r.create(t, out); at != "a" {
		t.Errorf("a volume that is kept out of the group is on %s", at)
	}

	// Many first members at once are in one group on one node.
	park := map[string]string{parameter.KeyConsistencyGroup: "park", parameter.KeyJournalSize: "16Mi"}
	nodes := make(chan string, 8)
	for i := range cap(nodes) {
		go func() {
			name := "park-" + string(rune('a'+i))
			for {
				response, err := r.CreateVolume(ctx, createReq(name, nil, park))
				if status.Code(err) == codes.Aborted {
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
					nodes <- ""
					return
				}
				nodes <- response.GetVolume().GetAccessibleTopology()[0].GetSegments()[plugin.TopologyKey]
				return
			}
		}()
	}
	at = <-nodes
	for range cap(nodes) - 1 {
		if other := <-nodes; other != at {
			t.Errorf("members of one group are on %s and %s", at, other)
		}
	}
}

func TestSilentNode(t *testing.T) {
	c := newCluster(t, "a", "b", "c")
	r, ctx := c.router(), testContext(t)
	r.connected(t, "a", "b", "c")
	onC, _ := r.create(t, createReq("on-c", on("c"), nil))
	onA, _ := r.create(t, createReq("on-a", on("a"), nil))
	c.nodes["c"].kill()

	// What is found, or cannot be on c, goes on.
	if _, err := r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: onA}); err != nil {
		t.Errorf("a volume on a node that answers: %v", err)
	}
	if _, at := r.create(t, createReq("new-a", on("a"), nil)); at != "a" {
		t.Errorf("a volume for a is on %s", at)
	}
	// What may be on c waits.
	group := map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyJournalSize: "16Mi"}
	for what, call := range map[string]func() error{
		"delete": func() error {
			_, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: onC})
			return err
		},
		"get": func() error {
			_, err := r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: onC})
			return err
		},
		"create on c": func() error {
			_, err := r.CreateVolume(ctx, createReq("new-c", on("a", "c"),
				nil))
			return err
		},
		"create in a group": func() error { _, err := r.CreateVolume(ctx, createReq("new-g", on("a"), group)); return err },
		"list":              func() error { _, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{}); return err },
		"capacity of c": func() error {
			_, err := r.GetCapacity(ctx, &csi.GetCapacityRequest{AccessibleTopology: segment("c")})
			return err
		},
	} {
		err := call()
		wantCode(t, what, err, codes.Unavailable)
		if !strings.Contains(status.Convert(err).Message(), "node c") {
			t.Errorf("%s: the error does not name the node: %v", what, err)
		}
	}

	// A router that was told that c is gone for good does not wait.
	retired := c.router("c")
	for _, id := range []string{onC, onA} {
		if _, err := retired.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Errorf("delete %s with c retired: %v", id, err)
		}
	}
	if _, at := retired.create(t, createReq("new-g", on("a"), group)); at != "a" {
		t.Errorf("a volume of a group is on %s", at)
	}
	if _, err := retired.ListVolumes(ctx, &csi.ListVolumesRequest{}); err != nil {
		t.Errorf("list with c retired: %v", err)
	}
	_, err := retired.CreateVolume(ctx, createReq("on-retired", on("c"), nil))
	wantCode(t, "a new volume on a retired node", err, codes.ResourceExhausted)

	// It was not gone after all: what it has is there again, and can be deleted.
	c.nodes["c"].start()
	r.connected(t, "c")
	retired.connected(t, "c")
	if _, err := r.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: onC}); err != nil {
		t.Errorf("a volume of a node that is back: %v", err)
	}
	if _, err := retired.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: onC}); err != nil {
		t.Error(err)
	}
	if on := c.onDisk()["on-c"]; len(on) != 0 {
		t.Errorf("deleted, but on %v", on)
	}
}

func TestListsAndCapacity(t *testing.T) {
	c := newCluster(t, "a", "b", "c")
	r, ctx := c.router(), testContext(t)
	want := map[string]bool{}
	for i := range 10 {
		id, _ := r.create(t, createReq("v-"+string(rune('a'+i)), on([]string{"a", "b", "c"}[i%3]), nil))
		want[id] = true
	}
	for _, limit := range []int32{0, 1, 3, 4, 10, 11} {
		var got []string
		token := ""
		for pages := 0; ; pages++ {
			// Another router goes on where this one was.
			response, err := []*testRouter{r, c.router()}[pages%2].ListVolumes(ctx,
				&csi.ListVolumesRequest{MaxEntries: limit, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(response.GetEntries()); limit > 0 && n > int(limit) {
				t.Errorf("a page of %d, limit %d", n, limit)
			}
			for _, e := range response.GetEntries() {
				got = append(got, e.GetVolume().GetVolumeId())
			}
			if token = response.GetNextToken(); token == "" {
				break
			}
		}
		if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(want) || len(got) != len(want) {
			t.Errorf("limit %d: got %v", limit, got)
		}
		for _, id := range got {
			if !want[id] {
				t.Errorf("limit %d: %s is not one of ours", limit, id)
			}
		}
	}
	_, err := r.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: "nonsense"})
	wantCode(t, "a token of another list", err, codes.Aborted)
	_, err = r.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, "a negative limit", err, codes.InvalidArgument)

	capacity := func(node string) *csi.GetCapacityResponse {
		req := &csi.GetCapacityRequest{}
		if node != "" {
			req.AccessibleTopology = segment(node)
		}
		response, err := r.GetCapacity(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	one, all := capacity("a"), capacity("")
	if one.GetAvailableCapacity() <= 0 || one.GetMaximumVolumeSize().GetValue() > one.GetAvailableCapacity() {
		t.Errorf("of a: %v", one)
	}
	if all.GetAvailableCapacity() <= one.GetAvailableCapacity() ||
		all.GetMaximumVolumeSize().GetValue() >= all.GetAvailableCapacity() {
		t.Errorf("of all %v, of one %v", all, one)
	}
	if none := capacity("x"); none.GetAvailableCapacity() != 0 {
		t.Errorf("of no node: %v", none)
	}
}

// Volumes that two nodes hold under one name, however that came, are reported and not guessed about.
func TestNameOnTwoNodes(t *testing.T) {
	c := newCluster(t, "a", "b")
	ctx := testContext(t)
	for _, node := range []string{"a", "b"} {
		c.routerOver(nodes.Static{node: c.nodes[node].address}).create(t, createReq("double", nil, nil))
	}
	r := c.router()
	_, err := r.CreateVolume(ctx, createReq("double", nil, nil))
	wantCode(t, "a name on two nodes", err, codes.FailedPrecondition)
	for _, place := range c.onDisk()["double"] {
		node, id, _ := strings.Cut(place, "/")
		if m := status.Convert(err).Message(); !strings.Contains(m, id+" on node "+node) {
			t.Errorf("the error does not name %s: %s", place, m)
		}
	}
}

// An address that leads to another node's driver must not say that the node holds nothing.
func TestAddressOfAnotherNode(t *testing.T) {
	c := newCluster(t, "a", "b")
	ctx := testContext(t)
	onA, _ := c.router().create(t, createReq("on-a", on("a"), nil))
	r := c.routerOver(nodes.Static{"a": c.nodes["b"].address, "b": c.nodes["b"].address})
	_, err := r.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: onA})
	wantCode(t, "a node at another's address", err, codes.Unavailable)
	if m := status.Convert(err).Message(); !strings.Contains(m, "is node b") {
		t.Error(m)
	}
}

func TestCertificates(t *testing.T) {
	c := newCluster(t, "a")
	ctx := testContext(t)
	c.router().create(t, createReq("first", nil, nil)) // with the right ones
	for what, tc := range map[string]struct {
		name     string
		validFor time.Duration
		stranger bool
		message  string
	}{
		"of a node":            {name: "node.csi.slipstream.dev", validFor: day, message: "bad certificate"},
		"of a site":            {name: "site-b", validFor: day, message: "bad certificate"},
		"expired":              {name: "controller.csi.slipstream.dev", validFor: time.Nanosecond, message: "expired"},
		"of another authority": {name: "controller.csi.slipstream.dev", validFor: day, stranger: true, message: "authority"},
	} {
		t.Run(what, func(t *testing.T) {
			authority := c.authority
			if tc.stranger {
				authority = newCluster(t).authority
			}
			if err := authority.IssueSite(c.dir+"/controller-tls", tc.name, nil, tc.validFor); err != nil {
				t.Fatal(err)
			}
			r := c.router()
			// A TLS 1.3 client learns that it was refused from what it reads, and may have failed to write before: then the
			// reason comes with one of the next calls.
			waitFor(t, "an error that says "+tc.message, func() bool {
				_, err := r.CreateVolume(ctx, createReq("second", nil, nil))
				wantCode(t, what, err, codes.Unavailable)
				m := status.Convert(err).Message()
				return t.Failed() || strings.Contains(m, tc.message) && strings.Contains(m, "node a")
			})
		})
	}
}
