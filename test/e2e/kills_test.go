//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// kills moves the shop to site b and back, by a failover with the line cut, a yield and a relocation. While an action
// goes on, processes of both sites are killed at random, and for a minute site a has no API server. SLIPSTREAM_E2E_SEED
// repeats the choice of the processes.
func (s *suite) kills(t *testing.T, shown func(string, ...any)) {
	if !s.protectedRuns {
		t.Skip("the step operator did not end well")
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SLIPSTREAM_E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SLIPSTREAM_E2E_SEED: %v", err)
		}
	}
	t.Logf("SLIPSTREAM_E2E_SEED=%d", seed)
	node, group := s.a.engineGroup(t)
	_, members := s.members(t, protected)
	before := s.engines(t)
	sold := s.soldOnNode(t, node)
	k := &killer{suite: s, random: rand.New(rand.NewPCG(seed, 0)), killed: map[string]int{}, victims: []victim{
		{"replicator of site a", []string{node}, "/replicator"}, {"replicator of site b", s.nodes("b"), "/replicator"},
		{"controller of site a", s.nodes("a"), "--mode=controller"}, {"operator of site a", s.nodes("a"), "/operator"},
		{"controller of site b", s.nodes("b"), "--mode=controller"}, {"operator of site b", s.nodes("b"), "/operator"}}}

	first := s.nodes("a")[0]
	if err := s.controlPlane(t.Context(), first, "kill"); errors.Is(err, errUnsupported) {
		shown("nothing: the API server of these clusters cannot be stopped")
		t.SkipNow()
	} else if err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	defer func() { // what is running already stays
		if err := errors.Join(s.controlPlane(context.Background(), first, "start"),
			s.line(context.Background(), "heal")); err != nil {
			t.Error(err)
		}
	}()
	if err := s.line(t.Context(), "cut"); err != nil {
		t.Fatal(err)
	}
	end := k.start(t)
	defer func() { end() }()
	s.failOver(t, protected, "kills-failover", func() { k.soon(t, "operator of site b") })
	s.b.apply(t, shopManifest(3000000))
	s.b.podRuns(t, protected, "shop")
	time.Sleep(time.Until(stopped.Add(time.Minute)))
	end()
	if now := s.soldOnNode(t, node); now <= sold {
		t.Errorf("the shop at site a had sold %d orders when the API server stopped, and %d a minute later", sold, now)
	}
	if err := errors.Join(s.controlPlane(t.Context(), first, "start"), s.line(t.Context(), "heal")); err != nil {
		t.Fatal(err)
	}
	s.a.run(t, "-n", protected, "delete", "pod", "shop")
	for _, c := range []cluster{s.a, s.b} {
		c.condition(t, protected, "Converged", "False")
	}
	s.a.begin(t, "kills-yield", "Yield")
	end = k.start(t)
	k.soon(t, "operator of site a")
	s.a.succeeded(t, protected, "kills-yield")
	end()
	for _, c := range []cluster{s.a, s.b} {
		c.condition(t, protected, "Ready", "True")
	}
	acks := s.b.run(t, "-n", protected, "logs", "shop")
	s.b.run(t, "-n", protected, "delete", "pod", "shop")
	s.b.unmounted(t, protected)
	s.b.begin(t, "kills-home", "Relocate")
	end = k.start(t)
	k.soon(t, "replicator of site b")
	s.b.succeeded(t, protected, "kills-home")
	end()
	for _, v := range k.victims {
		if k.killed[v.name] == 0 {
			t.Errorf("the %s was never killed", v.name)
		}
	}

	// The last kill may have been of a replicator: a verification needs both sites, and is refused without.
	s.inSync(t, group, node)
	s.a.condition(t, protected, "Promotable", "True")
	s.a.act(t, "kills-verify", "Verify")
	s.a.apply(t, inProtected(pod{name: "check", claims: []string{"stock", "sales"},
		command: "trap exit TERM; while :; do sleep 1; done"}.manifest()))
	s.a.podRuns(t, protected, "check")
	result := s.a.checkShop(t, protected, "check", acks, "/stock", "/sales", 1)
	if result.Orders == 0 || result.OrdersWithoutStock != 0 || result.LostOrders != 0 || acks == "" {
		t.Errorf("found %+v, of %d orders sold at site b", result, strings.Count(acks, "\n"))
	}
	if _, now := s.members(t, protected); !slices.Equal(members, now) {
		t.Errorf("group %s had members %v, and has %v", group, members, now)
	}
	after := s.engines(t)
	for what := range before {
		if !after[what] {
			t.Errorf("%s is gone without having been removed", what)
		}
	}
	shown("killed at random: %s; the API server of site a stopped for a minute", k)
	shown("failover, yield and relocation meanwhile; then promotable and identical, %d orders, %d without stock "+
		"movement, %d of those sold at site b lost; no volume, group or member is missing", result.Orders,
		result.OrdersWithoutStock, result.LostOrders)
	s.a.run(t, "-n", protected, "delete", "pod", "check")
	s.protectedCuts++ // by the failover; the disaster is the next
	s.a.apply(t, shopManifest(4000000))
	s.a.podRuns(t, protected, "shop")
	s.inSync(t, group, node)
}

// failOver fails the group of a namespace over by force at site b. While it runs, meanwhile is called.
func (s *suite) failOver(t *testing.T, ns, name string, meanwhile func()) object {
	t.Helper()
	var confirm string
	eventually(t, "site b says what a forced failover has to confirm", func() error {
		confirm = field(s.b.get(t, "-n", ns, "cg", ns).Status, "confirm")
		if confirm == "" {
			return errNotYet
		}
		return nil
	})
	s.b.apply(t, fmt.Sprintf(`---
apiVersion: slipstream.dev/v1alpha1
kind: GroupAction
metadata: {name: %s, namespace: %s}
spec: {group: %s, type: Failover, force: true, confirm: %q}
`, name, ns, ns, confirm))
	meanwhile()
	return s.b.succeeded(t, ns, name)
}

// engines is what the engines of both sites have: volumes and groups, by node.
func (s *suite) engines(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, c := range []cluster{s.a, s.b} {
		for _, node := range s.nodes(c.site) {
			for name := range strings.Lines(c.onNode(t, node, "sh", "-ec",
				"cd /var/lib/slipstream; ls -d pool-*/volumes/* journal/groups/* 2>/dev/null || true")) {
				all[strings.TrimSpace(name)+" on "+node] = true
			}
		}
	}
	return all
}

// soldOnNode is how many orders the shops of the operator's namespace on a node have acknowledged, without asking the
// API server.
func (s *suite) soldOnNode(t *testing.T, node string) (n int) {
	t.Helper()
	out := s.a.onNode(t, node, "sh", "-ec", "cat /var/log/pods/"+protected+"_shop_*/c/*.log | wc -l")
	if _, err := fmt.Sscan(out, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// victim is a program that is killed: a process on one of the nodes whose command line has a text.
type victim struct {
	name  string
	nodes []string
	text  string
}

// killer kills one victim after another.
type killer struct {
	*suite
	victims []victim

	mu     sync.Mutex
	random *rand.Rand
	killed map[string]int
}

// start kills victims, each once before one is killed again, until end is called.
func (k *killer) start(t *testing.T) (end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			k.mu.Lock()
			order := k.random.Perm(len(k.victims))
			k.mu.Unlock()
			for _, i := range order {
				if !k.pause(ctx, 2*time.Second, 5*time.Second) {
					return
				}
				k.kill(t, k.victims[i])
			}
		}
	}()
	return func() { cancel(); <-done }
}

// soon kills a victim within two seconds.
func (k *killer) soon(t *testing.T, name string) {
	k.pause(t.Context(), 0, 2*time.Second)
	k.kill(t, k.victims[slices.IndexFunc(k.victims, func(v victim) bool { return v.name == name })])
}

// pause waits for a random time, unless ctx ends before.
func (k *killer) pause(ctx context.Context, least, most time.Duration) bool {
	k.mu.Lock()
	d := least + time.Duration(k.random.Int64N(int64(most-least)))
	k.mu.Unlock()
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// kill kills one of the processes of a victim on one of its nodes. One that is just being started again is spared.
func (k *killer) kill(t *testing.T, v victim) {
	k.mu.Lock()
	node, choice := v.nodes[k.random.IntN(len(v.nodes))], k.random.IntN(100)
	k.mu.Unlock()
	out, err := command(context.WithoutCancel(t.Context()), "", append(k.node(node), "sh", "-c", fmt.Sprintf(`
		set -- $(for p in /proc/[0-9]*; do
			case " $(readlink $p/exe) $(tr '\0' ' ' < $p/cmdline)" in *%[1]s\ *) echo ${p#/proc/} ;; esac; done)
		[ $# -eq 0 ] || { shift $((%[2]d %% $#)); kill -KILL $1 && echo killed; }`, v.text, choice))...)
	if err != nil {
		t.Errorf("kill the %s: %v", v.name, err)
	}
	if strings.Contains(out, "killed") {
		k.mu.Lock()
		k.killed[v.name]++
		k.mu.Unlock()
	}
}

// String is how often each victim was killed.
func (k *killer) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(k.killed)) {
		parts = append(parts, fmt.Sprintf("%s %d times", name, k.killed[name]))
	}
	return strings.Join(parts, ", ")
}
