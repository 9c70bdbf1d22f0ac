//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// processesDie ends one part after another under the verifying load of replicate. The load fails at the first I/O error
// and at the first byte that is wrong.
func (s *suite) processesDie(t *testing.T, shown func(string, ...any)) {
	node := s.nodes("a")[0]
	claims := []string{"verify", "block-verify"}
	s.inSync(t, "verify", node)
	survives := func(what string, kill func()) {
		t.Helper()
		t.Log(what)
		kill()
		s.a.goesOn(t, "verify", claims...)
		s.a.catchesUp(t, "verify", node)
		shown("%s", what)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()

	survives("replicator killed", func() { s.killContainer(t, node, "replicator") })
	survives("driver killed", func() { s.killContainer(t, node, "csi-driver") })
	survives("node pod deleted", func() {
		old := s.a.nodePod(t, "node", node)
		s.a.run(t, "-n", system, "delete", "pod", old)
		s.a.ready(t, system, "app.kubernetes.io/component=node")
	})
	survives("node pod deleted without grace", func() {
		old := s.a.nodePod(t, "node", node)
		s.a.run(t, "-n", system, "delete", "pod", old, "--grace-period=0", "--force")
		s.a.ready(t, system, "app.kubernetes.io/component=node")
	})
	survives("DaemonSet rolled", func() {
		name := strings.TrimSpace(s.a.run(t, "-n", system, "get", "daemonset", "-l", "app.kubernetes.io/component=node",
			"-o", "name"))
		s.a.run(t, "-n", system, "rollout", "restart", name)
		s.a.run(t, "-n", system, "rollout", "status", name, "--timeout=5m")
	})
	survives("kubelet restarted", func() {
		for _, verb := range []string{"stop", "start"} {
			if err := s.service(ctx, node, verb, "kubelet"); err != nil {
				t.Fatal(err)
			}
		}
	})
	survives("provisioner, resizer and snapshotter killed while volumes are made, each of which is there once", func() {
		s.controllersDie(t, node)
	})
	err := s.controlPlane(ctx, node, "kill")
	if errors.Is(err, errUnsupported) {
		shown("not shown: the API server of these clusters cannot be stopped")
		return
	} else if err != nil {
		t.Fatal(err)
	}
	// A step must not be quick here: leases and watches have to run out.
	before := s.progressOnNode(t, node)
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
	}
	after := s.progressOnNode(t, node)
	if err := s.controlPlane(ctx, node, "start"); err != nil {
		t.Fatal(err)
	}
	for _, c := range claims {
		if after[c] <= before[c] {
			t.Errorf("the load on %s had %d writes when the API server stopped, and %d a minute later", c, before[c], after[c])
		}
	}
	s.a.ready(t, system, "app.kubernetes.io/component=node")
	survives("API server stopped for a minute", func() {})
}

// controlPlane kills or starts the API server of site a, on a node, with what works for it. An API server that is
// stopped takes a minute for its watchers. A controller manager that lives on has nodes fail after the API server is
// back, until its own watches have begun again; one that is started needs an API server.
func (s *suite) controlPlane(ctx context.Context, node, verb string) error {
	for _, name := range []string{"apiserver", "controller-manager", "scheduler"} {
		if err := s.service(ctx, node, verb, name); err != nil {
			return err
		}
		for verb == "start" && name == "apiserver" {
			_, err := s.a.try("", "get", "--raw", "/readyz")
			if err == nil {
				break
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return errors.Join(ctx.Err(), err)
			}
		}
	}
	return nil
}

// controllersDie kills the sidecars again and again while claims are made for a pod and go again, and wants each volume
// once.
func (s *suite) controllersDie(t *testing.T, node string) {
	t.Helper()
	before := s.images(t, node)
	var claims []string
	var manifest strings.Builder
	for i := range 6 {
		claims = append(claims, fmt.Sprintf("block-born-%d", i))
		manifest.WriteString(claim(claims[i], []string{"plain", "replicable"}[i%2], "Block", "32Mi"))
	}
	s.a.apply(t,
		manifest.String()+pod{name: "born", claims: claims, node: node,
			command: "trap exit TERM; while :; do sleep 1; done"}.manifest())
	s.killControllers(t, node, "csi-provisioner", "csi-resizer", "csi-snapshotter")
	s.killControllers(t, node, "csi-provisioner")
	s.a.phase(t, "pod", "born", "Running")
	if n := s.images(t, node); n != before+len(claims) {
		t.Errorf("%d claims made %d volumes", len(claims), n-before)
	}
	s.a.remove(t, []string{"born"}, claims)
	if n := s.images(t, node); n != before {
		t.Errorf("%d volumes are left of %d", n-before, len(claims))
	}
}

// progressOnNode is how many writes each load on a node has done, without asking the API server.
func (s *suite) progressOnNode(t *testing.T, node string) map[string]int {
	t.Helper()
	out := s.a.onNode(t, node, "sh", "-c", `for p in /proc/[0-9]*; do
		case $(readlink $p/exe) in */verify)
			for f in $p/root/tmp/*.log; do echo "$(basename $f .log) $(tail -n 1 $f)"; done
			break ;;
		esac
	done`)
	writes := map[string]int{}
	for line := range strings.Lines(out) {
		var name string
		var n int
		if _, err := fmt.Sscanf(line, "%s writes=%d", &name, &n); err != nil {
			t.Fatalf("a load on %s printed %q: %v", node, line, err)
		}
		writes[name] = n
	}
	return writes
}

// loadEndsWell has the load of replicate, under which everything was done, read back all that it ever wrote.
func (s *suite) loadEndsWell(t *testing.T, shown func(string, ...any)) {
	claims := []string{"verify", "block-verify"}
	shown("no I/O error and no wrong byte in all of it: %s", s.a.finish(t, "verify", claims...))
	s.a.remove(t, []string{"verify"}, claims)
}

// killContainer kills what runs in a container of a node's pod, and waits for the next one.
func (s *suite) killContainer(t *testing.T, node, container string) {
	t.Helper()
	s.killIn(t, s.a.nodePod(t, "node", node), node, container)()
}

// killControllers kills those that work for a node, in the controller's pods where there are such, else in the node's
// own, and waits for the next ones.
func (s *suite) killControllers(t *testing.T, node string, containers ...string) {
	t.Helper()
	var started []func()
	for _, container := range containers {
		if !central() {
			started = append(started, s.killIn(t, s.a.nodePod(t, "node", node), node, container))
			continue
		}
		for _, p := range s.a.list(t, "-n", system, "pods", "-l", "app.kubernetes.io/component=controller") {
			started = append(started, s.killIn(t, p.Metadata.Name, field(p.Spec, "nodeName"), container))
		}
	}
	for _, wait := range started {
		wait()
	}
}

// killIn kills what runs in a container of a pod of the system's, which is on a node. It returns what waits for the
// next one.
func (s *suite) killIn(t *testing.T, pod, node, container string) (started func()) {
	t.Helper()
	before, id, _ := s.containerStatus(t, pod, container)
	s.killProcess(t, node, container, id)
	return func() {
		t.Helper()
		eventually(t, container+" is started again", func() error {
			if now, _, ready := s.containerStatus(t, pod, container); now == before || !ready {
				return fmt.Errorf("restarts %s, ready %v", now, ready)
			}
			return nil
		})
	}
}

// containerStatus is what the kubelet says of a container of a pod of the system's; the id is empty where it was not
// started.
func (s *suite) containerStatus(t *testing.T, pod, container string) (restarts, id string, ready bool) {
	t.Helper()
	statuses, _ := s.a.get(t, "-n", system, "pod", pod).Status["containerStatuses"].([]any)
	for _, one := range statuses {
		if m, ok := one.(map[string]any); ok && m["name"] == container {
			_, id, _ := strings.Cut(fmt.Sprint(m["containerID"]), "://")
			return fmt.Sprint(m["restartCount"]), id, m["ready"] == true
		}
	}
	return "", "", false
}

// killProcess kills the process of a container on a node: what is in the control group with the container's id.
func (s *suite) killProcess(t *testing.T, node, container, id string) {
	t.Helper()
	if id == "" {
		t.Fatalf("container %s on %s was not started", container, node)
	}
	out := s.a.onNode(t, node, "sh", "-c",
		"for p in /proc/[0-9]*; do grep -qs "+id+" $p/cgroup && kill -KILL ${p#/proc/} && echo killed; done; true")
	if strings.Count(out, "killed") != 1 {
		t.Fatalf("killed %d processes of container %s on %s", strings.Count(out, "killed"), container, node)
	}
}
