// Package unixsocket listens on Unix sockets: one set of rules for every program of the project that does.
//
//   - A path is taken over only from a socket without a listener. A socket with a listener, and a file of any other
//     kind, stay as they are, and listening fails.
//   - Processes that start at the same time exclude each other with flock(2) on the directory, so two of them cannot
//     take over one stale socket.
//   - The socket has mode 0600 from the instant that it has a name, whatever the umask is.
//   - Close removes the name only while it still leads to the listener's own socket.
//
// It needs Linux. Everything here is safe for concurrent use.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/pause"
)

const (
	// mode of a socket: only the own user may connect.
	mode = 0o600
	// dialTimeout bounds the check for a listener. A listener that does not accept in time still counts as one.
	dialTimeout = time.Second
	// lockPatience bounds waiting for other processes that listen or close in the same directory. They take microseconds.
	lockPatience = 5 * time.Second
)

// inUsePatience bounds waiting for a listener to go away. A process that was killed while it started a program may
// leave a child that has not reached execve(2) yet, and holds all descriptors until then: that is the time in which
// the kernel reads the program's first page. It is a variable for tests.
var inUsePatience = 5 * time.Second

// ErrInUse is returned when another process listens on the path.
var ErrInUse = errors.New("another process listens there; stop it first, or choose another path")

// parse returns the path of an endpoint. Abstract names (@name) are refused: they have no permissions.
func parse(endpoint string) (string, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix:"), "//")
	if path == "" || path[0] == '@' || strings.Contains(path, "://") {
		return "", fmt.Errorf("endpoint %q is not a Unix socket: want unix:///path", endpoint)
	}
	return path, nil
}

// Listen listens on an endpoint, which is written as unix:///path, unix:path or a path, in a directory that exists. A
// socket that a killed process left there is replaced. A socket that still has a listener after five seconds is
// ErrInUse. Errors name the path; after an error nothing has changed, except that a stale socket may be gone.
func Listen(endpoint string) (net.Listener, error) {
	path, err := parse(endpoint)
	if err != nil {
		return nil, err
	}
	var l net.Listener
	inUse := func(err error) bool { return errors.Is(err, ErrInUse) }
	err = pause.Poll(inUsePatience, inUse, func() (err error) {
		l, err = listen(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (net.Listener, error) {
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The kernel makes the socket's file with the mode that the socket has, less the umask: never with more than mode.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), mode) })
		return errors.Join(err, cerr)
	}}
	generic, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	inner, ok := generic.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a listener of type %T", generic), generic.Close())
	}
	inner.SetUnlinkOnClose(false) // the name may be another's by then
	l := &listener{UnixListener: inner, path: path}
	err = os.Chmod(path, mode) // what the umask took
	if err == nil {
		err = unix.Lstat(path, &l.file)
	}
	if err != nil {
		return nil, errors.Join(err, inner.Close(), os.Remove(path))
	}
	return l, nil
}

// removeStale makes room at path. The directory is locked.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("there is a file of another kind (%s): remove it, or choose another path", info.Mode().Type())
	}
	conn, err := net.DialTimeout("unix", path, dialTimeout)
	switch {
	case err == nil:
		conn.Close()
		return ErrInUse
	case errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.ECONNREFUSED):
		// A full queue (EAGAIN), a datagram socket (EPROTOTYPE), no permission: the socket is in use.
		return fmt.Errorf("%w (%w)", ErrInUse, err)
	}
	return os.Remove(path)
}

// lockDir excludes other processes that listen or close in a directory.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	locked := func(err error) bool { return errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) }
	err = pause.Poll(lockPatience, locked, func() error {
		return unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	})
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("lock directory %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// listener is a net.UnixListener that removes its own socket only.
type listener struct {
	*net.UnixListener
	path string
	file unix.Stat_t // the socket's

	once sync.Once
}

// Close stops listening and removes the socket's name, unless it leads elsewhere by now.
func (l *listener) Close() error {
	l.once.Do(func() {
		unlock, err := lockDir(filepath.Dir(l.path))
		if err != nil {
			return // the next to listen finds a stale socket
		}
		defer unlock()
		var now unix.Stat_t
		if err := unix.Lstat(l.path, &now); err == nil && now.Dev == l.file.Dev && now.Ino == l.file.Ino {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}
