package shim

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// handle executes one request whose body lies in buf and builds the reply at buf[replyOffset:]. It returns the reply's
// length, 0 for requests that take none. Bodies are decoded before the reply, which overlaps them, is written.
func (s *Server) handle(h inHeader, body, buf []byte) int {
	if needsDevice(h.opcode) {
		s.deviceMu.RLock()
		defer s.deviceMu.RUnlock()
	}
	return s.handleLocked(h, body, buf)
}

// needsDevice says which requests use the Device; for the others it need not be held.
func needsDevice(opcode uint32) bool {
	return opcode == opRead || opcode == opFallocate || opcode == opStatfs
}

// handleLocked is handle for a caller that holds the Device, if the request needs it.
func (s *Server) handleLocked(h inHeader, body, buf []byte) int {
	payload := buf[dataOffset:]
	n, errno := 0, unix.Errno(0)
	switch h.opcode {
	case opForget, opBatchForget, opInterrupt:
		// Node ids are fixed, so there is nothing to forget. An interrupt asks to end a request early, which is allowed and
		// not required; nothing here waits for anything but the Device. Not answering it is the protocol's way to ignore it.
		return 0
	case opRead:
		n, errno = s.read(body, payload)
	case opFallocate:
		start := s.now()
		o := s.fallocate(body)
		o.observe(s, start)
		errno = o.errno
	default:
		n, errno = s.handleMeta(h, body, payload)
	}
	if errno != 0 {
		n = 0
	}
	putOutHeader(buf[replyOffset:], outHeaderSize+n, -int32(errno), h.unique)
	return outHeaderSize + n
}

// parseRead decodes a READ into what to fill of payload, of which the first n bytes are the Device's. Between the
// Device's end and the file's there is nothing, which reads as zeros: the page cache reads whole pages and ahead.
func (s *Server) parseRead(body, payload []byte) (p []byte, off, n int64, errno unix.Errno) {
	if len(body) < readInSize {
		return nil, 0, 0, unix.EINVAL
	}
	at, size := native.Uint64(body[8:]), native.Uint32(body[16:])
	if size > s.state.MaxWriteBytes || at > uint64(s.state.FileSizeBytes) {
		return nil, 0, 0, unix.EINVAL
	}
	p, off = payload[:size], int64(at)
	n = min(int64(size), max(s.device.Size()-off, 0))
	return p, off, n, 0
}

func (s *Server) read(body, payload []byte) (int, unix.Errno) {
	p, off, n, errno := s.parseRead(body, payload)
	if errno != 0 {
		return 0, errno
	}
	clear(p[n:])
	if n == 0 {
		return len(p), 0
	}
	start := s.now()
	got, err := s.device.ReadAt(p[:n], off)
	if err == nil && int64(got) != n {
		err = errors.New("short read without an error")
	}
	s.observed(OpRead, start, err)
	return len(p), s.errno(OpRead, off, n, err)
}

// readReady does what read does if the Device can tell that it need not wait, and reports whether it did. The body is
// as it was if not.
func (s *Server) readReady(body, payload []byte) (bytes int, ready bool) {
	device, ok := s.device.(blockdev.ReadyReader)
	if !ok {
		return 0, false
	}
	p, off, n, errno := s.parseRead(body, payload)
	if errno != 0 || n == 0 {
		return 0, false
	}
	start := s.now()
	if !device.ReadReadyAt(p[:n], off) {
		return 0, false
	}
	clear(p[n:])
	s.observed(OpRead, start, nil)
	return len(p), true
}

var errShortWrite = errors.New("short write without an error")

// parseWrite decodes a WRITE. size is what to acknowledge.
func (s *Server) parseWrite(body []byte) (size uint32, w blockdev.Write, errno unix.Errno) {
	if len(body) < writeInSize {
		return 0, w, unix.EINVAL
	}
	off, size := native.Uint64(body[8:]), native.Uint32(body[16:])
	data := body[writeInSize:]
	if uint64(size) != uint64(len(data)) || off > uint64(s.state.FileSizeBytes) {
		return 0, w, unix.EINVAL
	}
	return size, blockdev.Write{Data: data, Off: int64(off)}, 0
}

// clampWrite cuts a write at the Device's end.
//
// Writeback writes whole pages. Of the page in which the Device ends the rest is dropped: it holds zeros, since the
// loop device cannot write there. Anything behind that page is a loop device without its size limit, or a volume that
// was never grown: refuse it, as a file system does beyond its largest file.
func (s *Server) clampWrite(w *blockdev.Write, size uint32) unix.Errno {
	end := s.device.Size()
	if w.Off+int64(size) > (end+pageSize-1)&^(pageSize-1) {
		s.logError("Refused a write outside the volume", nil, "offset", w.Off, "bytes", size, "volumeBytes", end)
		return unix.EFBIG
	}
	w.Data = w.Data[:min(int64(size), max(end-w.Off, 0))]
	return 0
}

// fsync flushes the Device and answers, perhaps later and from another goroutine: the reader goes on.
func (s *Server) fsync(h inHeader, reply func(h inHeader, b []byte)) {
	start := s.now()
	s.unflushed.Store(0)
	// Held until the Device is done, so that Swap waits, and the end of serving too.
	s.deviceMu.RLock()
	size := s.device.Size()
	done := func(err error) {
		s.observed(OpFlush, start, err)
		var out [outHeaderSize]byte
		putOutHeader(out[:], len(out), -int32(s.errno(OpFlush, 0, size, err)), h.unique)
		reply(h, out[:])
		s.deviceMu.RUnlock()
	}
	if d, ok := s.device.(blockdev.AsyncFlusher); ok {
		d.FlushAsync(done)
	} else {
		done(s.device.Flush())
	}
}

// fallocate maps what the loop device sends for discards and write-zeroes. A plain preallocation has nothing to do: the
// file has its size, and whether space is reserved is the volume's property.
func (s *Server) fallocate(body []byte) outcome {
	if len(body) < fallocateInSize {
		return outcome{errno: unix.EINVAL}
	}
	off, length, mode := native.Uint64(body[8:]), native.Uint64(body[16:]), native.Uint32(body[24:])
	if off > uint64(s.state.FileSizeBytes) || length > uint64(s.state.FileSizeBytes)-off {
		return outcome{errno: unix.EFBIG}
	}
	o := outcome{op: OpZero}
	switch mode {
	case fallocPunchHole | fallocKeepSize:
		o.op = OpDiscard
	case fallocZeroRange, fallocZeroRange | fallocKeepSize:
	case 0, fallocKeepSize:
		return o
	default:
		return outcome{errno: unix.EOPNOTSUPP}
	}
	// What lies behind the Device reads as zeros already.
	n := min(int64(length), max(s.device.Size()-int64(off), 0))
	if n == 0 {
		return o
	}
	o.called = true
	if o.op == OpDiscard {
		o.err = s.device.Discard(int64(off), n)
	} else {
		o.err = s.device.Zero(int64(off), n)
	}
	o.errno = s.errno(o.op, int64(off), n, o.err)
	return o
}

// errno maps a Device's error. ENOSPC keeps its meaning, since a file system above may be able to say it to its user;
// everything else is an I/O error.
func (s *Server) errno(op Op, off, n int64, err error) unix.Errno {
	if err == nil {
		return 0
	}
	s.logError("Volume failed a request", err, "op", op, "offset", off, "bytes", n)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return unix.ENOSPC
	case errors.Is(err, blockdev.ErrOutOfRange):
		return unix.EFBIG
	}
	return unix.EIO
}

// logError logs at most a few errors per second: a failed disk fails every request.
func (s *Server) logError(msg string, err error, kv ...any) {
	if s.errorLog.Allow() {
		klog.ErrorS(err, msg, append([]any{"volume", s.state.VolumeID}, kv...)...)
	}
}

func (s *Server) now() time.Time {
	if s.observe == nil {
		return time.Time{}
	}
	return time.Now()
}

func (s *Server) observed(op Op, start time.Time, err error) {
	if s.observe != nil {
		s.observe(op, time.Since(start), err)
	}
}
