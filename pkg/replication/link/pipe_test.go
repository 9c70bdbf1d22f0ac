package link

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func heartbeat(n uint64) *linkpb.ToSecondary {
	return &linkpb.ToSecondary{Message: &linkpb.ToSecondary_Heartbeat{Heartbeat: &linkpb.Heartbeat{HeadOrdinal: n}}}
}

func ack(n uint64) *linkpb.ToPrimary {
	return &linkpb.ToPrimary{Message: &linkpb.ToPrimary_Ack{Ack: &linkpb.Ack{DurableOrdinal: n}}}
}

// echo acknowledges each heartbeat until the stream is closed.
func echo(s PeerStream) error {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(ack(m.GetHeartbeat().GetHeadOrdinal())); err != nil {
			return err
		}
	}
}

// converse sends n heartbeats and wants them acknowledged in order.
func converse(t *testing.T, s Stream, n uint64) {
	t.Helper()
	var sender sync.WaitGroup
	sender.Go(func() {
		for i := range n {
			if err := s.Send(heartbeat(i + 1)); err != nil {
				t.Errorf("Send %d: %v", i+1, err)
				return
			}
		}
	})
	for i := range n {
		m, err := s.Recv()
		if err != nil {
			t.Errorf("Recv %d: %v", i+1, err)
			break
		}
		if got := m.GetAck().GetDurableOrdinal(); got != i+1 {
			t.Errorf("acknowledgement %d, want %d", got, i+1)
		}
	}
	sender.Wait()
}

func TestPipeCloseDelivers(t *testing.T) {
	s, p, cut := Pipe()
	defer cut()
	m := heartbeat(1)
	if err := s.Send(m); err != nil {
		t.Fatal(err)
	}
	m.GetHeartbeat().HeadOrdinal = 99 // the message was copied
	if err := errors.Join(s.Send(heartbeat(2)), s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	for want := uint64(1); want <= 2; want++ {
		if m, err := p.Recv(); err != nil || m.GetHeartbeat().GetHeadOrdinal() != want {
			t.Fatalf("got %v, %v; want heartbeat %d", m, err, want)
		}
	}
	if _, err := p.Recv(); err != io.EOF {
		t.Errorf("Recv after Close: %v", err)
	}
	if err := p.Send(ack(1)); status.Code(err) != codes.Canceled {
		t.Errorf("Send to a closed stream: %v", err)
	}
	if err := s.Send(m); !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	if _, err := s.Recv(); !errors.Is(err, ErrClosed) {
		t.Errorf("Recv after Close: %v", err)
	}
	<-p.Context().Done()
}

func TestPipeCut(t *testing.T) {
	s, p, cut := Pipe()
	var waiting sync.WaitGroup
	waiting.Go(func() { // fills the pipe and waits for room
		for i := uint64(1); ; i++ {
			if err := s.Send(heartbeat(i)); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("Send: %v", err)
				}
				return
			}
		}
	})
	waiting.Go(func() {
		if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("Recv: %v", err)
		}
	})
	if m, err := p.Recv(); err != nil || m.GetHeartbeat().GetHeadOrdinal() != 1 {
		t.Fatalf("got %v, %v", m, err)
	}
	cut()
	cut()
	waiting.Wait()
	<-p.Context().Done()
	if m, err := p.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("Recv after the cut: %v, %v", m, err)
	}
	if err := p.Send(ack(1)); status.Code(err) != codes.Unavailable {
		t.Errorf("Send after the cut: %v", err)
	}
}

func TestNetwork(t *testing.T) {
	n := NewNetwork(nil)
	defer n.Close()
	ctx := t.Context()
	n.Attach("b", HandlerFunc(func(s PeerStream) error {
		if s.Peer() != "a" {
			return status.Error(codes.PermissionDenied, s.Peer())
		}
		return echo(s)
	}))
	a := n.Dialer("a")
	dial := func() Stream {
		t.Helper()
		s, err := a.Dial(ctx, "b", "b:1")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := dial()
	converse(t, s, 100)
	n.Cut("a")
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("Recv after Cut: %v", err)
	}
	for _, from := range []string{"a", "c"} {
		_, err := n.Dialer(from).Dial(ctx, map[string]string{"a": "b", "c": "a"}[from], "x")
		if status.Code(err) != codes.Unavailable {
			t.Errorf("Dial from %s while cut: %v", from, err)
		}
	}
	n.Heal("a")
	s = dial()
	converse(t, s, 10)
	n.Detach("b")
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("Recv after Detach: %v", err)
	}
	if _, err := a.Dial(ctx, "b", "b:1"); status.Code(err) != codes.Unavailable {
		t.Errorf("Dial after Detach: %v", err)
	}

	// What the handler sent before it returned arrives, then how it returned.
	n.Attach("b", HandlerFunc(func(s PeerStream) error {
		return errors.Join(s.Send(ack(5)), errors.New("sorry"))
	}))
	s = dial()
	if m, err := s.Recv(); err != nil || m.GetAck().GetDurableOrdinal() != 5 {
		t.Errorf("got %v, %v", m, err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unknown {
		t.Errorf("error of the handler: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := a.Dial(canceled, "b", "b:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial with a canceled context: %v", err)
	}
}

func TestNetworkKeepsSomeAtTheCut(t *testing.T) {
	n := NewNetwork(func(inFlight int) int { return inFlight - 1 })
	defer n.Close()
	accepted, sent := make(chan struct{}), make(chan struct{})
	got := make(chan uint64, pipeMessages)
	n.Attach("b", HandlerFunc(func(s PeerStream) error {
		close(accepted)
		<-sent
		<-s.Context().Done()
		defer close(got)
		for {
			m, err := s.Recv()
			if err != nil {
				return err
			}
			got <- m.GetHeartbeat().GetHeadOrdinal()
		}
	}))
	s, err := n.Dialer("a").Dial(t.Context(), "b", "")
	if err != nil {
		t.Fatal(err)
	}
	<-accepted
	for i := range uint64(5) {
		if err := s.Send(heartbeat(i)); err != nil {
			t.Fatal(err)
		}
	}
	close(sent)
	n.Cut("b")
	var last, count uint64
	for last = range got {
		count++
	}
	if count != 4 || last != 3 {
		t.Errorf("%d messages up to %d arrived, want 4 up to 3", count, last)
	}
}

func TestBackoff(t *testing.T) {
	b := NewBackoff(minRedial)
	for round := range 3 {
		for i := range 30 {
			d := b.Next()
			if d < minRedial/2 || d > maxRedial || i == 0 && d > 2*minRedial || i > 20 && d < maxRedial/4 {
				t.Errorf("round %d, wait %d: %v", round, i, d)
			}
		}
		b.Reset()
	}
}
