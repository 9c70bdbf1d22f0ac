package driver

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// captureLog returns what is logged at level until the test ends.
func captureLog(t *testing.T, level string) *bytes.Buffer {
	t.Helper()
	var log bytes.Buffer
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"v": level, "logtostderr": "false", "stderrthreshold": "FATAL"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	klog.SetOutput(&log)
	t.Cleanup(func() {
		klog.Flush()
		klog.SetOutput(io.Discard)
		_ = flags.Set("v", "0")
		_ = flags.Set("logtostderr", "true")
		_ = flags.Set("stderrthreshold", "ERROR")
	})
	return &log
}

// TestRun serves over a socket, and ends on its context without touching what is mounted.
func TestRun(t *testing.T) {
	log := captureLog(t, "2")
	dir := t.TempDir()
	m := newMachine()
	opts := Options{NodeID: "node-a", PoolDir: filepath.Join(dir, "pool"), Endpoint: "unix://" +
		filepath.Join(dir, "csi.sock"), Version: "v1"}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts.Metrics.Addr = web.Addr().String()
	web.Close()
	d, err := newDriver(opts, host.System{FS: vfs.OS, Mounter: fakeMounter{m}, Filesystems: fakeFileSystems{m},
		Loops: fakeLoops{m}, Writeback: fakeWriteback{m}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()

	conn, err := grpc.NewClient(opts.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	callCtx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	req := createReq("v", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
	req.Secrets = map[string]string{"password": "hunter2"}
	created, err := csi.NewControllerClient(conn).CreateVolume(callCtx, req, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	node := csi.NewNodeClient(conn)
	_, err = node.NodeStageVolume(callCtx, &csi.NodeStageVolumeRequest{VolumeId: created.GetVolume().GetVolumeId(),
		StagingTargetPath: filepath.Join(dir, "staging"), VolumeCapability: capabilitytest.Mount(capabilitytest.Writer, "")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = node.NodeStageVolume(callCtx, &csi.NodeStageVolumeRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("error %v", err)
	}

	// A second driver on the same socket, or the same pool, is told so.
	if _, err := unixsocket.Listen(opts.Endpoint); err == nil || !strings.Contains(err.Error(),
		"another process listens") {
		t.Errorf("a second listener: %v", err)
	}
	if _, err := newDriver(opts, d.attachments.System); err == nil || !strings.Contains(err.Error(), "driver.lock") {
		t.Errorf("a second driver: %v", err)
	}

	response, err := http.Get("http://" + opts.Metrics.Addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`csi_plugin_operations_seconds_count{driver_name="csi.slipstream.dev",grpc_status_code="OK",` +
			`method_name="/csi.v1.Controller/CreateVolume"} 1`,
		`grpc_status_code="InvalidArgument",method_name="/csi.v1.Node/NodeStageVolume"} 1`,
		"slipstream_pool_volumes 1", "slipstream_pool_size_bytes ", "slipstream_pool_available_bytes ",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %s", want)
		}
	}

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if len(m.mounts) != 1 || len(m.loops) != 1 {
		t.Errorf("stopping changed the machine: mounts %v, loops %v", m.mounts, m.loops)
	}
	klog.Flush()
	if text := log.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, "***stripped***") ||
		!strings.Contains(text, "CreateVolume") {
		t.Errorf("log:\n%s", text)
	}
}

func TestRunCommand(t *testing.T) {
	output, err := host.Run(context.Background(), "sh", "-c", "echo out; echo err >&2")
	if err != nil || output != "out\nerr" {
		t.Errorf("%q, %v", output, err)
	}
	_, err = host.Run(context.Background(), "sh", "-c", "echo why; exit 3")
	var failure *host.CommandError
	if !errors.As(err, &failure) || failure.ExitCode != 3 || !strings.Contains(err.Error(), "why") {
		t.Errorf("exit 3: %v", err)
	}
	if _, err = host.Run(context.Background(), "/does/not/exist"); !errors.As(err, &failure) || failure.ExitCode != -1 {
		t.Errorf("no program: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err = host.Run(ctx, "sleep", "600"); !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &failure) ||
		failure.ExitCode != -1 {
		t.Errorf("killed: %v", err)
	}
	if output, _ := host.Run(context.Background(), "sh", "-c",
		"yes | head -c 100000"); len(output) > host.MaxOutputBytes+3 {
		t.Errorf("output of %d bytes", len(output))
	}
}

func FuzzPublications(f *testing.F) {
	const path = "/pool/publications/v.json"
	f.Add([]byte(`{"version":1,"publications":[{"targetPath":"/a","readOnly":true,"accessMode":"SINGLE_NODE_WRITER","block":false}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"publications":[{"targetPath":`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys := vfs.NewMem()
		p, err := attach.OpenPublications(fsys, "/pool")
		if err != nil {
			t.Fatal(err)
		}
		if err := vfs.WriteFileAtomic(fsys, path, data); err != nil {
			t.Fatal(err)
		}
		list, err := p.List("v")
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Fatalf("the error does not name the file: %v", err)
			}
			// What cannot be read is not overwritten either.
			if err := p.Put("v", attach.Publication{TargetPath: "/b"}); err == nil {
				t.Fatal("a file that cannot be read was replaced")
			}
			return
		}
		entry := attach.Publication{TargetPath: "/fuzz", AccessMode: "SINGLE_NODE_WRITER", MountOptions: []string{"a"}}
		if err := p.Put("v", entry); err != nil {
			t.Fatal(err)
		}
		again, err := p.List("v")
		if err != nil || len(again) != len(attach.Without(list, "/fuzz"))+1 || !again[len(again)-1].SameArgs(entry) {
			t.Fatalf("after Put: %v, %v", again, err)
		}
		if err := p.Remove("v", "/fuzz"); err != nil {
			t.Fatal(err)
		}
		rest, err := p.List("v")
		if err != nil || fmt.Sprint(rest) != fmt.Sprint(attach.Without(list, "/fuzz")) {
			t.Fatalf("after Remove: %v, %v; want %v", rest, err, list)
		}
	})
}
