package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
)

// Groups with their journals may be on a disk of their own. The pool's record says in which directory, and a record
// there says whose it is: where that disk is not mounted, an empty directory must not pass for a pool without groups,
// whose volumes would then be served from images that lack what is in the journals.

// PoolOption is an option of OpenPool.
type PoolOption func(*poolOptions)

type poolOptions struct {
	journalDir string
	known      knownPool
}

// WithJournalDir puts groups and journals into a directory, which has to be absolute and another one than the pool's.
// Empty means where they are. A pool that has groups keeps them where they are, and does not open with another
// directory.
func WithJournalDir(dir string) PoolOption {
	return func(o *poolOptions) { o.journalDir = dir }
}

func (o *poolOptions) check(poolDir string) error {
	if dir := o.journalDir; dir != "" &&
		(!filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == filepath.Clean(poolDir)) {
		return fmt.Errorf("directory for journals %q: want an absolute path that is not the pool's: %w", dir, fs.ErrInvalid)
	}
	return o.known.validate()
}

const (
	journalsFile = "journals.json"
	kindJournals = "journals"
)

// journalsRecord is the body of journals.json.
type journalsRecord struct {
	PoolID string `json:"poolId"`
}

func groupsIn(dir string) string { return filepath.Join(dir, "groups") }

// placeJournals makes sure that the pool's groups are in dir, or where its record says if dir is empty, and that what
// is there is the pool's. The records' lock is held. After an error nothing has changed; after a crash between its
// steps the next call goes on.
func (p *Pool) placeJournals(dir string) error {
	rec := p.rec
	if dir != "" && dir != rec.JournalDir {
		if err := p.mayLeaveJournals(dir); err != nil {
			return err
		}
		rec.JournalDir, rec.JournalDirPending = dir, true
	}
	switch {
	case rec.JournalDir == "":
		return nil
	case !rec.JournalDirPending:
		return p.checkJournals(rec)
	}
	if err := p.claimJournals(rec); err != nil {
		return err
	}
	rec.JournalDirPending = false
	return p.write(rec)
}

// claimJournals writes the record, which says where the journals are to be, and there the one that says whose they
// are. A directory with groups of another pool, or of none, is refused with nothing changed.
func (p *Pool) claimJournals(rec poolRecord) error {
	err := p.checkJournals(rec)
	if err == nil {
		return nil // claimed before a crash
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names, err := p.namesIn(groupsIn(rec.JournalDir))
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("directory for journals %s has groups, such as %s, of a pool that is not named there: use an "+
			"empty directory", rec.JournalDir, names[0])
	}
	if err := p.write(rec); err != nil {
		return err
	}
	if err := p.fs.MkdirAll(rec.JournalDir); err != nil {
		return err
	}
	return recordfile.Write(p.fs, filepath.Join(rec.JournalDir, journalsFile), kindJournals,
		&journalsRecord{PoolID: rec.ID})
}

// mayLeaveJournals reports why the journals cannot be put into dir instead of where they are.
func (p *Pool) mayLeaveJournals(dir string) error {
	if p.rec.JournalDirPending {
		return nil // there has been no group there yet
	}
	if p.who != WhoReplicator {
		// A replicator that runs makes groups where it was told to.
		replicator, err := p.locks.tryLock(filepath.Join(p.dir, WhoReplicator.lockName()))
		if errors.Is(err, ErrLocked) {
			return fmt.Errorf("journals are to be in %s, but a replicator runs that has them in %s: restart it with the same "+
				"directory", dir, p.GroupsDir())
		}
		if err != nil {
			return err
		}
		defer replicator.Close()
	}
	if p.rec.JournalDir != "" {
		if err := p.checkJournals(p.rec); err != nil {
			return err
		}
	}
	groups, err := p.namesIn(p.GroupsDir())
	if err != nil {
		return err
	}
	if len(groups) > 0 {
		return fmt.Errorf("journals are to be in %s, but the pool has groups, such as %s in %s: leave them there, or "+
			"remove all volumes from "+
			"their groups first (slipctl group remove, slipctl group delete)", dir, groups[0], p.GroupsDir())
	}
	return nil
}

// checkJournals reports a directory of journals that is not this pool's; fs.ErrNotExist if it has no owner.
func (p *Pool) checkJournals(rec poolRecord) error {
	path := filepath.Join(rec.JournalDir, journalsFile)
	var have journalsRecord
	err := recordfile.Read(p.fs, path, kindJournals, &have)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the pool's journals are in %s, and %s is missing: is the file system with the journals mounted "+
			"there? %w", rec.JournalDir, journalsFile, err)
	case err != nil:
		return err
	case have.PoolID != rec.ID:
		return fmt.Errorf("%s says that the journals there are those of pool %s, not of this one, %s: use another "+
			"directory, or mount the right file system", path, have.PoolID, rec.ID)
	}
	return nil
}
