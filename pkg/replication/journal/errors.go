package journal

import (
	"errors"
	"fmt"
)

var (
	// ErrFull: the record needs a new segment and HardLimitBytes leaves no room for one. Nothing changed; the append can
	// be repeated once Release has freed a segment.
	ErrFull = errors.New("journal: full, waiting for segments to be released")
	// ErrTooLarge: the record's data exceeds MaxDataBytes. The caller splits it.
	ErrTooLarge = errors.New("journal: record too large, split it")
	// ErrOutOfOrder: the ordinal does not continue the stream. Nothing changed.
	ErrOutOfOrder = errors.New("journal: ordinal does not continue the stream")
	// ErrDataCRC: the data does not have the checksum its header claims. Nothing changed.
	ErrDataCRC = errors.New("journal: data does not match its checksum")
	// ErrReleased: the segment was released. What it held is in the image by now; look there, or look up the record again.
	ErrReleased = errors.New("journal: segment was released")
	// ErrFailed: a sync failed, so what is on the disk is not known. Every append and sync fails with it until the journal
	// is opened again, which reads back what is there.
	ErrFailed = errors.New("journal: failed, open it again")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal: closed")
)

// CorruptionError says that a record which was durable cannot be read back. Nothing on disk was changed.
type CorruptionError struct {
	File    string // path of the segment file
	Offset  int64  // bytes from its start
	Ordinal uint64 // the first ordinal that is not readable, 0 if not known
	Reason  string
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("journal: corruption in %s at offset %d (ordinal %d): %s; nothing was changed; inspect it with a "+
		"journal dump, then restore the file or resync this site from its peer",
		e.File, e.Offset, e.Ordinal, e.Reason)
}
