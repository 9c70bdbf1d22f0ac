package store

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// index has the volume records as they were last read, by id and by name. The replicator writes records too, and a
// person may restore one. So every use of the index asks first what changed since the last one: the kernel, by a watch,
// or, without a watch, each record's file. Reading and decoding a file takes many times longer than either.
//
// A record in the index is never changed; a newer one takes its place.
type index struct {
	mu    sync.Mutex
	watch *watch // nil: none yet, or none is possible
	// unwatched: no watch is possible, as in a file system in memory. Each record's file is looked at instead.
	unwatched bool
	list      []*blockdev.VolumeRecord // by id; replaced, never changed
	names     map[string][]*blockdev.VolumeRecord
	journals  map[*blockdev.VolumeRecord]parameter.Journal // of those in list that want one; replaced, never changed
	files     map[string]fileState                         // of records in list, without a watch
	// unread are volumes whose record could not be read when it was last tried. They are tried at each use.
	unread map[string]bool
}

// fileState identifies the content of a file that is only replaced or rewritten, never changed in part.
type fileState struct {
	inode          uint64
	sizeBytes      int64
	modified, meta syscall.Timespec
}

// settledAfter is how old a file must be for its state to identify its content. Times of files advance with the
// kernel's clock tick, so a file that was written just now can be written again within the same tick.
const settledAfter = 100 * time.Millisecond

// stateOf returns the state of a record's file. ok is false for a file system that does not tell it, and for a file
// that was written too recently.
func stateOf(info fs.FileInfo) (s fileState, ok bool) {
	st, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat || st.Ino == 0 || st.Ctim.Sec == 0 || !info.Mode().IsRegular() {
		return s, false
	}
	s = fileState{inode: st.Ino, sizeBytes: st.Size, modified: st.Mtim, meta: st.Ctim}
	return s, time.Since(time.Unix(st.Ctim.Unix())) > settledAfter
}

// refresh brings the index up to date with the pool. The error is a status error. The caller holds index.mu.
func (d *Store) refresh() error {
	x := &d.index
	if err := d.Pool.Check(); err != nil {
		return d.ListError("volumes", err)
	}
	changed := map[string]bool{}
	if all := x.ask(d, changed); all {
		ids, err := d.Pool.IDs()
		if err != nil {
			return d.ListError("volumes", err)
		}
		for _, id := range ids {
			changed[id] = true
		}
		for _, rec := range x.list {
			changed[rec.ID] = true
		}
	}
	for id := range x.unread {
		changed[id] = true
	}
	var errs []error
	var read []*blockdev.VolumeRecord
	for id := range changed {
		rec, same, err := x.read(d, id)
		switch {
		case same:
			delete(changed, id)
		case err != nil:
			x.unread[id] = true
			errs = append(errs, err)
		default:
			delete(x.unread, id)
			if rec != nil {
				read = append(read, rec)
			}
		}
	}
	x.replace(changed, read)
	if err := errors.Join(errs...); err != nil {
		klog.ErrorS(err, "Some volume records cannot be read", "pool", d.poolDir)
	}
	return nil
}

// ask adds the volumes whose records changed since the last call to changed; all means any of them.
func (x *index) ask(d *Store, changed map[string]bool) (all bool) {
	if x.watch != nil {
		all, err := x.watch.changes(changed)
		if err == nil {
			return all
		}
		klog.InfoS("Volume records are watched anew", "pool", d.poolDir, "reason", err.Error())
		x.endWatch()
	}
	if x.unwatched {
		return true
	}
	w, err := newWatch(d.Pool.VolumesDir())
	if err != nil {
		x.giveUpWatch(d, err)
		return true
	}
	x.watch = w
	return true
}

func (x *index) endWatch() {
	if x.watch != nil {
		_ = x.watch.close()
		x.watch = nil
	}
}

// giveUpWatch looks at each record's file from now on.
func (x *index) giveUpWatch(d *Store, err error) {
	klog.ErrorS(err, "Volume records cannot be watched, so each one's file is looked at whenever volumes are created or "+
		"listed; raise fs.inotify.max_user_watches and fs.inotify.max_user_instances of the node, and restart the driver",
		"pool", d.poolDir)
	x.endWatch()
	x.unwatched = true
}

// read reads a record. same means that the record in the index is what the file has; nil without an error means that
// there is no such volume.
func (x *index) read(d *Store, id string) (rec *blockdev.VolumeRecord, same bool, err error) {
	var file fileState
	var settled bool
	if x.watch != nil {
		if err := x.watch.add(id); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			x.giveUpWatch(d, err)
		}
	}
	if x.watch == nil {
		if info, err := vfs.Lstat(d.fs, d.Pool.RecordPath(id)); err == nil {
			file, settled = stateOf(info)
		}
		if known, ok := x.files[id]; ok && settled && known == file {
			return nil, true, nil
		}
	}
	delete(x.files, id)
	rec, err = d.Pool.Get(id)
	switch {
	case errors.Is(err, blockdev.ErrNoVolume):
		if x.watch != nil {
			x.watch.forget(id)
		}
		return nil, false, nil
	case err == nil && settled:
		x.files[id] = file
	}
	return rec, false, err
}

// replace takes the records of the volumes in gone out of the index and puts others in.
func (x *index) replace(gone map[string]bool, with []*blockdev.VolumeRecord) {
	if len(gone) == 0 && len(with) == 0 {
		return
	}
	list := make([]*blockdev.VolumeRecord, 0, len(x.list)+len(with))
	journals := maps.Clone(x.journals)
	for _, rec := range x.list {
		if !gone[rec.ID] {
			list = append(list, rec)
			continue
		}
		delete(journals, rec)
		others := slices.DeleteFunc(slices.Clone(x.names[rec.Name]), func(o *blockdev.VolumeRecord) bool { return o == rec })
		if x.names[rec.Name] = others; len(others) == 0 {
			delete(x.names, rec.Name)
		}
	}
	for _, rec := range with {
		x.names[rec.Name] = slices.SortedFunc(slices.Values(append(slices.Clone(x.names[rec.Name]), rec)), byID)
	}
	for _, rec := range with {
		if journal := parameter.JournalWanted(rec); journal.Group != "" {
			journals[rec] = journal
		}
	}
	list = append(list, with...)
	slices.SortFunc(list, byID)
	x.list, x.journals = list, journals
}

func byID(a, b *blockdev.VolumeRecord) int { return strings.Compare(a.ID, b.ID) }
