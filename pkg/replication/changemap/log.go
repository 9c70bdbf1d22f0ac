package changemap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Log is a set of extents of one volume on disk that grows by appending: making a few more extents durable costs one
// write and one sync, where Save would write all of them. It only grows; a smaller set is another log.
//
// The file is a sequence of frames, little endian, each appended after the one before it was synced:
//
//	 0   4  magic "SLXF"
//	 4   4  number of runs n
//	 8   8  offset of this frame in the file
//	16      n runs, each 4 bytes first extent, 4 bytes number of extents
//	 -8  4  0
//	 -4  4  CRC-32C of everything before it in the frame
//
// So only the last frame can be torn by a crash. A frame that does not verify although one behind it does is damage.
//
// A Log is not safe for concurrent use.
type Log struct {
	file vfs.File
	end  int64
	// torn: the last append failed, and may have left a part of a frame behind the end.
	torn bool
}

const (
	frameMagic      = 0x46584c53 // "SLXF"
	frameHeader     = 16
	frameTrailer    = 8
	runBytes        = 8
	maxFrameRuns    = 1 << 12
	frameAlignBytes = 8 // every frame begins at a multiple of it
)

// CreateLog creates an empty log, durably, in place of a file that is there.
func CreateLog(fsys vfs.FS, path string) (*Log, error) {
	file, err := fsys.Create(path)
	if err != nil {
		return nil, fmt.Errorf("create extent log: %w", err)
	}
	err = file.Datasync()
	if err == nil {
		err = fsys.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("create extent log %s: %w", path, err)
	}
	return &Log{file: file}, nil
}

// OpenLog opens a log and returns the extents it holds, as those of volume 0. A torn last frame is what a crash leaves
// and is dropped; other damage is ErrCorrupt, which names the file and the offset, and the file is left as it is.
func OpenLog(fsys vfs.FS, path string) (*Log, *Map, error) {
	data, err := readFile(fsys, path)
	if err != nil {
		return nil, nil, fmt.Errorf("open extent log: %w", err)
	}
	m, end, err := decodeLog(data)
	if err != nil {
		return nil, nil, fmt.Errorf("open extent log %s: %w", path, err)
	}
	file, err := fsys.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open extent log: %w", err)
	}
	// What lies behind would verify if a later frame ended just where it begins.
	l := &Log{file: file, end: end, torn: end < int64(len(data))}
	if err := l.mend(); err != nil {
		file.Close()
		return nil, nil, fmt.Errorf("open extent log %s: %w", path, err)
	}
	return l, m, nil
}

// mend cuts off what a failed append or a crash left.
func (l *Log) mend() error {
	if !l.torn {
		return nil
	}
	if err := l.file.Truncate(l.end); err != nil {
		return err
	}
	if err := l.file.Datasync(); err != nil {
		return err
	}
	l.torn = false
	return nil
}

// decodeLog returns the extents of the frames that verify, and where they end.
func decodeLog(data []byte) (m *Map, end int64, err error) {
	m = New()
	at := 0
	for at < len(data) {
		n := decodeFrame(data, at, m)
		if n == 0 {
			break
		}
		at += n
	}
	for off := at + frameAlignBytes; off < len(data); off += frameAlignBytes {
		if decodeFrame(data, off, New()) != 0 {
			return nil, 0, corrupt(at, "no frame, but there is one at offset %d, written after it", off)
		}
	}
	return m, int64(at), nil
}

// decodeFrame adds a frame's extents to m and returns its length; 0 if there is none that verifies.
func decodeFrame(data []byte, at int, m *Map) int {
	b := data[at:]
	if len(b) < frameHeader+frameTrailer || binary.LittleEndian.Uint32(b) != frameMagic ||
		binary.LittleEndian.Uint64(b[8:]) != uint64(at) {
		return 0
	}
	runs := binary.LittleEndian.Uint32(b[4:])
	size := frameHeader + int(runs)*runBytes + frameTrailer
	if runs > maxFrameRuns || size > len(b) || binary.LittleEndian.Uint32(b[size-4:]) != crc32c.Sum(b[:size-4]) {
		return 0
	}
	for i := range int(runs) {
		run := b[frameHeader+i*runBytes:]
		first, count := uint64(binary.LittleEndian.Uint32(run)), uint64(binary.LittleEndian.Uint32(run[4:]))
		if first+count > maxExtents {
			return 0 // not written by Append
		}
	}
	for i := range int(runs) {
		run := b[frameHeader+i*runBytes:]
		m.Mark(0, int64(binary.LittleEndian.Uint32(run))*ExtentBytes, int64(binary.LittleEndian.Uint32(run[4:]))*ExtentBytes)
	}
	return size
}

// Append makes the extents of volume 0 of m durable parts of the log. After an error the log may have some of them; the
// next append begins where this one did.
func (l *Log) Append(m *Map) error {
	if l.file == nil {
		return errors.New("extent log is closed")
	}
	if err := l.mend(); err != nil {
		return fmt.Errorf("extent log %s: %w", l.file.Name(), err)
	}
	var cursor Cursor
	for {
		frame := make([]byte, frameHeader, 4096)
		runs := uint32(0)
		for ; runs < maxFrameRuns; runs++ {
			volume, extent, n, ok := m.NextRun(cursor, maxExtents)
			if !ok || volume != 0 {
				break
			}
			frame = binary.LittleEndian.AppendUint32(frame, uint32(extent))
			frame = binary.LittleEndian.AppendUint32(frame, uint32(n))
			cursor.Extent = extent + n
		}
		if runs == 0 {
			return nil
		}
		binary.LittleEndian.PutUint32(frame, frameMagic)
		binary.LittleEndian.PutUint32(frame[4:], runs)
		binary.LittleEndian.PutUint64(frame[8:], uint64(l.end))
		frame = binary.LittleEndian.AppendUint32(frame, 0)
		frame = binary.LittleEndian.AppendUint32(frame, crc32c.Sum(frame))
		n, err := l.file.WriteAt(frame, l.end)
		if err == nil && n < len(frame) {
			err = io.ErrShortWrite
		}
		if err == nil {
			err = l.file.Datasync()
		}
		if err != nil {
			l.torn = true
			return fmt.Errorf("extent log %s: %w", l.file.Name(), err)
		}
		l.end += int64(len(frame))
	}
}

// Close closes the file.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
