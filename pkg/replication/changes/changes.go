// Package changes keeps what changed between the snapshots of a volume of a group: for each snapshot with a parent, the
// 64 KiB extents that may differ from the parent.
//
// The parent is the snapshot of the same volume before it. A set is written when the snapshot is taken, from what the
// group wrote in between, never by comparing contents; it may hold extents that are the same, and never lacks one that
// is not. A snapshot without a parent (the first one, or the first one that the group can vouch for) has no set.
//
// The file is <pool>/snapshots/<id>/changes, a change map (package changemap) of volume 0.
//
// It does not know about contents or allocation, and it does not delete snapshots. Calls for one volume must not run at
// the same time.
package changes

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// ErrUnrelated: the two snapshots are not connected by parents, so only their allocated ranges say how they differ.
var ErrUnrelated = errors.New("no record of what changed between the snapshots")

const file = "changes"

func path(pool *blockdev.Pool, id string) (string, error) {
	dir, err := pool.SnapshotDir(id)
	return filepath.Join(dir, file), err
}

// Save makes the extents of volume 0 of m the durable set of a snapshot.
func Save(fsys vfs.FS, pool *blockdev.Pool, id string, m *changemap.Map) error {
	name, err := path(pool, id)
	if err != nil {
		return err
	}
	return m.Save(fsys, name)
}

// Load returns a snapshot's set. fs.ErrNotExist: it has none. changemap.ErrCorrupt: it is damaged, and nothing is
// known.
func Load(fsys vfs.FS, pool *blockdev.Pool, id string) (*changemap.Map, error) {
	name, err := path(pool, id)
	if err != nil {
		return nil, err
	}
	if _, err := fsys.Stat(name); err != nil {
		return nil, err
	}
	return changemap.Load(fsys, name)
}

// Between returns the extents in which a snapshot may differ from an earlier one of the same volume; ErrUnrelated where
// that is not known. The same snapshot twice is the empty set.
func Between(fsys vfs.FS, pool *blockdev.Pool, base, target string) (*changemap.Map, error) {
	all := changemap.New()
	seen := map[string]bool{}
	for at := target; at != base; {
		if at == "" || seen[at] {
			return nil, fmt.Errorf("%w %s and %s", ErrUnrelated, base, target)
		}
		seen[at] = true
		rec, err := pool.GetSnapshot(at)
		if err != nil {
			return nil, err
		}
		if rec.ParentID == "" {
			return nil, fmt.Errorf("%w %s and %s", ErrUnrelated, base, target)
		}
		m, err := Load(fsys, pool, at)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, changemap.ErrCorrupt) {
			return nil, fmt.Errorf("%w %s and %s: %w", ErrUnrelated, base, target, err)
		}
		if err != nil {
			return nil, err
		}
		all.Merge(m)
		at = rec.ParentID
	}
	return all, nil
}

// Unlink takes a snapshot that is about to be deleted out of the chain: its child gets its set and its parent. To be
// called after ReleaseCut, which does the same for the snapshot that is the newest, and before the snapshot goes; it
// may be repeated, also after a crash at any instant. The snapshot keeps its own set and parent.
//
// A set that is damaged or missing breaks the chain: the child has no parent then.
func Unlink(fsys vfs.FS, pool *blockdev.Pool, id string) error {
	rec, err := pool.GetSnapshot(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := pool.ListSnapshots()
	if err != nil && !recordfile.OnlyCorrupt(err) {
		return err
	}
	if err != nil {
		klog.ErrorS(err,
			"A snapshot whose record is damaged may have changes relative to one that is deleted; they are of no use "+
				"then", "snapshot", id)
	}
	for _, child := range list {
		if child.ParentID != id {
			continue
		}
		parent := rec.ParentID
		if parent != "" {
			if parent, err = merge(fsys, pool, id, child.ID, parent); err != nil {
				return err
			}
		}
		// The set first: if only it is durable, the child says more than it has to about its old parent.
		_, err := pool.UpdateSnapshot(child.ID, func(r *blockdev.SnapshotRecord) error {
			r.ParentID = parent
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// merge adds a snapshot's set to its child's. It returns the child's new parent.
func merge(fsys vfs.FS, pool *blockdev.Pool, id, child, parent string) (string, error) {
	broken := func(err error) bool {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, changemap.ErrCorrupt)
	}
	own, err := Load(fsys, pool, id)
	if broken(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	m, err := Load(fsys, pool, child)
	if broken(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	m.Merge(own)
	return parent, Save(fsys, pool, child, m)
}
