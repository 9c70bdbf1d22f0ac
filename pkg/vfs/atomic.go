package vfs

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// TempSuffix ends the name of the spare of a file that WriteFileAtomic writes. What a spare holds is of no account: an
// earlier version of the file, or part of a newer one that a crash kept from being put into place.
const TempSuffix = ".tmp"

// spareBlockBytes is the block that a spare has more than its file needed: room for the next version to be somewhat
// longer.
const spareBlockBytes = 4096

// WriteFileAtomic replaces the contents of a file so that a crash at any instant leaves the old or the new contents
// whole, and the new ones from its return on.
//
// A file that exists has a spare beside it, which has an inode and blocks of its own. The new contents are written into
// the spare and the two are exchanged; the old version is the next spare. So replacing a file works with no block
// and no inode left, as long as the new contents fit into what the spare has: those of the version before the old
// one, and, from the time when there was space, a block more. The spare is made when the file is, and again whenever it
// is missing and there is space.
//
// Calls for the same name must not run at the same time. A reader that opened the file before a call and reads after
// the next one has begun can see a mixture of versions: readers that are not kept out have to verify what they read,
// and to read again.
//
// After an error the file holds the old contents, or, when only the sync of the directory failed, the new ones without
// the promise that they stay.
func WriteFileAtomic(fsys FS, name string, data []byte) error {
	dir, spare := filepath.Dir(name), name+TempSuffix
	f, err := openSpare(fsys, dir, spare)
	var unfit *UnfitError
	if errors.As(err, &unfit) {
		if err := fsys.Remove(spare); err != nil { // what a spare is, is of no account either
			return err
		}
	}
	created := errors.Is(err, fs.ErrNotExist) || unfit != nil
	if created {
		f, err = fsys.Create(spare)
	}
	if err != nil {
		return err
	}
	if err := writeSpare(f, data); err != nil {
		if created {
			_ = fsys.Remove(spare) // the first error says what happened
		}
		return err
	}
	if err := putInPlace(fsys, spare, name); err != nil {
		return err
	}
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	keepSpare(fsys, spare, int64(len(data)))
	return nil
}

// openSpare opens a spare that may be overwritten: the exchange that made it one is durable, also where that was done
// by a process that died right after. Otherwise a power loss could bring the file's name back to what is being
// overwritten.
func openSpare(fsys FS, dir, spare string) (File, error) {
	f, err := fsys.Open(spare)
	if err != nil {
		return nil, err
	}
	if err := fsys.SyncDir(dir); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// writeSpare makes data the durable contents of a spare, and closes it.
func writeSpare(f File, data []byte) error {
	_, err := f.WriteAt(data, 0)
	var size int64
	if err == nil {
		size, err = f.Size()
	}
	if err == nil && size > int64(len(data)) {
		err = f.Truncate(int64(len(data)))
	}
	if err == nil {
		err = f.Datasync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// putInPlace exchanges a file with its spare. Where that cannot be done, or there is no such file yet, the spare takes
// its place.
func putInPlace(fsys FS, spare, name string) error {
	if _, err := fsys.Stat(name); err == nil {
		if x, ok := fsys.(Exchanger); ok {
			if err := x.Exchange(spare, name); !errors.Is(err, errors.ErrUnsupported) {
				return err
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fsys.Rename(spare, name)
}

// keepSpare provides a spare with space for more than n bytes. If the disk has no space for it, the present spare
// stays.
func keepSpare(fsys FS, spare string, n int64) {
	f, err := fsys.Open(spare)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = fsys.Create(spare)
	}
	if err != nil {
		return
	}
	want := (n+spareBlockBytes-1)/spareBlockBytes*spareBlockBytes + spareBlockBytes
	if size, err := f.Size(); err == nil && size < want {
		_ = f.Preallocate(0, want)
	}
	_ = f.Close()
}

// RemoveAtomic removes a file that WriteFileAtomic wrote, and its spare, durably. One that is not there is not an
// error.
func RemoveAtomic(fsys FS, name string) error {
	for _, n := range []string{name, name + TempSuffix} {
		if err := fsys.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fsys.SyncDir(filepath.Dir(name))
}
