package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Delete removes a volume in any state, also one whose record is damaged. One that is not
// there is a success. The caller has detached it: an attached loop device would keep the space.
func (p *Pool) Delete(id string) error {
	if err := ValidateID(id); err != nil {
		return fmt.Errorf("volume %w", err)
	}
	return p.removeDir(p.volumesDir(), id, "volume")
}

// removeDir removes the directory of a volume, snapshot or view, by a rename first, which is the instant it is gone.
// One that is not there is a success.
func (p *Pool) removeDir(parent, id, what string) error {
	unlock, err := p.lockRecords()
	if err != nil {
		return err
	}
	defer unlock()
	dying := filepath.Join(parent, id+deletingSuffix)
	// From an earlier deletion of the same id that was interrupted.
	if err := p.fs.RemoveAll(dying); err != nil {
		return err
	}
	rename := func() error { return p.fs.Rename(filepath.Join(parent, id), dying) }
	if err = p.reserve().use(rename); vfs.NoSpace(err) {
		// What it holds goes in any case.
		if f, openErr := p.fs.Open(filepath.Join(parent, id, ImageFile)); openErr == nil {
			_ = errors.Join(f.Truncate(0), f.Datasync(), f.Close())
		}
		err = rename()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s %s: %w", what, id, err)
	}
	// Also when it is not there: an earlier call may have failed at just this.
	if err := p.fs.SyncDir(parent); err != nil {
		return fmt.Errorf("delete %s %s: %w", what, id, err)
	}
	if err := p.fs.RemoveAll(dying); err != nil {
		return fmt.Errorf("free %s %s: %w", what, id, err)
	}
	if err := p.fs.SyncDir(parent); err != nil {
		return err
	}
	p.FillReserve()
	return nil
}

// Sweep removes what interrupted creations and deletions of volumes, snapshots and views left, and returns the names of
// what it removed. What cannot be removed stays, and the error names it. It may be called at any time.
func (p *Pool) Sweep() ([]string, error) {
	unlock, err := p.lockRecords()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var removed []string
	var errs []error
	for _, dir := range []string{p.volumesDir(), p.snapshotsDir(), p.viewsDir()} {
		some, err := p.sweepDir(dir)
		removed, errs = append(removed, some...), append(errs, err)
	}
	for _, name := range cloneTestFiles {
		path := filepath.Join(p.dir, name)
		err := p.fs.Remove(path)
		switch {
		case err == nil:
			removed = append(removed, path)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("sweep pool: %w", err))
		}
	}
	return removed, errors.Join(errs...)
}

// sweepDir is Sweep for the directories in parent.
func (p *Pool) sweepDir(parent string) (removed []string, err error) {
	names, err := p.fs.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(parent, name)
		id, creating := strings.CutSuffix(name, creatingSuffix)
		deleting := false
		if !creating {
			id, deleting = strings.CutSuffix(name, deletingSuffix)
		}
		if ValidateID(id) != nil || !creating && !deleting {
			continue
		}
		if creating && p.beingCreated(path) {
			continue
		}
		if err := p.fs.RemoveAll(path); err != nil {
			errs = append(errs, fmt.Errorf("sweep pool: %w", err))
			continue
		}
		removed = append(removed, path)
	}
	if len(removed) > 0 {
		errs = append(errs, p.fs.SyncDir(parent))
	}
	return removed, errors.Join(errs...)
}
