//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// link cuts the line between the sites, makes it narrow and slow, under the verifying load of replicate. The load goes
// on, the lag can be seen in the metrics, and the copy catches up.
func (s *suite) link(t *testing.T, shown func(string, ...any)) {
	node := s.nodes("a")[0]
	claims := []string{"verify", "block-verify"}
	s.inSync(t, "verify", node)
	if err := s.line(t.Context(), "cut"); errors.Is(err, errUnsupported) {
		shown("nothing: the line between these clusters cannot be cut")
		t.SkipNow()
	} else if err != nil {
		t.Fatal(err)
	}
	healed := false
	defer func() {
		for _, args := range [][]string{{"heal"}, {"rate", "none"}, {"delay", "none"}} {
			if err := s.line(t.Context(), args...); err != nil && !healed {
				t.Error(err)
			}
		}
	}()
	eventually(t, "the cut shows", func() error {
		g, err := s.a.group(t, node, "verify")
		if err != nil {
			return err
		}
		if g.Connected {
			return fmt.Errorf("state %s", g.State)
		}
		return nil
	})
	s.a.goesOn(t, "verify", claims...)
	eventually(t, "the metrics show the cut", func() error {
		if s.disconnectedInMetrics(t, node) {
			return nil
		}
		return errors.New("no slipstream_..connected is 0")
	})
	if err := s.line(t.Context(), "heal"); err != nil {
		t.Fatal(err)
	}
	s.a.catchesUp(t, "verify", node)
	shown("line cut under load: status and metrics say so, the load goes on, and the copy catches up")
	for _, args := range [][]string{{"delay", "50ms"}, {"rate", "20mbit"}} {
		if err := s.line(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	s.a.goesOn(t, "verify", claims...)
	s.a.catchesUp(t, "verify", node)
	shown("a line of 20 Mbit/s and 100 ms there and back: the load goes on, and the copy follows")
	healed = true
}

// disconnectedInMetrics says whether a gauge of the replicator shows a link that is down.
func (s *suite) disconnectedInMetrics(t *testing.T, node string) bool {
	t.Helper()
	for line := range strings.Lines(s.metrics(t, node)) {
		if strings.HasPrefix(line, "slipstream_") && strings.Contains(line, "connected") &&
			strings.HasSuffix(strings.TrimSpace(line), " 0") {
			return true
		}
	}
	return false
}

// metricsAt is where the metrics of a node's replicator at site a are, and the token for them.
func (s *suite) metricsAt(t *testing.T, node string) (address, token string) {
	t.Helper()
	var secret struct{ Data struct{ Token []byte } }
	if err := json.Unmarshal([]byte(s.a.run(t, "-n", system, "get", "secret", metricsSecret, "-o", "json")),
		&secret); err != nil {
		t.Fatal(err)
	}
	ip := field(s.a.get(t, "-n", system, "pod", s.a.nodePod(t, "node", node)).Status, "podIP")
	return "http://" + ip + ":9812/metrics", string(secret.Data.Token)
}

// metrics of a node's replicator, read as Prometheus would: from outside of its pod, with the token.
func (s *suite) metrics(t *testing.T, node string) string {
	t.Helper()
	address, token := s.metricsAt(t, node)
	if out := s.a.onNode(t, node, "curl", "-sS", address); !strings.Contains(out, "bearer token") {
		t.Errorf("metrics without the token: %.200s", out)
	}
	return s.a.onNode(t, node, "curl", "-sS", "--fail", "-H", "Authorization: Bearer "+token, address)
}
