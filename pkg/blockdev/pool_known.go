package blockdev

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A pool's directory is empty on the first start of a node, and again whenever the pool's disk is not mounted. A
// record outside of the pool tells the two apart: it says that there was a pool at this path, and which one. The
// first program that makes or opens the pool makes it, so a new node needs no person, and it survives a reboot where
// its directory does.

// ErrPoolGone is returned when a pool that was there is not: its file system is not mounted, or another one is. What
// the pool holds is unknown then, so this is not fs.ErrNotExist.
var ErrPoolGone = errors.New("the pool is not there")

// DefaultStateDir is the programs' default for WithStateDir: on the node's root disk, where state belongs that
// outlives a reboot.
const DefaultStateDir = "/var/lib/slipstream/state"

const kindKnownPool = "known-pool"

// knownPoolRecord is the body of the record outside of the pool.
type knownPoolRecord struct {
	Path string `json:"path"`
	ID   string `json:"id"`
}

// WithStateDir keeps a record of the pool in stateDir, which is created when missing and is not in the pool. Then a
// pool that was at poolPath once is not made anew there: OpenPool fails with ErrPoolGone, and creates nothing.
// poolPath is the pool's directory as it is configured, since links in it may lead to a disk that is not mounted. An
// empty stateDir means no record.
func WithStateDir(stateDir, poolPath string) PoolOption {
	return func(o *poolOptions) { o.known = knownPool{dir: stateDir, path: poolPath} }
}

// HasPool reports whether there is a pool at a directory, whatever is in it.
func HasPool(fsys vfs.FS, dir string) bool {
	_, err := fsys.Stat(filepath.Join(dir, poolFile))
	return err == nil
}

// CheckKnownPool returns ErrPoolGone if a record in stateDir says that there was a pool at poolPath, and it is not
// there now. It creates nothing. OpenPool does the same.
func CheckKnownPool(fsys vfs.FS, stateDir, poolPath string) error {
	return knownPool{dir: stateDir, path: poolPath}.checkBefore(fsys, poolPath)
}

// knownPool is where the record of a pool is, outside of the pool.
type knownPool struct{ dir, path string }

// file is the record's name, one for each path that a pool was at.
func (k knownPool) file() string {
	path, err := filepath.Abs(k.path)
	if err != nil {
		path = filepath.Clean(k.path)
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(k.dir, fmt.Sprintf("pool-%x.json", sum[:8]))
}

func (k knownPool) validate() error {
	if k.dir == "" {
		return nil
	}
	in, err := filepath.Rel(k.path, k.dir)
	if err == nil && in != ".." && !strings.HasPrefix(in, "../") {
		return fmt.Errorf("state directory %s is in the pool: it has to be on another disk than the pool is, as the "+
			"node's root: %w", k.dir, fs.ErrInvalid)
	}
	return nil
}

// checkBefore is check for the pool in dir, before anything is created there.
func (k knownPool) checkBefore(fsys vfs.FS, dir string) error {
	if k.dir == "" {
		return nil
	}
	var rec poolRecord
	err := recordfile.Read(fsys, filepath.Join(dir, poolFile), kindPool, &rec)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open pool %s: %w", dir, err)
	}
	return k.check(fsys, rec.ID)
}

// check compares the record with the id of the pool that is there; empty for none.
func (k knownPool) check(fsys vfs.FS, id string) error {
	if k.dir == "" {
		return nil
	}
	var rec knownPoolRecord
	err := recordfile.Read(fsys, k.file(), kindKnownPool, &rec)
	var corrupt *recordfile.CorruptError
	switch {
	case errors.Is(err, fs.ErrNotExist) || (errors.As(err, &corrupt) && id != ""):
		return nil // remember writes it
	case err != nil:
		return fmt.Errorf("pool %s is not there, and whether it was cannot be read: %w; mount its file system, or remove "+
			"that file if there was none", k.path, err)
	case id == "":
		return fmt.Errorf("%w: pool %s (id %s) was at %s before, and nothing is there now: mount its file system there. "+
			"It is not made anew, since that would hide its volumes. If it is gone for good, remove %s",
			ErrPoolGone, k.path, rec.ID, k.path, k.file())
	case id != rec.ID:
		return fmt.Errorf("%w: pool %s has id %s, but the pool there had id %s before: mount the right file system. "+
			"If this one is to be used from now on, remove %s", ErrPoolGone, k.path, id, rec.ID, k.file())
	}
	return nil
}

// remember makes the record, or leaves it as it is. The pool is durable, and its records' lock is held.
func (k knownPool) remember(fsys vfs.FS, id string) error {
	if k.dir == "" {
		return nil
	}
	want := knownPoolRecord{Path: k.path, ID: id}
	var have knownPoolRecord
	if err := recordfile.Read(fsys, k.file(), kindKnownPool, &have); err == nil && have == want {
		return nil
	}
	if err := k.check(fsys, id); err != nil {
		return err
	}
	err := fsys.MkdirAll(k.dir)
	if err == nil {
		err = recordfile.Write(fsys, k.file(), kindKnownPool, &want)
	}
	if err != nil {
		return fmt.Errorf("remember outside of the pool that it exists: %w; choose another state directory", err)
	}
	return nil
}

// Check reports whether the pool is still the one that was opened: ErrPoolGone if its file system was unmounted or
// replaced.
func (p *Pool) Check() error {
	var now poolRecord
	err := recordfile.Read(p.fs, filepath.Join(p.dir, poolFile), kindPool, &now)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: pool %s (id %s) has no %s any more: mount its file system there again", ErrPoolGone, p.dir,
			p.rec.ID, poolFile)
	case err != nil:
		return err
	case now.ID != p.rec.ID:
		return fmt.Errorf("%w: pool %s had id %s when it was opened and has %s now: mount the right file system, "+
			"then restart", ErrPoolGone, p.dir, p.rec.ID, now.ID)
	}
	return nil
}

// missing is the error of what the pool does not have. Nothing is missing from a pool that is not there.
func (p *Pool) missing(what, id string, err error) error {
	if gone := p.Check(); gone != nil {
		return gone
	}
	return fmt.Errorf("%s %s: %w", what, id, err)
}
