package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var rewrite = flag.Bool("rewrite", false, "write the renderings that the tests compare with")

const chartDir = "../../deploy/charts/slipstream"

var testRelease = Release{Name: "slipstream", Namespace: "slipstream-system", KubeVersion: "v1.37.0"}

// TestGolden compares the renderings of several sets of values, testdata/NAME.values.yaml, with
// testdata/NAME.golden.yaml.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(chartDir, "testdata", "*.values.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no values: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".values.yaml")
		t.Run(name, func(t *testing.T) {
			got := render(t, []string{file})
			checkObjects(t, got)
			checkController(t, decode(t, got))
			golden := strings.TrimSuffix(file, ".values.yaml") + ".golden.yaml"
			if *rewrite {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("the rendering changed; if it should, run go test ./... -rewrite in hack/chart:\n%s", diff)
			}
		})
	}
}

// TestNames shows that two releases do not get in each other's way, apart from the driver, of which there can be one.
func TestNames(t *testing.T) {
	shared := map[string]bool{"CSIDriver csi.slipstream.dev": true, "StorageClass slipstream": true,
		"StorageClass slipstream-replicable": true}
	for _, crd := range crds(t) {
		shared["CustomResourceDefinition "+crd.Name] = true
	}
	seen := map[string]string{}
	for _, name := range []string{"one", "slipstream-two"} {
		manifest, err := Render(chartDir, Release{Name: name, Namespace: "ns", KubeVersion: "v1.37.0"},
			map[string]any{"site": map[string]any{"name": "site-a"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range decode(t, manifest) {
			id := o.kind + " " + o.name
			if other, ok := seen[id]; ok && !shared[id] {
				t.Errorf("releases %s and %s both have %s", other, name, id)
			}
			if !shared[id] && !strings.HasPrefix(o.name, name) {
				t.Errorf("release %s: name of %s", name, id)
			}
			seen[id] = name
		}
	}
}

// TestRefusals shows what the schema and the chart's own checks refuse, and that they say which value it is.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct{ name, values, want string }{
		{"no site", `{}`, "site"},
		{"empty site", `{site: {name: ""}}`, "/site/name"},
		{"misspelt", `{site: {name: a}, kubeletpath: /k}`, "kubeletpath"},
		{"misspelt below", `{site: {name: a, peer: {b: "h:1"}}}`, "peer"},
		{"relative pool", `{site: {name: a}, pool: {path: srv/pool}}`, "/pool/path"},
		{"pool with a slash at its end", `{site: {name: a}, pool: {path: /srv/pool/}}`, "/pool/path"},
		{"pool with dots", `{site: {name: a}, pool: {path: /srv/../pool}}`, "/pool/path"},
		{"relative journals", `{site: {name: a}, journal: {path: srv/journal}}`, "/journal/path"},
		{"journals in the pool", `{site: {name: a}, journal: {path: /var/lib/slipstream/pool/journal}}`, "journal.path"},
		{"journals are the pool", `{site: {name: a}, journal: {path: /var/lib/slipstream/pool}}`, "journal.path"},
		{"peer without a port", `{site: {name: a, peers: {b: host}}, tls: {existingSecret: s}}`, "/site/peers/b"},
		{"name of a peer", `{site: {name: a, peers: {B_: "host:1"}}, tls: {existingSecret: s}}`, "B_"},
		{"compression", `{site: {name: a}, replication: {compression: lz4}}`, "/replication/compression"},
		{"no replica of the gateway", `{site: {name: a}, replication: {gateway: {replicas: 0}}}`,
			"/replication/gateway/replicas"},
		{"a node without a port", `{site: {name: a}, replication: {siteNodes: [host]}}`, "/replication/siteNodes/0"},
		{"nodes without a gateway", `{site: {name: a}, replication: {siteNodes: ["host:1"]}}`,
			"replication.siteNodes needs"},
		{"interval", `{site: {name: a}, replication: {writebackInterval: 1}}`, "/replication/writebackInterval"},
		{"digest", `{site: {name: a}, images: {node: {repository: r, digest: abc}}}`, "/images/node/digest"},
		{"a parameter without its domain", `{site: {name: a}, storageClasses: [{name: c, parameters: {remote: b}}]}`,
			"remote"},
		{"a class without a name", `{site: {name: a}, storageClasses: [{default: true}]}`, "/storageClasses/0"},
		{"mode", `{site: {name: a}, controller: {mode: both}}`, "/controller/mode"},
		{"no replica of the controller", `{site: {name: a}, controller: {replicas: 0}}`, "/controller/replicas"},
		{"a controller whose nodes have no certificate", `{site: {name: a}, controller: {tls: {controllerSecret: c}}}`,
			"belong together"},
		{"certificates that end too soon", `{site: {name: a}, credentials: {validity: 1d}}`, "/credentials/validity"},
		{"one certificate for both sides",
			`{site: {name: a}, controller: {mode: controller, tls: {nodeSecret: s, controllerSecret: s}}}`, "are the same"},
		{"a controller's two certificates",
			`{site: {name: a}, controller: {mode: controller, ` +
				`tls: {nodeSecret: nodes, certManager: {enabled: true, issuerRef: {name: i}}}}}`,
			"exclude each other"},
		{"a controller without an issuer",
			`{site: {name: a}, controller: {mode: controller, tls: {certManager: {enabled: true}}}}`,
			"controller.tls.certManager.issuerRef.name is missing"},
		{"peers without tls", `{site: {name: a, peers: {b: "h:1"}}}`, "site.peers needs a certificate"},
		{"peers without replication",
			`{site: {name: a, peers: {b: "h:1"}}, tls: {existingSecret: s}, replication: {enabled: false}}`,
			"site.peers needs replication.enabled"},
		{"its own peer", `{site: {name: a, peers: {a: "h:1"}}, tls: {existingSecret: s}}`, "site.peers has this site itself"},
		{"open metrics with a token", `{site: {name: a}, metrics: {open: true, tokenSecret: s}}`, "exclude each other"},
		{"a Prometheus that reaches nothing", `{site: {name: a}, metrics: {serviceMonitor: {enabled: true}}}`,
			"networkPolicy.metricsFrom is empty"},
		{"two certificates",
			`{site: {name: a}, tls: {existingSecret: s, certManager: {enabled: true, issuerRef: {name: i}}}}`,
			"exclude each other"},
		{"no issuer", `{site: {name: a}, tls: {certManager: {enabled: true}}}`, "tls.certManager.issuerRef.name is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			values := map[string]any{}
			if err := yaml.Unmarshal([]byte(tt.values), &values); err != nil {
				t.Fatal(err)
			}
			manifest, err := Render(chartDir, testRelease, values)
			if err == nil {
				t.Fatalf("rendered %d bytes", len(manifest))
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not mention %q", err, tt.want)
			}
		})
	}
}

// TestManifests compares deploy/manifests/slipstream.yaml with what the chart renders now.
func TestManifests(t *testing.T) {
	dir := "../../deploy/manifests"
	got, err := Manifests(chartDir, filepath.Join(dir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	checkObjects(t, got)
	checkController(t, decode(t, got))
	want, err := os.ReadFile(filepath.Join(dir, "slipstream.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("deploy/manifests is stale: run make generate:\n%s", diff)
	}
}

// TestSchemaKnowsAllValues shows that every default in values.yaml is one that the schema takes, which is not a matter
// of course where the schema refuses what it does not list, and that each can be given by a user, too.
func TestSchemaKnowsAllValues(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	values["site"].(map[string]any)["name"] = "site-a"
	if _, err := Render(chartDir, testRelease, values); err != nil {
		t.Fatal(err)
	}
}

func render(t *testing.T, files []string) []byte {
	t.Helper()
	values, err := readValues(files, nil)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := Render(chartDir, testRelease, values)
	if err != nil {
		t.Fatal(err)
	}
	return manifest
}

// object is one document: decoded where Kubernetes itself has the type.
type object struct {
	kind, name, namespace string
	typed                 runtime.Object
}

// otherTypes come with CustomResourceDefinitions of other projects, whose Go types are not here.
var otherTypes = map[string]bool{"Certificate": true, "ServiceMonitor": true}

// decode reads documents strictly: a field that a type does not have, or a duplicate one, is an error.
func decode(t *testing.T, manifest []byte) []object {
	t.Helper()
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme,
		json.SerializerOptions{Yaml: true, Strict: true})
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	var objects []object
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		var head struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal(document, &head); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if head.Kind == "" {
			continue // comments only
		}
		o := object{kind: head.Kind, name: head.Metadata.Name, namespace: head.Metadata.Namespace}
		if !otherTypes[head.Kind] {
			if o.typed, _, err = strict.Decode(document, nil, nil); err != nil {
				t.Errorf("%s %s: %v", o.kind, o.name, err)
			}
		}
		objects = append(objects, o)
	}
}

// checkObjects says what is wrong with objects for reasons that are not in their types.
func checkObjects(t *testing.T, manifest []byte) {
	t.Helper()
	clusterWide := map[string]bool{"CSIDriver": true, "StorageClass": true, "ClusterRole": true,
		"ClusterRoleBinding": true, "Namespace": true,
		"CustomResourceDefinition": true, "ValidatingAdmissionPolicy": true, "ValidatingAdmissionPolicyBinding": true}
	seen := map[string]bool{}
	for _, o := range decode(t, manifest) {
		id := o.kind + "/" + o.name
		if seen[id] {
			t.Errorf("%s is there twice", id)
		}
		seen[id] = true
		if clusterWide[o.kind] != (o.namespace == "") {
			t.Errorf("%s: namespace %q", id, o.namespace)
		}
		switch w := o.typed.(type) {
		case *appsv1.DaemonSet:
			checkPod(t, id, w.Spec.Selector.MatchLabels, w.Spec.Template)
		case *appsv1.Deployment:
			checkPod(t, id, w.Spec.Selector.MatchLabels, w.Spec.Template)
		case *batchv1.Job:
			checkPod(t, id, nil, w.Spec.Template)
		case *batchv1.CronJob:
			checkPod(t, id, nil, w.Spec.JobTemplate.Spec.Template)
		case *corev1.Secret:
			if len(w.Data)+len(w.StringData) > 0 {
				t.Errorf("%s is a Secret with content, which would be in the release, too", id)
			}
		}
	}
}

func checkPod(t *testing.T, id string, selector map[string]string, pod corev1.PodTemplateSpec) {
	t.Helper()
	for key, value := range selector {
		if pod.Labels[key] != value {
			t.Errorf("%s: its pods do not have the label %s: %s", id, key, value)
		}
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	ports := map[string]string{}
	for _, c := range pod.Spec.Containers {
		where := id + "/" + c.Name
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s mounts %s, which is no volume of the pod", where, m.Name)
			}
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional && !privileged {
				t.Errorf("%s mounts %s Bidirectional without being privileged", where, m.Name)
			}
		}
		own := map[string]bool{}
		for _, p := range c.Ports {
			const longestName = 15
			if len(p.Name) > longestName {
				t.Errorf("%s: the name of port %s is too long", where, p.Name)
			}
			if other, ok := ports[p.Name]; ok {
				t.Errorf("%s: port %s is that of %s, too", where, p.Name, other)
			}
			ports[p.Name], own[p.Name] = where, true
		}
		for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
			// A probe finds a port by name in its own container only.
			if name := probePort(probe); name != "" && !own[name] {
				t.Errorf("%s: a probe wants port %s, which the container does not have", where, name)
			}
		}
		checkSecurity(t, where, c)
	}
}

func probePort(probe *corev1.Probe) string {
	switch {
	case probe == nil:
		return ""
	case probe.HTTPGet != nil:
		return probe.HTTPGet.Port.StrVal
	case probe.TCPSocket != nil:
		return probe.TCPSocket.Port.StrVal
	}
	return ""
}

// checkSecurity: what is not privileged has nothing that it does not need, and no container writes to its own files.
func checkSecurity(t *testing.T, where string, c corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	switch {
	case s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
		t.Errorf("%s: its root file system can be written", where)
	case s.Privileged != nil && *s.Privileged:
		if c.Name != "csi-driver" && c.Name != "replicator" {
			t.Errorf("%s is privileged", where)
		}
	case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation,
		s.Capabilities == nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" ||
			len(s.Capabilities.Add) > 0,
		s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Errorf("%s: a security context with more than it needs: %v", where, s)
	}
}
