package blockdev

import "errors"

// Device is a block device as the shim serves it and the engine provides it.
//
// Offsets and lengths are bytes. Calls may run concurrently; overlapping concurrent writes end in either order, and a
// read that overlaps a concurrent write sees old or new bytes. A read beyond the last write returns zeros up to Size.
// A range outside [0, Size) is ErrOutOfRange and changes nothing.
//
// WriteAt, Discard and Zero are visible to reads when they return, and durable once a Flush that was called after their
// return has returned nil.
type Device interface {
	// ReadAt fills p from off. It never returns fewer bytes without an error.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes p at off. p is not retained.
	WriteAt(p []byte, off int64) (int, error)
	// Discard makes the range read as zeros and gives its space back.
	Discard(off, n int64) error
	// Zero makes the range read as zeros; its space stays allocated where the image is preallocated.
	Zero(off, n int64) error
	// Flush makes everything that completed before the call durable. After an error the device takes no more writes
	// as durable until it is opened again: a failed flush is not retried into a success.
	Flush() error
	// Size is the volume's size; it only grows.
	Size() int64
}

// ReadyReader is a Device that can tell whether a read would have to wait for a disk.
type ReadyReader interface {
	// ReadReadyAt does what ReadAt does if all of it can be had at once, from memory, and reports whether it did. If not,
	// p has undefined content, and the caller may use ReadAt, which also says what is wrong with the request.
	ReadReadyAt(p []byte, off int64) bool
}

// Write is one write of a batch.
type Write struct {
	Data []byte
	Off  int64
}

// BatchWriter is a Device to which several writes at once are cheaper than one after the other.
type BatchWriter interface {
	// WriteBatch does what WriteAt does for each, in order. It returns how many were done: fewer than all only with the
	// error of the next one, of which a part may be written. Neither the slice nor the data is retained.
	WriteBatch(writes []Write) (done int, err error)
}

// AsyncFlusher is a Device whose Flush can be waited for without a thread.
type AsyncFlusher interface {
	// FlushAsync calls done with what Flush would return: before it returns itself, or later from another goroutine.
	// done must not block.
	FlushAsync(done func(error))
}

// Committer is a Device that makes writes durable in groups: one sync serves all who wait at that time.
type Committer interface {
	// Commit calls done with what Flush would return: before it returns itself, or later from another goroutine. done must
	// not block.
	//
	// If it returns a function, no sync is running and the caller has to run one: it calls the function, once, soon. The
	// function syncs for all callers that wait, and continues for those that arrive meanwhile, so it may take long. Until
	// it is called, all of them wait.
	Commit(done func(error)) (lead func())
}

// FlushStarter is a Device whose Flush is quicker when it is announced.
type FlushStarter interface {
	// StartFlush begins to write out what a Flush would have to, and does not wait for it. It promises nothing.
	StartFlush()
}

// ErrOutOfRange is returned for I/O outside the device. Nothing was read or written.
var ErrOutOfRange = errors.New("range outside the device")

// CheckRange returns ErrOutOfRange unless [off, off+n) lies inside size.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return ErrOutOfRange
	}
	return nil
}
