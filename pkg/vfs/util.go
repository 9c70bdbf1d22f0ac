package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"syscall"
)

// SpaceReporter is implemented by file systems that know how full they are.
type SpaceReporter interface {
	// Space returns the size of the file system that holds name, and how much of it is free, in bytes.
	Space(name string) (totalBytes, availableBytes int64, err error)
}

// InodeReporter is implemented by file systems that know how many files they can have.
type InodeReporter interface {
	// Inodes returns how many inodes the file system that holds name has, and how many are free. A total of 0 means
	// that it has no such limit.
	Inodes(name string) (total, free int64, err error)
}

// NoSpace reports whether an error says that a file system, or the caller's quota on it, has no block or no inode left.
func NoSpace(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// SharedSpaceReporter is implemented by file systems that know what files take whose blocks may be the same (see
// Cloner).
type SharedSpaceReporter interface {
	// AllocatedTogether returns the space that files take together: what several of them share counts once. The files are
	// on one file system; those that are not there count nothing. It may have to read each file's extent map.
	AllocatedTogether(names []string) (int64, error)
	// MayShareBlocks reports whether files of the file system that holds name may share blocks.
	MayShareBlocks(name string) bool
}

// ReadFile returns the contents of a file. One with more than maxBytes is an *UnfitError: the file
// is on disk, and its content is not trusted.
func ReadFile(fsys FS, name string, maxBytes int64) ([]byte, error) {
	f, err := fsys.OpenReadOnly(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxBytes {
		return nil, &UnfitError{Path: name,
			Reason: fmt.Sprintf("it has %d bytes, and cannot have more than %d", size, maxBytes)}
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err == io.EOF {
		err = nil // the file was cut after Size
	}
	return data[:n], err
}

// AllocatedBytes returns the space that a file takes, from its FileInfo. It is less than its size where it has holes.
func AllocatedBytes(info fs.FileInfo) (int64, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: file info of type %T has no block count", info.Name(), info.Sys())
	}
	return st.Blocks * 512, nil // st_blocks counts 512 bytes whatever the file system's block size
}

// sumAllocated adds the space that files take, without a look at what they share. Files that are not there count
// nothing.
func sumAllocated(fsys FS, names []string) (total int64, err error) {
	for _, name := range names {
		info, err := fsys.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := AllocatedBytes(info)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func checkRange(op, name string, off, n int64) error {
	if off < 0 || n < 0 || n > math.MaxInt64-off {
		return &fs.PathError{Op: op, Path: name, Err: syscall.EINVAL}
	}
	return nil
}

const zeroChunkBytes = 256 << 10

var zeroChunk [zeroChunkBytes]byte

func writeZeros(w io.WriterAt, off, n int64) error {
	for n > 0 {
		k := min(n, zeroChunkBytes)
		if _, err := w.WriteAt(zeroChunk[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}
