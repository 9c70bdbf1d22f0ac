package kubesite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
)

// connectCommand, run in the container, joins its standard input and output with the replicator's socket.
var connectCommand = []string{"slipctl", "connect"}

// dial opens a connection to the replicator in a pod. Whether that works shows at the first read, whose error says why
// not.
func (c *Cluster) dial(pod string) (net.Conn, error) {
	options := &corev1.PodExecOptions{Container: container, Command: connectCommand, Stdin: true, Stdout: true,
		Stderr: true}
	query, err := runtime.NewParameterCodec(execScheme).EncodeParameters(options, corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	address := c.client.Post().Namespace(c.namespace).Resource("pods").Name(pod).SubResource("exec").URL()
	address.RawQuery = query.Encode()
	executor, err := c.newExecutor(address)
	if err != nil {
		return nil, err
	}
	// The context of the exec is the connection's: gRPC's ends when the connection is made.
	// Its end closes streams that are being read. Why an exec ended is told by Read, so client-go is not to log that, too.
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	near, far := net.Pipe()
	conn := &execConn{Conn: near, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(conn.ended)
		var stderr lockedBuffer
		err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: far, Stdout: far, Stderr: &stderr})
		conn.fail(podError(pod, stderr.String(), err))
		far.Close()
	}()
	return conn, nil
}

var execScheme = func() *runtime.Scheme {
	scheme := runtime.NewScheme()
	// It only fails for types that were registered twice.
	if err := corev1.AddToScheme(scheme); err != nil {
		panic(err)
	}
	return scheme
}()

// newExecutor prefers WebSockets, and takes SPDY where a server or a proxy does not know them, as kubectl does.
func (c *Cluster) newExecutor(address *url.URL) (remotecommand.Executor, error) {
	socket, err := remotecommand.NewWebSocketExecutor(c.config, http.MethodGet, address.String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, http.MethodPost, address)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(socket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// podError is what a connection that ended says: what the program printed, or why it could not be run.
func podError(pod, stderr string, err error) error {
	stderr = strings.TrimSpace(stderr)
	switch {
	case stderr != "":
		return fmt.Errorf("pod %s: %s", pod, stderr)
	case err != nil:
		return fmt.Errorf("pod %s: %w", pod, err)
	}
	return io.EOF
}

// execConn is a connection over the streams of an exec.
type execConn struct {
	net.Conn
	cancel context.CancelFunc
	ended  chan struct{}
	mu     sync.Mutex
	err    error
}

func (c *execConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// Read is net.Conn's; its end is told with the reason that the exec ended for.
func (c *execConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.reason(err)
}

// Write is net.Conn's, as Read is.
func (c *execConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.reason(err)
}

func (c *execConn) reason(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe)) {
		return c.err
	}
	return err
}

// Close ends the exec and waits for it.
func (c *execConn) Close() error {
	err := c.Conn.Close()
	c.cancel()
	<-c.ended
	return err
}

// lockedBuffer is written to by the exec while it is read.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// maxStderrBytes is how much of what a program prints is kept.
const maxStderrBytes = 4096

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := maxStderrBytes - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
