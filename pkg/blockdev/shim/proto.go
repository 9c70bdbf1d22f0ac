package shim

import "encoding/binary"

// The kernel's protocol, from include/uapi/linux/fuse.h. Names are the header's without the FUSE_ prefix. Structures
// are read and written at their offsets, not by casting memory: the decoder then takes any bytes without faulting,
// and it costs nothing that can be measured beside the system call.

var native = binary.NativeEndian

const (
	protoMajor = 7
	// protoMinor is the newest minor version this package was written against; the kernel uses the lower of both.
	protoMinor = 40
	// minKernelMinor is the first protocol version with FUSE_NOTIFY_RESEND (kernel 6.9). Without it a request that was in
	// flight when its server died is never answered.
	minKernelMinor = 40
)

const (
	opLookup      = 1
	opForget      = 2 // no reply
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opAccess      = 34
	opInterrupt   = 36 // no reply
	opDestroy     = 38
	opBatchForget = 42 // no reply
	opFallocate   = 43
	opLseek       = 46
)

// notifyResend (FUSE_NOTIFY_RESEND) is sent in the error field of a reply header with unique 0.
const notifyResend = 7

// INIT flags (bits 32 to 63 travel in flags2).
const (
	initAsyncRead      = 1 << 0
	initBigWrites      = 1 << 5
	initAsyncDIO       = 1 << 15
	initWritebackCache = 1 << 16
	initParallelDirops = 1 << 18
	initAbortError     = 1 << 21
	initMaxPages       = 1 << 22
	initExt            = 1 << 30
	initHasResend      = 1 << 39
)

// OPEN reply flags.
const (
	openDirectIO             = 1 << 0
	openKeepCache            = 1 << 1
	openParallelDirectWrites = 1 << 6
)

// SETATTR valid bits.
const (
	setattrMode     = 1 << 0
	setattrUID      = 1 << 1
	setattrGID      = 1 << 2
	setattrSize     = 1 << 3
	setattrMtime    = 1 << 5
	setattrMtimeNow = 1 << 8
)

// FALLOCATE modes, include/uapi/linux/falloc.h.
const (
	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10
)

const (
	inHeaderSize  = 40
	outHeaderSize = 16

	writeInSize     = 40 // fh u64, offset u64, size u32, write_flags u32, lock_owner u64, flags u32, pad u32
	readInSize      = 40 // same layout
	fsyncInSize     = 16
	fallocateInSize = 32 // fh u64, offset u64, length u64, mode u32, pad u32
	setattrInSize   = 88
	initInMinSize   = 16 // major, minor, max_readahead, flags; flags2 follows when initExt is set
	attrSize        = 88
	entryOutSize    = 40 + attrSize
	attrOutSize     = 16 + attrSize
	openOutSize     = 16
	writeOutSize    = 8
	statfsOutSize   = 80
	initOutSize     = 64
)

// inHeader is struct fuse_in_header without the caller's identity: what may be done is decided by mount options.
type inHeader struct {
	len    uint32
	opcode uint32
	unique uint64
	nodeid uint64
}

// parseInHeader decodes a request's header and returns its body. ok is false when the request is shorter than its
// header or its length field does not say how long it is.
func parseInHeader(b []byte) (h inHeader, body []byte, ok bool) {
	if len(b) < inHeaderSize {
		return inHeader{}, nil, false
	}
	h = inHeader{
		len:    native.Uint32(b[0:]),
		opcode: native.Uint32(b[4:]),
		unique: native.Uint64(b[8:]),
		nodeid: native.Uint64(b[16:]),
	}
	if uint64(h.len) != uint64(len(b)) {
		return h, nil, false
	}
	return h, b[inHeaderSize:], true
}

func putOutHeader(b []byte, length int, code int32, unique uint64) {
	native.PutUint32(b[0:], uint32(length))
	native.PutUint32(b[4:], uint32(code))
	native.PutUint64(b[8:], unique)
}

// attr is the part of struct fuse_attr that differs between the directory and the file.
type attr struct {
	ino       uint64
	size      uint64
	mode      uint32
	nlink     uint32
	mtimeSec  uint64
	mtimeNsec uint32
}

func putAttr(b []byte, a attr) {
	clear(b[:attrSize])
	native.PutUint64(b[0:], a.ino)
	native.PutUint64(b[8:], a.size)
	native.PutUint64(b[16:], a.size/512)
	for _, off := range []int{24, 32, 40} { // atime, mtime, ctime
		native.PutUint64(b[off:], a.mtimeSec)
	}
	for _, off := range []int{48, 52, 56} {
		native.PutUint32(b[off:], a.mtimeNsec)
	}
	native.PutUint32(b[60:], a.mode)
	native.PutUint32(b[64:], a.nlink)
	native.PutUint32(b[80:], pageSize) // blksize; uid, gid, rdev stay 0
}

// putDirent appends struct fuse_dirent at b and returns its padded length.
func putDirent(b []byte, ino, nextOffset uint64, typ uint32, name string) int {
	n := (24 + len(name) + 7) &^ 7
	clear(b[:n])
	native.PutUint64(b[0:], ino)
	native.PutUint64(b[8:], nextOffset)
	native.PutUint32(b[16:], uint32(len(name)))
	native.PutUint32(b[20:], typ)
	copy(b[24:], name)
	return n
}

// initIn is struct fuse_init_in.
type initIn struct {
	major, minor uint32
	maxReadahead uint32
	flags        uint64
}

func parseInitIn(body []byte) (initIn, bool) {
	if len(body) < initInMinSize {
		return initIn{}, false
	}
	in := initIn{
		major:        native.Uint32(body[0:]),
		minor:        native.Uint32(body[4:]),
		maxReadahead: native.Uint32(body[8:]),
		flags:        uint64(native.Uint32(body[12:])),
	}
	if in.flags&initExt != 0 && len(body) >= initInMinSize+4 {
		in.flags |= uint64(native.Uint32(body[16:])) << 32
	}
	return in, true
}

func putInitOut(b []byte, minor uint32, maxReadahead uint32, flags uint64, maxWrite uint32) {
	clear(b[:initOutSize])
	native.PutUint32(b[0:], protoMajor)
	native.PutUint32(b[4:], minor)
	native.PutUint32(b[8:], maxReadahead)
	native.PutUint32(b[12:], uint32(flags))
	native.PutUint16(b[16:], maxBackground)
	native.PutUint16(b[18:], maxBackground*3/4) // congestion_threshold
	native.PutUint32(b[20:], maxWrite)
	native.PutUint32(b[24:], timeGranNsec)
	native.PutUint16(b[28:], uint16(maxWrite/pageSize))
	native.PutUint32(b[32:], uint32(flags>>32))
}
