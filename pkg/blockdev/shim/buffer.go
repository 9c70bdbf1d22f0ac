package shim

import (
	"fmt"
	"slices"
	"sync"

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
// Its pages are there before it is used, and stay. That is not for speed: when a process is killed while the kernel
// copies a request into a page that has to be faulted in first, the fault fails, and the kernel ends the request with
// EIO instead of leaving it for the next server. Without this, writers in TestKill got an I/O error in 2 of 56 runs;
// with it, in none of 120. For the same reason huge pages are declined (collapsing takes pages away for a moment),
// and the memory is locked if the limit allows.
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

// spareBuffers keeps buffers of readers that have ended for the next, of whichever volume: when a disk is slow each
// volume needs many readers for a moment, and with spares of its own each would keep its peak forever, 20 MiB a
// volume.
var spareBuffers spares

// maxSpareBuffers bounds what is kept, to 10 MiB. Beyond it a buffer is given back; a new one takes a fraction of
// what the slow disk did that made it necessary.
const maxSpareBuffers = 8

type spares struct {
	mu      sync.Mutex
	buffers [][]byte // guarded by mu
}

// get returns a buffer as newBuffer does.
func (p *spares) get(maxData int) ([]byte, error) {
	p.mu.Lock()
	for i, b := range p.buffers {
		if len(b) == dataOffset+maxData { // else it is of a server that has agreed with its kernel on another size
			p.buffers = slices.Delete(p.buffers, i, i+1)
			p.mu.Unlock()
			return b, nil
		}
	}
	p.mu.Unlock()
	return newBuffer(maxData)
}

func (p *spares) put(b []byte) {
	p.mu.Lock()
	if len(p.buffers) < maxSpareBuffers {
		p.buffers = append(p.buffers, b)
		b = nil
	}
	p.mu.Unlock()
	if b != nil {
		freeBuffer(b)
	}
}
