package tcplisten

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout does nothing where it cannot: the connection then ends later than it could.
func setUserTimeout(c net.Conn, timeout time.Duration) {
	tcp, ok := c.(*net.TCPConn)
	if !ok || timeout == 0 {
		return
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
		})
	}
}
