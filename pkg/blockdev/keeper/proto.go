package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

type operation uint8

const (
	opPut  operation = 1
	opGet  operation = 2
	opList operation = 3
	opDrop operation = 4

	opWatch   operation = 5
	opUnwatch operation = 6
)

type status uint8

const (
	statusOK         status = 0
	statusNotFound   status = 1
	statusBadRequest status = 2
	statusFull       status = 3
	statusBusy       status = 4
)

const (
	// MaxNameBytes and MaxMetaBytes bound an entry.
	MaxNameBytes = 255
	MaxMetaBytes = 64 << 10

	maxRequestBytes  = 1 + 1 + MaxNameBytes + 4 + MaxMetaBytes // 65797
	maxResponseBytes = 1 << 20
	// maxEntries keeps the longest LIST response below maxResponseBytes, and the keeper below its limit of descriptors.
	maxEntries = 4000
	// maxPathBytes is the kernel's PATH_MAX without its end.
	maxPathBytes = 4095
)

// ErrNotFound is returned by Get for a name that the keeper does not hold.
var ErrNotFound = errors.New("the keeper does not hold it")

// errMalformed is wrapped by everything that a decoder refuses.
var errMalformed = errors.New("malformed frame")

type request struct {
	op   operation
	name string // of an entry
	meta []byte // of an entry, or the path that is watched
}

// object is what a request is about, for messages.
func (r request) object() string {
	if r.op == opWatch || r.op == opUnwatch {
		return string(r.meta)
	}
	return r.name
}

// encodeRequest returns the frame with its length prefix.
func encodeRequest(r request) ([]byte, error) {
	if len(r.name) > MaxNameBytes {
		return nil, fmt.Errorf("name has %d bytes, at most %d are allowed", len(r.name), MaxNameBytes)
	}
	if len(r.meta) > MaxMetaBytes {
		return nil, fmt.Errorf("meta of %q has %d bytes, at most %d are allowed", r.name, len(r.meta), MaxMetaBytes)
	}
	n := 1 + 1 + len(r.name) + 4 + len(r.meta)
	b := make([]byte, 0, 4+n)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, byte(r.op), byte(len(r.name)))
	b = append(b, r.name...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.meta)))
	return append(b, r.meta...), nil
}

// decodeRequest decodes a frame without its length prefix. The result does not share memory with b.
func decodeRequest(b []byte) (request, error) {
	if len(b) < 2 {
		return request{}, fmt.Errorf("%w: request of %d bytes", errMalformed, len(b))
	}
	r := request{op: operation(b[0])}
	nameLen := int(b[1])
	b = b[2:]
	if len(b) < nameLen+4 {
		return request{}, fmt.Errorf("%w: request ends inside its name", errMalformed)
	}
	r.name = string(b[:nameLen])
	metaLen := binary.LittleEndian.Uint32(b[nameLen:])
	b = b[nameLen+4:]
	if uint64(metaLen) != uint64(len(b)) || metaLen > MaxMetaBytes {
		return request{}, fmt.Errorf("%w: meta of %d bytes, says %d", errMalformed, len(b), metaLen)
	}
	if metaLen > 0 {
		r.meta = append([]byte(nil), b...)
	}
	named, described := false, false
	switch r.op {
	case opPut:
		named, described = true, metaLen > 0 // an entry may do without
	case opGet, opDrop:
		named = true
	case opWatch, opUnwatch:
		described = true
		if metaLen > maxPathBytes || metaLen > 0 && r.meta[0] != '/' {
			return request{}, fmt.Errorf("%w: operation %d on something else than an absolute path", errMalformed, r.op)
		}
	case opList:
	default:
		return request{}, fmt.Errorf("%w: unknown operation %d", errMalformed, r.op)
	}
	if named != (nameLen > 0) || described != (metaLen > 0) {
		return request{}, fmt.Errorf("%w: operation %d with a name of %d and meta of %d bytes", errMalformed, r.op, nameLen,
			metaLen)
	}
	return r, nil
}

func encodeResponse(st status, body []byte) []byte {
	b := make([]byte, 0, 5+len(body))
	b = binary.LittleEndian.AppendUint32(b, uint32(1+len(body)))
	b = append(b, byte(st))
	return append(b, body...)
}

// decodeResponse decodes a frame without its length prefix. The body shares memory with b.
func decodeResponse(b []byte) (status, []byte, error) {
	if len(b) < 1 || status(b[0]) > statusBusy {
		return 0, nil, fmt.Errorf("%w: response of %d bytes", errMalformed, len(b))
	}
	return status(b[0]), b[1:], nil
}

func encodeNames(names []string) []byte {
	var b []byte
	for _, n := range names {
		b = append(b, byte(len(n)))
		b = append(b, n...)
	}
	return b
}

func decodeNames(b []byte) ([]string, error) {
	var names []string
	for len(b) > 0 {
		n := int(b[0])
		if n == 0 || len(b) < 1+n {
			return nil, fmt.Errorf("%w: list ends inside a name", errMalformed)
		}
		names = append(names, string(b[1:1+n]))
		b = b[1+n:]
	}
	return names, nil
}

// readFrame reads one frame and the descriptor that came with its first byte, -1 if none. More than one is refused. The
// caller closes the descriptor. io.EOF is returned only between frames.
//
// begun, if not nil, is called when the first byte has arrived: waiting for a frame may take forever, receiving it may
// not.
func readFrame(c *net.UnixConn, limit int, begun func()) (frame []byte, fd int, err error) {
	fd = -1
	defer func() {
		if err != nil && fd >= 0 {
			unix.Close(fd)
			fd = -1
		}
	}()
	var head [4]byte
	// Room for more than one, so that a second is seen and closed instead of silently dropped by the kernel.
	oob := make([]byte, unix.CmsgSpace(4*4))
	// The kernel does not merge what was sent with descriptors and what was sent without into one receive, so that these
	// are the ones of this frame.
	n, oobn, _, _, err := c.ReadMsgUnix(head[:], oob)
	fds, ferr := parseRights(oob[:oobn])
	if len(fds) > 0 {
		fd = fds[0]
		for _, extra := range fds[1:] {
			unix.Close(extra)
		}
	}
	switch {
	case err != nil:
		return nil, fd, err
	case ferr != nil:
		return nil, fd, ferr
	case len(fds) > 1:
		return nil, fd, fmt.Errorf("%w: %d descriptors", errMalformed, len(fds))
	case n == 0:
		return nil, fd, io.EOF
	}
	if begun != nil {
		begun()
	}
	if _, err = io.ReadFull(c, head[n:]); err != nil {
		return nil, fd, unexpected(err)
	}
	length := binary.LittleEndian.Uint32(head[:])
	if length == 0 || uint64(length) > uint64(limit) {
		return nil, fd, fmt.Errorf("%w: length %d, at most %d is allowed", errMalformed, length, limit)
	}
	frame = make([]byte, length)
	if _, err = io.ReadFull(c, frame); err != nil {
		return nil, fd, unexpected(err)
	}
	return frame, fd, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseRights returns all descriptors in a control message; they are the caller's even with an error.
func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&msgs[i])
		fds = append(fds, got...)
		if err != nil {
			return fds, fmt.Errorf("control message: %w", err)
		}
	}
	return fds, nil
}

// writeFrame writes a frame, with a descriptor unless fd is negative.
func writeFrame(c *net.UnixConn, frame []byte, fd int) error {
	if fd >= 0 {
		n, _, err := c.WriteMsgUnix(frame, unix.UnixRights(fd), nil)
		if err != nil {
			return err
		}
		frame = frame[n:] // a stream may take less than all; the descriptor went with the first byte
	}
	if len(frame) == 0 {
		return nil
	}
	_, err := c.Write(frame)
	return err
}
