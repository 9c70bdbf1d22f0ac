package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// TuneBDI sets how much of a shim mount may be dirty in the page cache, in bytes. device is "major:minor" as in
// State.Device.
//
// FUSE's default is 1 % of what the kernel lets be dirty in all, which costs a third of random write throughput.
// Without a limit the next flush takes seconds: it has to write back what piled up. So the share is set in bytes
// (max_bytes), which bounds the time of a flush.
//
// strict_limit has to stay 1. With 0 the limit counts only once the whole machine has much dirty memory: measured
// with a max_bytes of 256 MiB and random writes, 1 GiB was dirty with strict_limit 0, 200 MiB with 1.
//
// It touches sysfs only and is safe to call from the serving process. The kernel rounds the limit down to a share of
// memory in millionths.
func TuneBDI(device string, maxDirtyBytes int64) error {
	if !deviceNumber.MatchString(device) {
		return fmt.Errorf("tune backing device: %q is not major:minor", device)
	}
	if maxDirtyBytes <= 0 {
		return fmt.Errorf("tune backing device %s: limit of %d bytes is not positive", device, maxDirtyBytes)
	}
	dir := filepath.Join("/sys/class/bdi", device)
	for _, v := range []struct{ name, value string }{
		{"strict_limit", "1"},
		{"max_bytes", strconv.FormatInt(maxDirtyBytes, 10)},
	} {
		if err := os.WriteFile(filepath.Join(dir, v.name), []byte(v.value), 0); err != nil {
			return fmt.Errorf("tune backing device %s: %w", device, err)
		}
	}
	return nil
}

// ProtectServingProcess tells the kernel that this process is in the path of writeback (PR_SET_IO_FLUSHER), in all its
// threads: under memory pressure its allocations then do not wait for pages that only it can write back. Call it early
// in main; log the error and go on, the volume works without.
//
// It needs CAP_SYS_RESOURCE. A program that links C code cannot do it (the Go runtime does not control all its threads)
// and gets an error that says so.
func ProtectServingProcess() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	switch {
	case errno == 0:
		return nil
	case errors.Is(errno, syscall.ENOTSUP):
		return fmt.Errorf("set PR_SET_IO_FLUSHER in all threads: this binary was built with cgo: %w", errno)
	case errors.Is(errno, syscall.EPERM):
		return fmt.Errorf("set PR_SET_IO_FLUSHER: CAP_SYS_RESOURCE is needed: %w", errno)
	}
	return fmt.Errorf("set PR_SET_IO_FLUSHER: %w", errno)
}
