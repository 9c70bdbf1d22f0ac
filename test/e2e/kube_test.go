//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long a step waits for what has to come. It is far more than anything takes.
const patience = 5 * time.Minute

// cluster is one site's Kubernetes.
type cluster struct {
	provider
	site string // a or b
}

// unreached are errors of kubectl before the API server has seen the call: on a busy machine it is not always there at
// once.
var unreached = []string{"Unable to connect to the server", "TLS handshake timeout", "connection refused",
	"was refused"}

// try runs kubectl, again where the API server was not reached.
func (c cluster) try(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		out, err := command(ctx, input, append(c.kubectl(c.site), args...)...)
		if err == nil || !slices.ContainsFunc(unreached, func(s string) bool { return strings.Contains(err.Error(), s) }) {
			return out, err
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return out, err
		}
	}
}

func (c cluster) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c cluster) apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := c.try(manifest, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, manifest)
	}
}

// onNode runs a program inside a node.
func (c cluster) onNode(t *testing.T, node string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := command(ctx, "", append(c.node(node), args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually asks again and again, until check is content. What takes long is logged, to see where a step's time goes.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	began := time.Now()
	deadline := began.Add(patience)
	for {
		err := check()
		if err == nil {
			if took := time.Since(began); took > 5*time.Second {
				t.Logf("%s: after %.0f s", what, took.Seconds())
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		time.Sleep(time.Second)
	}
}

// object is as much of any object as the steps look at.
type object struct {
	Metadata struct {
		Name, Namespace, UID string
		Labels, Annotations  map[string]string
		OwnerReferences      []struct{ Kind, Name string }
		DeletionTimestamp    string
	}
	Spec   map[string]any
	Status map[string]any
	// Of CSIStorageCapacity.
	Capacity         string
	StorageClassName string
	NodeTopology     struct{ MatchLabels map[string]string }
}

// field walks down maps by names; "" if there is nothing.
func field(m map[string]any, path ...string) string {
	var value any = m
	for _, name := range path {
		next, ok := value.(map[string]any)
		if !ok {
			return ""
		}
		value = next[name]
	}
	if value == nil {
		return ""
	}
	return fmt.Sprint(value)
}

func (c cluster) get(t *testing.T, args ...string) object {
	t.Helper()
	var o object
	if err := json.Unmarshal([]byte(c.run(t, append([]string{"get", "-o", "json"}, args...)...)), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func (c cluster) list(t *testing.T, args ...string) []object {
	t.Helper()
	var l struct{ Items []object }
	if err := json.Unmarshal([]byte(c.run(t, append([]string{"get", "-o", "json"}, args...)...)), &l); err != nil {
		t.Fatal(err)
	}
	return l.Items
}

// phase waits for a pod's or claim's phase.
func (c cluster) phase(t *testing.T, kind, name, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s %s is %s", kind, name, want), func() error {
		o := c.get(t, "-n", namespace, kind, name)
		got := field(o.Status, "phase")
		if got == "Failed" && want != "Failed" {
			out, _ := c.try("", "-n", namespace, "logs", name, "--tail=20")
			t.Fatalf("pod %s failed:\n%s", name, out)
		}
		if got != want {
			return fmt.Errorf("it is %s%s", got, c.events(name))
		}
		return nil
	})
}

// events are what was said about an object and others of its name, for an error message.
func (c cluster) events(name string) string {
	out, err := c.try("", "-n", namespace, "get", "events", "--field-selector", "involvedObject.name="+name, "-o",
		`jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
	if err != nil {
		return ""
	}
	return "; events: " + strings.Join(strings.Split(strings.TrimSpace(out), "\n"), "; ")
}

// ready waits until all pods of a selector are ready, and at least one is there.
func (c cluster) ready(t *testing.T, ns, selector string) {
	t.Helper()
	eventually(t, "pods "+selector+" are ready", func() error {
		pods := c.list(t, "-n", ns, "pods", "-l", selector)
		if len(pods) == 0 {
			return fmt.Errorf("there is none")
		}
		for _, p := range pods {
			if !isReady(p) || p.Metadata.DeletionTimestamp != "" {
				return fmt.Errorf("%s is not: phase %s", p.Metadata.Name, field(p.Status, "phase"))
			}
		}
		return nil
	})
}

func isReady(o object) bool { return hasCondition(o, "Ready", "True") }

// gone waits until an object is not there any more.
func (c cluster) gone(t *testing.T, args ...string) {
	t.Helper()
	eventually(t, strings.Join(args, " ")+" is gone", func() error {
		out, err := c.try("", append([]string{"get", "--ignore-not-found", "-o", "name"}, args...)...)
		if err != nil {
			return err
		}
		if out != "" {
			return fmt.Errorf("there is still %s", strings.TrimSpace(out))
		}
		return nil
	})
}
