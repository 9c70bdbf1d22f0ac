package linktest

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echoServer sends back what it gets and returns its address.
func echoServer(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		running.Wait()
	})
	return lis.Addr().String()
}

func proxy(t *testing.T) *Proxy {
	t.Helper()
	target := echoServer(t) // its cleanup comes behind the proxy's
	p, err := NewProxy("127.0.0.1:0", target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func connect(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	return c.(*net.TCPConn)
}

// roundTrip sends n bytes, ends its direction and wants them back, then the end.
func roundTrip(t *testing.T, c *net.TCPConn, n int) (took time.Duration) {
	t.Helper()
	data := bytes.Repeat([]byte("0123456789abcdef"), n/16)
	start := time.Now()
	var writer sync.WaitGroup
	writer.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("Write: %v", err)
		}
		_ = c.CloseWrite()
	})
	got, err := io.ReadAll(c)
	writer.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
	return time.Since(start)
}

func TestForwards(t *testing.T) {
	p := proxy(t)
	for range 3 {
		roundTrip(t, connect(t, p), 4<<20)
	}
}

// A lower bound on time is a promise, not a measurement: nothing may arrive early, however slow the machine is.
func TestDelay(t *testing.T) {
	p := proxy(t)
	const oneWay = 100 * time.Millisecond
	p.SetDelay(oneWay)
	// 128 chunks each way. One after another they would take 25 s; that they do not is shown by the deadline of the
	// connection, far from both.
	c := connect(t, p)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if took := roundTrip(t, c, 128*chunkBytes); took < 2*oneWay {
		t.Errorf("came back after %v, the line alone takes %v", took, 2*oneWay)
	}
}

func TestBandwidth(t *testing.T) {
	p := proxy(t)
	p.SetBandwidth(1 << 20)
	const n = 512 << 10
	// The first chunk passes at once, as the limiter's burst.
	if took, least := roundTrip(t, connect(t, p), n), time.Second*(n-2*chunkBytes)/(1<<20); took < least {
		t.Errorf("%d bytes came back after %v, want at least %v", n, took, least)
	}
	p.SetBandwidth(0)
	roundTrip(t, connect(t, p), n)
}

func TestCut(t *testing.T) {
	p := proxy(t)
	c := connect(t, p)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection survived the cut")
	}
	if n, err := connect(t, p).Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes through a line that is cut", n)
	}
	p.Heal()
	roundTrip(t, connect(t, p), 1<<10)
}

func TestStall(t *testing.T) {
	p := proxy(t)
	p.Stall()
	c := connect(t, p)
	if _, err := c.Write([]byte("held back")); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("something passed")
	}
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	p.Heal()
	got := make([]byte, 9)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "held back" {
		t.Errorf("after Heal: %q, %v", got, err)
	}
}

func TestCloseWhileStalledAndFull(t *testing.T) {
	p := proxy(t)
	p.Stall()
	c := connect(t, p)
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	// Not before something is in the queue, or this would be a close of nothing.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		n := len(p.conns)
		p.mu.Unlock()
		if n == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("never connected")
		}
	}
	_ = p.Close()
	writer.Wait()
}
