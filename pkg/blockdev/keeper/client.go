package keeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrFull is returned by Put when the keeper takes no more entries. Nothing was stored.
var ErrFull = errors.New("the keeper is full")

// ErrBusy is returned by Unwatch while a visit of the file has not ended. It ends when the file's server answers; ask
// again.
var ErrBusy = errors.New("a visit of the file has not ended")

// Client is a connection to a keeper. Its methods are safe for concurrent use and take turns. After an error other
// than ErrNotFound, ErrFull, ErrBusy and a refused argument the connection is in an unknown state: Close it and Dial
// again. Every operation can be repeated.
type Client struct {
	mu sync.Mutex // held for a request and its answer
	c  *net.UnixConn
}

// dialTimeout bounds connecting, which is immediate unless the keeper's backlog is full.
const dialTimeout = 5 * time.Second

// Dial connects to the keeper's socket.
func Dial(path string) (*Client, error) {
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return &Client{c: c.(*net.UnixConn)}, nil
}

// Close closes the connection. What the keeper holds stays.
func (c *Client) Close() error { return c.c.Close() }

// Put gives the keeper a duplicate of fd under name, in place of what it held there. When it returns nil the keeper
// holds it. fd stays the caller's.
func (c *Client) Put(ctx context.Context, name string, meta []byte, fd *os.File) error {
	return withFD(fd, func(raw int) error { return c.put(ctx, name, meta, raw) })
}

func (c *Client) put(ctx context.Context, name string, meta []byte, fd int) error {
	_, _, err := c.do(ctx, request{op: opPut, name: name, meta: meta}, fd)
	return err
}

// Get returns what the keeper holds under name. The file is a duplicate and the caller's to close; it, and all other
// duplicates with it, blocks: none of them may be in use any more. ErrNotFound if there is nothing.
func (c *Client) Get(ctx context.Context, name string) (meta []byte, f *os.File, err error) {
	body, fd, err := c.do(ctx, request{op: opGet, name: name}, -1)
	if err != nil {
		return nil, nil, err
	}
	if fd < 0 {
		return nil, nil, fmt.Errorf("keeper: get %q: the answer came without a descriptor", name)
	}
	f, err = newFile(fd, name)
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: get %q: %w", name, err)
	}
	return body, f, nil
}

// newFile makes an os.File, to which fd then belongs, of a descriptor that a process that is gone has used. It is made
// blocking, or package os would poll it.
func newFile(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// List returns the names that the keeper holds, sorted.
func (c *Client) List(ctx context.Context) ([]string, error) {
	body, _, err := c.do(ctx, request{op: opList}, -1)
	if err != nil {
		return nil, err
	}
	names, err := decodeNames(body)
	if err != nil {
		return nil, fmt.Errorf("keeper: list: %w", err)
	}
	return names, nil
}

// Drop makes the keeper close what it holds under name. A name it does not hold is not an error.
func (c *Client) Drop(ctx context.Context, name string) error {
	_, _, err := c.do(ctx, request{op: opDrop, name: name}, -1)
	return err
}

// Watch makes the keeper start the writeback of a file periodically, until Unwatch or its own end.
func (c *Client) Watch(ctx context.Context, path string) error {
	_, _, err := c.do(ctx, request{op: opWatch, meta: []byte(path)}, -1)
	return err
}

// Unwatch ends what Watch began; when it returns nil the keeper has closed the file. A file that is not watched is
// not an error.
func (c *Client) Unwatch(ctx context.Context, path string) error {
	_, _, err := c.do(ctx, request{op: opUnwatch, meta: []byte(path)}, -1)
	return err
}

// do sends a request and receives its answer. The returned descriptor, if not negative, is the caller's.
func (c *Client) do(ctx context.Context, r request, sendFD int) (body []byte, fd int, err error) {
	frame, err := encodeRequest(r)
	if err != nil {
		return nil, -1, fmt.Errorf("keeper: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, -1, fmt.Errorf("keeper: %w", err)
	}
	deadline, _ := ctx.Deadline() // the zero time means none
	if err := c.c.SetDeadline(deadline); err != nil {
		return nil, -1, fmt.Errorf("keeper: %w", err)
	}
	// A cancellation that comes too late must not end the next request: wait for its function, if it runs.
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.c.SetDeadline(time.Unix(1, 0))
		close(done)
	})
	defer func() {
		if !stop() {
			<-done
		}
	}()
	fail := func(err error) ([]byte, int, error) {
		switch {
		case ctx.Err() != nil:
			err = errors.Join(ctx.Err(), err)
		case errors.Is(err, os.ErrDeadlineExceeded): // the connection's deadline, which is the context's, a moment earlier
			err = errors.Join(context.DeadlineExceeded, err)
		}
		return nil, -1, fmt.Errorf("keeper: operation %d on %q: %w", r.op, r.object(), err)
	}
	if err := writeFrame(c.c, frame, sendFD); err != nil {
		return fail(err)
	}
	resp, fd, err := readFrame(c.c, maxResponseBytes, nil)
	if err != nil {
		return fail(unexpected(err))
	}
	st, body, err := decodeResponse(resp)
	if err == nil && fd >= 0 && (st != statusOK || r.op != opGet) {
		err = fmt.Errorf("%w: a descriptor that was not asked for", errMalformed)
	}
	if err == nil {
		switch st {
		case statusOK:
			return body, fd, nil
		case statusNotFound:
			err = fmt.Errorf("%w: %s", ErrNotFound, body)
		case statusFull:
			err = fmt.Errorf("%w: %s", ErrFull, body)
		case statusBusy:
			err = fmt.Errorf("%w: %s", ErrBusy, body)
		default:
			err = fmt.Errorf("bad request: %s", body)
		}
	}
	if fd >= 0 {
		closeFD(fd)
	}
	return fail(err)
}

// withFD calls f with the file's descriptor, which stays open meanwhile.
func withFD(file *os.File, f func(fd int) error) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	return inner
}
