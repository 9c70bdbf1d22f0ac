package store

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// GroupRecord is what the driver needs of the record of a consistency group, which the replicator writes.
type GroupRecord struct {
	Name string
	// JournalLimitBytes is the most that the group's journal will take.
	JournalLimitBytes int64
}

// groupRecords are those that were read, by group id, each valid while its file is the same.
type groupRecords struct {
	mu      sync.Mutex
	entries map[string]knownGroup
}

type knownGroup struct {
	file fileState
	GroupRecord
}

// GroupRecord returns what the record of a group says. An error is that of recordfile.Read.
func (d *Store) GroupRecord(id string) (GroupRecord, error) {
	path := filepath.Join(d.Pool.GroupsDir(), id, core.MetaFile)
	var file fileState
	var settled bool
	if info, err := vfs.Lstat(d.fs, path); err == nil {
		file, settled = stateOf(info)
	}
	d.groups.mu.Lock()
	defer d.groups.mu.Unlock()
	if known, ok := d.groups.entries[id]; ok && settled && known.file == file {
		return known.GroupRecord, nil
	}
	delete(d.groups.entries, id)
	var meta core.Meta
	if err := recordfile.Read(d.fs, path, core.MetaKind, &meta); err != nil {
		return GroupRecord{}, err
	}
	r := GroupRecord{Name: meta.Name, JournalLimitBytes: meta.JournalLimitBytes()}
	if settled {
		d.groups.entries[id] = knownGroup{file, r}
	}
	return r, nil
}

// HasGroup reports whether the pool has a record of a group of that name. Records that cannot be read do not count: the
// replicator does not open such a group, and makes no other one of its name. An error is a status error.
func (d *Store) HasGroup(name string) (bool, error) {
	if err := d.Pool.Check(); err != nil {
		return false, d.ListError("groups", err)
	}
	ids, err := d.fs.ReadDir(d.Pool.GroupsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, d.ListError("groups", err)
	}
	for _, id := range ids {
		if group, err := d.GroupRecord(id); err == nil && group.Name == name {
			return true, nil
		}
	}
	return false, nil
}
