package space

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// FileSystem is how full a file system is: the pool's, or that of the journals.
type FileSystem struct {
	TotalBytes, FreeBytes   int64
	TotalInodes, FreeInodes int64 // a total of 0 means no limit
	Err                     error
}

// PoolFileSystem returns how full the pool's file system is.
func (d *Accounts) PoolFileSystem() (p FileSystem) {
	p.take(d.store.Pool.Space, d.store.Pool.Inodes)
	return p
}

func (p *FileSystem) take(space, inodes func() (total, free int64, err error)) {
	if p.TotalBytes, p.FreeBytes, p.Err = space(); p.Err == nil {
		p.TotalInodes, p.FreeInodes, p.Err = inodes()
	}
}

// JournalFileSystem returns how full the journals' file system is, if they have one of their own. If that cannot be
// found out, apart is true and p has the error.
func (d *Accounts) JournalFileSystem() (p FileSystem, apart bool) {
	same, err := d.store.Pool.SameFileSystem(d.store.Pool.GroupsDir())
	switch {
	case err != nil:
		p.Err = err
	case same:
		return p, false
	default:
		p.take(d.store.Pool.JournalSpace, d.store.Pool.JournalInodes)
	}
	return p, true
}

// String says what is free, in words.
func (p FileSystem) String() string {
	text := fmt.Sprintf("%d of %s free", p.FreeBytes, words.Count(p.TotalBytes, "byte"))
	if p.TotalInodes > 0 {
		text += fmt.Sprintf(", and %d of %s", p.FreeInodes, words.Count(p.TotalInodes, "inode"))
	}
	return text
}
