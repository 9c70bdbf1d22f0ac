package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Every file that a group has is known by another one, so that one that is gone, or was restored from an older backup
// than the rest, is found out when the group is opened:
//
//   - The checkpoint knows group.json, the change map and the file of cuts by their generations, and the journal by its
//     last record (journal.Mark). Its own generation is in the headers of segments and in the pool's register of
//     groups.
//   - group.json knows the checkpoint, by having a generation itself, and the members' images (identity.go).
//   - The register knows the groups' directories (register.go).
//
// A file that is replaced as a whole has a generation that each replacement counts up. It is written first and then put
// into the checkpoint: so it is the checkpoint's or, after a crash between the two, one more. Less is an older copy of
// the file, yet more an older copy of the checkpoint.

// groupFile is a file of a group that is replaced as a whole; its place in checkpoint.Files.
type groupFile int

const (
	fileMeta groupFile = iota
	fileMap
	fileCuts
	fileCount
)

var groupFileNames = [fileCount]string{core.MetaFile, changeMapFile, cutsFile}

// owner says whose a file is: a group's at one site.
type owner struct{ group, pool [16]byte }

// ownerOf is the owner of the files of a group in a pool.
func ownerOf(groupID, poolID string) (o owner, err error) {
	if o.group, err = parseID(groupID); err != nil {
		return owner{}, err
	}
	if o.pool, err = parseID(poolID); err != nil {
		return owner{}, err
	}
	return o, nil
}

// errStale says that a file is not the one that the rest of the group was written with.
var errStale = errors.New("the file is not the one that the rest of the group was written with")

// stale is the error for a file that is missing, older than the rest, or another group's.
func stale(path, format string, args ...any) error {
	return fmt.Errorf("%s: %w: %s. Nothing was changed. Put the newest file back, or all of the group's files of one "+
		"backup, with the pool's; or give the group up here (slipctl group delete --force), and copy it anew from its "+
		"peer", path, errStale, fmt.Sprintf(format, args...))
}

// isLost reports whether an error of opening a file says that what it had is lost: it is not there, or is not what was
// written. Any other error, as of the disk or for lack of descriptors, says nothing of the file: what depends on it has
// to be kept for the next try.
func isLost(err error) bool {
	var corrupt *recordfile.CorruptError
	var unfit *vfs.UnfitError
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errStale) || errors.Is(err, changemap.ErrCorrupt) ||
		errors.Is(err, blockdev.ErrShortImage) || errors.As(err, &corrupt) || errors.As(err, &unfit)
}

// unopened is the error for what cannot be opened and is not lost: it keeps the group closed.
func (g *Group) unopened(what string, err error) error {
	return fmt.Errorf("group %s: open %s: %w. Nothing of it was changed; the next start of the replicator tries again",
		g.Name(), what, err)
}

// checkGeneration compares the generation that a file of the checkpoint's directory has with what the checkpoint says.
func (f *checkpointFile) checkGeneration(which groupFile, have uint64) error {
	known, path := f.read().Files[which], f.file.Name()
	other := filepath.Join(filepath.Dir(path), groupFileNames[which])
	switch {
	case have < known:
		return stale(other, "it has generation %d, and the checkpoint was written with generation %d: an older copy", have,
			known)
	case have > known+1:
		return stale(path, "it was written with generation %d of %s, which has generation %d: an older copy",
			known, groupFileNames[which], have)
	}
	return nil
}

// replaceFile replaces a file whose generation is have by one with the generation that write gets, and puts that into
// the checkpoint. It returns the new generation; after an error the file has either.
func (f *checkpointFile) replaceFile(which groupFile, have uint64, write func(generation uint64) error) (uint64,
	error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	noteGeneration := func(generation uint64) error {
		return f.changeLocked(func(c *checkpoint) { c.Files[which] = max(c.Files[which], generation) })
	}
	if err := noteGeneration(have); err != nil { // it may be behind after a crash
		return have, err
	}
	if err := write(have + 1); err != nil {
		return have, err
	}
	return have + 1, noteGeneration(have + 1)
}

// saveMeta makes group.json what the core says. The caller holds mu, or is alone.
func (g *Group) saveMeta() error {
	m := &g.core.Meta
	generation, err := g.checkpoint.replaceFile(fileMeta, m.Generation, func(generation uint64) error {
		next := *m
		next.Generation, next.Pool = generation, g.cfg.Pool.ID()
		return g.cfg.Pool.WithReserve(func() error { return writeMeta(g.cfg.FS, g.path(core.MetaFile), &next) })
	})
	m.Generation, m.Pool = generation, g.cfg.Pool.ID()
	return err
}

// openFiles opens group.json and the checkpoint, and checks that they belong together, to the group's directory and to
// this pool. A group of an earlier version, whose group.json has no generation, is taken as it is.
func (g *Group) openFiles() error {
	path := g.path(core.MetaFile)
	meta, err := loadMeta(g.cfg.FS, path)
	if err != nil {
		return err
	}
	earlier := meta.Generation == 0
	switch {
	case meta.GroupID != filepath.Base(g.dir):
		return stale(path, "it is that of group %s (%s)", meta.Name, meta.GroupID)
	case !earlier && meta.Pool != g.cfg.Pool.ID():
		return stale(path, "it is of pool %q, and this is pool %q", meta.Pool, g.cfg.Pool.ID())
	}
	who, err := ownerOf(meta.GroupID, g.cfg.Pool.ID())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	g.core, g.name, g.id = core.New(meta), meta.Name, meta.GroupID
	if err := g.openCheckpoint(who, earlier); err != nil {
		return err
	}
	if err := g.checkpoint.checkGeneration(fileMeta, meta.Generation); err != nil {
		g.checkpoint.close()
		return err
	}
	return nil
}

func (g *Group) openCheckpoint(who owner, earlier bool) error {
	path := g.path(checkpointName)
	var err error
	g.checkpoint, err = openCheckpoint(g.cfg.FS, path)
	if errors.Is(err, fs.ErrNotExist) {
		if !earlier || g.hasSegments() {
			return stale(path, "it is missing")
		}
		// An earlier version made it when it opened the group for the first time.
		if err := createCheckpoint(g.cfg.FS, path, checkpoint{Owner: who}); err != nil {
			return err
		}
		g.checkpoint, err = openCheckpoint(g.cfg.FS, path)
	}
	if err != nil {
		return err
	}
	last := g.checkpoint.read()
	switch {
	case earlier && last.Owner == owner{}:
		// Before group.json gets a generation: a crash between the two must not look like an older checkpoint.
		err = g.checkpoint.change(func(c *checkpoint) { c.Owner = who })
	case last.Owner == owner{}:
		err = stale(path, "it is of an earlier version than group.json: an older copy")
	case last.Owner.group != who.group:
		err = stale(path, "it is that of group %x", last.Owner.group)
	case last.Owner.pool != who.pool:
		err = stale(path, "it is of pool %x, and this is pool %x", last.Owner.pool, who.pool)
	}
	if err != nil {
		g.checkpoint.close()
	}
	return err
}

// hasSegments reports whether there are files in the journal's directory, or may be.
func (g *Group) hasSegments() bool {
	names, err := g.cfg.FS.ReadDir(g.path(core.JournalDir))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".seg") {
			return true
		}
	}
	return false
}
