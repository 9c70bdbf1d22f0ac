package vfs

// Extent is a range of a file and where it is on the disk.
type Extent struct {
	// Off and Len are the range in the file, in bytes.
	Off, Len int64
	// Physical is its place in the file system, in bytes, where Shared is set.
	Physical int64
	// Shared: the file system says that another file has the same blocks, and they hold the range as it is. Two files
	// with a shared extent at the same place have the same content there, since a file system that shares blocks never
	// writes to them.
	Shared bool
}

// End is behind the extent's last byte.
func (e Extent) End() int64 { return e.Off + e.Len }

// ExtentLister is implemented by files that know where on the disk they are (FIEMAP).
type ExtentLister interface {
	// Extents returns some of the extents that end behind off, ascending and from the first of them on; none when no
	// extent ends behind off. Everything between them is a hole and reads as zeros. What the file holds that is not
	// on the disk yet is written first. Where the file system cannot tell the error is errors.ErrUnsupported.
	Extents(off int64) ([]Extent, error)
}
