package nodes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/kubewatch"
	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// Kubernetes are the nodes of a cluster: addresses from the EndpointSlices of a headless service over the node pods,
// and beside them, without an address, the Nodes that kubelet has labelled with the driver's topology key. So a node
// whose pod is being replaced stays known, and silent; it is forgotten with its Node object.
//
// Of client-go only the watch machinery is used, with a scheme of these two kinds: the generated clients would bring
// every kind that Kubernetes has into the program.
type Kubernetes struct {
	slices, nodes cache.ListerWatcher
	client        rest.Interface
	port          string
}

// NewKubernetes takes a service as namespace/name, and the name of the port of its pods that is meant; a service with
// one port needs no name for it. It does not call the API server yet.
func NewKubernetes(config *rest.Config, service, port string) (*Kubernetes, error) {
	namespace, name, ok := strings.Cut(service, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("service %q: it is written as namespace/name", service)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	client := func(version schema.GroupVersion, path string) (*rest.RESTClient, error) {
		c := rest.CopyConfig(config)
		c.GroupVersion, c.APIPath = &version, path
		c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
		return rest.RESTClientFor(c)
	}
	slices, err := client(discoveryv1.SchemeGroupVersion, "/apis")
	if err != nil {
		return nil, err
	}
	nodes, err := client(corev1.SchemeGroupVersion, "/api")
	if err != nil {
		return nil, err
	}
	selected := func(selector string) func(*metav1.ListOptions) {
		return func(o *metav1.ListOptions) { o.LabelSelector = selector }
	}
	return &Kubernetes{
		slices: cache.NewFilteredListWatchFromClient(slices, "endpointslices", namespace,
			selected(discoveryv1.LabelServiceName+"="+name)),
		nodes:  cache.NewFilteredListWatchFromClient(nodes, "nodes", metav1.NamespaceAll, selected(plugin.TopologyKey)),
		client: nodes,
		port:   port,
	}, nil
}

// Contact implements Source. It asks for the version, which everybody may.
func (k *Kubernetes) Contact(ctx context.Context) error {
	return k.client.Get().AbsPath("/version").MaxRetries(0).Do(ctx).Error()
}

// Follow implements Source. While the API server is away, the nodes stay as they were.
func (k *Kubernetes) Follow(ctx context.Context, update func(map[string]string)) error {
	changed := make(chan struct{}, 1)
	changed <- struct{}{}
	notify := func() {
		select {
		case changed <- struct{}{}:
		default: // one is waiting
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
	}
	slices := cache.NewSharedInformer(kubewatch.New(k.slices), &discoveryv1.EndpointSlice{}, 0)
	nodes := cache.NewSharedInformer(kubewatch.New(k.nodes), &corev1.Node{}, 0)
	var stopped []<-chan struct{}
	for _, informer := range []cache.SharedInformer{slices, nodes} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
		done := make(chan struct{})
		stopped = append(stopped, done)
		go func() {
			defer close(done)
			informer.RunWithContext(ctx)
		}()
	}
	defer func() {
		for _, done := range stopped {
			<-done
		}
	}()
	// Half of what there is would make the other half look like nodes that do not exist.
	for !slices.HasSynced() || !nodes.HasSynced() {
		if !pause.For(ctx, 50*time.Millisecond) {
			return nil
		}
	}
	var last map[string]string
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
		now := addresses(items[*discoveryv1.EndpointSlice](slices), items[*corev1.Node](nodes), k.port)
		if last == nil || !maps.Equal(now, last) {
			update(now)
			last = now
		}
	}
}

func items[T any](informer cache.SharedInformer) []T {
	var list []T
	for _, object := range informer.GetStore().List() {
		if item, ok := object.(T); ok {
			list = append(list, item)
		}
	}
	return list
}

// addresses returns the address of each node's port by the node's id, "" for a node without one.
func addresses(slices []*discoveryv1.EndpointSlice, nodes []*corev1.Node, portName string) map[string]string {
	found := map[string]string{}
	ids := map[string]string{} // by the name of the Node
	for _, n := range nodes {
		if id := n.Labels[plugin.TopologyKey]; id != "" {
			ids[n.Name] = id
			found[id] = ""
		}
	}
	type candidate struct {
		address string
		rank    int
	}
	best := map[string]candidate{}
	for _, slice := range slices {
		port := portOf(slice, portName)
		for _, endpoint := range slice.Endpoints {
			if endpoint.NodeName == nil || len(endpoint.Addresses) == 0 || port == "" {
				continue
			}
			id := *endpoint.NodeName
			if labelled := ids[id]; labelled != "" {
				id = labelled
			}
			c := candidate{net.JoinHostPort(endpoint.Addresses[0], port), readiness(endpoint.Conditions)}
			// Of two pods of a node, one is on its way out. The order of addresses only makes the choice the same every time.
			if b, ok := best[id]; !ok || c.rank > b.rank || c.rank == b.rank && c.address < b.address {
				best[id] = c
			}
		}
	}
	for id, c := range best {
		found[id] = c.address
	}
	return found
}

// readiness: a pod that is not ready is called all the same, since the program that is wanted may well answer.
func readiness(c discoveryv1.EndpointConditions) int {
	is := func(b *bool) bool { return b != nil && *b }
	switch {
	case is(c.Terminating):
		return 0
	case c.Ready == nil || *c.Ready:
		return 2
	}
	return 1
}

func portOf(slice *discoveryv1.EndpointSlice, name string) string {
	for _, p := range slice.Ports {
		if p.Port != nil && (len(slice.Ports) == 1 || p.Name != nil && *p.Name == name) {
			return strconv.Itoa(int(*p.Port))
		}
	}
	klog.InfoS("A slice of the nodes' service does not have the port", "slice", klog.KObj(slice), "wanted", name)
	return ""
}
