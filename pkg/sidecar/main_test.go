package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// ioEnv makes the test binary an application that does I/O on a file: a process that serves a mount must not touch it.
const ioEnv = "SIDECAR_TEST_IO"

const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if file := os.Getenv(ioEnv); file != "" {
		if err := application(file); err != nil {
			fmt.Fprintln(os.Stderr, "application:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testenv.QuietMain(m)
}

// application reads commands, one a line: "write OFFSET BYTE", "sync", "read OFFSET"; each is answered by a line.
func application(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var off int64
		var fill byte
		answer := "ok"
		switch words := strings.Fields(lines.Text()); words[0] {
		case "write":
			_, err = fmt.Sscan(strings.Join(words[1:], " "), &off, &fill)
			if err == nil {
				_, err = f.WriteAt(bytes.Repeat([]byte{fill}, 4096), off)
			}
		case "sync":
			err = f.Sync()
		case "read":
			if off, err = strconv.ParseInt(words[1], 10, 64); err == nil {
				b := make([]byte, 1)
				if _, err = f.ReadAt(b, off); err == nil {
					answer = fmt.Sprint("ok ", b[0])
				}
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		fmt.Println(answer)
	}
	return lines.Err()
}

// app is a running application. Its methods may wait for as long as no process serves the file.
type app struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     *os.File
	out    *bufio.Scanner
	closed bool
}

func startApp(t *testing.T, file string) *app {
	t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a := &app{t: t, cmd: exec.Command(os.Args[0]), in: inW}
	a.cmd.Env = append(os.Environ(), ioEnv+"="+file)
	a.cmd.Stdin, a.cmd.Stderr = inR, os.Stderr
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.out = bufio.NewScanner(out)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	t.Cleanup(a.close)
	return a
}

func (a *app) do(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(a.in, format+"\n", args...); err != nil {
		return "", err
	}
	if !a.out.Scan() || !strings.HasPrefix(a.out.Text(), "ok") {
		return "", fmt.Errorf("the application ended at "+format, args...)
	}
	return strings.TrimPrefix(a.out.Text(), "ok "), nil
}

func (a *app) must(format string, args ...any) string {
	a.t.Helper()
	answer, err := a.do(format, args...)
	if err != nil {
		a.t.Fatal(err)
	}
	return answer
}

func (a *app) close() {
	if a.closed {
		return
	}
	a.closed = true
	a.in.Close()
	if err := a.cmd.Wait(); err != nil {
		a.t.Errorf("application: %v", err)
	}
}

// fixture is one site's replicator in this process, reached through its socket, with a keeper beside it.
type fixture struct {
	t       *testing.T
	dir     string
	pool    *blockdev.Pool
	site    *replication.Site
	svc     *Service
	holder  *keeper.Holder
	server  *grpc.Server
	client  sidecarpb.SidecarClient
	conn    *grpc.ClientConn
	metrics *Metrics
	keeper  string // socket; empty without one
	name    string
	net     *link.Network
	// full makes files that are opened for writing meet a full file system.
	full atomic.Bool
	ctx  context.Context
}

func newFixture(t *testing.T, net *link.Network, name string, withKeeper bool) *fixture {
	t.Helper()
	// Not t.TempDir: its name is too long for a socket's.
	dir, err := os.MkdirTemp("", "sidecar")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	f := &fixture{t: t, dir: dir, ctx: ctx, name: name, net: net}
	if withKeeper {
		f.startKeeper()
	}
	if f.pool, err = blockdev.OpenPool(vfs.OS, filepath.Join(dir, "pool"), blockdev.WhoReplicator); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.pool.Close() })
	f.openSite()
	t.Cleanup(func() {
		if err := f.site.Close(); err != nil {
			t.Error(err)
		}
	})
	net.Attach(name, f.site)
	t.Cleanup(func() { net.Detach(name) })
	f.metrics = NewMetrics(f.site)
	f.start()
	t.Cleanup(f.unmountAll)
	t.Cleanup(f.stop)
	return f
}

func (f *fixture) openSite() {
	f.t.Helper()
	fsys := vfs.NewErrFS(vfs.OS, func(op vfs.Op, _ string) error {
		if f.full.Load() && op == vfs.OpOpen {
			return syscall.ENOSPC
		}
		return nil
	})
	var err error
	f.site, err = replication.Open(replication.Config{
		FS: fsys, Pool: f.pool, Site: f.name, Dialer: f.net.Dialer(f.name),
		PeerAddress:       func(string) string { return "memory" },
		HeartbeatInterval: 10 * time.Millisecond, ApplyInterval: 50 * time.Millisecond,
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) startKeeper() {
	f.keeper = filepath.Join(f.dir, "keeper.sock")
	l, err := unixsocket.Listen(f.keeper)
	if err != nil {
		f.t.Fatal(err)
	}
	server := keeper.NewServer(keeper.NewWriteback(time.Hour))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ctx, l) })
	f.t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
		server.Close()
	})
}

// start begins a replicator's service, as a new process would.
func (f *fixture) start() {
	f.t.Helper()
	opts := Options{
		SiteName: "site-a", Version: "test", Site: f.site, Pool: f.pool, ShimDir: filepath.Join(f.dir, "shim"),
		Metrics: f.metrics,
	}
	if f.keeper != "" {
		f.holder = keeper.NewHolder(f.keeper)
		opts.Keeper = f.holder
	}
	f.svc = New(opts)
	socket := filepath.Join(f.dir, "s.sock")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.server = grpc.NewServer(grpc.UnaryInterceptor(LogCalls))
	f.svc.Register(f.server)
	go func() { _ = f.server.Serve(lis) }()
	if f.conn, err = grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		f.t.Fatal(err)
	}
	f.client = sidecarpb.NewSidecarClient(f.conn)
}

// stop ends the service without detaching anything.
func (f *fixture) stop() {
	if f.svc == nil {
		return
	}
	f.conn.Close()
	err := f.svc.Close()
	f.server.Stop()
	if f.holder != nil {
		f.holder.Close()
	}
	if err != nil {
		f.t.Error(err)
	}
	f.svc = nil
}

// unmountAll aborts what a failed test left mounted.
func (f *fixture) unmountAll() {
	entries, _ := os.ReadDir(filepath.Join(f.dir, "shim"))
	for _, e := range entries {
		_ = unix.Unmount(filepath.Join(f.dir, "shim", e.Name()), unix.MNT_FORCE|unix.MNT_DETACH)
	}
}

func (f *fixture) createVolume(id string, sizeBytes int64, replicable bool) {
	f.t.Helper()
	if _, err := f.pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: sizeBytes,
		Replicable: replicable}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) createGroup(name, remote string) {
	f.t.Helper()
	_, err := f.client.CreateGroup(f.ctx, &sidecarpb.CreateGroupRequest{
		Name: name, Settings: &sidecarpb.GroupSettings{Remote: new(remote),
			JournalSizeBytes: new(int64(replication.MinJournalBytes))},
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) addVolume(group, id string) {
	f.t.Helper()
	if _, err := f.client.AddVolume(f.ctx, &sidecarpb.AddVolumeRequest{Group: group, VolumeId: id}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) status(name string) *sidecarpb.GroupStatus {
	f.t.Helper()
	resp, err := f.client.ListGroups(f.ctx, &sidecarpb.ListGroupsRequest{Name: name})
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.Groups[0]
}

func (f *fixture) attach(id string) *sidecarpb.AttachVolumeResponse {
	f.t.Helper()
	resp, err := f.client.AttachVolume(f.ctx, &sidecarpb.AttachVolumeRequest{VolumeId: id})
	if err != nil {
		f.t.Fatal(err)
	}
	return resp
}

func (f *fixture) detach(id string) {
	f.t.Helper()
	if _, err := f.client.DetachVolume(f.ctx, &sidecarpb.DetachVolumeRequest{VolumeId: id}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) eventually(what string, condition func() bool) {
	f.t.Helper()
	if err := (&replication.Group{}).WaitFor(f.ctx, condition); err != nil {
		f.t.Fatalf("waiting until %s: %v", what, err)
	}
}

// readDirect returns a byte of a volume behind the page cache of its mount.
func (f *fixture) readDirect(id string, off int64) byte {
	f.t.Helper()
	b := make([]byte, 1)
	var err error
	if g, gerr := f.site.GroupOf(id); gerr == nil {
		v, verr := g.Volume(id)
		if verr != nil {
			f.t.Fatal(verr)
		}
		_, err = v.ReadAt(b, off)
	} else {
		image, ierr := f.pool.OpenImage(id)
		if ierr != nil {
			f.t.Fatal(ierr)
		}
		defer image.Close()
		_, err = image.ReadAt(b, off)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return b[0]
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want code %s", what, err, want)
	}
}

// requireFUSE skips, or fails where everything has to run, a test that mounts.
func requireFUSE(t *testing.T) {
	t.Helper()
	testenv.RequireRoot(t)
	testenv.RequireFUSE(t)
}
