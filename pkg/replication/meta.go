package replication

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// No member is larger than what a change map can describe: marking it would panic. This does not compile otherwise.
var _ [changemap.MaxVolumeBytes - core.MaxVolumeBytes]struct{}

func decodeMeta(path string, data []byte) (core.Meta, error) {
	var meta core.Meta
	err := recordfile.Decode(path, core.MetaKind, data, &meta)
	if err == nil {
		err = checkDescriptions(meta.Members)
	}
	if err == nil {
		err = recoverMeta(path, &meta)
	}
	if err == nil {
		err = meta.Validate()
	}
	if err != nil {
		return core.Meta{}, fmt.Errorf("group record %s: %w; restore the file, or the group from its peer", path, err)
	}
	if l := meta.Loss; l != nil && !l.Exact && !l.Bounded {
		// Of an earlier release: what it did not know it wrote as zero, and what it called bounds was none.
		l.LostOrdinals, l.LostWrites, l.LostBytes, l.LostSeconds = nil, nil, nil, nil
	}
	return meta, nil
}

func loadMeta(fsys vfs.FS, path string) (core.Meta, error) {
	data, err := vfs.ReadFile(fsys, path, recordfile.MaxBytes)
	if err != nil {
		return core.Meta{}, fmt.Errorf("group record %s: %w", path, err)
	}
	return decodeMeta(path, data)
}

// writeMeta replaces a group.json. The group's is written by Group.saveMeta.
func writeMeta(fsys vfs.FS, path string, m *core.Meta) error {
	if err := recordfile.Write(fsys, path, core.MetaKind, m); err != nil {
		return fmt.Errorf("group record %s: %w", path, err)
	}
	return nil
}
