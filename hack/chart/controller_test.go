package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/yaml"
)

// workload is what has pods: a DaemonSet, a Deployment, a Job or a CronJob.
type workload struct {
	id  string
	pod corev1.PodTemplateSpec
}

func workloads(objects []object) []workload {
	var all []workload
	for _, o := range objects {
		switch w := o.typed.(type) {
		case *appsv1.DaemonSet:
			all = append(all, workload{o.kind + "/" + o.name, w.Spec.Template})
		case *appsv1.Deployment:
			all = append(all, workload{o.kind + "/" + o.name, w.Spec.Template})
		case *batchv1.Job:
			all = append(all, workload{o.kind + "/" + o.name, w.Spec.Template})
		case *batchv1.CronJob:
			all = append(all, workload{o.kind + "/" + o.name, w.Spec.JobTemplate.Spec.Template})
		}
	}
	return all
}

func (w workload) container(name string) *corev1.Container {
	for i := range w.pod.Spec.Containers {
		if w.pod.Spec.Containers[i].Name == name {
			return &w.pod.Spec.Containers[i]
		}
	}
	return nil
}

// argument returns what a flag of a container is set to, and whether it is given.
func argument(c *corev1.Container, flag string) (value string, given bool) {
	for _, arg := range c.Args {
		name, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if name == flag {
			return value, true
		}
	}
	return "", false
}

// checkController: the sidecars are in one place, and fit to it. A node that has a provisioner of its own cannot be
// reached by a controller; so no two provisioners make one claim's volume, not even while the pods of one mode are
// replaced by those of the other.
func checkController(t *testing.T, objects []object) {
	t.Helper()
	var node, at *workload
	for _, w := range workloads(objects) {
		driver, provisioner := w.container("csi-driver"), w.container("csi-provisioner")
		if driver != nil {
			if _, isNode := argument(driver, "node-id"); isNode {
				node = &w
			}
		}
		if provisioner == nil {
			continue
		}
		if at != nil {
			t.Fatalf("provisioners are in %s and in %s", at.id, w.id)
		}
		at = &w
	}
	if node == nil || at == nil {
		t.Fatalf("no node's driver or no provisioner: %v, %v", node, at)
	}
	central := at.id != node.id
	if _, reachable := argument(node.container("csi-driver"), "tcp-address"); reachable != central {
		t.Errorf("the provisioner is in %s; the nodes can be reached by a controller: %v", at.id, reachable)
	}
	for _, name := range []string{"csi-provisioner", "csi-resizer", "csi-snapshotter"} {
		for _, w := range workloads(objects) {
			if c := w.container(name); c != nil && w.id != at.id {
				t.Errorf("%s is in %s, the provisioner in %s", name, w.id, at.id)
			}
		}
		c := at.container(name)
		if c == nil {
			continue // the snapshotter is optional
		}
		_, elected := argument(c, "leader-election")
		_, distributed := argument(c, "node-deployment")
		// The resizer of the nodes is elected, too: it has no mode for one node.
		if elected != (central || name == "csi-resizer") || distributed != (!central && name != "csi-resizer") {
			t.Errorf("%s in %s: elected %v, for its node only %v", name, at.id, elected, distributed)
		}
		if !bound(objects, strings.TrimPrefix(name, "csi-"), at.pod.Spec.ServiceAccountName) {
			t.Errorf("%s has no role of %s", at.pod.Spec.ServiceAccountName, name)
		}
	}
	if central {
		checkRoute(t, objects, node.pod, "csi-driver", "tcp-address", "csi", at.container("csi-driver"))
	}
}

// bound reports whether a ClusterRole whose name ends in suffix is bound to the account, and to no other.
func bound(objects []object, suffix, account string) bool {
	return slices.ContainsFunc(objects, func(o object) bool {
		b, ok := o.typed.(*rbacv1.ClusterRoleBinding)
		return ok && strings.HasSuffix(b.RoleRef.Name, "-"+suffix) && len(b.Subjects) == 1 && b.Subjects[0].Name == account
	})
}

// checkRoute: the service that a caller of the nodes is told of selects the nodes' pods, at the port that a container
// of theirs listens on by a flag.
func checkRoute(t *testing.T, objects []object, node corev1.PodTemplateSpec, listener, flag, port string,
	caller *corev1.Container) {
	t.Helper()
	callee := (workload{pod: node}).container(listener)
	address, _ := argument(callee, flag)
	wanted, _ := argument(caller, "node-service")
	for _, o := range objects {
		service, ok := o.typed.(*corev1.Service)
		if !ok || o.namespace+"/"+o.name != wanted {
			continue
		}
		for key, value := range service.Spec.Selector {
			if node.Labels[key] != value {
				t.Errorf("%s does not select the nodes: %s=%s", o.name, key, value)
			}
		}
		if len(service.Spec.Ports) != 1 || service.Spec.Ports[0].Name != port ||
			service.Spec.ClusterIP != corev1.ClusterIPNone {
			t.Fatalf("%s: want a headless service with the one port %s: %v", o.name, port, service.Spec)
		}
		for _, p := range callee.Ports {
			if p.Name == service.Spec.Ports[0].TargetPort.StrVal {
				if port := fmt.Sprintf(":%d", p.ContainerPort); p.ContainerPort != service.Spec.Ports[0].Port || address != port {
					t.Errorf("%s has port %d, the pods %d, %s listens on %s", o.name, service.Spec.Ports[0].Port,
						p.ContainerPort, listener, address)
				}
				return
			}
		}
		t.Fatalf("%s has no port %s", listener, service.Spec.Ports[0].TargetPort.StrVal)
	}
	t.Fatalf("there is no service %s", wanted)
}

// TestFlags shows that the programs have the flags that the chart gives them.
func TestFlags(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "./cmd/csi-driver", "./cmd/replicator", "./cmd/keeper",
		"./cmd/gateway", "./cmd/operator")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	known := map[string]map[string]bool{}
	for _, program := range []string{"csi-driver", "replicator", "keeper", "gateway", "operator"} {
		help, _ := exec.Command(filepath.Join(dir, program), "-help").CombinedOutput() // exits as for a mistake
		known[program] = map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)^ +--?([a-z-]+)\b`).FindAllSubmatch(help, -1) {
			known[program][string(m[1])] = true
		}
		if !known[program]["v"] && !bytes.Contains(help, []byte("-socket")) {
			t.Fatalf("%s has no flags:\n%s", program, help)
		}
	}
	files, _ := filepath.Glob(filepath.Join(chartDir, "testdata", "*.values.yaml"))
	checked := 0
	for _, file := range files {
		for _, w := range workloads(decode(t, render(t, []string{file}))) {
			for program, flags := range known {
				c := w.container(program)
				if c == nil {
					continue
				}
				if want := "/usr/bin/" + program; len(c.Command) != 1 || c.Command[0] != want {
					t.Errorf("%s: %s/%s runs %q, the images have %s", filepath.Base(file), w.id, program, c.Command, want)
				}
				for _, arg := range c.Args {
					name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
					if checked++; !flags[name] {
						t.Errorf("%s: %s/%s: the program has no flag --%s", filepath.Base(file), w.id, program, name)
					}
				}
			}
		}
	}
	if checked == 0 {
		t.Error("no flag was checked")
	}
}

// TestDriverDefinition: what Kubernetes' storage tests are told of the driver fits to what the chart installs.
func TestDriverDefinition(t *testing.T) {
	text, err := os.ReadFile("../../deploy/testdriver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var definition struct {
		StorageClass       struct{ FromExistingClassName string }
		GroupSnapshotClass struct{ FromFile string }
		DriverInfo         struct {
			Name         string
			TopologyKeys []string
		}
	}
	if err := yaml.Unmarshal(text, &definition); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join("../..", definition.GroupSnapshotClass.FromFile)); err != nil ||
		definition.GroupSnapshotClass.FromFile == "" {
		t.Errorf("the class of group snapshots: %v", err)
	}
	found := false
	for _, o := range decode(t, render(t, []string{filepath.Join(chartDir, "testdata", "controller.values.yaml")})) {
		if class, ok := o.typed.(*storagev1.StorageClass); ok && class.Name == definition.StorageClass.FromExistingClassName {
			found = true
			if class.Provisioner != definition.DriverInfo.Name {
				t.Errorf("class %s is of %s, the definition of %s", class.Name, class.Provisioner, definition.DriverInfo.Name)
			}
		}
	}
	if !found {
		t.Errorf("the chart has no class %q", definition.StorageClass.FromExistingClassName)
	}
}
