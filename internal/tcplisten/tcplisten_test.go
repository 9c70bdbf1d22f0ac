package tcplisten

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
)

// queue is a listener whose connections come from wherever a test says.
type queue chan net.Conn

func (q queue) Accept() (net.Conn, error) { return <-q, nil }
func (q queue) Close() error              { return nil }
func (q queue) Addr() net.Addr            { return &net.TCPAddr{} }

type fakeConn struct {
	net.Conn
	from   net.Addr
	closed chan struct{} // closed by Close, which may be called once
}

func (c *fakeConn) RemoteAddr() net.Addr { return c.from }
func (c *fakeConn) Close() error         { close(c.closed); return nil }

func (c *fakeConn) gone() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

type fixture struct {
	t *testing.T
	q queue
	l *Listener
}

func newFixture(t *testing.T, o Options) *fixture {
	o.Port = t.Name()
	q := make(queue, 1)
	return &fixture{t, q, New(q, o)}
}

// accept accepts a connection from an address.
func (f *fixture) accept(from string) (*Conn, *fakeConn) {
	f.t.Helper()
	inner := &fakeConn{from: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 1)),
		closed: make(chan struct{})}
	f.q <- inner
	c, err := f.l.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	return c.(*Conn), inner
}

// A flood crowds out itself, address by address, and never a connection that was admitted.
func TestFlood(t *testing.T) {
	f := newFixture(t, Options{Waiting: 4, Admitted: 2})
	known, knownInner := f.accept("10.0.0.9")
	if err := known.Admit(); err != nil {
		t.Fatal(err)
	}
	other, otherInner := f.accept("10.0.0.1")
	var flood []*fakeConn
	for range 1000 {
		_, inner := f.accept("10.0.0.2")
		flood = append(flood, inner)
	}
	open := 0
	for _, c := range flood {
		if !c.gone() {
			open++
		}
	}
	if open != 3 || flood[len(flood)-1].gone() || otherInner.gone() || knownInner.gone() {
		t.Errorf("%d of the flood are open; the newest is gone: %v, another caller's: %v, the admitted one: %v", open,
			flood[len(flood)-1].gone(), otherInner.gone(), knownInner.gone())
	}
	if err := other.Admit(); err != nil {
		t.Errorf("the other caller is not admitted: %v", err)
	}
	for range 2 {
		if err := other.Admit(); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	// Addresses of one IPv6 network are one.
	_, first := f.accept("2001:db8:0:1::1")
	for range 2 {
		f.accept("2001:db8:0:1::2")
	}
	if !first.gone() {
		t.Error("an address of a network counts for itself")
	}
	if n := len(f.l.waiting); n != 4 {
		t.Errorf("%d wait", n)
	}
}

// Who may call finds room again when another one has left.
func TestAdmitted(t *testing.T) {
	f := newFixture(t, Options{Waiting: 4, Admitted: 2})
	var conns []*Conn
	for range 3 {
		c, _ := f.accept("10.0.0.1")
		conns = append(conns, c)
	}
	for i, want := range []error{nil, nil, ErrFull} {
		if err := conns[i].Admit(); !errors.Is(err, want) {
			t.Errorf("connection %d: %v, want %v", i, err, want)
		}
	}
	if err := conns[0].Close(); err != nil {
		t.Error(err)
	}
	if err := conns[2].Admit(); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := conns[0].Admit(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("one that is gone: %v", err)
	}
	if f.l.admitted != 2 || len(f.l.waiting) != 0 {
		t.Errorf("%d admitted, %d waiting", f.l.admitted, len(f.l.waiting))
	}
}

// A silent connection is closed; an admitted one stays.
func TestPatience(t *testing.T) {
	f := newFixture(t, Options{Patience: time.Millisecond})
	_, silent := f.accept("10.0.0.1")
	<-silent.closed
	f.l.opts.Patience = time.Hour
	c, inner := f.accept("10.0.0.1")
	if err := c.Admit(); err != nil {
		t.Fatal(err)
	}
	if c.timer.Stop() || inner.gone() {
		t.Error("the time of an admitted connection goes on")
	}
}

// A listener that is closed takes those who wait with it, and leaves those who were admitted.
func TestClose(t *testing.T) {
	f := newFixture(t, Options{})
	admitted, admittedInner := f.accept("10.0.0.1")
	if err := admitted.Admit(); err != nil {
		t.Fatal(err)
	}
	_, waiting := f.accept("10.0.0.1")
	if err := f.l.Close(); err != nil {
		t.Fatal(err)
	}
	if !waiting.gone() || admittedInner.gone() {
		t.Errorf("gone: waiting %v, admitted %v", waiting.gone(), admittedInner.gone())
	}
}

// shake makes every handshake succeed or fail.
type shake struct {
	credentials.TransportCredentials
	err error
}

func (s shake) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if s.err != nil {
		return nil, nil, s.err
	}
	return s.TransportCredentials.ServerHandshake(c)
}

func TestWatch(t *testing.T) {
	f := newFixture(t, Options{Admitted: 1})
	told := 0
	w := Watch{TransportCredentials: shake{insecure.NewCredentials(), nil}, Shaken: func(net.Addr, error) { told++ }}
	c, _ := f.accept("10.0.0.1")
	_, info, err := w.ServerHandshake(c)
	if err != nil || c.state != stateWaiting || told != 1 {
		t.Fatalf("%v, %v, told %d times", err, c.state, told)
	}
	ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info})
	if err := Admit(ctx); err != nil || c.state != stateAdmitted {
		t.Errorf("a call that is accepted: %v, %v", err, c.state)
	}
	// The next one finds the port full, as its handshake ends or with its call.
	full, _ := f.accept("10.0.0.1")
	all := w
	all.AdmitAll = true
	if _, _, err := all.ServerHandshake(full); !errors.Is(err, ErrFull) {
		t.Errorf("at a full port: %v", err)
	}
	if _, info, err = w.ServerHandshake(full); err != nil {
		t.Fatal(err)
	}
	if err := Admit(peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info})); !errors.Is(err, ErrFull) {
		t.Errorf("a call at a full port: %v", err)
	}
	told = 0
	failing := Watch{TransportCredentials: shake{insecure.NewCredentials(), errors.New("bad certificate")},
		Shaken: func(_ net.Addr, err error) {
			if err != nil {
				told++
			}
		}}
	if _, _, err := failing.ServerHandshake(full); err == nil || told != 1 {
		t.Errorf("a bad handshake: %v, told %d times", err, told)
	}
	if err := Admit(context.Background()); err != nil {
		t.Errorf("without a connection: %v", err)
	}
}
