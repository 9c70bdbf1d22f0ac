package kubesite

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/remotecommand"
)

const (
	// partOf finds all pods of the installation.
	partOf = "app.kubernetes.io/part-of=slipstream"
	// logLines and logBytes bound the log of a container.
	logLines = 20000
	logBytes = 8 << 20
	// maxOutputBytes bounds what a command in a pod may print.
	maxOutputBytes = 256 << 20
)

// objects are what a support bundle has of the API server, by the name of the file. %s is the namespace. Secrets are
// not among them.
var objects = []struct{ file, path string }{
	{"consistencygroups.json", "/apis/slipstream.dev/v1alpha1/consistencygroups"},
	{"remotesites.json", "/apis/slipstream.dev/v1alpha1/remotesites"},
	{"groupactions.json", "/apis/slipstream.dev/v1alpha1/groupactions"},
	{"storageclasses.json", "/apis/storage.k8s.io/v1/storageclasses"},
	{"csinodes.json", "/apis/storage.k8s.io/v1/csinodes"},
	{"events.json", "/api/v1/namespaces/%s/events"},
	{"version.json", "/version"},
}

// Collected is a file for a support bundle, or why there is none.
type Collected struct {
	Name    string
	Content []byte
	// Archive says that the content is a bundle itself.
	Archive bool
	Err     error
}

// podSummary is what a bundle says of a pod. The rest of a pod, such as environment variables, stays out.
type podSummary struct {
	Name, Node string
	Phase      corev1.PodPhase
	Images     map[string]string
	Conditions []corev1.PodCondition
	Containers []corev1.ContainerStatus
}

// Collect gives the parts of a support bundle to add, one after the other: the operator's objects, the pods with their
// logs, and what command prints in the container of each replicator. It goes on after failures.
func (c *Cluster) Collect(ctx context.Context, command []string, add func(Collected) error) error {
	for _, o := range objects {
		at := o.path
		if o.file == "events.json" {
			at = fmt.Sprintf(o.path, url.PathEscape(c.namespace))
		}
		content, err := c.client.Get().AbsPath(at).DoRaw(ctx)
		if err := add(Collected{Name: path.Join("objects", o.file), Content: content, Err: err}); err != nil {
			return err
		}
	}
	var pods corev1.PodList
	err := c.client.Get().Namespace(c.namespace).Resource("pods").Param("labelSelector", partOf).Do(ctx).Into(&pods)
	if err != nil {
		return add(Collected{Name: "pods.json", Err: err})
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
	content, err := json.MarshalIndent(summaries, "", "  ")
	if err := add(Collected{Name: "pods.json", Content: content, Err: err}); err != nil {
		return err
	}
	for i := range pods.Items {
		if err := c.collectPod(ctx, &pods.Items[i], command, add); err != nil {
			return err
		}
	}
	return nil
}

// collectPod adds the logs of a pod, also of containers that ended, and what the command prints in its replicator.
func (c *Cluster) collectPod(ctx context.Context, pod *corev1.Pod, command []string, add func(Collected) error) error {
	for _, s := range pod.Status.ContainerStatuses {
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
			if err := add(Collected{Name: name, Content: content, Err: err}); err != nil {
				return err
			}
		}
	}
	if notRunning(pod) != "" {
		return nil
	}
	var out limited
	err := c.run(ctx, pod.Name, command, &out)
	return add(Collected{Name: path.Join("nodes", pod.Spec.NodeName+".tar.gz"), Content: out.Bytes(), Archive: true,
		Err: err})
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
