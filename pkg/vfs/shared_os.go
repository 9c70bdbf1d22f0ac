package vfs

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	btrfsMagic    = 0x9123683e
	bcachefsMagic = 0xca451a4e
)

// MayShareBlocks implements SharedSpaceReporter.
func (osFS) MayShareBlocks(name string) bool {
	var st unix.Statfs_t
	err := retryEINTR(func() error { return unix.Statfs(name, &st) })
	return err != nil || st.Type == unix.XFS_SUPER_MAGIC || uint32(st.Type) == btrfsMagic ||
		uint32(st.Type) == bcachefsMagic
}

// AllocatedTogether implements SharedSpaceReporter. Where files cannot share blocks, their block counts are enough;
// elsewhere it reads their extent maps.
func (f osFS) AllocatedTogether(names []string) (int64, error) {
	if len(names) > 0 && !f.MayShareBlocks(names[0]) {
		return sumAllocated(f, names)
	}
	var total int64
	var shared []blockRange
	for _, name := range names {
		own, more, err := extentsOf(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		total += own
		shared = append(shared, more...)
	}
	return total + unionBytes(shared), nil
}

// blockRange is a range of a disk, in bytes.
type blockRange struct{ start, end uint64 }

// unionBytes is how many bytes are in at least one of the ranges. It sorts them.
func unionBytes(ranges []blockRange) (total int64) {
	slices.SortFunc(ranges, func(a, b blockRange) int {
		switch {
		case a.start < b.start:
			return -1
		case a.start > b.start:
			return 1
		}
		return 0
	})
	var end uint64
	for _, r := range ranges {
		if r.end <= end {
			continue
		}
		total += int64(r.end - max(r.start, end))
		end = r.end
	}
	return total
}

// extentsOf returns how many bytes of a file's blocks are its own, and where those are that it shares.
func extentsOf(name string) (own int64, shared []blockRange, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	file := &osFile{f: f}
	for next := int64(0); ; {
		// Without writing out what is dirty: this is asked often, of files that are in use.
		extents, err := file.fiemap(next, 0)
		if err != nil {
			return 0, nil, err
		}
		if len(extents) == 0 {
			return own, shared, nil
		}
		for _, e := range extents {
			if e.Shared {
				shared = append(shared, blockRange{uint64(e.Physical), uint64(e.Physical + e.Len)})
			} else {
				own += e.Len
			}
			next = e.End()
		}
	}
}
