package kubeplugin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/internal/testkube"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// kubeconfigOf writes a file for an API server.
func kubeconfigOf(t *testing.T, config *rest.Config) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := clientcmd.WriteToFile(clientcmdapi.Config{CurrentContext: "site-a",
		Clusters: map[string]*clientcmdapi.Cluster{"c": {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: config.CertData,
			ClientKeyData: config.KeyData}},
		Contexts: map[string]*clientcmdapi.Context{"site-a": {Cluster: "c", AuthInfo: "u"}}}, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	compressed, err := gzip.NewReader(bytes.NewReader(archive))
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

// TestBundle: a bundle has what the plugin prints of status and coverage. Without a cluster there is a bundle that says
// so. A file that is there is not overwritten.
func TestBundle(t *testing.T) {
	api := cluster(t)
	dead := kubeconfigOf(t, &rest.Config{Host: "http://127.0.0.1:1"})
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	status, out := plug(t, api, "bundle", "--kubeconfig", dead, "--file", file)
	want(t, status, out, exitOK, "not in the bundle: pods.json: ", "connection refused", file+": 4 files.")
	archive, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, archive)
	for name, want := range map[string]string{"about.json": `"plugin": "v1"`, "status.txt": "next step: MembersReady",
		"coverage.txt": "4 claims: 1 protected", "problems.txt": "objects/consistencygroups.json: "} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q: %s", name, want, files[name])
		}
	}
	status, out = plug(t, api, "bundle", "--kubeconfig", dead, "--file", file)
	want(t, status, out, exitFailure, "exists already")
}

// TestBundleOnAnAPIServer: all objects are found where they are asked for, and a Secret is not among them.
func TestBundleOnAnAPIServer(t *testing.T) {
	config := testkube.Start(t, "../..")
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "slipstream-system"}},
		&corev1.Secret{ObjectMeta: meta("password"), StringData: map[string]string{"x": "PLANTED"}},
		&corev1.Event{ObjectMeta: meta("e"), InvolvedObject: corev1.ObjectReference{Namespace: "shop"},
			Message: "it happened"},
		&v1alpha1.ConsistencyGroup{ObjectMeta: meta("shop"), Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b"}},
		&v1alpha1.GroupAction{ObjectMeta: meta("move"), Spec: v1alpha1.GroupActionSpec{Group: "shop",
			Type: v1alpha1.ActionRelocate}},
	} {
		if err := api.Create(context.Background(), o); err != nil {
			t.Fatal(err)
		}
	}
	var out, messages bytes.Buffer
	c := &cli{out: &out, err: &messages, connect: connect}
	args := []string{"bundle", "--kubeconfig", kubeconfigOf(t, config), "--file", "-"}
	if status := run(context.Background(), c, "v1", args); status != exitOK {
		t.Fatalf("status %d: %s", status, messages.String())
	}
	files := unpack(t, out.Bytes())
	for name, want := range map[string]string{"objects/consistencygroups.json": `"site-b"`,
		"objects/groupactions.json": "Relocate", "objects/namespaces/shop/events.json": "it happened",
		"status.txt": "shop", "coverage.txt": "no claim in any namespace"} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q: %s", name, want, files[name])
		}
	}
	if p := files["problems.txt"]; strings.Count(p, "\n") != 1 || !strings.Contains(p, "has no pod with the label") {
		t.Errorf("problems: %s", p)
	}
	for name, text := range files {
		if strings.Contains(text, "PLANTED") || strings.Contains(text, "managedFields") {
			t.Errorf("%s has what must not be in it: %s", name, text)
		}
	}
}
