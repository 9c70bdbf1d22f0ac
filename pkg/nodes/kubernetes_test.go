package nodes

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	fcache "k8s.io/client-go/tools/cache/testing"

	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

func kubeNode(name, id string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{plugin.TopologyKey: id}}}
}

func slice(name string, ports map[string]int32, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "slipstream", Name: name},
		Endpoints: endpoints}
	for port, number := range ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &port, Port: &number})
	}
	return s
}

func endpoint(node, address string, ready, terminating bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{NodeName: &node, Addresses: []string{address},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Terminating: &terminating}}
}

func TestAddresses(t *testing.T) {
	csi := map[string]int32{"csi": 9600}
	for what, tc := range map[string]struct {
		slices []*discoveryv1.EndpointSlice
		nodes  []*corev1.Node
		want   map[string]string
	}{
		"none": {want: map[string]string{}},
		"a pod for each node": {
			slices: []*discoveryv1.EndpointSlice{slice("1", csi, endpoint("a", "10.0.0.1", true, false)),
				slice("2", csi, endpoint("b", "10.0.0.2", true, false))},
			nodes: []*corev1.Node{kubeNode("a", "a"), kubeNode("b", "b")},
			want:  map[string]string{"a": "10.0.0.1:9600", "b": "10.0.0.2:9600"},
		},
		"no pod, or none that is ready": {
			slices: []*discoveryv1.EndpointSlice{slice("1", csi, endpoint("a", "10.0.0.1", false, false))},
			nodes:  []*corev1.Node{kubeNode("a", "a"), kubeNode("b", "b")},
			want:   map[string]string{"a": "10.0.0.1:9600", "b": ""},
		},
		"a pod before its node is labelled": {
			slices: []*discoveryv1.EndpointSlice{slice("1", csi, endpoint("a", "10.0.0.1", true, false))},
			want:   map[string]string{"a": "10.0.0.1:9600"},
		},
		"a node id that is not the node's name": {
			slices: []*discoveryv1.EndpointSlice{slice("1", csi, endpoint("a.example.org", "10.0.0.1", true, false))},
			nodes:  []*corev1.Node{kubeNode("a.example.org", "a")},
			want:   map[string]string{"a": "10.0.0.1:9600"},
		},
		"the next pod of a node": {
			slices: []*discoveryv1.EndpointSlice{slice("1", csi, endpoint("a", "10.0.0.1", true, true),
				endpoint("a", "10.0.0.2", false, false),
				endpoint("b", "10.0.0.9", false, false), endpoint("b", "10.0.0.8", true, false))},
			want: map[string]string{"a": "10.0.0.2:9600", "b": "10.0.0.8:9600"},
		},
		"IPv6": {
			slices: []*discoveryv1.EndpointSlice{slice("1", csi, endpoint("a", "fd00::1", true, false))},
			want:   map[string]string{"a": "[fd00::1]:9600"},
		},
		"one port of another name": {
			slices: []*discoveryv1.EndpointSlice{slice("1", map[string]int32{"": 9601}, endpoint("a", "10.0.0.1", true, false))},
			want:   map[string]string{"a": "10.0.0.1:9601"},
		},
		"several ports": {
			slices: []*discoveryv1.EndpointSlice{slice("1", map[string]int32{"metrics": 1, "csi": 9600, "link": 2},
				endpoint("a", "10.0.0.1", true, false))},
			want: map[string]string{"a": "10.0.0.1:9600"},
		},
		"not the port": {
			slices: []*discoveryv1.EndpointSlice{slice("1", map[string]int32{"metrics": 1, "link": 2},
				endpoint("a", "10.0.0.1", true, false))},
			nodes: []*corev1.Node{kubeNode("a", "a")},
			want:  map[string]string{"a": ""},
		},
	} {
		if got := addresses(tc.slices, tc.nodes, "csi"); !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", what, got, tc.want)
		}
	}
}

func TestFollowKubernetes(t *testing.T) {
	slices, nodes := fcache.NewFakeControllerSource(), fcache.NewFakeControllerSource()
	defer slices.Shutdown()
	defer nodes.Shutdown()
	csi := map[string]int32{"csi": 9600}
	slices.Add(slice("1", csi, endpoint("a", "10.0.0.1", true, false)))
	nodes.Add(kubeNode("a", "a"))
	nodes.Add(kubeNode("b", "b"))

	var mu sync.Mutex
	var seen []map[string]string
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- (&Kubernetes{slices: slices, nodes: nodes, port: "csi"}).Follow(ctx, func(now map[string]string) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, now)
		})
	}()
	become := func(what string, want map[string]string) {
		t.Helper()
		is := func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(seen) > 0 && maps.Equal(seen[len(seen)-1], want)
		}
		for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	become("what is there at first", map[string]string{"a": "10.0.0.1:9600", "b": ""})
	mu.Lock()
	if len(seen) != 1 {
		t.Errorf("parts of it were passed on: %v", seen)
	}
	mu.Unlock()
	slices.Add(slice("2", csi, endpoint("b", "10.0.0.2", true, false)))
	become("a pod on b", map[string]string{"a": "10.0.0.1:9600", "b": "10.0.0.2:9600"})
	slices.Modify(slice("1", csi, endpoint("a", "10.0.0.3", true, false)))
	become("another pod on a", map[string]string{"a": "10.0.0.3:9600", "b": "10.0.0.2:9600"})
	slices.Delete(slice("2", csi))
	become("no pod on b", map[string]string{"a": "10.0.0.3:9600", "b": ""})
	nodes.Delete(kubeNode("b", "b"))
	become("b's node deleted", map[string]string{"a": "10.0.0.3:9600"})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServiceName(t *testing.T) {
	for _, name := range []string{"", "nodes", "/nodes", "ns/", "a/b/c"} {
		if _, err := NewKubernetes(&rest.Config{Host: "https://127.0.0.1:1"}, name, "csi"); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	if _, err := NewKubernetes(&rest.Config{Host: "https://127.0.0.1:1"}, "slipstream/nodes", "csi"); err != nil {
		t.Error(err)
	}
}
