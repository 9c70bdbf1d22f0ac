//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// reboot ends everything on a node at once and starts it again. What a pod there had flushed is there, in volumes that
// came back by themselves, and the pod goes on with them.
func (s *suite) reboot(t *testing.T, shown func(string, ...any)) {
	nodes := s.nodes("a")
	node := nodes[len(nodes)-1] // not the one with the control plane
	claims := []string{"plain-kept", "replicable-kept", "block-kept"}
	// Each start of the pod leaves a line in each file system.
	s.a.apply(t,
		claim("plain-kept", "plain", "Filesystem", "32Mi")+claim("replicable-kept", "replicable", "Filesystem", "32Mi")+
			claim("block-kept", "replicable", "Block", "32Mi")+
			pod{name: "kept", claims: claims, node: node, restart: "Always", command: `
			if ! [ -e /plain-kept/x ]; then echo payload | dd of=/block-kept bs=512 conv=sync,fsync 2>/dev/null; fi
			for v in plain replicable; do echo started >> /$v-kept/x; done; sync
			trap exit TERM; while :; do sleep 1; done`}.manifest())
	started := func(times int) {
		t.Helper()
		eventually(t, fmt.Sprintf("the pod has started %d times on its volumes", times), func() error {
			out, err := s.a.try("", "-n", namespace, "exec", "kept", "--", "sh", "-ec",
				"cat /plain-kept/x; echo --; cat /replicable-kept/x; head -c 7 /block-kept")
			if err != nil {
				return err
			}
			if lines := strings.Repeat("started\n", times); out != lines+"--\n"+lines+"payload" {
				return fmt.Errorf("its volumes have %q", out)
			}
			return nil
		})
	}
	s.a.phase(t, "pod", "kept", "Running")
	started(1)
	if err := s.provider.reboot(t.Context(), node); errors.Is(err, errUnsupported) {
		shown("nothing: the nodes of these clusters cannot be rebooted")
		t.SkipNow()
	} else if err != nil {
		t.Fatal(err)
	}
	started(2)
	s.a.ready(t, system, "app.kubernetes.io/component=node")
	shown(
		"a node killed and started again: the pod starts on its plain, replicable and block volumes, which have what " +
			"it had flushed")
	s.a.remove(t, []string{"kept"}, claims)
}
