// Command livenessprobe stands in for the livenessprobe sidecar in the local clusters, since that is not served as a Go
// module: it answers /healthz with what the driver says to Probe. It takes the flags of the original that a manifest
// uses; do not deploy it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		klog.ErrorS(err, "Liveness probe ends")
		klog.Flush()
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("livenessprobe", flag.ContinueOnError)
	address := flags.String("csi-address", "/run/csi/socket", "`path` of the driver's socket")
	port := flags.Int("health-port", 9808, "`port` to answer on")
	endpoint := flags.String("http-endpoint", "", "`address` to answer on, instead of --health-port")
	timeout := flags.Duration("probe-timeout", time.Second, "for a call of the driver")
	flags.Int("v", 2, "ignored")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *endpoint == "" {
		*endpoint = fmt.Sprintf(":%d", *port)
	}
	conn, err := grpc.NewClient("unix://"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	identity := csi.NewIdentityClient(conn)
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), *timeout)
		defer cancel()
		answer, err := identity.Probe(ctx, &csi.ProbeRequest{})
		if err == nil && answer.GetReady() != nil && !answer.GetReady().GetValue() {
			err = errors.New("the driver says that it is not ready")
		}
		if err != nil {
			klog.ErrorS(err, "The probe failed")
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Addr: *endpoint, Handler: mux, ReadHeaderTimeout: *timeout}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
