package kubesite

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/internal/bundle"
)

// collect returns the files of a bundle of a cluster.
func collect(t *testing.T, f *fakeCluster) map[string]string {
	t.Helper()
	cluster, err := Open(f.options)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if _, _, err := bundle.Create("-", &archive, func(w *bundle.Writer) error {
		return cluster.Collect(t.Context(), w)
	}); err != nil {
		t.Fatal(err)
	}
	compressed, err := gzip.NewReader(&archive)
	if err != nil {
		t.Fatal(err)
	}
	files, reader := map[string]string{}, tar.NewReader(compressed)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		files[name] = string(text)
	}
}

// TestCollect: a bundle has the objects, claims and events of namespaces with groups, the pods without their
// environment, all logs, and a bundle of each node. What is refused does not end it, and is told. Secrets are never
// asked for.
func TestCollect(t *testing.T) {
	f := newFakeCluster(t)
	f.bundles = "archive"
	f.objects = map[string]string{
		groupsPath: `{"kind":"ConsistencyGroupList","items":[{"metadata":{"namespace":"shop","name":"shop",` +
			`"managedFields":[{"manager":"MANAGER"}],"annotations":{"` + corev1.LastAppliedConfigAnnotation +
			`":"APPLIED","kept":"yes"}}},{"metadata":{"namespace":"shop","name":"two"}}]}`,
		"/api/v1/persistentvolumes": `{"kind":"PersistentVolumeList","items":[` +
			`{"metadata":{"name":"ours"},"spec":{"csi":{"driver":"csi.slipstream.dev"}}},` +
			`{"metadata":{"name":"THEIRS"},"spec":{"csi":{"driver":"other"}}},{"metadata":{"name":"LOCAL"},"spec":{}}]}`,
		"/api/v1/namespaces/shop/events": `{"items":[{"message":"mount with token=PLANTED"}]}`,
	}
	f.add("node-a", nil)
	f.add("node-b", nil)
	f.add("node-c", nil)
	f.pods[2].Status.ContainerStatuses[0].State = corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	// Pods of the chart that are on no node's list, and one of another program in the namespace.
	f.addOther("operator", "release")
	f.addOther("stranger", "other")
	pod := &f.pods[0]
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "PASSWORD", Value: "PLANTED"}}
	pod.Spec.Containers[0].Image = "slipstream-node:1"
	pod.Status.ContainerStatuses[0].RestartCount = 1
	files := collect(t, f)
	const pods = "/api/v1/namespaces/storage/pods/"
	for name, want := range map[string]string{
		"objects/consistencygroups.json":                      `"kept": "yes"`,
		"objects/remotesites.json":                            "/apis/slipstream.dev/v1alpha1/remotesites ",
		"objects/groupactions.json":                           "/apis/slipstream.dev/v1alpha1/groupactions ",
		"objects/groupactionschedules.json":                   "/apis/slipstream.dev/v1alpha1/groupactionschedules ",
		"objects/storageclasses.json":                         "/apis/storage.k8s.io/v1/storageclasses ",
		"objects/csidrivers.json":                             "/apis/storage.k8s.io/v1/csidrivers ",
		"objects/volumeattachments.json":                      "/apis/storage.k8s.io/v1/volumeattachments ",
		"objects/persistentvolumes.json":                      "ours",
		"objects/version.json":                                "/version ",
		"objects/namespaces/storage/events.json":              "/api/v1/namespaces/storage/events ",
		"objects/namespaces/shop/events.json":                 "mount with token=" + bundle.Left,
		"objects/namespaces/shop/persistentvolumeclaims.json": "/api/v1/namespaces/shop/persistentvolumeclaims ",
		"logs/pod-node-a/replicator.log":                      pods + "pod-node-a/log false",
		"logs/pod-node-a/replicator-previous.log":             pods + "pod-node-a/log true",
		"logs/pod-node-b/replicator.log":                      pods + "pod-node-b/log false",
		"logs/pod-node-c/replicator.log":                      pods + "pod-node-c/log false",
		"logs/pod-operator/operator.log":                      pods + "pod-operator/log false",
		"nodes/node-a.tar.gz":                                 "archive of pod-node-a",
		"nodes/node-b.tar.gz":                                 "archive of pod-node-b",
		"pods.json":                                           "slipstream-node:1",
		"problems.txt":                                        "nodes/node-c.tar.gz: pod pod-node-c: its replicator waits",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q: %q", name, want, files[name])
		}
	}
	if len(files) != 21 || !strings.Contains(files["problems.txt"], "objects/csinodes.json: ") {
		t.Errorf("%d files; problems: %s", len(files), files["problems.txt"])
	}
	for name, text := range files {
		for _, absent := range []string{"PLANTED", "MANAGER", "APPLIED", "THEIRS", "LOCAL", "stranger"} {
			if strings.Contains(text, absent) {
				t.Errorf("%s has %s: %s", name, absent, text)
			}
		}
	}
	for _, path := range f.asked {
		if strings.Contains(path, "secret") {
			t.Errorf("%s is read", path)
		}
	}
}

// addOther adds a pod without a replicator, with the labels that the chart gives those.
func (f *fakeCluster) addOther(name, release string) {
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-" + name, Labels: map[string]string{nameLabel: "renamed",
		instanceLabel: release, "app.kubernetes.io/component": name}}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: name}}
	f.pods = append(f.pods, pod)
}

// TestCollectOfNothing: without an API server, or in a namespace without the installation, the bundle says so.
func TestCollectOfNothing(t *testing.T) {
	f := newFakeCluster(t)
	f.bundles = "archive"
	if files := collect(t, f); !strings.Contains(files["problems.txt"], "namespace storage has no pod") {
		t.Errorf("problems: %s", files["problems.txt"])
	}
	f.options.Kubeconfig = kubeconfigFor(t, "http://127.0.0.1:1")
	files := collect(t, f)
	if len(files) != 1 || !strings.Contains(files["problems.txt"], "connection refused") {
		t.Errorf("%d files, problems: %s", len(files), files["problems.txt"])
	}
}
