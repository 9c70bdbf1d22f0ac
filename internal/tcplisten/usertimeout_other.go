//go:build !linux

package tcplisten

import (
	"net"
	"time"
)

func setUserTimeout(net.Conn, time.Duration) {}
