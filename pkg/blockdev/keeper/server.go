package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
)

const (
	// frameTimeout bounds receiving a frame that has begun, and sending one. Frames are small and local.
	frameTimeout = 10 * time.Second
	// maxConnections keeps a client in a loop from using up the keeper's descriptors.
	maxConnections = 128
)

// unwatchPatience is how long an UNWATCH waits for a visit that has begun; less than clients wait for an answer.
const unwatchPatience = 3 * time.Second

// Server holds files by name. The zero value is not usable; make it with NewServer.
type Server struct {
	writeback *Writeback

	mu      sync.Mutex
	entries map[string]entry // guarded by mu
	closed  bool             // guarded by mu
}

type entry struct {
	fd   int // owned
	meta []byte
}

// NewServer returns a Server that holds nothing and visits the files it is told of by w, which stays the caller's.
func NewServer(w *Writeback) *Server {
	return &Server{writeback: w, entries: make(map[string]entry)}
}

// Serve answers clients until ctx is done, and then returns nil after all connections are closed. What the Server holds
// stays; Close releases it. Serve closes the listener in any case.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = make(map[*net.UnixConn]struct{})
	)
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		wg.Wait()
	}()
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range conns {
			c.Close()
		}
	})
	defer stop()
	defer l.Close()
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				klog.ErrorS(err, "Keeper cannot accept a connection")
				pause.For(ctx, 100*time.Millisecond)
				continue
			}
			return fmt.Errorf("keeper: accept on %s: %w", l.Addr(), err)
		}
		c, ok := nc.(*net.UnixConn)
		if !ok {
			nc.Close()
			return fmt.Errorf("keeper: listener on %s is not a Unix socket", l.Addr())
		}
		mu.Lock()
		full := len(conns) >= maxConnections
		if !full {
			conns[c] = struct{}{}
		}
		mu.Unlock()
		if full || ctx.Err() != nil {
			if full {
				klog.InfoS("Keeper refused a connection: too many", "connections", maxConnections)
			}
			c.Close()
			if full {
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			}
			continue
		}
		wg.Go(func() {
			err := s.serveConn(c)
			if err != nil && ctx.Err() == nil {
				klog.InfoS("Keeper closed a connection", "err", err)
			}
			mu.Lock()
			delete(conns, c)
			mu.Unlock()
			c.Close()
		})
	}
}

// Close closes every file the Server holds. Later requests find it empty and full.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for name, e := range s.entries {
		unix.Close(e.fd)
		delete(s.entries, name)
	}
	return nil
}

// Names returns the names held, sorted.
func (s *Server) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.entries))
	for n := range s.entries {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// serveConn answers one client until it closes the connection or breaks the protocol.
func (s *Server) serveConn(c *net.UnixConn) error {
	for {
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		frame, fd, err := readFrame(c, maxRequestBytes, func() {
			_ = c.SetReadDeadline(time.Now().Add(frameTimeout))
		})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if werr := c.SetWriteDeadline(time.Now().Add(frameTimeout)); werr != nil && err == nil {
			err = werr
		}
		var r request
		if err == nil {
			r, err = decodeRequest(frame)
		}
		if err == nil && (r.op == opPut) != (fd >= 0) {
			err = fmt.Errorf("%w: operation %d with descriptor: %t", errMalformed, r.op, fd >= 0)
		}
		if err != nil {
			if fd >= 0 {
				unix.Close(fd)
			}
			if errors.Is(err, errMalformed) {
				_ = writeFrame(c, encodeResponse(statusBadRequest, []byte(err.Error())), -1)
			}
			return err
		}
		if err := s.answer(c, r, fd); err != nil {
			return err
		}
	}
}

// answer executes a request. fd belongs to it.
func (s *Server) answer(c *net.UnixConn, r request, fd int) error {
	switch r.op {
	case opPut:
		if !s.put(r.name, r.meta, fd) {
			unix.Close(fd)
			return writeFrame(c, encodeResponse(statusFull,
				[]byte(fmt.Sprintf("the keeper holds %d entries already, or is closing", maxEntries))), -1)
		}
		return writeFrame(c, encodeResponse(statusOK, nil), -1)
	case opGet:
		meta, dup, err := s.get(r.name)
		if err != nil {
			return writeFrame(c, encodeResponse(statusNotFound, []byte(err.Error())), -1)
		}
		defer unix.Close(dup)
		return writeFrame(c, encodeResponse(statusOK, meta), dup)
	case opList:
		return writeFrame(c, encodeResponse(statusOK, encodeNames(s.Names())), -1)
	case opWatch:
		if err := s.writeback.Add(string(r.meta)); err != nil {
			return writeFrame(c, encodeResponse(statusFull, []byte(err.Error())), -1)
		}
		return writeFrame(c, encodeResponse(statusOK, nil), -1)
	case opUnwatch:
		ctx, cancel := context.WithTimeout(context.Background(), unwatchPatience)
		defer cancel()
		if err := s.writeback.Remove(ctx, string(r.meta)); err != nil {
			return writeFrame(c, encodeResponse(statusBusy, []byte(err.Error())), -1)
		}
		return writeFrame(c, encodeResponse(statusOK, nil), -1)
	default: // opDrop; decodeRequest lets nothing else through
		s.drop(r.name)
		return writeFrame(c, encodeResponse(statusOK, nil), -1)
	}
}

func (s *Server) put(name string, meta []byte, fd int) bool {
	s.mu.Lock()
	old, replaced := s.entries[name]
	if s.closed || !replaced && len(s.entries) >= maxEntries {
		s.mu.Unlock()
		return false
	}
	s.entries[name] = entry{fd: fd, meta: meta}
	s.mu.Unlock()
	if replaced {
		unix.Close(old.fd)
	} else {
		klog.InfoS("Keeper holds a descriptor", "name", name)
	}
	return true
}

// get returns the meta and a duplicate of the descriptor: the entry may be dropped while it is being sent.
func (s *Server) get(name string) ([]byte, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[name]
	if !ok {
		return nil, -1, fmt.Errorf("no entry %q", name)
	}
	dup, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("duplicate the descriptor of %q: %w", name, err)
	}
	return e.meta, dup, nil
}

func (s *Server) drop(name string) {
	s.mu.Lock()
	e, ok := s.entries[name]
	delete(s.entries, name)
	s.mu.Unlock()
	if ok {
		unix.Close(e.fd)
		klog.InfoS("Keeper dropped a descriptor", "name", name)
	}
}
