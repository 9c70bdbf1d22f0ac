package unixsocket

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	inUsePatience = 100 * time.Millisecond // most of the tests wait in vain
	goleak.VerifyTestMain(m)
}

func mustListen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// stale leaves a socket as a killed process does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestParse(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///run/s": "/run/s", "unix:/run/s": "/run/s", "/run/s": "/run/s", "s": "s",
		"": "", "unix://": "", "tcp://127.0.0.1:1": "", "@s": "", "unix:@s": "",
	} {
		got, err := parse(endpoint)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", endpoint, got, err, want)
		}
	}
}

func TestReplacesStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale(t, path)
	l := mustListen(t, path)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

// TestKeepsLiveSocket: also one whose queue is full, so that connecting fails.
func TestKeepsLiveSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 { // the first one fills the queue
		if l, err := Listen(path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
			t.Fatalf("%v, %v", l, err)
		}
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Fatalf("the socket was replaced: %v", err)
	}
}

// TestWaitsForADyingProcess: a killed process's socket is open in its child for a moment, until that has become another
// program.
func TestWaitsForADyingProcess(t *testing.T) {
	short := inUsePatience
	inUsePatience = time.Minute
	defer func() { inUsePatience = short }()
	path := filepath.Join(t.TempDir(), "s")
	killed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	killed.SetUnlinkOnClose(false)
	f, err := killed.File()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "0.3")
	child.ExtraFiles = []*os.File{f}
	if err := errors.Join(child.Start(), f.Close(), killed.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(child.Wait(), l.Close()); err != nil {
		t.Error(err)
	}
}

func TestKeepsOtherFiles(t *testing.T) {
	dir := t.TempDir()
	made := map[string]error{
		"file": os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o600),
		"dir":  os.Mkdir(filepath.Join(dir, "dir"), 0o700),
		"fifo": unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		"link": os.Symlink("stale", filepath.Join(dir, "link")),
	}
	stale(t, filepath.Join(dir, "stale"))
	for name, err := range made {
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s was replaced: %v", name, err)
		}
	}
	datagram := filepath.Join(dir, "datagram")
	other, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: datagram, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Listen(datagram); !errors.Is(err, ErrInUse) {
		t.Errorf("a socket of another kind: %v", err)
	}
}

// TestMode is with umasks that would make it wider and narrower. It changes the process's umask, so nothing runs beside
// it.
func TestMode(t *testing.T) {
	dir := t.TempDir()
	for _, mask := range []int{0, 0o022, 0o777} {
		path := filepath.Join(dir, "s")
		old := unix.Umask(mask)
		l, err := Listen(path)
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("umask %o: %v, %v", mask, info.Mode(), err)
		}
		l.Close()
	}
}

// TestCloseRemovesItsOwn: a name that was removed by hand and taken by another process stays that one's.
func TestCloseRemovesItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first := mustListen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := mustListen(t, path)
	defer second.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err == nil {
		t.Error("closed twice without an error")
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the second listener lost its socket: %v", err)
	}
	conn.Close()
}

// TestOneTakesOver: of many that find one stale socket, one gets it, and keeps it.
func TestOneTakesOver(t *testing.T) {
	dir := t.TempDir()
	for round := range 20 {
		path := filepath.Join(dir, "s")
		stale(t, path)
		var got atomic.Pointer[net.Listener]
		var winners atomic.Int32
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				l, err := Listen(path)
				switch {
				case err == nil:
					winners.Add(1)
					got.Store(&l)
				case !errors.Is(err, ErrInUse):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if winners.Load() != 1 {
			t.Fatalf("round %d: %d of 8 listen", round, winners.Load())
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		(*got.Load()).Close()
	}
}
