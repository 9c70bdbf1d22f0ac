package kubesite

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestCollect: the parts of a bundle are the objects, the pods without their environment, all logs, and a bundle of
// each node. What is refused does not end it. Secrets are never asked for.
func TestCollect(t *testing.T) {
	f := newFakeCluster(t)
	f.bundles = "archive"
	f.add("node-a", nil)
	f.add("node-b", nil)
	pod := &f.pods[0]
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PASSWORD", Value: "PLANTED"}}
	pod.Spec.Containers[0].Image = "slipstream-node:1"
	pod.Status.ContainerStatuses[0].RestartCount = 1
	cluster, err := Open(f.options)
	if err != nil {
		t.Fatal(err)
	}
	parts, failed := map[string]string{}, []string{}
	if err := cluster.Collect(t.Context(), []string{"slipctl", "bundle", "--file", "-"}, func(c Collected) error {
		if c.Err != nil {
			failed = append(failed, c.Name)
			return nil
		}
		if c.Archive != strings.HasPrefix(c.Name, "nodes/") {
			t.Errorf("%s: archive is %t", c.Name, c.Archive)
		}
		parts[c.Name] = string(c.Content)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	const pods = "/api/v1/namespaces/storage/pods/"
	for name, want := range map[string]string{
		"objects/consistencygroups.json":          "/apis/slipstream.dev/v1alpha1/consistencygroups ",
		"objects/remotesites.json":                "/apis/slipstream.dev/v1alpha1/remotesites ",
		"objects/groupactions.json":               "/apis/slipstream.dev/v1alpha1/groupactions ",
		"objects/storageclasses.json":             "/apis/storage.k8s.io/v1/storageclasses ",
		"objects/events.json":                     "/api/v1/namespaces/storage/events ",
		"objects/version.json":                    "/version ",
		"logs/pod-node-a/replicator.log":          pods + "pod-node-a/log false",
		"logs/pod-node-a/replicator-previous.log": pods + "pod-node-a/log true",
		"logs/pod-node-b/replicator.log":          pods + "pod-node-b/log false",
		"nodes/node-a.tar.gz":                     "archive of pod-node-a",
		"nodes/node-b.tar.gz":                     "archive of pod-node-b",
	} {
		if parts[name] != want {
			t.Errorf("%s is %q, want %q", name, parts[name], want)
		}
	}
	if !strings.Contains(parts["pods.json"], "slipstream-node:1") || strings.Contains(parts["pods.json"], "PLANTED") {
		t.Errorf("pods: %s", parts["pods.json"])
	}
	if len(parts) != 12 || !slices.Equal(failed, []string{"objects/csinodes.json"}) {
		t.Errorf("%d parts, failed %v", len(parts), failed)
	}
	for _, path := range f.asked {
		if strings.Contains(path, "secret") {
			t.Errorf("%s is read", path)
		}
	}
}
