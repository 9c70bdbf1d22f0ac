package changemap

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Save replaces the file at path by the map, atomically and durably: after a crash at any instant the file holds the old
// map or this one, and when Save has returned nil it is this one. After an error it may be either.
func (m *Map) Save(fsys vfs.FS, path string) error {
	b, err := m.MarshalBinary()
	if err != nil {
		return fmt.Errorf("save change map %s: %w", path, err)
	}
	if err := vfs.WriteFileAtomic(fsys, path, b); err != nil {
		return fmt.Errorf("save change map %s: %w", path, err)
	}
	return nil
}

// Load reads what Save wrote. A file that does not exist is an empty map: nothing was ever folded. Errors name the file,
// and the offset where the content is wrong; they wrap ErrCorrupt, ErrVersion or the file system's error, and the file is
// left as it is. With ErrCorrupt the group must copy all of its extents to the peer.
func Load(fsys vfs.FS, path string) (*Map, error) {
	b, err := vfs.ReadFile(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		return New(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("load change map %s: %w", path, err)
	}
	m, err := Decode(b)
	if err != nil {
		return nil, fmt.Errorf("load change map %s: %w", path, err)
	}
	return m, nil
}
