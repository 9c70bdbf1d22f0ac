// Package vfs is the little of a file system that Slipstream's journal, checkpoints, records and images need, as an
// interface with three implementations: the operating system's (OS), one in memory that can be crashed (MemFS), and
// wrappers that fail, fill up or delay (ErrFS).
//
// It is what makes durability testable: MemFS.CrashClone returns the file system as a power loss at that instant
// could have left it, with exactly what was synced, or a random superset of it.
//
// It is not a general file system abstraction: no permissions, no links, no working directory. Names are
// slash-separated paths as the os package takes them. All implementations are safe for concurrent use.
package vfs

import (
	"io"
	"io/fs"
)

// FS is a file system. Errors satisfy errors.Is with fs.ErrNotExist and fs.ErrExist, and syscall.ENOSPC on a full disk.
//
// What is opened is a regular file. Anything else that has its name is an *[UnfitError], also a link to a file.
//
// A file or name that was created, renamed or removed survives a crash only after SyncDir of its directory.
type FS interface {
	// Create creates a file for reading and writing, truncating an existing one.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// OpenReadOnly opens an existing file for reading.
	OpenReadOnly(name string) (File, error)
	Remove(name string) error
	// RemoveAll removes a tree; a missing one is not an error.
	RemoveAll(name string) error
	// Rename replaces newname atomically.
	Rename(oldname, newname string) error
	// MkdirAll creates a directory and its parents, and syncs each parent it created an entry in.
	MkdirAll(name string) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(name string) ([]string, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the directory's entries durable.
	SyncDir(name string) error
}

// File is an open file. ReadAt and WriteAt follow io.ReaderAt and io.WriterAt; a write past the end extends the file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Name() string
	Size() (int64, error)
	// Datasync makes data, and the size if it changed, durable (fdatasync). After an error the file's unsynced data is
	// in an unknown state and the caller must not assume that a later success covers it.
	Datasync() error
	Truncate(size int64) error
	// Preallocate reserves space for the range and extends the file to its end; the range reads as zeros or as before.
	Preallocate(off, n int64) error
	// PunchHole frees the range, which then reads as zeros. The size stays; what lies behind the end is left out.
	PunchHole(off, n int64) error
	// ZeroRange makes the range read as zeros and keeps it allocated where the file system can. The size stays; what lies
	// behind the end is left out.
	ZeroRange(off, n int64) error
	// NextData returns the first extent at or after off that may hold other than zeros, or io.EOF. Everything between off
	// and start reads as zeros. Space that was preallocated and never written may be reported or not.
	NextData(off int64) (start, end int64, err error)
}

// Exchanger is implemented by file systems that can exchange two files (renameat2 with RENAME_EXCHANGE).
type Exchanger interface {
	// Exchange makes each of two files, which both exist, have the other's name, as one instant also in a crash. It
	// takes neither space nor an inode. It is durable after a SyncDir of the files' directory. Where the file system
	// cannot do it the error is errors.ErrUnsupported and nothing has changed.
	Exchange(a, b string) error
}

// WriteVer is implemented by files that can write several buffers at consecutive offsets in one call (pwritev).
type WriteVer interface {
	WritevAt(bufs [][]byte, off int64) (int, error)
}

// ReadyReader is implemented by files that can tell whether a read would have to wait for a disk.
type ReadyReader interface {
	// ReadReadyAt does what ReadAt does if all of it can be had at once, from memory, and reports whether it did. If not,
	// p has undefined content, and the caller may use ReadAt.
	ReadReadyAt(p []byte, off int64) bool
}

// WritebackStarter is implemented by files whose Datasync is quicker when its work was begun before (sync_file_range).
type WritebackStarter interface {
	// StartWriteback begins to write the range to the disk and does not wait for it. It promises nothing; whatever goes
	// wrong is the next Datasync's to report. n of 0 means to the end.
	StartWriteback(off, n int64)
}

// WriteOuter is implemented by files that can write a range to the disk before a Datasync (sync_file_range).
type WriteOuter interface {
	// WriteOut writes the range to the disk and waits for that. It makes nothing durable, which is left to Datasync, and
	// makes others wait neither for a commit of the file system's journal nor for a flush of the disk. After an error the
	// content of the range is unknown, and a later Datasync may succeed.
	WriteOut(off, n int64) error
}

// WriteOut writes a range of a file to the disk where the file can do that. Without that the next Datasync does it.
func WriteOut(f File, off, n int64) error {
	if w, ok := f.(WriteOuter); ok && n > 0 {
		return w.WriteOut(off, n)
	}
	return nil
}

// Cloner is implemented by files whose contents can be shared with another file (reflink, FICLONE).
type Cloner interface {
	// CloneFrom replaces the file's contents and size by those that src has at one instant between two of its writes. Both
	// files share the space until one of them is written to. It is durable after a Datasync. Where the file system cannot
	// do it, or src is on another one, the error is errors.ErrUnsupported and this file is empty.
	CloneFrom(src File) error
}
