package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// makeDir makes the directory of a volume, snapshot or view under another name and renames it, which is the instant it
// comes into being. fill makes what is in it, durably. The caller holds the records' lock.
func (p *Pool) makeDir(parent, id string, fill func(dir string) error) error {
	tmp := filepath.Join(parent, id+creatingSuffix)
	if err := p.fs.RemoveAll(tmp); err != nil { // of a creation that was interrupted
		return err
	}
	err := p.fs.MkdirAll(tmp)
	if err == nil {
		err = fill(tmp)
	}
	if err == nil {
		err = p.fs.Rename(tmp, filepath.Join(parent, id))
	}
	if err == nil {
		err = p.fs.SyncDir(parent)
	}
	if err != nil {
		_ = p.fs.RemoveAll(tmp) // Sweep gets what is left
	}
	return err
}

// makeRecordDir is makeDir for a directory with a record file and nothing else. It takes the records' lock. what names
// the kind of object in errors, and taken is the error if the directory is there.
func (p *Pool) makeRecordDir(parent, id, file string, data []byte, what string, taken error) error {
	unlock, err := p.lockRecords()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := p.fs.Stat(filepath.Join(parent, id)); err == nil {
		return fmt.Errorf("%s %s: %w", what, id, taken)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = p.makeDir(parent, id, func(dir string) error {
		return vfs.WriteFileAtomic(p.fs, filepath.Join(dir, file), data)
	})
	if err != nil {
		return fmt.Errorf("create %s %s: %w", what, id, err)
	}
	return nil
}
