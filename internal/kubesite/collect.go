package kubesite

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/slipstream-storage/slipstream/internal/bundle"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

const (
	// instanceLabel is on every pod of a release of the chart; partOf only on those of nodes.
	instanceLabel = "app.kubernetes.io/instance"
	partOfLabel   = "app.kubernetes.io/part-of"
	nameLabel     = "app.kubernetes.io/name"
	partOf        = "slipstream"
	// logLines and logBytes bound the log of a container.
	logLines = 20000
	logBytes = 8 << 20
	// maxOutputBytes bounds what a command in a pod may print.
	maxOutputBytes = 256 << 20
)

// bundleCommand, run beside a replicator, prints the bundle of its node.
var bundleCommand = []string{"slipctl", "bundle", "--file", "-"}

// clusterObjects are what a support bundle has of the API server, by the name of the file. Secrets are not among them.
var clusterObjects = []struct{ file, path string }{
	{"consistencygroups.json", groupsPath},
	{"remotesites.json", "/apis/slipstream.dev/v1alpha1/remotesites"},
	{"groupactions.json", "/apis/slipstream.dev/v1alpha1/groupactions"},
	{"groupactionschedules.json", "/apis/slipstream.dev/v1alpha1/groupactionschedules"},
	{"storageclasses.json", "/apis/storage.k8s.io/v1/storageclasses"},
	{"csinodes.json", "/apis/storage.k8s.io/v1/csinodes"},
	{"csidrivers.json", "/apis/storage.k8s.io/v1/csidrivers"},
	{"volumeattachments.json", "/apis/storage.k8s.io/v1/volumeattachments"},
	{"persistentvolumes.json", "/api/v1/persistentvolumes"},
	{"version.json", "/version"},
}

// groupsPath has all ConsistencyGroups.
const groupsPath = "/apis/slipstream.dev/v1alpha1/consistencygroups"

// maxNamespaces bounds of how many namespaces with groups a bundle has claims and events.
const maxNamespaces = 50

// podSummary is what a bundle says of a pod. The rest of a pod, such as environment variables, stays out.
type podSummary struct {
	Name, Node string
	Phase      corev1.PodPhase
	Images     map[string]string
	Conditions []corev1.PodCondition
	Containers []corev1.ContainerStatus
}

// Collect adds to a support bundle: the operator's objects, claims and events of their namespaces, the pods of the
// installation with their logs, and a bundle of each node. It goes on after failures; its error is one of writing.
func (c *Cluster) Collect(ctx context.Context, w *bundle.Writer) error {
	namespaces := []string{c.namespace}
	for _, o := range clusterObjects {
		content, err := c.object(ctx, w, o.file, o.path)
		if err != nil {
			return err
		}
		if o.path == groupsPath {
			namespaces = append(namespaces, namespacesOf(content)...)
		}
	}
	for i, namespace := range namespaces {
		if i > maxNamespaces {
			w.Problem("objects/namespaces", fmt.Errorf("claims and events are those of %s of %d",
				words.Count(i, "namespace"), len(namespaces)))
			break
		}
		at := "/api/v1/namespaces/" + url.PathEscape(namespace)
		for _, kind := range []string{"events", "persistentvolumeclaims"} {
			if namespace == c.namespace && kind != "events" {
				continue
			}
			if _, err := c.object(ctx, w, path.Join("namespaces", namespace, kind+".json"), at+"/"+kind); err != nil {
				return err
			}
		}
	}
	var pods corev1.PodList
	if err := c.client.Get().Namespace(c.namespace).Resource("pods").Do(ctx).Into(&pods); err != nil {
		w.Problem("pods.json", err)
		return nil
	}
	pods.Items = installed(pods.Items)
	if len(pods.Items) == 0 {
		w.Problem("pods.json", fmt.Errorf("namespace %s has no pod with the label %s=%s: is Slipstream installed in another "+
			"one?", c.namespace, partOfLabel, partOf))
	}
	var summaries []podSummary
	for i := range pods.Items {
		pod := &pods.Items[i]
		s := podSummary{Name: pod.Name, Node: pod.Spec.NodeName, Phase: pod.Status.Phase, Images: map[string]string{},
			Conditions: pod.Status.Conditions, Containers: pod.Status.ContainerStatuses}
		for _, one := range pod.Spec.Containers {
			s.Images[one.Name] = one.Image
		}
		summaries = append(summaries, s)
	}
	if err := w.JSON("pods.json", summaries); err != nil {
		return err
	}
	for i := range pods.Items {
		if err := c.collectPod(ctx, &pods.Items[i], w); err != nil {
			return err
		}
	}
	return nil
}

// installed returns the pods of the installation: those of the nodes, and all pods of the same release of the chart,
// whose name can be another one than the chart's. If no pod of a node is left, it is those with the chart's name.
func installed(pods []corev1.Pod) []corev1.Pod {
	releases := map[string]bool{}
	for i := range pods {
		if labels := pods[i].Labels; labels[partOfLabel] == partOf && labels[instanceLabel] != "" {
			releases[labels[instanceLabel]] = true
		}
	}
	return slices.DeleteFunc(pods, func(pod corev1.Pod) bool {
		return pod.Labels[partOfLabel] != partOf && pod.Labels[nameLabel] != partOf &&
			!releases[pod.Labels[instanceLabel]]
	})
}

// object adds what is at a path of the API server, and returns it.
func (c *Cluster) object(ctx context.Context, w *bundle.Writer, file, at string) ([]byte, error) {
	file = path.Join("objects", file)
	content, err := c.client.Get().AbsPath(at).SetHeader("Accept", "application/json").DoRaw(ctx)
	if err != nil {
		w.Problem(file, err)
		return nil, nil
	}
	content = slim(content)
	return content, w.Text(file, content)
}

// slim returns objects without what says nothing here: who wrote which field, the manifest that was applied, and
// PersistentVolumes of other drivers.
func slim(content []byte) []byte {
	var list map[string]any
	if json.Unmarshal(content, &list) != nil {
		return content
	}
	items, ok := list["items"].([]any)
	if !ok {
		return content
	}
	kept := []any{}
	for _, item := range items {
		object, _ := item.(map[string]any)
		driver, _, _ := unstructured.NestedString(object, "spec", "csi", "driver")
		if list["kind"] == "PersistentVolumeList" && driver != plugin.Name {
			continue
		}
		unstructured.RemoveNestedField(object, "metadata", "managedFields")
		unstructured.RemoveNestedField(object, "metadata", "annotations", corev1.LastAppliedConfigAnnotation)
		kept = append(kept, item)
	}
	list["items"] = kept
	text, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return content
	}
	return append(text, '\n')
}

// namespacesOf returns the namespaces of a list of objects, by name.
func namespacesOf(list []byte) []string {
	var objects struct {
		Items []struct{ Metadata struct{ Namespace string } }
	}
	_ = json.Unmarshal(list, &objects) // what cannot be read is in the bundle, too
	var names []string
	for _, o := range objects.Items {
		names = append(names, o.Metadata.Namespace)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// collectPod adds the logs of a pod, also of containers that ended, and a bundle of the node if it has a replicator.
func (c *Cluster) collectPod(ctx context.Context, pod *corev1.Pod, w *bundle.Writer) error {
	replicator := false
	for _, s := range pod.Status.ContainerStatuses {
		replicator = replicator || s.Name == container
		for _, previous := range []bool{false, true} {
			if previous && s.RestartCount == 0 {
				continue
			}
			name := path.Join("logs", pod.Name, s.Name+".log")
			if previous {
				name = path.Join("logs", pod.Name, s.Name+"-previous.log")
			}
			content, err := c.client.Get().Namespace(c.namespace).Resource("pods").Name(pod.Name).SubResource("log").
				Param("container", s.Name).Param("previous", strconv.FormatBool(previous)).
				Param("timestamps", "true").Param("tailLines", strconv.Itoa(logLines)).
				Param("limitBytes", strconv.Itoa(logBytes)).DoRaw(ctx)
			if err != nil {
				w.Problem(name, err)
			} else if err := w.Text(name, content); err != nil {
				return err
			}
		}
	}
	if !replicator {
		return nil
	}
	name := path.Join("nodes", pod.Spec.NodeName+".tar.gz")
	if why := notRunning(pod); why != "" {
		w.Problem(name, fmt.Errorf("pod %s: %s", pod.Name, why))
		return nil
	}
	var out limited
	if err := c.run(ctx, pod.Name, bundleCommand, &out); err != nil {
		w.Problem(name, err)
		return nil
	}
	return w.Bundle(name, out.Bytes())
}

// run runs a command in the container of a pod's replicator.
func (c *Cluster) run(ctx context.Context, pod string, command []string, out io.Writer) error {
	options := &corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}
	query, err := runtime.NewParameterCodec(execScheme).EncodeParameters(options, corev1.SchemeGroupVersion)
	if err != nil {
		return err
	}
	address := c.client.Post().Namespace(c.namespace).Resource("pods").Name(pod).SubResource("exec").URL()
	address.RawQuery = query.Encode()
	executor, err := c.newExecutor(address)
	if err != nil {
		return err
	}
	var stderr lockedBuffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out, Stderr: &stderr}); err != nil {
		return podError(pod, stderr.String(), err)
	}
	return nil
}

// limited is a buffer with a bound: a node is not trusted with the memory of the caller.
type limited struct{ bytes.Buffer }

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxOutputBytes {
		return 0, fmt.Errorf("the command prints more than %d MiB", maxOutputBytes>>20)
	}
	return l.Buffer.Write(p)
}
