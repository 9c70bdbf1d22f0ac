package store

import (
	"path/filepath"
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
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

// GroupRecord returns what the record of a group says. An error is that of blockdev.ReadRecord.
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
	if err := blockdev.ReadRecord(d.fs, path, core.MetaKind, &meta); err != nil {
		return GroupRecord{}, err
	}
	r := GroupRecord{Name: meta.Name, JournalLimitBytes: meta.JournalLimitBytes()}
	if settled {
		d.groups.entries[id] = knownGroup{file, r}
	}
	return r, nil
}
