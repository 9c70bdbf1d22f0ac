package shim

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rootNode = 1 // FUSE_ROOT_ID
	fileNode = 2

	// validSec is how long the kernel may believe names and attributes. They never change behind its back, and each
	// question less is one that cannot wait for a server that is being restarted.
	validSec = 100 * 365 * 24 * 3600

	direntDir  = 4 // DT_DIR
	direntFile = 8 // DT_REG
)

// handleMeta answers everything that does not reach the Device. It writes the reply's body to payload, which overlaps
// body, and returns its length.
func (s *Server) handleMeta(h inHeader, body, payload []byte) (int, unix.Errno) {
	switch h.opcode {
	case opLookup:
		name, _, _ := bytes.Cut(body, []byte{0})
		if h.nodeid != rootNode {
			return 0, unix.ENOTDIR
		}
		if string(name) != FileName {
			return 0, unix.ENOENT
		}
		clear(payload[:entryOutSize])
		native.PutUint64(payload[0:], fileNode)
		native.PutUint64(payload[16:], validSec)
		native.PutUint64(payload[24:], validSec)
		s.putNodeAttr(payload[40:], fileNode)
		return entryOutSize, 0
	case opGetattr:
		return s.attrReply(h.nodeid, payload)
	case opSetattr:
		return s.setattr(h.nodeid, body, payload)
	case opOpen:
		if h.nodeid != fileNode {
			return 0, unix.EISDIR
		}
		clear(payload[:openOutSize])
		flags := uint32(openKeepCache)
		if s.state.Mode == ModeAck {
			flags = openDirectIO | openParallelDirectWrites
		}
		native.PutUint32(payload[8:], flags)
		return openOutSize, 0
	case opOpendir:
		if h.nodeid != rootNode {
			return 0, unix.ENOTDIR
		}
		clear(payload[:openOutSize])
		return openOutSize, 0
	case opReaddir:
		if h.nodeid != rootNode || len(body) < readInSize {
			return 0, unix.EINVAL
		}
		return readdir(native.Uint64(body[8:]), native.Uint32(body[16:]), payload), 0
	case opStatfs:
		size := s.device.Size()
		clear(payload[:statfsOutSize])
		native.PutUint64(payload[0:], uint64(size)/pageSize) // blocks; none are free
		native.PutUint64(payload[24:], 2)                    // files
		native.PutUint32(payload[40:], pageSize)             // bsize: the loop device's discard granularity
		native.PutUint32(payload[44:], 255)                  // namelen
		native.PutUint32(payload[48:], pageSize)             // frsize
		return statfsOutSize, 0
	case opFlush, opRelease, opReleasedir, opAccess, opDestroy:
		// FLUSH is close(2), which promises nothing about durability.
		return 0, 0
	}
	// The kernel remembers ENOSYS for most operations and does not ask again: of these GETXATTR matters, which otherwise
	// precedes every write.
	return 0, unix.ENOSYS
}

func (s *Server) putNodeAttr(b []byte, node uint64) {
	mtime := s.mtime.Load()
	a := attr{ino: node, mtimeSec: uint64(mtime / 1e9), mtimeNsec: uint32(mtime % 1e9)}
	if node == rootNode {
		a.mode, a.nlink = unix.S_IFDIR|0o700, 2
	} else {
		a.mode, a.nlink, a.size = unix.S_IFREG|0o600, 1, uint64(s.state.FileSizeBytes)
	}
	putAttr(b, a)
}

func (s *Server) attrReply(node uint64, payload []byte) (int, unix.Errno) {
	if node != rootNode && node != fileNode {
		return 0, unix.ENOENT
	}
	clear(payload[:attrOutSize])
	native.PutUint64(payload[0:], validSec)
	s.putNodeAttr(payload[16:], node)
	return attrOutSize, 0
}

// setattr takes timestamps, which the writeback cache sends, and refuses everything else.
func (s *Server) setattr(node uint64, body, payload []byte) (int, unix.Errno) {
	if len(body) < setattrInSize {
		return 0, unix.EINVAL
	}
	valid := native.Uint32(body[0:])
	if valid&(setattrMode|setattrUID|setattrGID) != 0 {
		return 0, unix.EPERM
	}
	if valid&setattrSize != 0 && native.Uint64(body[16:]) != uint64(s.state.FileSizeBytes) {
		return 0, unix.EPERM
	}
	if valid&setattrMtime != 0 && node == fileNode {
		if valid&setattrMtimeNow != 0 {
			s.mtime.Store(time.Now().UnixNano())
		} else if sec := native.Uint64(body[40:]); sec < 1<<33 {
			s.mtime.Store(int64(sec)*1e9 + int64(native.Uint32(body[60:])%1e9))
		}
	}
	return s.attrReply(node, payload)
}

func readdir(offset uint64, size uint32, payload []byte) int {
	entries := []struct {
		ino  uint64
		typ  uint32
		name string
	}{{rootNode, direntDir, "."}, {rootNode, direntDir, ".."}, {fileNode, direntFile, FileName}}
	n := 0
	for i, e := range entries {
		if uint64(i) < offset {
			continue
		}
		if n+(24+len(e.name)+7)&^7 > int(min(size, pageSize)) {
			break
		}
		n += putDirent(payload[n:], e.ino, uint64(i+1), e.typ, e.name)
	}
	return n
}
