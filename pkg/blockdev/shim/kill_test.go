package shim_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

// testKeeper is a keeper in the test's process that can be restarted, holding nothing.
type testKeeper struct {
	socket string
	server *keeper.Server
	stop   func()
}

func startKeeper(t *testing.T, socket string) *testKeeper {
	t.Helper()
	l, err := unixsocket.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &testKeeper{socket: socket, server: keeper.NewServer(keeper.NewWriteback(time.Hour))}
	done := make(chan error, 1)
	go func() { done <- k.server.Serve(ctx, l) }()
	k.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("keeper: %v", err)
		}
		k.server.Close()
	})
	t.Cleanup(k.stop)
	return k
}

// serverProcess is a helper process that serves.
type serverProcess struct {
	cmd   *exec.Cmd
	state shim.State
}

// startProcess starts a serving process and returns when it serves.
func startProcess(t *testing.T, cfg helperConfig) *serverProcess {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+string(text))
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the serving process %d:\n%s", cmd.Process.Pid, stderr)
		}
	})
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &serverProcess{cmd: cmd}
	line, err := bufio.NewReader(out).ReadString('\n')
	text2, ok := strings.CutPrefix(line, "serving ")
	if err != nil || !ok {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("the serving process did not start: %q %v\n%s", line, err, stderr)
	}
	if err := json.Unmarshal([]byte(text2), &p.state); err != nil {
		t.Fatal(err)
	}
	return p
}

// lockedBuffer collects a process's log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (p *serverProcess) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Error(err)
	}
	_ = p.cmd.Wait()
}

// TestKill kills the serving process many times under writers that verify what they wrote; the next process adopts the
// descriptor from the keeper. Some ends are graceful, and in between the keeper is replaced by one that holds nothing.
func TestKill(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		requireAll(t)
		const (
			size    = 32 * mib
			kills   = 12
			workers = 4
			block   = 4096
		)
		r := newRand(t)
		dir := t.TempDir()
		cfg := helperConfig{
			KeeperSocket: filepath.Join(dir, "keeper.sock"),
			MountPoint:   filepath.Join(dir, "mnt"),
			Mode:         mode,
			VolumeID:     "killed",
			ImagePath:    filepath.Join(dir, "image"),
			SizeBytes:    size,
		}
		guard(t, cfg.MountPoint, 100*time.Second)
		k := startKeeper(t, cfg.KeeperSocket)
		proc := startProcess(t, cfg)
		device := proc.state.Device
		// In the order in which it has to be undone: unmount needs a process that serves.
		t.Cleanup(func() {
			if err := shim.Unmount(cfg.MountPoint); err != nil {
				t.Error(err)
			}
			if err := proc.cmd.Wait(); err != nil {
				t.Errorf("the serving process after the unmount: %v", err)
			}
		})
		_, loop := attachLoop(t, filepath.Join(cfg.MountPoint, shim.FileName), size, mode)

		stop := make(chan struct{})
		var wg sync.WaitGroup
		var verified, flushed atomic.Int64
		finish := sync.OnceFunc(func() { close(stop); wg.Wait() })
		defer finish()
		model := make([]byte, size)
		for w := range workers {
			rw := rand.New(rand.NewPCG(r.Uint64(), uint64(w)))
			wg.Go(func() {
				const area = size / workers
				base := int64(w) * area
				got := make([]byte, 16*block)
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					n := int64(1+rw.IntN(16)) * block
					off := base + rw.Int64N((area-n)/block+1)*block
					switch {
					case i%3 == 2:
						if _, err := loop.ReadAt(got[:n], off); err != nil {
							t.Error(err)
							return
						}
						if !bytes.Equal(got[:n], model[off:off+n]) {
							t.Errorf("read at %d of %d bytes differs from what was written", off, n)
							return
						}
						verified.Add(1)
					case i%40 == 1:
						if err := loop.Discard(off, n); err != nil {
							t.Error(err)
							return
						}
						clear(model[off : off+n])
					default:
						fillRandom(rw, model[off:off+n])
						if _, err := loop.WriteAt(model[off:off+n], off); err != nil {
							t.Error(err)
							return
						}
					}
					if i%16 == 0 {
						if err := loop.Flush(); err != nil {
							t.Error(err)
							return
						}
						flushed.Add(1)
					}
				}
			})
		}
		for i := range kills {
			time.Sleep(time.Duration(r.IntN(120)) * time.Millisecond)
			if i%4 == 2 {
				k.stop()
				k = startKeeper(t, cfg.KeeperSocket)
				waitHeld(t, k, cfg.VolumeID)
			}
			if i%3 == 1 {
				proc.signal(t, syscall.SIGTERM)
			} else {
				proc.signal(t, syscall.SIGKILL)
			}
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
			// With limits there are replies that wait for their turn when it is killed.
			cfg.Limits = shim.Limits{OperationsPerSecond: int64(i % 2 * 500)}
			proc = startProcess(t, cfg)
			if proc.state.Device != device {
				t.Fatalf("mounted anew: device %s, was %s", proc.state.Device, device)
			}
		}
		finish()
		if err := loop.Flush(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(cfg.ImagePath)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, model) {
			t.Fatal("the image differs from what was written")
		}
		if verified.Load() == 0 || flushed.Load() == 0 {
			t.Fatalf("%d reads verified, %d flushes: the test did nothing", verified.Load(), flushed.Load())
		}
		t.Logf("%d kills, %d reads verified, %d flushes", kills, verified.Load(), flushed.Load())
	})
}

// waitHeld waits until the keeper holds name again.
func waitHeld(t *testing.T, k *testKeeper, name string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		for _, n := range k.server.Names() {
			if n == name {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the restarted keeper was not given %q again", name)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestWriteback checks that the keeper's writeback brings unflushed writes to the device, that it survives the death of
// the server, and that it releases the mount.
func TestWriteback(t *testing.T) {
	requireAll(t)
	dir := t.TempDir()
	cfg := helperConfig{
		KeeperSocket: filepath.Join(dir, "keeper.sock"),
		MountPoint:   filepath.Join(dir, "mnt"),
		Mode:         shim.ModeFlush,
		VolumeID:     "wb",
		ImagePath:    filepath.Join(dir, "image"),
		SizeBytes:    mib,
	}
	guard(t, cfg.MountPoint, 60*time.Second)
	startKeeper(t, cfg.KeeperSocket)
	proc := startProcess(t, cfg)
	path := filepath.Join(cfg.MountPoint, shim.FileName)
	name, loop := attachLoop(t, path, mib, shim.ModeFlush)
	wb := keeper.NewWriteback(5 * time.Millisecond)
	if err := wb.Add(path); err != nil {
		t.Fatal(err)
	}
	expect := func(text string) {
		t.Helper()
		// Into the page cache of the file by a buffered write of the loop device, and no further.
		direct := openDirect(t, name)
		defer direct.Close()
		if _, err := direct.WriteAt(alignedBlock(text), 0); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for {
			got := make([]byte, len(text))
			f, err := os.Open(cfg.ImagePath)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.ReadAt(got, 0)
			f.Close()
			if err == nil && string(got) == text {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("an unflushed write did not reach the image: %q %v", got, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	expect("before")
	proc.signal(t, syscall.SIGKILL)
	time.Sleep(50 * time.Millisecond) // writeback tries, with no server
	// Starting a process while writeback has the file open and no process serves is part of what is tested.
	proc = startProcess(t, cfg)
	expect("after!")
	loop.Close()
	if err := blockdev.DetachLoop(name); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := shim.Unmount(cfg.MountPoint); err == nil {
		t.Fatal("unmounted while writeback has the file open: the test shows nothing")
	}
	if err := wb.Remove(ctx, path); err != nil {
		t.Fatal(err)
	}
	if err := wb.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := wb.Add(path); err == nil {
		t.Error("added to a closed writeback")
	}
	if err := shim.Unmount(cfg.MountPoint); err != nil {
		t.Fatal(err)
	}
	if err := proc.cmd.Wait(); err != nil {
		t.Errorf("the serving process after the unmount: %v", err)
	}
	if err := shim.Unmount(cfg.MountPoint); err != nil {
		t.Errorf("second unmount: %v", err)
	}
}

// openDirect opens a block device past its own page cache.
func openDirect(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// alignedBlock returns a page with text at its beginning.
func alignedBlock(text string) []byte {
	b := make([]byte, 2*4096)
	off := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	copy(b[off:], text)
	return b[off : off+4096]
}
