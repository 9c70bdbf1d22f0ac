package tlsfiles

import (
	"io/fs"
	"syscall"
)

// inode tells two files of one size and modification time apart.
func inode(info fs.FileInfo) any {
	st := info.Sys().(*syscall.Stat_t)
	return [2]uint64{st.Dev, st.Ino}
}
