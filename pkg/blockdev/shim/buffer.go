package shim

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Buffers: a request is read so that a WRITE's data, which follows 80 bytes of headers, begins on a page boundary (a
// Device may pass it on to direct I/O); a reply's header ends where its data begins, on the same boundary. So a READ is
// answered from one contiguous piece of memory, and writev is not needed.
const (
	dataOffset    = pageSize
	requestOffset = dataOffset - inHeaderSize - writeInSize
	replyOffset   = dataOffset - outHeaderSize
)

// newBuffer returns a reader's buffer, for requests and replies with up to maxData bytes. It is not on the heap, where
// the garbage collector would pace itself by it.
//
// Its pages are there before it is used, and stay. That is not for speed: when a process is killed while the kernel copies
// a request into a page that has to be faulted in first, the fault fails, and the kernel ends the request with EIO instead
// of leaving it for the next server. Without this, writers in TestKill got an I/O error in 2 of 56 runs; with it, in none
// of 120. For the same reason huge pages are
// declined (collapsing takes pages away for a moment), and the memory is locked if the limit allows.
func newBuffer(maxData int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, dataOffset+maxData, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("allocate a request buffer: %w", err)
	}
	// Unknown to kernels without huge pages.
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
	if err := unix.Madvise(b, unix.MADV_POPULATE_WRITE); err != nil {
		_ = unix.Munmap(b)
		return nil, fmt.Errorf("populate a request buffer: %w", err)
	}
	// Without it the pages can be swapped out, which matters only to a process that is killed while it swaps.
	_ = unix.Mlock(b)
	return b, nil
}

func freeBuffer(b []byte) { _ = unix.Munmap(b) }
