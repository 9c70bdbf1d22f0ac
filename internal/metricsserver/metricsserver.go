// Package metricsserver serves Prometheus metrics of a program over HTTP, beside what the Go runtime and the process have.
package metricsserver

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Start listens at an address (host:port) and serves /metrics until stop is called, or nothing where the address is empty. Should serving
// end by itself, the reason is sent to failed.
func Start(address string, failed chan<- error, metrics ...prometheus.Collector) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(append(metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))...)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	const headerTimeout = 10 * time.Second
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
	lis, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	go func() {
		if err := server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	return func() { server.Close() }, nil
}

// CertificateExpiry is the metric about a program's certificate. It has one name in all of them, so that one alert is enough.
func CertificateExpiry(notAfter func() time.Time) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "slipstream_certificate_expiry_timestamp_seconds",
		Help: "When the certificate in force ends: of the site in replicators and gateways, of the port between them in drivers and controllers.",
	}, func() float64 { return float64(notAfter().Unix()) })
}
