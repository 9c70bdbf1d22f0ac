// Command registrar stands in for node-driver-registrar in the local clusters, since that is not served as a Go module:
// it tells the kubelet of a CSI driver. It takes the flags of the original that a manifest uses and does no more than
// those ask for; do not deploy it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		klog.ErrorS(err, "Registrar ends")
		klog.Flush()
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("registrar", flag.ContinueOnError)
	address := flags.String("csi-address", "/run/csi/socket", "`path` of the driver's socket here")
	kubeletPath := flags.String("kubelet-registration-path", "", "`path` of the driver's socket on the node (required)")
	dir := flags.String("plugin-registration-path", "/registration", "`directory` that the kubelet watches")
	healthz := flags.String("http-endpoint", "", "`address` to answer /healthz on; empty for none")
	timeout := flags.Duration("timeout", 30*time.Second, "for calls of the driver")
	flags.Int("v", 2, "ignored")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *kubeletPath == "" {
		return errors.New("--kubelet-registration-path is missing")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	name, err := driverName(ctx, *address, *timeout)
	if err != nil {
		return fmt.Errorf("ask the driver for its name: %w", err)
	}

	socket := filepath.Join(*dir, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	// The kubelet says that registration failed and drops the driver: a restart of this container makes it look again.
	r := &registrar{info: &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: name, Endpoint: *kubeletPath, SupportedVersions: []string{"1.0.0"},
	}, failed: make(chan error, 1)}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(listener) }()
	if *healthz != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
			if _, err := os.Stat(socket); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
		go func() { failed <- http.ListenAndServe(*healthz, mux) }()
	}
	klog.InfoS("Registering", "driver", name, "endpoint", *kubeletPath)
	select {
	case <-ctx.Done():
		server.Stop()
		return nil
	case err := <-failed:
		return err
	case err := <-r.failed:
		return err
	}
}

// driverName waits for the driver.
func driverName(ctx context.Context, address string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	return info.GetName(), err
}

type registrar struct {
	registration.UnimplementedRegistrationServer
	info   *registration.PluginInfo
	failed chan error
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return r.info, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context,
	s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !s.GetPluginRegistered() {
		r.failed <- fmt.Errorf("the kubelet does not take the driver: %s", s.GetError())
	} else {
		klog.InfoS("Registered")
	}
	return &registration.RegistrationStatusResponse{}, nil
}
