// Package metricsserver serves Prometheus metrics of a program over HTTP, to those who may read them. Metrics name
// claims and their namespaces, so a caller from another host shows a token (access.go).
//
// It is not encrypted: who can read the network between a program and its Prometheus can read the metrics and the
// token, which opens nothing else.
package metricsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/tcplisten"
)

// path is where the metrics are.
const path = "/metrics"

const (
	// requestTimeout is from the beginning of a request to its end, and answerTimeout to the end of the answer.
	requestTimeout, answerTimeout = 10 * time.Second, time.Minute
	// idleTimeout is longer than most intervals of scraping.
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	// maxConnections is for a few Prometheus servers and people.
	maxConnections = 64
)

// Server is a listener whose callers are served by Serve. Use Listen.
type Server struct {
	listener net.Listener
	access   access
}

// Listen opens the address. Without one it returns nil. A token that cannot be read is logged and is no error: a
// program serves its volumes even if its metrics cannot be read.
func Listen(o Options) (*Server, error) {
	if o.Addr == "" {
		return nil, nil
	}
	a := access{tokenFile: o.TokenFile, open: o.Open}
	if o.Open && o.TokenFile != "" {
		return nil, errors.New("--metrics-open and --metrics-token-file exclude each other: give one of them")
	}
	if o.TokenFile != "" {
		if _, err := a.token(); err != nil {
			klog.ErrorS(err, "Serving metrics on loopback only until the token is there")
		}
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	return &Server{listener: listener, access: a}, nil
}

// Close ends a server that Serve is not called for. It does nothing on nil.
func (s *Server) Close() error {
	if s == nil {
		return nil
	}
	return s.listener.Close()
}

// Serve serves the metrics until ctx is done, and closes the listener.
func (s *Server) Serve(ctx context.Context, metrics http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle(path, s.access.guard(metrics))
	server := &http.Server{Handler: mux, ReadTimeout: requestTimeout, WriteTimeout: answerTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	// No connection is admitted: a client that asks for metrics has shown nothing yet, and an answer is short.
	if err := server.Serve(tcplisten.New(s.listener, tcplisten.Options{Port: "metrics",
		Waiting: maxConnections})); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// Start serves the collectors, and those of the Go runtime and the process, until stop is called. Without an address it
// serves nothing. If serving ends by itself, the reason is sent to failed.
func Start(o Options, failed chan<- error, metrics ...prometheus.Collector) (stop func(), err error) {
	server, err := Listen(o)
	if server == nil {
		return func() {}, err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(tcplisten.Metrics()...)
	registry.MustRegister(append(metrics, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))...)
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		if err := server.Serve(ctx, promhttp.HandlerFor(registry, promhttp.HandlerOpts{})); err != nil {
			failed <- err
		}
	}()
	return stop, nil
}

// CertificateExpiry is the metric about a program's certificate. It has one name in all of them, so that one alert is
// enough. It is left out while notAfter is zero: there is no certificate to speak of.
func CertificateExpiry(notAfter func() time.Time) prometheus.Collector {
	return expiry{notAfter, prometheus.NewDesc("slipstream_certificate_expiry_timestamp_seconds",
		"When the current certificate ends. Replicator and gateway: the certificate of the site. Driver and controller: "+
			"the certificate of the port between them. Before one is in use: the one in the files; absent if unreadable.",
		nil, nil)}
}

type expiry struct {
	notAfter func() time.Time
	desc     *prometheus.Desc
}

func (e expiry) Describe(descs chan<- *prometheus.Desc) { descs <- e.desc }

func (e expiry) Collect(metrics chan<- prometheus.Metric) {
	if t := e.notAfter(); !t.IsZero() {
		metrics <- prometheus.MustNewConstMetric(e.desc, prometheus.GaugeValue, float64(t.Unix()))
	}
}

// CertificateUsable is the metric of a program that goes on without a certificate. The function says why it cannot be
// used.
func CertificateUsable(why func() error) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "slipstream_certificate_usable",
		Help: "1 while the site has a usable certificate. 0 while it has none; then it neither calls nor admits peers.",
	}, func() float64 {
		if why() != nil {
			return 0
		}
		return 1
	})
}
