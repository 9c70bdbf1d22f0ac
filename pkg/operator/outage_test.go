package operator

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/internal/testkube"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// line is a way to an API server that can be cut: then connections end, and new ones are refused.
type line struct {
	address, target string

	mu       sync.Mutex
	listener net.Listener // nil: cut
	conns    map[net.Conn]bool
	running  sync.WaitGroup
}

func newLine(t *testing.T, target string) *line {
	t.Helper()
	l := &line{address: "127.0.0.1:0", target: target, conns: map[net.Conn]bool{}}
	l.join(t)
	t.Cleanup(func() { l.cut(); l.running.Wait() })
	return l
}

func (l *line) join(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", l.address)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listener, l.address = listener, listener.Addr().String()
	l.running.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			l.running.Go(func() { l.carry(near) })
		}
	})
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener != nil {
		l.listener.Close()
	}
	for c := range l.conns {
		c.Close()
	}
	l.listener = nil
}

func (l *line) carry(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer far.Close()
	l.mu.Lock()
	cut := l.listener == nil
	l.conns[near], l.conns[far] = true, true
	l.mu.Unlock()
	if cut {
		return
	}
	l.running.Go(func() {
		_, _ = io.Copy(far, near)
		far.Close()
	})
	_, _ = io.Copy(near, far)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, near)
	delete(l.conns, far)
}

// outage is how long the API server is away: as long as client-go needs to come to its longest pauses.
const outage = 40 * time.Second

// TestAPIServerAway: an operator that runs works with the newest objects soon after the API server is back. One that
// starts during the outage does not end; it waits, and then leads.
func TestAPIServerAway(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	config := testkube.Start(t, "../..")
	address, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	l := newLine(t, address.Host)
	through := rest.CopyConfig(config)
	through.Host = "https://" + l.address
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "a")
	s.Client = api
	s.Create(operatortest.Remote("site-b"), operatortest.Namespace("system", nil), operatortest.Labelled("shop"))
	s.Claim("shop", "data", "a")
	_, stop := s.run(t, through)
	ready := func(name string) func() bool {
		return func() bool {
			g := &v1alpha1.ConsistencyGroup{}
			return api.Get(context.Background(), client.ObjectKey{Namespace: name, Name: name}, g) == nil && isReady(g)
		}
	}
	eventually(t, "the group is ready", ready("shop"))

	l.cut()
	began := time.Now()
	mgr, err := NewManager(Options{Config: through, Engine: s, LeaseNamespace: "system", HealthAddress: "127.0.0.1:0"})
	if err != nil {
		t.Fatalf("an operator that starts while the API server is away ends: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	s.Create(operatortest.Labelled("late"))
	s.Claim("late", "data", "a")
	select {
	case err := <-ended:
		t.Fatalf("an operator that was started while the API server was away ended: %v", err)
	case <-time.After(time.Until(began.Add(outage))):
	}
	l.join(t)
	t.Logf("the claim made during the outage is a member %v after it", eventually(t, "the group is ready", ready("late")))
	stop()
	select {
	case <-mgr.Elected():
	case err := <-ended:
		t.Fatalf("the second operator ended: %v", err)
	case <-time.After(patience):
		t.Fatal("the second operator does not lead")
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
