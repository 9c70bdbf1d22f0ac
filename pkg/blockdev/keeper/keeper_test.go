package keeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/unixsocket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type running struct {
	*Server
	socket string
	stop   func()
}

// start runs a keeper on socket until stop or the end of the test.
func start(t *testing.T, socket string) *running {
	t.Helper()
	return startHolding(t, socket, NewServer(NewWriteback(time.Hour)))
}

func startHolding(t *testing.T, socket string, s *Server) *running {
	t.Helper()
	l, err := unixsocket.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Server: s, socket: socket}
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, l) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		r.Close()
	})
	t.Cleanup(r.stop)
	return r
}

func socketPath(t *testing.T) string { return filepath.Join(t.TempDir(), "k.sock") }

func ctxFor(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, socket string) *Client {
	t.Helper()
	c, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// file returns an open file with content.
func file(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

func contentOf(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func openFDs(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestPutGetListDrop(t *testing.T) {
	k := start(t, socketPath(t))
	c := dial(t, k.socket)
	ctx := ctxFor(t)
	if _, _, err := c.Get(ctx, "a"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("get of nothing: %v", err)
	}
	meta := bytes.Repeat([]byte{0, 1, 2, 255}, MaxMetaBytes/4)
	longName := strings.Repeat("n", MaxNameBytes)
	for name, m := range map[string][]byte{"a": meta, longName: nil, "b": []byte("x")} {
		f := file(t, "first "+name[:1])
		if err := c.Put(ctx, name, m, f); err != nil {
			t.Fatal(err)
		}
		f.Close() // the keeper's is its own
	}
	names, err := c.List(ctx)
	if err != nil || !slices.Equal(names, []string{"a", "b", longName}) {
		t.Fatalf("list: %v %v", names, err)
	}
	got, f, err := c.Get(ctx, "a")
	if err != nil || !bytes.Equal(got, meta) {
		t.Fatalf("get: %d bytes, %v", len(got), err)
	}
	if s := contentOf(t, f); s != "first a" {
		t.Fatalf("another file: %q", s)
	}
	f.Close()

	if err := c.Put(ctx, "a", []byte("second"), file(t, "second a")); err != nil {
		t.Fatal(err)
	}
	got, f, err = c.Get(ctx, "a")
	if err != nil || string(got) != "second" || contentOf(t, f) != "second a" {
		t.Fatalf("after replacing: %q %v", got, err)
	}
	f.Close()

	for range 2 {
		if err := c.Drop(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.Get(ctx, "a"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("get of what was dropped: %v", err)
	}
	for _, err := range []error{
		c.Put(ctx, longName+"n", nil, file(t, "")),
		c.Put(ctx, "a", make([]byte, MaxMetaBytes+1), file(t, "")),
	} {
		if err == nil {
			t.Error("too long was accepted")
		}
	}
	// A refused argument has sent nothing: the connection is as good as before.
	if _, err := c.List(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestNoDescriptorLeaks counts descriptors after everything that can be done with them, well or badly.
func TestNoDescriptorLeaks(t *testing.T) {
	k := start(t, socketPath(t))
	ctx := ctxFor(t)
	f := file(t, "x")
	round := func() {
		c, err := Dial(k.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 3 {
			if err := c.Put(ctx, "a", nil, f); err != nil {
				t.Fatal(err)
			}
		}
		_, g, err := c.Get(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		g.Close()
		if err := c.Drop(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		for _, bad := range badFrames(f) {
			sendRaw(t, k.socket, bad.frame, bad.fds)
		}
	}
	round()
	before := openFDs(t)
	for range 10 {
		round()
	}
	deadline := time.Now().Add(10 * time.Second)
	for openFDs(t) > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, before there were %d", openFDs(t), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

type badFrame struct {
	name  string
	frame []byte
	fds   []int
}

func badFrames(f *os.File) []badFrame {
	fd := int(f.Fd())
	prefix := func(b ...byte) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	put, _ := encodeRequest(request{op: opPut, name: "bad"})
	watch, _ := encodeRequest(request{op: opWatch, meta: []byte("/bad")})
	get, _ := encodeRequest(request{op: opGet, name: "bad"})
	return []badFrame{
		{"put without descriptor", put, nil},
		{"put with two", put, []int{fd, fd}},
		{"get with descriptor", get, []int{fd}},
		{"watch with descriptor", watch, []int{fd}},
		{"watch of no path", prefix(5, 0, 0, 0, 0, 0), nil},
		{"watch of a relative path", prefix(5, 0, 1, 0, 0, 0, 'a'), nil},
		{"unwatch with a name", prefix(6, 1, 'a', 1, 0, 0, 0, '/'), nil},
		{"empty", prefix(), nil},
		{"too long", []byte{255, 255, 255, 255, 1}, nil},
		{"unknown operation", prefix(9, 1, 'a', 0, 0, 0, 0), nil},
		{"name too long for the frame", prefix(2, 200, 'a'), nil},
		{"meta too long for the frame", prefix(1, 1, 'a', 9, 0, 0, 0), []int{fd}},
		{"list with a name", prefix(3, 1, 'a', 0, 0, 0, 0), nil},
		{"put without a name", prefix(1, 0, 0, 0, 0, 0), []int{fd}},
	}
}

// sendRaw sends bytes on a connection of its own and returns the answer, until the keeper closes.
func sendRaw(t *testing.T, socket string, b []byte, fds []int) []byte {
	t.Helper()
	nc, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := nc.(*net.UnixConn).WriteMsgUnix(b, oob, nil); err != nil {
		t.Fatal(err)
	}
	if err := nc.(*net.UnixConn).CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
		t.Fatal(err)
	}
	got, err := io.ReadAll(nc)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("the keeper did not close the connection: %v", err)
	}
	return got
}

// TestBrokenClients checks that what a client does wrong ends its connection only.
func TestBrokenClients(t *testing.T) {
	k := start(t, socketPath(t))
	ctx := ctxFor(t)
	good := dial(t, k.socket)
	if err := good.Put(ctx, "good", []byte("m"), file(t, "x")); err != nil {
		t.Fatal(err)
	}
	// One that stops in the middle of a frame, for as long as the test runs.
	half, err := net.Dial("unix", k.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.Write([]byte{20, 0}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range badFrames(file(t, "y")) {
		got := sendRaw(t, k.socket, bad.frame, bad.fds)
		if len(got) > 0 {
			st, _, err := decodeResponse(got[4:])
			if err != nil || st != statusBadRequest {
				t.Errorf("%s: answered %d, %v", bad.name, st, err)
			}
		}
		meta, f, err := good.Get(ctx, "good")
		if err != nil || string(meta) != "m" {
			t.Fatalf("%s: disturbed another client: %v", bad.name, err)
		}
		f.Close()
	}
	if names := k.Names(); !slices.Equal(names, []string{"good"}) {
		t.Fatalf("the keeper holds %v", names)
	}
}

func TestFull(t *testing.T) {
	if testing.Short() {
		t.Skip("needs thousands of descriptors")
	}
	s := NewServer(NewWriteback(time.Hour))
	defer s.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for i := range maxEntries {
		// Not descriptors: the limit is what is tested. They are taken out again before Close.
		if !s.put(fmt.Sprintf("%0200d", i), nil, -1) {
			t.Fatalf("full after %d", i)
		}
	}
	if s.put("one more", nil, -1) {
		t.Fatal("took one more")
	}
	if !s.put(fmt.Sprintf("%0200d", 7), []byte("new"), -1) {
		t.Fatal("did not replace one when full")
	}
	if n := len(encodeResponse(statusOK, encodeNames(s.Names()))); n > maxResponseBytes {
		t.Fatalf("the list has %d bytes", n)
	}
	clear(s.entries)
}

func TestConnectionLimit(t *testing.T) {
	k := start(t, socketPath(t))
	var conns []net.Conn
	for range maxConnections + 10 {
		c, err := net.Dial("unix", k.socket)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.Close()
	}
	// When they are gone there is room again.
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := Dial(k.socket)
		if err == nil {
			_, err = c.List(ctxFor(t))
			c.Close()
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestContext(t *testing.T) {
	// A keeper that never answers.
	l, err := unixsocket.Listen(socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := dial(t, l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.List(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.List(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancel: %v", err)
	}
}

func TestHolder(t *testing.T) {
	socket := socketPath(t)
	h := NewHolder(socket)
	defer h.Close()
	ctx := ctxFor(t)

	// The keeper is not there yet.
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	err := h.Add(short, "early", []byte("1"), file(t, "early"))
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("add without a keeper: %v", err)
	}
	k := start(t, socket)
	eventually(t, func() error { return holds(k, "early") })

	f := file(t, "a")
	if err := h.Add(ctx, "a", []byte("2"), f); err != nil {
		t.Fatal(err)
	}
	if err := holds(k, "a", "early"); err != nil {
		t.Fatalf("after Add: %v", err)
	}
	f.Close()

	// The keeper dies and comes back empty, again and again.
	for range 3 {
		k.stop()
		k = start(t, socket)
		eventually(t, func() error { return holds(k, "a", "early") })
	}

	entries, err := h.Fetch(ctx)
	if err != nil || len(entries) != 2 {
		t.Fatalf("fetch: %v %v", entries, err)
	}
	for i, want := range []struct{ name, meta, content string }{{"a", "2", "a"}, {"early", "1", "early"}} {
		e := entries[i]
		if e.Name != want.name || string(e.Meta) != want.meta || contentOf(t, e.File) != want.content {
			t.Errorf("entry %d: %q %q", i, e.Name, e.Meta)
		}
		e.File.Close()
	}

	// Replaced and removed while the keeper is away.
	k.stop()
	short, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
	if err := h.Remove(short, "early"); err == nil {
		t.Error("removed without a keeper")
	}
	cancel()
	// It was only away, and still holds what was removed.
	s := NewServer(NewWriteback(time.Hour))
	s.put("early", nil, dup(t, file(t, "")))
	k = startHolding(t, socket, s)
	if err := h.Add(ctx, "a", []byte("3"), file(t, "newer")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return holds(k, "a") })
	meta, fd, err := k.get("a")
	if err != nil || string(meta) != "3" {
		t.Fatalf("%q %v", meta, err)
	}
	unix.Close(fd)

	if err := h.Remove(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := holds(k); err != nil {
		t.Fatal(err)
	}
	if err := h.Add(ctx, "", nil, file(t, "")); err == nil {
		t.Error("added without a name")
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Add(ctx, "late", nil, file(t, "")); err == nil {
		t.Error("added to a closed holder")
	}
}

func dup(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func holds(k *running, want ...string) error {
	if names := k.Names(); !slices.Equal(names, want) {
		return fmt.Errorf("the keeper holds %v, want %v", names, want)
	}
	return nil
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestWritebackMissingFile checks that a file that is not there yet is visited when it is, and can be removed before.
func TestWritebackMissingFile(t *testing.T) {
	w := NewWriteback(time.Millisecond)
	path := filepath.Join(t.TempDir(), "f")
	for range 2 {
		if err := w.Add(path); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(10 * time.Millisecond)
	ctx := ctxFor(t)
	if err := w.Remove(ctx, path); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(ctx, path); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestWatcher checks that the keeper learns what to visit whenever it comes, and closes what is removed before Remove
// returns.
func TestWatcher(t *testing.T) {
	socket := socketPath(t)
	w := NewWatcher(socket)
	defer w.Close()
	ctx := ctxFor(t)
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	for _, path := range []string{a, b, c, a} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.Add(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"", "relative", "/" + strings.Repeat("x", maxPathBytes)} {
		if err := w.Add(path); err == nil {
			t.Errorf("path of %d bytes was taken", len(path))
		}
	}
	// Without a keeper no process has it open.
	if err := w.Remove(ctx, c); err != nil {
		t.Fatal(err)
	}
	watched := func(wb *Writeback, want ...string) func() error {
		return func() error {
			if got := wb.paths(); !slices.Equal(got, want) {
				return fmt.Errorf("the keeper visits %q, want %q", got, want)
			}
			return nil
		}
	}
	serve := func() (*Writeback, *running) {
		wb := NewWriteback(time.Millisecond)
		return wb, startHolding(t, socket, NewServer(wb))
	}
	end := func(wb *Writeback, k *running) {
		k.stop()
		if err := wb.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
	wb, k := serve()
	eventually(t, watched(wb, a, b))
	if err := w.Add(c); err != nil { // while connected
		t.Fatal(err)
	}
	eventually(t, watched(wb, a, b, c))
	for range 2 {
		if err := w.Remove(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := watched(wb, a, c)(); err != nil {
		t.Fatalf("after Remove: %v", err)
	}
	end(wb, k)
	wb, k = serve()
	eventually(t, watched(wb, a, c))
	// The driver's end changes nothing.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := watched(wb, a, c)(); err != nil {
		t.Fatal(err)
	}
	end(wb, k)
}

// TestUnwatchBusy checks what a client hears while a visit hangs, and that it can ask again.
func TestUnwatchBusy(t *testing.T) {
	wb := NewWriteback(time.Millisecond)
	path := filepath.Join(t.TempDir(), "fifo")
	// A visit opens it for reading, which waits for a writer as it would for a server.
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	k := startHolding(t, socketPath(t), NewServer(wb))
	c := dial(t, k.socket)
	ctx := ctxFor(t)
	if err := c.Watch(ctx, path); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the visit has begun
	if err := c.Unwatch(ctx, path); !errors.Is(err, ErrBusy) {
		t.Fatalf("unwatch of a file whose visit hangs: %v", err)
	}
	writer, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := c.Unwatch(ctx, path); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for _, r := range []request{
		{op: opPut, name: "a", meta: []byte("m")}, {op: opGet, name: "a"}, {op: opList}, {op: opDrop, name: "b"},
		{op: opWatch, meta: []byte("/p")}, {op: opUnwatch, meta: []byte("/p")}} {
		b, err := encodeRequest(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRequest(b)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Fatalf("unmarked error: %v", err)
			}
			return
		}
		again, err := encodeRequest(r)
		if err != nil || !bytes.Equal(again[4:], b) {
			t.Fatalf("%x became %x: %v", b, again, err)
		}
	})
}

func FuzzDecodeResponse(f *testing.F) {
	f.Add(encodeResponse(statusOK, encodeNames([]string{"a", "bc"}))[4:])
	f.Add(encodeResponse(statusNotFound, []byte("no"))[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		st, body, err := decodeResponse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeResponse(st, body)[4:], b) {
			t.Fatalf("%x does not come back", b)
		}
		if names, err := decodeNames(body); err == nil && !bytes.Equal(encodeNames(names), body) {
			t.Fatalf("names %q do not come back", names)
		}
	})
}
