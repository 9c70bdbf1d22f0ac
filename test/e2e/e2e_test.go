//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// namespace of what the steps make; the driver is in system.
const (
	namespace = "e2e"
	system    = "slipstream-system"
	driver    = "csi.slipstream.dev"
)

// suite is what the steps share.
type suite struct {
	provider
	a, b      cluster
	authority *tlsfiles.Authority // of both sites
	rows      []row
	// protectedOrders are those that the shop of the operator's namespace had acknowledged before site a was destroyed.
	protectedOrders string
	protectedRuns   bool
	// protectedCuts is how often that shop has been cut off by the end of the disaster.
	protectedCuts int
	// destroyed says that site a is not there.
	destroyed bool
}

// row is a line of the table.
type row struct {
	step, result string
	took         time.Duration
	shown        []string
}

func TestE2E(t *testing.T) {
	p, err := newProvider(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{provider: p, a: cluster{p, "a"}, b: cluster{p, "b"}}
	defer s.report(t)
	if !s.step(t, "install", s.install) {
		return
	}
	s.step(t, "accounts", s.accounts)
	s.step(t, "provision", s.provision)
	s.step(t, "two nodes", s.twoNodes)
	s.step(t, "snapshots", s.snapshots)
	s.step(t, "reboot", s.reboot)
	s.step(t, "replicate", s.replicate)
	s.step(t, "processes die", s.processesDie)
	s.step(t, "link", s.link)
	s.step(t, "gateway", s.gateway)
	s.step(t, "certificates", s.certificates)
	s.step(t, "load ends well", s.loadEndsWell)
	s.step(t, "leaks", s.leaks)
	s.step(t, "group snapshot", s.groupSnapshot)
	s.step(t, "operator", s.operator)
	s.step(t, "analytics", s.analytics)
	s.step(t, "test failover", s.testFailover)
	s.step(t, "removal", s.removal)
	s.step(t, "restored etcd", s.restoredEtcd)
	s.step(t, "kills", s.kills)
	s.step(t, "disaster", s.disaster)
	if s.protectedOrders != "" && s.step(t, "operator fails over", s.operatorFailsOver) {
		s.step(t, "site comes back", s.comesBack)
	}
	s.step(t, "shop on two nodes", s.shopOnTwoNodes)
}

// step runs one, and notes what it has shown.
func (s *suite) step(t *testing.T, name string, body func(*testing.T, func(string, ...any))) bool {
	r := row{step: name, result: "not asked for"}
	began := time.Now()
	ok := t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
		r.result = "failed"
		// Deferred, since a step that skips or fails does not return.
		defer func() {
			switch {
			case t.Failed():
				s.diagnose(t)
			case t.Skipped():
				r.result = "skipped"
			default:
				r.result = "ok"
			}
		}()
		body(t, func(format string, args ...any) {
			r.shown = append(r.shown, fmt.Sprintf(format, args...))
			t.Logf("shown: "+format, args...)
		})
	})
	r.took = time.Since(began)
	s.rows = append(s.rows, r)
	return ok
}

// results is the directory for the table and for what a failed step leaves; empty for none.
func results() string { return os.Getenv("SLIPSTREAM_E2E_RESULTS") }

func (s *suite) report(t *testing.T) {
	var b strings.Builder
	b.WriteString("| step | result | seconds | shown |\n|---|---|---|---|\n")
	for _, r := range s.rows {
		fmt.Fprintf(&b, "| %s | %s | %.0f | %s |\n", r.step, r.result, r.took.Seconds(), strings.Join(r.shown, "; "))
	}
	fmt.Println(b.String())
	if dir := results(); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "summary.md"), []byte(b.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// diagnose keeps what explains a failure.
func (s *suite) diagnose(t *testing.T) {
	dir := results()
	if dir == "" {
		return
	}
	dir = filepath.Join(dir, filepath.Base(t.Name()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Error(err)
		return
	}
	for _, c := range []cluster{s.a, s.b} {
		for name, args := range map[string][]string{
			"objects.txt": {"get", "pods,pvc,pv,nodes,csinodes,csistoragecapacities", "-A", "-o", "wide"},
			"events.txt":  {"get", "events", "-A", "--sort-by=.lastTimestamp"},
			"pods.yaml":   {"get", "pods", "-A", "-o", "yaml"},
		} {
			out, err := c.try("", args...)
			if err != nil {
				out += err.Error()
			}
			if err := os.WriteFile(filepath.Join(dir, c.site+"-"+name), []byte(out), 0o644); err != nil {
				t.Error(err)
			}
		}
		pods, err := c.try("", "-n", system, "get", "pods", "-o", "name")
		if err != nil {
			continue // the site is gone
		}
		for _, pod := range strings.Fields(pods) {
			out, _ := c.try("", "-n", system, "logs", pod, "--all-containers", "--prefix", "--tail=2000")
			name := c.site + "-" + strings.ReplaceAll(pod, "/", "-") + ".log"
			if err := os.WriteFile(filepath.Join(dir, name), []byte(out), 0o644); err != nil {
				t.Error(err)
			}
		}
	}
}
