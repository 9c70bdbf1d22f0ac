package blockdev

import (
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Space returns the size of the pool's file system, and what is free on it, in bytes. What of that new volumes can
// have is a matter of what was promised to others.
func (p *Pool) Space() (totalBytes, freeBytes int64, err error) { return p.space(p.dir) }

// JournalSpace is Space of the file system that the journals are on.
func (p *Pool) JournalSpace() (totalBytes, freeBytes int64, err error) {
	return p.space(p.GroupsDir())
}

func (p *Pool) space(dir string) (totalBytes, freeBytes int64, err error) {
	space, ok := p.fs.(vfs.SpaceReporter)
	if !ok {
		return 0, 0, fmt.Errorf("pool %s: its file system %T does not tell its space", p.dir, p.fs)
	}
	return space.Space(dir)
}

// Inodes returns how many inodes the pool's file system has and how many are free. A total of 0 means that it does
// not run out of them before it runs out of space, or does not tell.
func (p *Pool) Inodes() (total, free int64, err error) { return p.inodes(p.dir) }

// JournalInodes is Inodes of the file system that the journals are on.
func (p *Pool) JournalInodes() (total, free int64, err error) { return p.inodes(p.GroupsDir()) }

func (p *Pool) inodes(dir string) (total, free int64, err error) {
	inodes, ok := p.fs.(vfs.InodeReporter)
	if !ok {
		return 0, 0, nil
	}
	return inodes.Inodes(dir)
}

// AllocatedTogether returns the space that files of the pool take together; blocks that several of them share count
// once. Files that are not there count nothing.
func (p *Pool) AllocatedTogether(paths []string) (int64, error) {
	space, ok := p.fs.(vfs.SharedSpaceReporter)
	if !ok {
		return 0, fmt.Errorf("pool %s: its file system %T does not tell what files take", p.dir, p.fs)
	}
	return space.AllocatedTogether(paths)
}

// MayShareBlocks reports whether files of the pool may share blocks. If not, their sizes on disk add up.
func (p *Pool) MayShareBlocks() bool {
	space, ok := p.fs.(vfs.SharedSpaceReporter)
	return !ok || space.MayShareBlocks(p.dir)
}

// ImagePaths are where a volume's image may be: first in the directory that a creation makes, then in the volume's own.
func (p *Pool) ImagePaths(id string) []string {
	return []string{filepath.Join(p.volumeDir(id)+creatingSuffix, ImageFile), filepath.Join(p.volumeDir(id), ImageFile)}
}

// SameFileSystem reports whether a path is on the pool's own file system: an administrator may have put journals on
// another disk.
func (p *Pool) SameFileSystem(path string) (bool, error) {
	device := func(path string) (uint64, error) {
		info, err := p.fs.Stat(path)
		if err != nil {
			return 0, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, fmt.Errorf("%s: file info of type %T has no device", path, info.Sys())
		}
		return st.Dev, nil
	}
	pool, err := device(p.volumesDir())
	if err != nil {
		return false, err
	}
	other, err := device(path)
	return other == pool, err
}
