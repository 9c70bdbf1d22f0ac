// Package kubesite reaches the replicators of a site that runs in Kubernetes: it finds the pods of the nodes through a
// kubeconfig, and talks to the replicator in each over the streams of an exec, as kubectl exec has them. Nothing has to
// listen on the network for that, and who may do it is what the cluster's RBAC says about pods/exec.
//
// Conn makes one connection of all nodes: a call goes to the node that has the group that it names.
//
// It uses client-go, the library of kubectl itself, for what cannot be written small and right: kubeconfig files with
// their contexts, certificates and credential plugins, and the exec protocol in its versions. Of its typed clients it
// uses none, which keeps them out of the program.
//
// All methods may be called concurrently.
package kubesite

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Selector finds the pods of the nodes, as the chart labels them.
const Selector = "app.kubernetes.io/part-of=slipstream,app.kubernetes.io/component=node"

const (
	// container has the replicator, and slipctl beside it.
	container = "replicator"
	// DefaultNamespace is that of the documents and of deploy/manifests.
	DefaultNamespace = "slipstream-system"
)

// Options say which cluster, as kubectl's flags of the same names do.
type Options struct {
	// Kubeconfig is a file; empty: KUBECONFIG, or ~/.kube/config.
	Kubeconfig string
	// Context is one of the file's; empty: its current one.
	Context string
	// Namespace of the pods; empty: slipstream-system. The namespace of a context is that of a
	// person's applications, so it does not count.
	Namespace string
}

// Cluster is a cluster that a site runs in.
type Cluster struct {
	config    *rest.Config
	client    *rest.RESTClient
	namespace string
}

// Node is a node of a site with the pod that serves it.
type Node struct {
	// Name is the node's, which is also the value of its topology key.
	Name string
	Pod  string
}

// Open reads the kubeconfig. It makes no call.
func Open(o Options) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{
		CurrentContext: o.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.APIPath = "/api"
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	return &Cluster{config: config, client: client, namespace: o.Namespace}, nil
}

// Nodes lists the nodes whose replicator runs, by name. Those where it does not are in away, each with a reason.
func (c *Cluster) Nodes(ctx context.Context) (nodes []Node, away []error, err error) {
	var pods corev1.PodList
	err = c.client.Get().Namespace(c.namespace).Resource("pods").Param("labelSelector", Selector).Do(ctx).Into(&pods)
	if err != nil {
		return nil, nil, fmt.Errorf("list the pods of namespace %s: %w", c.namespace, err)
	}
	for _, pod := range pods.Items {
		if reason := notRunning(&pod); reason != "" {
			away = append(away, fmt.Errorf("node %s: pod %s: %s", pod.Spec.NodeName, pod.Name, reason))
			continue
		}
		nodes = append(nodes, Node{Name: pod.Spec.NodeName, Pod: pod.Name})
	}
	if len(pods.Items) == 0 {
		return nil, nil, fmt.Errorf(
			"namespace %s has no pod with the labels %s: is Slipstream installed there? --namespace names another one",
			c.namespace, Selector)
	}
	slices.SortFunc(nodes, func(a, b Node) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return nodes, away, nil
}

// notRunning says why a pod's replicator cannot be talked to; empty: it can.
func notRunning(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name != container {
			continue
		}
		switch {
		case s.State.Running != nil:
			return ""
		case s.State.Waiting != nil:
			return "its replicator waits: " + s.State.Waiting.Reason
		case s.State.Terminated != nil:
			return "its replicator ended: " + s.State.Terminated.Reason
		}
	}
	for _, c := range pod.Spec.Containers {
		if c.Name == container {
			return "it is " + string(pod.Status.Phase)
		}
	}
	return "it has no replicator: replication is off in this installation"
}

// errNoNode is the end of a search among no nodes.
var errNoNode = errors.New("no node's replicator runs")
