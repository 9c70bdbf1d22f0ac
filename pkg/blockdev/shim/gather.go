package shim

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

const (
	// requestHead is what precedes the data of a WRITE.
	requestHead = inHeaderSize + writeInSize

	// gatherBytes is how much a reader's buffer is larger than the largest request: the room in which writes are gathered.
	// A write of one page takes two, since its data begins on a page boundary. Larger batches spend as much per write.
	gatherBytes = 256 << 10
)

// gathered is the writes that a reader or worker has taken and not done, with the buffer that they are in. A WRITE is
// gathered when it has been read, and done with all others by execute. Behind a gathered one the reader takes other
// writes, and serves what does not depend on them, such as reads: a Device may hold a write for long, and only this
// reader can answer a read that it has taken. Before it does anything else, or sleeps, it flushes.
//
// The kernel may wait for any of them, and with resending a request that was read and not answered is not lost, however
// long it stays here.
type gathered struct {
	buf    []byte
	writes []gatheredWrite
	batch  []blockdev.Write
	end    int // of the last one's data in the buffer
}

type gatheredWrite struct {
	unique uint64
	size   uint32 // what is acknowledged
	write  blockdev.Write
	outcome
}

// outcome is how a request ended.
type outcome struct {
	op     Op
	called bool // the Device was called: it is to be observed
	err    error
	errno  unix.Errno
}

func (o *outcome) observe(s *Server, start time.Time) {
	if o.called {
		s.observed(o.op, start, o.err)
	}
}

// next is where the data of the next request will lie in the reader's buffer, if it is a WRITE.
func (g *gathered) next() int {
	if len(g.writes) == 0 {
		return dataOffset
	}
	// A page lies between for the header, so that it does not overwrite what precedes it.
	return (g.end + requestHead + pageSize - 1) &^ (pageSize - 1)
}

// full says that the buffer has no room for another request of the largest size.
func (g *gathered) full(maxWriteBytes int) bool { return g.next()+maxWriteBytes > len(g.buf) }

// gather takes a WRITE. Whether it lies inside the Device is decided by execute.
func (g *gathered) gather(s *Server, h inHeader, body []byte) {
	w := gatheredWrite{unique: h.unique, outcome: outcome{op: OpWrite}}
	w.size, w.write, w.errno = s.parseWrite(body)
	at := g.next()
	g.writes = append(g.writes, w)
	g.end = at + len(w.write.Data)
}

// flush does and answers what was gathered.
func (r *reader) flush() {
	if len(r.writes) == 0 {
		return
	}
	start := r.s.now()
	r.s.deviceMu.RLock()
	r.execute(r.s)
	r.s.deviceMu.RUnlock()
	for i := range r.writes {
		w := &r.writes[i]
		w.observe(r.s, start)
		h := inHeader{opcode: opWrite, unique: w.unique}
		r.s.limited(h, w.size, w.errno, writeReply(r.buf, w.unique, w.size, w.errno))
	}
	n := uint64(len(r.writes))
	r.writes = r.writes[:0]
	// The flush that has sent them is being woken. Meanwhile the disk can begin with what it will wait for.
	if before := r.s.unflushed.Add(n) - n; before < maxExpectedWrites {
		r.s.startFlush()
	}
}

// maxExpectedWrites is how many writes may have come since the last flush for the next one still to be expected soon.
// Writeback without a waiting caller comes in larger numbers. Starting the disk for it would only write pages twice.
const maxExpectedWrites = 64

func (s *Server) startFlush() {
	s.deviceMu.RLock()
	defer s.deviceMu.RUnlock()
	if d, ok := s.device.(blockdev.FlushStarter); ok {
		d.StartFlush()
	}
}

// execute does what was gathered and notes how each write ended. The Device's error is that of the write it stopped at,
// and of all behind it, which were not tried. The caller holds the Device.
func (g *gathered) execute(s *Server) {
	g.batch = g.batch[:0]
	for i := range g.writes {
		w := &g.writes[i]
		if w.errno == 0 {
			w.errno = s.clampWrite(&w.write, w.size)
		}
		if w.errno == 0 && len(w.write.Data) > 0 {
			g.batch = append(g.batch, w.write)
		}
	}
	done, err := s.writeAll(g.batch)
	var errno unix.Errno
	if err != nil {
		errno = s.errno(OpWrite, g.batch[done].Off, int64(len(g.batch[done].Data)), err)
	}
	for i := range g.writes {
		w := &g.writes[i]
		data := len(w.write.Data) > 0
		w.write.Data = nil // the buffer is used again
		if w.errno != 0 || !data {
			continue
		}
		if done < 0 {
			w.errno = errno
			continue
		}
		w.called = true
		if done == 0 && err != nil {
			w.errno, w.err = errno, err
		}
		done--
	}
	clear(g.batch)
}

// writeAll writes as much as it can, and returns how many writes it did and why no more.
func (s *Server) writeAll(writes []blockdev.Write) (done int, err error) {
	if len(writes) == 0 {
		return 0, nil
	}
	if b, ok := s.device.(blockdev.BatchWriter); ok && len(writes) > 1 {
		done, err = b.WriteBatch(writes)
		if err == nil && done != len(writes) {
			err = errShortWrite
		}
		return done, err
	}
	for ; done < len(writes); done++ {
		n, err := s.device.WriteAt(writes[done].Data, writes[done].Off)
		if err == nil && n != len(writes[done].Data) {
			err = errShortWrite
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// writeReply builds the reply to a write in buf.
func writeReply(buf []byte, unique uint64, size uint32, errno unix.Errno) []byte {
	out := buf[:outHeaderSize+writeOutSize]
	if errno != 0 {
		out = out[:outHeaderSize]
	} else {
		native.PutUint32(out[outHeaderSize:], size)
		native.PutUint32(out[outHeaderSize+4:], 0)
	}
	putOutHeader(out, len(out), -int32(errno), unique)
	return out
}

// readAgain reports whether to read the next request after an error other than EAGAIN. If not, the connection has
// ended, and the Server knows why.
func (s *Server) readAgain(err unix.Errno) bool {
	switch err {
	case unix.EINTR, unix.ENOENT: // ENOENT: the request was given up before it was copied
		return true
	case unix.ENODEV: // unmounted
	case unix.ECONNABORTED:
		s.fail(ErrAborted)
	default:
		s.fail(fmt.Errorf("read /dev/fuse: %w", err))
	}
	return false
}

// parseRequest is parseInHeader that logs what does not parse.
func (s *Server) parseRequest(b []byte) (h inHeader, body []byte, ok bool) {
	if h, body, ok = parseInHeader(b); !ok {
		klog.ErrorS(nil, "Ignored a request that does not parse", "volume", s.state.VolumeID,
			"bytes", len(b), "opcode", h.opcode, "length", h.len)
	}
	return h, body, ok
}

// readNow and writeNow are read(2) and write(2) on a descriptor that does not block, without Go's scheduler: it would
// take the thread's slot away and have to give it back.
func readNow(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func writeNow(fd int, b []byte) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != unix.EINTR {
			return errno
		}
	}
}
