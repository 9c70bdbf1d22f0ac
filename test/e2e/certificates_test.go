//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// certificates gives site a another site's certificate, then an expired one. A link that is up stays up, so the
// replicator is killed; the next one cannot connect, says why, and serves its volumes all the same. With a right
// certificate the link comes back by itself.
func (s *suite) certificates(t *testing.T, shown func(string, ...any)) {
	node := s.nodes("a")[0]
	claims := []string{"verify", "block-verify"}
	s.inSync(t, "verify", node)
	renew := func(name string, validFor time.Duration) {
		t.Helper()
		issue(t, s.a, s.authority, "site-tls", name, validFor)
		want := field(s.secretData(t), "tls.crt")
		// The kubelet brings a Secret up to date when it looks at the pod, for which it takes a minute if nothing
		// happens to it.
		s.a.run(t, "-n", system, "annotate", "--overwrite", "pod", s.a.nodePod(t, "node", node),
			"e2e/renewed="+fmt.Sprint(time.Now().UnixNano()))
		eventually(t, "the pod has the new certificate", func() error {
			got, err := s.a.try("", "-n", system, "exec", s.a.nodePod(t, "node", node), "-c", "replicator", "--", "cat",
				"/etc/slipstream/tls/tls.crt")
			if err == nil && strings.TrimSpace(got) != strings.TrimSpace(want) {
				err = errNotYet
			}
			return err
		})
	}
	for _, bad := range []struct {
		what, name string
		validFor   time.Duration
		want       string
	}{
		{"another site's certificate", "site-x", time.Hour, "and not for site-a"},
		{"an expired certificate", "site-a", time.Nanosecond, "has expired at"},
	} {
		renew(bad.name, bad.validFor)
		s.killContainer(t, node, "replicator")
		var reason string
		eventually(t, "the status says why", func() error {
			g, err := s.a.group(t, node, "verify")
			if err != nil {
				return err
			}
			if reason = g.StateReason; g.Connected || !strings.Contains(reason, bad.want) {
				return fmt.Errorf("state %s, %s", g.State, g.StateReason)
			}
			return nil
		})
		if !s.disconnectedInMetrics(t, node) {
			t.Errorf("with %s: the metrics do not show the link as down", bad.what)
		}
		if ended := s.certificateEnds(t, node).Before(time.Now()); ended != (bad.validFor < time.Minute) {
			t.Errorf("with %s: the metrics say that it has ended: %t", bad.what, ended)
		}
		if logs := s.a.run(t, "-n", system, "logs", s.a.nodePod(t, "node", node), "-c",
			"replicator"); !strings.Contains(logs, bad.want) {
			t.Errorf("with %s: the replicator's log says nothing of it", bad.what)
		}
		s.a.goesOn(t, "verify", claims...)
		renew("site-a", time.Hour)
		s.a.catchesUp(t, "verify", node)
		shown("%s: status, metrics and log say so (%.120s), the load goes on, and the link is back with a right one",
			bad.what, reason)
	}
}

// certificateEnds is when a node's replicator says that its certificate ends.
func (s *suite) certificateEnds(t *testing.T, node string) time.Time {
	t.Helper()
	for line := range strings.Lines(s.metrics(t, node)) {
		if value, ok := strings.CutPrefix(line, "slipstream_certificate_expiry_timestamp_seconds "); ok {
			seconds, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return time.Unix(int64(seconds), 0)
		}
	}
	t.Fatalf("the replicator on %s has no metric of its certificate", node)
	return time.Time{}
}
