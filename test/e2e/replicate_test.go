//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// groupStatus is as much of slipctl's JSON as the steps look at.
type groupStatus struct {
	Name, Role, State, StateReason string
	Connected, Promotable          bool
	DurableOrdinal                 json.Number
	AcknowledgedOrdinal            json.Number
	LagOrdinals                    json.Number
	LagSeconds                     float64
	Volumes                        []struct {
		VolumeID string
		Attached bool
	}
}

// slipctl runs in a node's pod.
func (c cluster) slipctl(t *testing.T, node string, args ...string) (string, error) {
	t.Helper()
	return c.try("",
		append([]string{"-n", system, "exec", c.nodePod(t, "node", node), "-c", "replicator", "--", "slipctl"}, args...)...)
}

// outside runs slipctl as a person does, who has a kubeconfig.
func (c cluster) outside(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := command(ctx, "", append(append(c.provider.slipctl(c.site), "--namespace", system), args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// plugin runs kubectl slipstream.
func (c cluster) plugin(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := command(ctx, "", append(c.provider.plugin(c.site), args...)...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

func (c cluster) group(t *testing.T, node, name string) (groupStatus, error) {
	t.Helper()
	out, err := c.slipctl(t, node, "group", "status", name, "-o", "json")
	if err != nil {
		return groupStatus{}, err
	}
	var g groupStatus
	var list []groupStatus
	if err := json.Unmarshal([]byte(out), &list); err == nil && len(list) == 1 {
		return list[0], nil
	}
	err = json.Unmarshal([]byte(out), &g)
	return g, err
}

// inSync waits until a group's primary streams and its peer could be promoted.
func (s *suite) inSync(t *testing.T, name, node string) {
	t.Helper()
	eventually(t, "group "+name+" is replicated", func() error {
		here, err := s.a.group(t, node, name)
		if err != nil {
			return err
		}
		there, err := s.b.group(t, s.nodes("b")[0], name)
		if err != nil {
			return err
		}
		if here.Role != "primary" || here.State != "streaming" || there.Role != "secondary" || !there.Promotable {
			return fmt.Errorf("%+v at the primary, %+v at the secondary", here, there)
		}
		return nil
	})
}

// replicate makes claims of two groups that are replicated from birth, with loads on one of them that stay.
func (s *suite) replicate(t *testing.T, shown func(string, ...any)) {
	node := s.nodes("a")[0]
	load := verifying("verify", "verify", "block-verify")
	load.node = node
	s.a.apply(t,
		claim("verify", "verify", "Filesystem", "64Mi")+claim("block-verify", "verify", "Block", "32Mi")+load.manifest())
	s.a.phase(t, "pod", "verify", "Running")
	s.inSync(t, "verify", node)
	s.a.goesOn(t, "verify", load.claims...)
	here, err := s.a.group(t, node, "verify")
	if err != nil {
		t.Fatal(err)
	}
	if len(here.Volumes) != 2 {
		t.Errorf("group verify has volumes %v", here.Volumes)
	}
	var ids []string
	for _, c := range load.claims {
		ids = append(ids,
			field(s.a.get(t, "pv", field(s.a.get(t, "-n", namespace, "pvc", c).Spec, "volumeName")).Spec, "csi", "volumeHandle"))
	}
	out, err := s.b.slipctl(t, s.nodes("b")[0], "group", "status", "verify", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if !strings.Contains(out, id) {
			t.Errorf("site b does not have volume %s: %s", id, out)
		}
	}
	shown("two claims of one group are replicated from birth by their StorageClass, under the same ids at both sites")
}

// catchesUp waits until the peer of a group here has at least what the primary, on a node here, has as durable now.
func (c cluster) catchesUp(t *testing.T, name, node string) {
	t.Helper()
	before, err := c.group(t, node, name)
	if err != nil {
		t.Fatal(err)
	}
	want, err := before.DurableOrdinal.Int64()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the copy of "+name+" catches up", func() error {
		now, err := c.group(t, node, name)
		if err != nil {
			return err
		}
		got, err := now.AcknowledgedOrdinal.Int64()
		if err != nil {
			return err
		}
		if got < want || !now.Connected {
			return fmt.Errorf("acknowledged %d of %d, state %s %s", got, want, now.State, now.StateReason)
		}
		return nil
	})
}

var errNotYet = errors.New("not yet")
