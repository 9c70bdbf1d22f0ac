package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

func heartbeat(n uint64) *linkpb.ToSecondary {
	return &linkpb.ToSecondary{Message: &linkpb.ToSecondary_Heartbeat{Heartbeat: &linkpb.Heartbeat{HeadOrdinal: n}}}
}

func echo(s link.PeerStream) error {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = s.Send(&linkpb.ToPrimary{
			Message: &linkpb.ToPrimary_Ack{Ack: &linkpb.Ack{DurableOrdinal: m.GetHeartbeat().GetHeadOrdinal()}}})
		if err != nil {
			return err
		}
	}
}

func converse(t *testing.T, s link.Stream, n uint64) {
	t.Helper()
	for i := range n {
		if err := s.Send(heartbeat(i + 1)); err != nil {
			t.Fatalf("Send %d: %v", i+1, err)
		}
		m, err := s.Recv()
		if err != nil || m.GetAck().GetDurableOrdinal() != i+1 {
			t.Fatalf("Recv %d: %v, %v", i+1, m, err)
		}
	}
}

// events collects what a server observed.
type events struct {
	mu  sync.Mutex
	all []link.Event
}

func (e *events) add(ev link.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) refusals() (r []link.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if ev.Kind == link.Refused {
			r = append(r, ev)
		}
	}
	return r
}

func authority(t *testing.T) *tlsfiles.Authority {
	t.Helper()
	a, err := tlsfiles.NewAuthority(t.TempDir(), "test authority")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *tlsfiles.Authority, dir, site string, validFor time.Duration, hosts ...string) {
	t.Helper()
	if err := a.IssueSite(dir, site, hosts, validFor); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *tlsfiles.Source {
	t.Helper()
	s, err := tlsfiles.Open(filepath.Join(dir, tlsfiles.CAFile), filepath.Join(dir, tlsfiles.CertFile),
		filepath.Join(dir, tlsfiles.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func certificate(t *testing.T, a *tlsfiles.Authority, site string, hosts ...string) *tlsfiles.Source {
	t.Helper()
	dir := t.TempDir()
	issue(t, a, dir, site, time.Hour, hosts...)
	return open(t, dir)
}

// serve starts a server on a loopback port and returns its address.
func serve(t *testing.T, opts link.ServerOptions) (address string, server *link.Server) {
	t.Helper()
	if opts.Peers == nil {
		opts.Peers = func() []string { return []string{"site-a", "site-c"} }
	}
	if opts.Handler == nil {
		opts.Handler = link.HandlerFunc(echo)
	}
	s, err := link.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return lis.Addr().String(), s
}

func client(t *testing.T, opts link.ClientOptions) *link.Client {
	t.Helper()
	c, err := link.NewClient(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, c *link.Client, address string) link.Stream {
	t.Helper()
	s, err := c.Dial(timeout(t), "site-b", address)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStream(t *testing.T) {
	ca, seen := authority(t), &events{}
	names := make(chan string, 3)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"), Observe: seen.add,
		Handler: link.HandlerFunc(func(s link.PeerStream) error {
			names <- s.Peer()
			return echo(s)
		})})
	c := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a", "a.example.org")})
	first, second := dial(t, c, address), dial(t, c, address) // on one connection
	converse(t, first, 100)
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := first.Recv(); !errors.Is(err, link.ErrClosed) {
		t.Errorf("Recv after Close: %v", err)
	}
	if err := first.Send(heartbeat(1)); !errors.Is(err, link.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	converse(t, second, 100)
	if err := second.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	third := dial(t, c, address) // on a new one
	converse(t, third, 1)
	if err := c.Close(); err != nil {
		t.Errorf("Close of the client: %v", err)
	}
	if _, err := third.Recv(); err == nil {
		t.Error("Recv after Close of the client works")
	}
	_ = third.Close()
	if _, err := c.Dial(t.Context(), "site-b", address); !errors.Is(err, link.ErrClosed) {
		t.Errorf("Dial after Close of the client: %v", err)
	}
	for range 3 {
		if n := <-names; n != "site-a" {
			t.Errorf("peer is named %q", n)
		}
	}
	if r := seen.refusals(); len(r) != 0 {
		t.Errorf("refusals: %v", r)
	}
}

// The last word of an old primary must arrive though Close follows at once.
func TestCloseDelivers(t *testing.T) {
	ca, got := authority(t), make(chan *linkpb.DivergentTail, 1)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"),
		Handler: link.HandlerFunc(func(s link.PeerStream) error {
			for {
				m, err := s.Recv()
				if err != nil {
					close(got)
					return nil
				}
				got <- m.GetDivergentTail()
			}
		})})
	s := dial(t, client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")}), address)
	err := s.Send(&linkpb.ToSecondary{
		Message: &linkpb.ToSecondary_DivergentTail{DivergentTail: &linkpb.DivergentTail{Writes: 7}}})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if m := <-got; m.GetWrites() != 7 {
		t.Errorf("got %v", m)
	}
}

// Close must not wait for a peer that does not receive, even while a Send does.
func TestCloseWhileSending(t *testing.T) {
	ca := authority(t)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"),
		Handler: link.HandlerFunc(func(s link.PeerStream) error { <-s.Context().Done(); return nil })})
	s := dial(t, client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")}), address)
	var sender sync.WaitGroup
	sending := make(chan struct{})
	sender.Go(func() {
		batch := &linkpb.ToSecondary{
			Message: &linkpb.ToSecondary_Batch{Batch: &linkpb.Batch{Records: make([]byte, link.MaxBatchBytes)}}}
		close(sending)
		for s.Send(batch) == nil { // more than the window
		}
	})
	<-sending
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	sender.Wait()
}

// A group whose secondary does not receive holds up its own stream, and none beside it on the connection.
func TestStreamsDoNotBlockEachOther(t *testing.T) {
	ca, stuck := authority(t), make(chan bool, 1)
	stuck <- true
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"),
		Handler: link.HandlerFunc(func(s link.PeerStream) error {
			select {
			case <-stuck:
				<-s.Context().Done()
				return nil
			default:
				return echo(s)
			}
		})})
	c := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")})
	first := dial(t, c, address)
	var sender sync.WaitGroup
	sender.Go(func() {
		m := &linkpb.ToSecondary{Message: &linkpb.ToSecondary_Batch{Batch: &linkpb.Batch{Records: make([]byte, 1<<20)}}}
		for first.Send(m) == nil {
		}
	})
	converse(t, dial(t, c, address), 300)
	_ = first.Close()
	sender.Wait()
}

func TestLargestMessage(t *testing.T) {
	ca := authority(t)
	sizes := make(chan int, 1)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"),
		Handler: link.HandlerFunc(func(s link.PeerStream) error {
			m, err := s.Recv()
			sizes <- len(m.GetBatch().GetRecords())
			return err
		})})
	s := dial(t, client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")}), address)
	defer s.Close()
	if err := s.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Batch{
		Batch: &linkpb.Batch{Records: make([]byte, link.MaxBatchBytes)}}}); err != nil {
		t.Fatal(err)
	}
	if n := <-sizes; n != link.MaxBatchBytes {
		t.Errorf("%d bytes arrived", n)
	}
	if _, err := s.Recv(); err != io.EOF {
		t.Errorf("Recv after the handler returned: %v", err)
	}
}

// Who is not to be let in. The server's side of each refusal is observed too, with address and reason.
func TestRefusals(t *testing.T) {
	ca, other := authority(t), authority(t)
	serverCert := certificate(t, ca, "site-b")
	seen := &events{}
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: serverCert, Observe: seen.add})

	// Certificates count whole seconds: this one had run out when it was made.
	expired := t.TempDir()
	issue(t, ca, expired, "site-a", time.Nanosecond)

	for _, tc := range []struct {
		name     string
		cert     *tlsfiles.Source
		peer     string
		code     codes.Code
		dialSays string
		seenSays string
	}{
		{"unknown site", certificate(t, ca, "site-x"), "site-b", codes.PermissionDenied, "not one of this site's peers",
			"site-x"},
		{"site that is two peers", certificate(t, ca, "site-a", "site-c"), "site-b", codes.PermissionDenied, "several",
			"several"},
		{"certificate of another authority", certificateWithCA(t, other, ca, "site-a"), "site-b", codes.Unavailable, "",
			"TLS handshake"},
		{"expired certificate", open(t, expired), "site-b", codes.Unavailable, "", "expired"},
		{"server of another name", certificate(t, ca, "site-a"), "site-z", codes.Unavailable, "site-z", "TLS handshake"},
		{"server of another authority", certificate(t, other, "site-a"), "site-b", codes.Unavailable,
			"unknown authority", "TLS handshake"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(seen.refusals())
			c := client(t, link.ClientOptions{Site: "site-a", TLS: tc.cert})
			_, err := c.Dial(timeout(t), tc.peer, address)
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.dialSays) ||
				!strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), tc.peer) {
				t.Errorf("Dial: %v (%v), want %v saying %q", err, status.Code(err), tc.code, tc.dialSays)
			}
			eventually(t, "the refusal observed", func() bool { return len(seen.refusals()) > before })
			r := seen.refusals()[before]
			if !strings.Contains(r.Err.Error(), tc.seenSays) || !strings.HasPrefix(r.RemoteAddress, "127.0.0.1:") {
				t.Errorf("observed %+v, want one saying %q", r, tc.seenSays)
			}
		})
	}

	t.Run("plain text client", func(t *testing.T) {
		before := len(seen.refusals())
		c := client(t, link.ClientOptions{Site: "site-a", Insecure: true})
		if _, err := c.Dial(timeout(t), "site-b", address); status.Code(err) != codes.Unavailable {
			t.Errorf("Dial: %v", err)
		}
		eventually(t, "the refusal observed", func() bool { return len(seen.refusals()) > before })
	})
	t.Run("client to a plain text server", func(t *testing.T) {
		plain, _ := serve(t, link.ServerOptions{Site: "site-b", Insecure: true})
		c := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")})
		if _, err := c.Dial(timeout(t), "site-b", plain); status.Code(err) != codes.Unavailable {
			t.Errorf("Dial: %v", err)
		}
	})
	t.Run("peers change", func(t *testing.T) {
		var mu sync.Mutex
		var peers []string
		address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: serverCert, Peers: func() []string {
			mu.Lock()
			defer mu.Unlock()
			return peers
		}})
		c := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")})
		if _, err := c.Dial(timeout(t), "site-b", address); status.Code(err) != codes.PermissionDenied {
			t.Errorf("Dial of a stranger: %v", err)
		}
		mu.Lock()
		peers = []string{"site-a"}
		mu.Unlock()
		converse(t, dial(t, c, address), 1)
	})
}

// certificateWithCA is a certificate of one authority whose owner trusts another one: what an intruder has.
func certificateWithCA(t *testing.T, of, trusts *tlsfiles.Authority, site string) *tlsfiles.Source {
	t.Helper()
	dir, trusted := t.TempDir(), t.TempDir()
	issue(t, of, dir, site, time.Hour)
	issue(t, trusts, trusted, "unused", time.Hour)
	b, err := os.ReadFile(filepath.Join(trusted, tlsfiles.CAFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, tlsfiles.CAFile), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return open(t, dir)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A new authority at both sites while a stream is open: it goes on, new ones use the new files, old certificates are
// out.
func TestRotation(t *testing.T) {
	oldCA, newCA := authority(t), authority(t)
	dirA, dirB := t.TempDir(), t.TempDir()
	issue(t, oldCA, dirA, "site-a", time.Hour)
	issue(t, oldCA, dirB, "site-b", time.Hour)
	a, b := open(t, dirA), open(t, dirB)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: b})
	c := client(t, link.ClientOptions{Site: "site-a", TLS: a})
	running := dial(t, c, address)
	converse(t, running, 5)

	issue(t, newCA, dirB, "site-b", time.Hour)
	// A client of its own: the stream that is open would lend its connection.
	fresh := client(t, link.ClientOptions{Site: "site-a", TLS: a})
	eventually(t, "the old certificate refused", func() bool {
		s, err := fresh.Dial(timeout(t), "site-b", address)
		if err == nil {
			_ = s.Close()
		}
		return err != nil
	})
	issue(t, newCA, dirA, "site-a", time.Hour)
	eventually(t, "the new certificates accepted", func() bool {
		s, err := fresh.Dial(timeout(t), "site-b", address)
		if err != nil {
			return false
		}
		converse(t, s, 1)
		return s.Close() == nil
	})
	converse(t, running, 5)
	_ = running.Close()
}

func TestInsecure(t *testing.T) {
	seen, names := &events{}, make(chan string, 1)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", Insecure: true, Observe: seen.add,
		Handler: link.HandlerFunc(func(s link.PeerStream) error { names <- s.Peer(); return echo(s) })})
	c := client(t, link.ClientOptions{Site: "site-a", Insecure: true})
	s := dial(t, c, address)
	converse(t, s, 10)
	if n := <-names; n != "site-a" {
		t.Errorf("peer is named %q", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	x := client(t, link.ClientOptions{Site: "site-x", Insecure: true})
	if _, err := x.Dial(timeout(t), "site-b", address); status.Code(err) != codes.PermissionDenied {
		t.Errorf("Dial of a stranger: %v", err)
	}
	// A caller that does not say a name.
	gc, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer gc.Close()
	raw, err := linkpb.NewLinkClient(gc).Replicate(timeout(t))
	if err == nil {
		_, err = raw.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("stream without a name: %v", err)
	}

	// 192.0.2.0/24 is for documentation: nothing is there, and nothing must be sent.
	if _, err := c.Dial(timeout(t), "site-b", "192.0.2.1:1"); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("Dial of an address that is not loopback: %v", err)
	}
	srv, err := link.NewServer(link.ServerOptions{Site: "site-b", Insecure: true, Handler: link.HandlerFunc(echo),
		Peers: func() []string { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Stop()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Serve(elsewhere{lis}); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("Serve on an address that is not loopback: %v", err)
	}
}

// elsewhere says that it listens on all addresses.
type elsewhere struct{ net.Listener }

func (elsewhere) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero, Port: 1} }

func TestOptions(t *testing.T) {
	tls := certificate(t, authority(t), "site-a")
	peers, handler := func() []string { return nil }, link.HandlerFunc(echo)
	for name, opts := range map[string]link.ServerOptions{
		"no site":       {TLS: tls, Peers: peers, Handler: handler},
		"no handler":    {Site: "a", TLS: tls, Peers: peers},
		"no peers":      {Site: "a", TLS: tls, Handler: handler},
		"no TLS":        {Site: "a", Peers: peers, Handler: handler},
		"contradictory": {Site: "a", TLS: tls, Insecure: true, Peers: peers, Handler: handler},
	} {
		if _, err := link.NewServer(opts); err == nil {
			t.Errorf("server with %s", name)
		}
	}
	for name, opts := range map[string]link.ClientOptions{
		"no site": {TLS: tls}, "no TLS": {Site: "a"}, "contradictory": {Site: "a", TLS: tls, Insecure: true},
	} {
		if _, err := link.NewClient(opts); err == nil {
			t.Errorf("client with %s", name)
		}
	}
}

func TestDialFails(t *testing.T) {
	ca := authority(t)
	c := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	// Connected, and then nothing: only the context ends it.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Dial(ctx, "site-b", address); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial of a server that is silent: %v", err)
	}
	_ = lis.Close()
	if _, err := c.Dial(timeout(t), "site-b", address); status.Code(err) != codes.Unavailable {
		t.Errorf("Dial without a listener: %v", err)
	}
}

// TestNothingAnswers: an address where packets are dropped, as that of a pod that is gone, is given up soon.
func TestNothingAnswers(t *testing.T) {
	t.Parallel()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	// A listener whose queue is full drops what comes.
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
		unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	for {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			break
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	c := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, authority(t), "site-a")})
	began := time.Now()
	_, err = c.Dial(timeout(t), "site-b", address)
	if took := time.Since(began); status.Code(err) != codes.Unavailable || took > 15*time.Second {
		t.Errorf("Dial where nothing answers: %v after %v", err, took)
	}
}

func TestCutAndRedial(t *testing.T) {
	ca := authority(t)
	ended := make(chan error, 1)
	address, server := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"),
		Handler: link.HandlerFunc(func(s link.PeerStream) error {
			err := echo(s)
			<-s.Context().Done()
			ended <- err
			return err
		})})
	p, err := linktest.NewProxy("127.0.0.1:0", address)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")})
	s := dial(t, c, p.Addr())
	converse(t, s, 3)
	p.Cut()
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("Recv after the cut: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler took the cut for an orderly end")
	}
	if _, err := c.Dial(timeout(t), "site-b", p.Addr()); status.Code(err) != codes.Unavailable {
		t.Errorf("Dial while cut: %v", err)
	}
	_ = s.Close()
	p.Heal()
	s = dial(t, c, p.Addr())
	converse(t, s, 3)
	server.Stop()
	if _, err := s.Recv(); err == nil {
		t.Error("Recv after the server's Stop works")
	}
	<-ended
	_ = s.Close()
}

// A line that dies without a word, as TCP through a proxy shows it: only pings can tell.
func TestDeadLinkIsNoticed(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the ping's timeout, some 10 s")
	}
	ca := authority(t)
	ended := make(chan error, 1)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"),
		Handler: link.HandlerFunc(func(s link.PeerStream) error {
			err := echo(s)
			ended <- err
			return err
		})})
	p, err := linktest.NewProxy("127.0.0.1:0", address)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := dial(t, client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")}), p.Addr())
	converse(t, s, 3)
	p.Stall()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the handler took the dead line for an orderly end")
		}
	case <-time.After(60 * time.Second):
		t.Error("the secondary never noticed")
	}
	p.Heal()
	_ = s.Close()
}
