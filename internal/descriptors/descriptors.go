// Package descriptors is how a program shares its file descriptors out. Images, journals and the shim's devices may
// take as many as there are; what comes from the network gets a fixed share (package tcplisten), so that callers cannot
// take the data path's.
package descriptors

import (
	"syscall"

	"k8s.io/klog/v2"
)

const (
	// wanted is the limit that a program asks for: thousands of volumes with a handful of descriptors each, and room.
	wanted = 1 << 20
	// few is a limit below which a line in the log says that it is low.
	few = 4096
	// portShare is which part of the descriptors the connections of one port may take.
	portShare = 16
)

// Raise raises the process's limit of descriptors as far as it may be raised. Programs call it first.
func Raise() {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		klog.ErrorS(err, "The limit of file descriptors cannot be read")
		return
	}
	// The hard limit too, where the process is privileged; otherwise as far as that one.
	for _, target := range []syscall.Rlimit{{Cur: max(wanted, limit.Cur), Max: max(wanted, limit.Max)},
		{Cur: limit.Max, Max: limit.Max}} {
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &target) == nil {
			break
		}
	}
	if n := Limit(); n < few {
		klog.InfoS(
			"The limit of file descriptors is low: it bounds how many volumes and connections there can be; raise it "+
				"with LimitNOFILE or ulimit -n", "limit", n)
	}
}

// Limit is how many descriptors the process may have.
func Limit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return few
	}
	return limit.Cur
}

// ForPort is how many connections of one kind a port may have at most if it asks for n.
func ForPort(n int) int { return int(min(uint64(n), max(1, Limit()/portShare))) }
