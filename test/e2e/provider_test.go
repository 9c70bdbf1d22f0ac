//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// provider is a pair of clusters, called a and b, each with nodes called by name.
type provider interface {
	// kubectl, helm, slipctl and plugin (kubectl slipstream) are the beginnings of command lines.
	kubectl(site string) []string
	helm(site string) []string
	slipctl(site string) []string
	plugin(site string) []string
	// node is the beginning of a command line that runs inside a node, as root.
	node(name string) []string
	nodes(site string) []string
	// address is what pods and nodes of the other site reach a node by.
	address(node string) string
	// service starts, stops or kills the kubelet of a node, or the apiserver of a site's first.
	service(ctx context.Context, node, verb, name string) error
	// reboot kills a node at once and starts it again.
	reboot(ctx context.Context, node string) error
	// destroy kills a whole site at once, and comeBack starts it again with the disks that it had.
	destroy(ctx context.Context, site string) error
	comeBack(ctx context.Context, site string) error
	// etcd saves the objects of a site, or puts them back to what was saved and starts again what reads them.
	etcd(ctx context.Context, site, verb string) error
	// line changes the line between the sites: "cut", "heal", "rate 1mbit", "rate none". errUnsupported where that
	// cannot be.
	line(ctx context.Context, args ...string) error
}

// Where the scripts put the programs.
const (
	slipctl   = "../../bin/slipctl"
	pluginBin = "../../bin/kubectl-slipstream"
)

var errUnsupported = errors.New("these clusters cannot do that")

// newProvider is by SLIPSTREAM_E2E_PROVIDER: local or kind.
func newProvider(ctx context.Context) (provider, error) {
	switch kind := os.Getenv("SLIPSTREAM_E2E_PROVIDER"); kind {
	case "local":
		return newLocal(ctx)
	case "kind":
		return kindProvider{}, nil
	default:
		return nil, fmt.Errorf(
			"SLIPSTREAM_E2E_PROVIDER is %q: the tests are run by hack/e2e.sh or hack/e2e-kind.sh, which set it", kind)
	}
}

// local is the clusters of hack/local-cluster.sh.
type local struct {
	script string
	env    map[string]string // what its verb env prints
}

func newLocal(ctx context.Context) (*local, error) {
	l := &local{script: "../../hack/local-cluster.sh", env: map[string]string{}}
	out, err := command(ctx, "", l.script, "env")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			l.env[name] = value
		}
	}
	return l, nil
}

func (l *local) at(site, program string) []string {
	return []string{"nsenter", "--net=" + l.env["WAN"], "--", program, "--kubeconfig",
		l.env["STATE"] + "/" + site + ".kubeconfig"}
}

func (l *local) kubectl(site string) []string { return l.at(site, l.env["BIN"]+"/kubectl") }
func (l *local) helm(site string) []string    { return l.at(site, l.env["BIN"]+"/helm") }
func (l *local) slipctl(site string) []string { return l.at(site, slipctl) }
func (l *local) plugin(site string) []string  { return l.at(site, pluginBin) }
func (l *local) node(name string) []string    { return []string{l.script, "exec", name} }

func (l *local) nodes(site string) []string {
	return map[string][]string{"a": {"a1", "a2"}, "b": {"b1"}}[site]
}

func (l *local) address(node string) string {
	return fmt.Sprintf("10.77.%d.%s", node[0]-'a'+1, node[1:])
}

func (l *local) run(ctx context.Context, args ...string) error {
	_, err := command(ctx, "", append([]string{l.script}, args...)...)
	return err
}

func (l *local) service(ctx context.Context, node, verb, name string) error {
	return l.run(ctx, "service", node, verb, name)
}
func (l *local) reboot(ctx context.Context, node string) error { return l.run(ctx, "reboot", node) }
func (l *local) destroy(ctx context.Context, site string) error {
	_, err := command(ctx, "", "env", "KEEP=1", l.script, "down", site)
	return err
}
func (l *local) comeBack(ctx context.Context, site string) error {
	return l.run(ctx, "up", fmt.Sprintf("%s:%d", site, len(l.nodes(site))))
}

func (l *local) etcd(ctx context.Context, site, verb string) error {
	first := l.nodes(site)[0]
	dir := l.env["STATE"] + "/" + first + "/etcd"
	copied := fmt.Sprintf("rm -rf %[1]s.saved && cp -a %[1]s %[1]s.saved", dir)
	type program struct{ node, name string }
	stopped := []program{{first, "apiserver"}, {first, "etcd"}}
	if verb == "restore" {
		copied = fmt.Sprintf("test -d %[1]s.saved && rm -rf %[1]s && mv %[1]s.saved %[1]s", dir)
		stopped = slices.Insert(stopped, 0, program{first, "controller-manager"}, program{first, "scheduler"})
		for _, n := range l.nodes(site) {
			stopped = slices.Insert(stopped, 0, program{n, "kubelet"}, program{n, "proxy"})
		}
	}
	for _, p := range stopped {
		verb := "stop"
		if p.name == "apiserver" {
			verb = "kill" // it takes a minute to stop, for the sake of its watchers
		}
		if err := l.service(ctx, p.node, verb, p.name); err != nil {
			return err
		}
	}
	if _, err := command(ctx, "", append(l.node(first), "sh", "-ec", copied)...); err != nil {
		return err
	}
	for _, p := range slices.Backward(stopped) {
		if err := l.service(ctx, p.node, "start", p.name); err != nil {
			return err
		}
	}
	return nil
}

func (l *local) line(ctx context.Context, args ...string) error {
	return l.run(ctx, append([]string{"line"}, args...)...)
}

// kindProvider is the clusters that hack/e2e-kind.sh makes with kind: slipstream-a with a second node, and
// slipstream-b.
type kindProvider struct{}

func (kindProvider) kubectl(site string) []string {
	return []string{"kubectl", "--context", "kind-slipstream-" + site}
}
func (kindProvider) helm(site string) []string {
	return []string{"helm", "--kube-context", "kind-slipstream-" + site}
}
func (kindProvider) slipctl(site string) []string {
	return []string{slipctl, "--context", "kind-slipstream-" + site}
}
func (kindProvider) plugin(site string) []string {
	return []string{pluginBin, "--context", "kind-slipstream-" + site}
}
func (kindProvider) node(name string) []string { return []string{"docker", "exec", "-i", name} }
func (kindProvider) nodes(site string) []string {
	return map[string][]string{
		"a": {"slipstream-a-worker", "slipstream-a-worker2"}, "b": {"slipstream-b-control-plane"},
	}[site]
}

func (kindProvider) address(node string) string {
	// Docker's own name server knows the nodes of one network to each other, but not to pods.
	out, err := exec.Command("docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
		node).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

func (k kindProvider) service(ctx context.Context, node, verb, name string) error {
	if name != "kubelet" {
		return errUnsupported // the control plane's programs are static pods there
	}
	_, err := command(ctx, "", append(k.node(node), "systemctl", verb, name)...)
	return err
}

// Both leave loop devices behind, which are the machine's; the script takes them away.
func (kindProvider) reboot(ctx context.Context, node string) error {
	_, err := command(ctx, "", "../../hack/e2e-kind.sh", "reboot", node)
	return err
}

func (kindProvider) destroy(ctx context.Context, site string) error {
	_, err := command(ctx, "", "../../hack/e2e-kind.sh", "down", site)
	return err
}

func (kindProvider) comeBack(context.Context, string) error { return errUnsupported }

func (kindProvider) etcd(context.Context, string, string) error { return errUnsupported }

func (kindProvider) line(context.Context, ...string) error { return errUnsupported }

// command runs a program with a text as its input, and returns what it printed. The error has what it complained of.
func command(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errOut strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}
