package changemap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// maxFileBytes is how large a file of extents may be: a map of 8 of the largest volumes with the worst pattern of
// changes.
const maxFileBytes = 1 << 30

// readFile reads a file of extents. What cannot be one is ErrCorrupt, but for a directory, which Save could not
// replace.
func readFile(fsys vfs.FS, path string) ([]byte, error) {
	b, err := vfs.ReadFile(fsys, path, maxFileBytes)
	var unfit *vfs.UnfitError
	if errors.As(err, &unfit) && !errors.Is(err, unix.EISDIR) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return b, err
}

// Save replaces the file at path by the map, atomically and durably: after a crash at any instant the file holds the
// old map or this one, and when Save has returned nil it is this one. After an error it may be either.
func (m *Map) Save(fsys vfs.FS, path string) error { return m.save(fsys, path, nil) }

// Tag says whose a map is, and how often its file was written.
type Tag struct {
	Group, Pool [16]byte
	Generation  uint64
}

// SaveTagged is Save with a tag.
func (m *Map) SaveTagged(fsys vfs.FS, path string, tag Tag) error { return m.save(fsys, path, &tag) }

func (m *Map) save(fsys vfs.FS, path string, tag *Tag) error {
	b, err := m.encode(tag)
	if err != nil {
		return fmt.Errorf("save change map %s: %w", path, err)
	}
	if err := vfs.WriteFileAtomic(fsys, path, b); err != nil {
		return fmt.Errorf("save change map %s: %w", path, err)
	}
	return nil
}

// Load reads what Save or SaveTagged wrote. Errors name the file, and the offset where the content is wrong; they wrap
// ErrCorrupt, ErrVersion or the file system's error, fs.ErrNotExist for one, and the file is left as it is. With
// ErrCorrupt the group must copy all of its extents to the peer.
func Load(fsys vfs.FS, path string) (*Map, error) {
	m, _, err := LoadTagged(fsys, path)
	return m, err
}

// LoadTagged is Load that also returns the tag: the zero Tag of a map without one.
func LoadTagged(fsys vfs.FS, path string) (*Map, Tag, error) {
	b, err := readFile(fsys, path)
	if err != nil {
		return nil, Tag{}, fmt.Errorf("load change map %s: %w", path, err)
	}
	m, tag, err := decode(b)
	if err != nil {
		return nil, Tag{}, fmt.Errorf("load change map %s: %w", path, err)
	}
	return m, tag, nil
}
