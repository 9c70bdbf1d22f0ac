package metricsserver

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/slipstream-storage/slipstream/internal/tcplisten"
)

// Callers that say nothing do not keep a reader of metrics out.
func TestSilentCallers(t *testing.T) {
	s, err := Listen(Options{Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	address := s.listener.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Serve(ctx, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "m 1") }))
	}()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 3 * maxConnections {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	response, err := http.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || string(text) != "m 1" {
		t.Errorf("%q, %v", text, err)
	}
	// Connections are accepted in order, and the first ones have made room for the last.
	if n := dropped(t); n < 2*maxConnections {
		t.Errorf("%v of %d connections were dropped, which leaves more than %d", n, 3*maxConnections, maxConnections)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// dropped is how many connections the port has dropped for newer ones.
func dropped(t *testing.T) (n float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(tcplisten.Metrics()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetValue() == "crowd" {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}
