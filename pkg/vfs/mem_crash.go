package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// CrashConfig says what of the unsynced state survives a crash.
type CrashConfig struct {
	// UnsyncedPercent is the chance, 0 to 100, of each unsynced change to survive. 0 leaves exactly what was synced, 100
	// everything.
	UnsyncedPercent int
	// RNG decides; it may be nil when UnsyncedPercent is 0 or 100. The same seed on the same history gives the same
	// result.
	RNG *rand.Rand
}

// survives decides about one change.
func (c CrashConfig) survives() bool {
	switch {
	case c.UnsyncedPercent <= 0:
		return false
	case c.UnsyncedPercent >= 100:
		return true
	}
	return c.RNG.IntN(100) < c.UnsyncedPercent
}

// CrashClone returns what a power loss at this instant could have left, as a file system of its own on which everything
// is synced. It may be called while others use m, which is not changed; handles of m keep working on m.
//
// Each unsynced page of a file survives or not, independently of when it was written; one in four is torn into its
// sectors of 512 bytes, each of which survives or not. A file that grew has its old size, its new size, or one
// between. Each unsynced directory operation survives or not, except that one whose subject is missing because an
// earlier one was lost (the rename of a file whose creation did not survive) is lost too: no file system does
// otherwise. A rename is one operation: it never leaves both names, or none.
func (m *MemFS) CrashClone(cfg CrashConfig) *MemFS {
	// Copying a page tree marks it in the original too, so reads may not go on.
	m.mu.Lock()
	defer m.mu.Unlock()

	entries := map[*inode]map[string]*inode{}
	entriesOf := func(dir *inode) map[string]*inode {
		e, ok := entries[dir]
		if !ok {
			e = maps.Clone(dir.synced)
			entries[dir] = e
		}
		return e
	}
	for _, op := range m.pending {
		if cfg.survives() && op.possible(entriesOf) {
			op.apply(entriesOf)
		}
	}

	c := &MemFS{nextInode: m.nextInode, capacityPages: m.capacityPages, inodeLimit: m.inodeLimit, reflink: m.reflink}
	clones := map[*inode]*inode{}
	var clone func(*inode) *inode
	clone = func(ino *inode) *inode {
		if done := clones[ino]; done != nil {
			done.links++
			return done
		}
		out := &inode{number: ino.number, dir: ino.dir, links: 1}
		clones[ino] = out
		c.inodes++
		if !ino.dir {
			ino.crash(cfg, &out.fileState)
			c.pages += int64(out.live.Len())
			return out
		}
		from := entriesOf(ino)
		out.children = make(map[string]*inode, len(from))
		for _, name := range slices.Sorted(maps.Keys(from)) { // sorted: the order decides what RNG is asked
			out.children[name] = clone(from[name])
		}
		out.synced = maps.Clone(out.children)
		return out
	}
	c.root = clone(m.root)
	return c
}

// possible reports whether what an operation is about is there in a state that lacks some of the earlier operations.
func (op dirOp) possible(entries func(*inode) map[string]*inode) bool {
	switch {
	case op.exchange:
		return entries(op.fromDir)[op.fromName] == op.after && entries(op.dir)[op.name] == op.before
	case op.fromDir != nil:
		return entries(op.fromDir)[op.fromName] == op.after
	case op.after != nil:
		return entries(op.dir)[op.name] == nil
	default:
		return entries(op.dir)[op.name] == op.before
	}
}

// crash fills out with what survives of a file.
func (s *fileState) crash(cfg CrashConfig, out *fileState) {
	out.live = *s.live.IsoCopy()
	for _, i := range slices.Sorted(maps.Keys(s.unsynced)) {
		synced := s.unsynced[i]
		live, _ := s.live.Get(i)
		if pg := crashPage(cfg, synced, live); pg != nil {
			out.live.Set(i, pg)
		} else {
			out.live.Delete(i)
		}
	}
	out.size = crashSize(cfg, s.syncedSize, s.size)
	out.syncedSize = out.size

	// Pages survive without the size that covers them; bytes behind the end are zeros when the file grows again.
	end := (out.size + pageBytes - 1) / pageBytes
	for {
		last, _, ok := out.live.Max()
		if !ok || last < end {
			break
		}
		out.live.Delete(last)
	}
	if tail := out.size % pageBytes; tail != 0 {
		if pg, ok := out.live.Get(end - 1); ok {
			cut := *pg
			clear(cut[tail:])
			out.live.Set(end-1, &cut)
		}
	}
}

// crashPage returns what a page is after the crash, nil for a hole. It never returns live itself, which its file system
// goes on modifying.
func crashPage(cfg CrashConfig, synced, live *page) *page {
	partial := cfg.UnsyncedPercent > 0 && cfg.UnsyncedPercent < 100
	if !partial || cfg.RNG.IntN(4) != 0 {
		switch {
		case !cfg.survives():
			return synced
		case live == nil || live == &zeroPage:
			return live
		}
		pg := *live
		return &pg
	}
	var pg page
	if synced != nil {
		pg = *synced
	}
	if live == nil {
		live = &zeroPage
	}
	for off := 0; off < pageBytes; off += sectorBytes {
		if cfg.survives() {
			copy(pg[off:off+sectorBytes], live[off:])
		}
	}
	return &pg
}

func crashSize(cfg CrashConfig, synced, live int64) int64 {
	if synced == live || !cfg.survives() {
		return synced
	}
	if live < synced || cfg.UnsyncedPercent >= 100 || cfg.RNG.IntN(2) == 0 {
		return live
	}
	// Writes that extend a file reach the disk, and its size, in pieces.
	return min(live, synced+cfg.RNG.Int64N((live-synced)/sectorBytes+1)*sectorBytes)
}
