package store

import (
	"errors"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// recordCache has the volume records as they were last read. An entry is valid as long as the record's file is the
// same: reading and decoding a file takes many times longer than looking at it. The replicator writes records too, so
// nothing but the file can say that an entry is valid.
type recordCache struct {
	mu      sync.Mutex
	entries map[string]cachedRecord // by volume id
}

type cachedRecord struct {
	file fileState
	rec  *blockdev.VolumeRecord // never changed
}

// fileState identifies the content of a file that is only replaced or rewritten, never changed in part.
type fileState struct {
	inode          uint64
	sizeBytes      int64
	modified, meta syscall.Timespec
}

// settledAfter is how old a file must be before it is cached. Times of files advance with the kernel's clock tick, so a
// file that was written just now can be written again within the same tick.
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

// Volumes returns the records of all volumes that have a readable one, by id. The others are logged and left out: one
// damaged record must not prevent all other volumes from being created, listed and deleted.
func (d *Store) Volumes() ([]*blockdev.VolumeRecord, error) {
	shared, err := d.SharedVolumes()
	recs := make([]*blockdev.VolumeRecord, len(shared))
	for i, rec := range shared {
		recs[i] = rec.Clone()
	}
	return recs, err
}

// SharedVolumes is Volumes for callers that change none of the records, which it does not copy.
func (d *Store) SharedVolumes() ([]*blockdev.VolumeRecord, error) {
	ids, err := d.Pool.IDs()
	if err != nil {
		return nil, d.ListError("volumes", err)
	}
	d.cache.mu.Lock()
	defer d.cache.mu.Unlock()
	recs := make([]*blockdev.VolumeRecord, 0, len(ids))
	entries := make(map[string]cachedRecord, len(ids))
	var errs []error
	for _, id := range ids {
		var file fileState
		var settled bool
		if info, err := vfs.Lstat(d.fs, d.Pool.RecordPath(id)); err == nil {
			file, settled = stateOf(info)
		}
		if known, ok := d.cache.entries[id]; ok && settled && known.file == file {
			recs, entries[id] = append(recs, known.rec), known
			continue
		}
		rec, err := d.Pool.Get(id)
		switch {
		case errors.Is(err, blockdev.ErrNoVolume): // deleted meanwhile
		case err != nil:
			errs = append(errs, err)
		default:
			recs = append(recs, rec)
			if settled {
				entries[id] = cachedRecord{file, rec}
			}
		}
	}
	d.cache.entries = entries
	if err := errors.Join(errs...); err != nil {
		klog.ErrorS(err, "Some volume records cannot be read", "pool", d.poolDir)
	}
	return recs, nil
}
