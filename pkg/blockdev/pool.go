package blockdev

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Who opens a pool.
type Who int

const (
	WhoReader     Who = iota // reads only, beside any other process
	WhoDriver                // the one driver process
	WhoReplicator            // the one replicator process
)

func (w Who) lockName() string {
	switch w {
	case WhoDriver:
		return "driver.lock"
	case WhoReplicator:
		return "replicator.lock"
	}
	return ""
}

// Errors of a pool, to be matched with errors.Is. A volume that is missing also matches fs.ErrNotExist, one that is
// there already fs.ErrExist.
var (
	ErrNoVolume     = fmt.Errorf("no such volume: %w", fs.ErrNotExist)
	ErrVolumeExists = fmt.Errorf("volume exists: %w", fs.ErrExist)
	ErrReadOnlyPool = errors.New("pool is open for reading only")
)

const (
	poolFile       = "pool.json"
	volumeFile     = "volume.json"
	recordsLock    = "records.lock"
	kindPool       = "pool"
	creatingSuffix = ".creating"
	deletingSuffix = ".deleting"
)

// Names in the directory of a volume. A snapshot's image has the same name.
const (
	ImageFile  = "image"
	RecordFile = volumeFile
)

// poolRecord is the body of pool.json.
type poolRecord struct {
	ID string `json:"id"`
	// JournalDir is where the groups with their journals are, if that is not the pool's directory. With
	// JournalDirPending it is the pool's, but may not say so yet.
	JournalDir        string `json:"journalDir,omitempty"`
	JournalDirPending bool   `json:"journalDirPending,omitempty"`
}

// Pool is a directory of volumes; the package comment says what is in it.
type Pool struct {
	fs     vfs.FS
	dir    string
	rec    poolRecord
	who    Who
	locks  locker
	holder io.Closer // of the process lock; nil for readers
}

// OpenPool opens a pool for a kind of process until Close. The driver and the replicator create it when it is
// missing; a second process of a kind gets ErrLocked after five seconds, with the lock file's name. A pool that was
// there before is not created again; see WithStateDir.
func OpenPool(fsys vfs.FS, dir string, who Who, options ...PoolOption) (*Pool, error) {
	var o poolOptions
	for _, option := range options {
		option(&o)
	}
	if err := o.check(dir); err != nil {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	p := &Pool{fs: fsys, dir: dir, who: who, locks: lockerFor(fsys)}
	if who == WhoReader {
		if err := p.read(); err != nil {
			return nil, fmt.Errorf("open pool %s: %w", dir, err)
		}
		return p, nil
	}
	if err := o.known.checkBefore(fsys, dir); err != nil {
		return nil, err
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("create pool: %w", err)
	}
	holder, err := p.locks.tryLockPatiently(filepath.Join(dir, who.lockName()))
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	p.holder = holder
	if err := p.openOrCreate(o); err != nil {
		holder.Close()
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	return p, nil
}

func (p *Pool) read() error {
	return recordfile.Read(p.fs, filepath.Join(p.dir, poolFile), kindPool, &p.rec)
}

func (p *Pool) write(rec poolRecord) error {
	if err := recordfile.Write(p.fs, filepath.Join(p.dir, poolFile), kindPool, &rec); err != nil {
		return err
	}
	p.rec = rec
	return nil
}

func (p *Pool) openOrCreate(o poolOptions) error {
	unlock, err := p.lockRecords()
	if err != nil {
		return err
	}
	defer unlock()
	for _, sub := range []string{p.volumesDir(), p.snapshotsDir(), p.viewsDir()} {
		if err := p.fs.MkdirAll(sub); err != nil {
			return err
		}
	}
	err = p.read()
	if errors.Is(err, fs.ErrNotExist) {
		if err = o.known.check(p.fs, ""); err == nil {
			err = p.create(o)
		}
	}
	if err == nil {
		err = o.known.remember(p.fs, p.rec.ID)
	}
	if err != nil {
		return err
	}
	if err := p.placeJournals(o.journalDir); err != nil {
		return err
	}
	if err := p.fs.MkdirAll(p.GroupsDir()); err != nil {
		return err
	}
	p.FillReserve()
	return nil
}

func (p *Pool) create(o poolOptions) error {
	// Volumes without the pool's record: this is a damaged pool, or a directory of another program.
	for _, sub := range []string{p.volumesDir(), p.snapshotsDir(), p.GroupsDir()} {
		names, err := p.namesIn(sub)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return &recordfile.CorruptError{Path: filepath.Join(p.dir, poolFile), OffsetBytes: -1,
				Reason: fmt.Sprintf("it is missing, but %s holds %q: restore it, or use an empty directory", sub, names[0])}
		}
	}
	return p.write(poolRecord{ID: uuid.NewString(), JournalDir: o.journalDir, JournalDirPending: o.journalDir != ""})
}

// namesIn is what a directory holds: nothing if it is not there.
func (p *Pool) namesIn(dir string) ([]string, error) {
	names, err := p.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// Close releases the lock: another process of this kind can open the pool.
func (p *Pool) Close() error {
	if p.holder == nil {
		return nil
	}
	return p.holder.Close()
}

// ID is the pool's own, made when it was created.
func (p *Pool) ID() string { return p.rec.ID }

// Dir is the pool's directory.
func (p *Pool) Dir() string { return p.dir }

func (p *Pool) volumesDir() string          { return filepath.Join(p.dir, "volumes") }
func (p *Pool) volumeDir(id string) string  { return filepath.Join(p.volumesDir(), id) }
func (p *Pool) volumePath(id string) string { return filepath.Join(p.volumeDir(id), volumeFile) }

// VolumesDir is the directory of all volumes' directories.
func (p *Pool) VolumesDir() string { return p.volumesDir() }

// RecordPath is where the record of a volume is, or would be, for messages.
func (p *Pool) RecordPath(id string) string { return p.volumePath(id) }

// ImagePath is where a volume's image is, or would be.
func (p *Pool) ImagePath(id string) (string, error) {
	if err := ValidateID(id); err != nil {
		return "", fmt.Errorf("volume %w", err)
	}
	return filepath.Join(p.volumeDir(id), ImageFile), nil
}

// GroupsDir is the directory of all groups' directories, in the pool or in the directory of its journals.
func (p *Pool) GroupsDir() string { return groupsIn(cmp.Or(p.rec.JournalDir, p.dir)) }

// GroupDir is where a group's files are, or would be; nothing is created.
func (p *Pool) GroupDir(groupID string) (string, error) {
	if err := ValidateID(groupID); err != nil {
		return "", fmt.Errorf("group %w", err)
	}
	return filepath.Join(p.GroupsDir(), groupID), nil
}

// PreservedDir is where the preserved images of a group are, or would be: beside the volumes' images, also where the
// journals are elsewhere.
func (p *Pool) PreservedDir(groupID string) (string, error) {
	if err := ValidateID(groupID); err != nil {
		return "", fmt.Errorf("group %w", err)
	}
	return filepath.Join(p.dir, "preserved", groupID), nil
}

// checkWriter returns why this process may not change the pool, or nil.
func (p *Pool) checkWriter() error {
	if p.who == WhoReader {
		return fmt.Errorf("pool %s: %w", p.dir, ErrReadOnlyPool)
	}
	if p.rec.ID != "" {
		return p.Check()
	}
	return nil
}

// lockRecords excludes all other changes of volumes, by any process. It is held for a moment only: no caller
// reserves space under it, see create.go.
func (p *Pool) lockRecords() (unlock func(), err error) {
	if err := p.checkWriter(); err != nil { // before the lock's file is made
		return nil, err
	}
	l, err := p.locks.lock(filepath.Join(p.dir, recordsLock))
	if err != nil {
		return nil, err
	}
	return func() { l.Close() }, nil
}

// Get returns a volume's record: the caller's own copy. A volume that is not there is ErrNoVolume; a damaged record
// is a *recordfile.CorruptError.
func (p *Pool) Get(id string) (*VolumeRecord, error) {
	if err := ValidateID(id); err != nil {
		// No such volume can exist; callers hand ids through from outside.
		return nil, fmt.Errorf("%w: %w", ErrNoVolume, err)
	}
	if err := p.checkEntry(p.volumeDir(id)); err != nil {
		return nil, err
	}
	path := p.volumePath(id)
	var rec *VolumeRecord
	read := func() error {
		return recordfile.ReadStable(p.fs, path, func(data []byte) (err error) {
			rec, err = p.decode(id, data)
			return err
		})
	}
	err := read()
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := p.fs.Stat(p.volumeDir(id)); err == nil {
			// Between the two calls it may have been created; then the record is there now.
			if err = read(); !errors.Is(err, fs.ErrNotExist) {
				return rec, err
			}
			return nil, &recordfile.CorruptError{Path: path, OffsetBytes: -1,
				Reason: "it is missing, its directory is not: restore it, " +
					"or remove the directory to give the volume up"}
		}
		return nil, p.missing("volume", id, ErrNoVolume)
	}
	return rec, err
}

// checkEntry returns a *recordfile.CorruptError for a file or link in the place of a volume's or snapshot's directory.
// A link to a directory is not followed: what is removed or renamed here has to be here.
func (p *Pool) checkEntry(dir string) error {
	var unfit *vfs.UnfitError
	if err := vfs.CheckDir(p.fs, dir); errors.As(err, &unfit) {
		unfit.Reason += ": move it out of " + filepath.Dir(dir)
		return recordfile.AsCorrupt(unfit)
	}
	return nil // reading the file reports what else is wrong
}

func (p *Pool) decode(id string, data []byte) (*VolumeRecord, error) {
	rec, err := DecodeVolumeRecord(p.volumePath(id), data)
	if err == nil && rec.ID != id {
		err = &recordfile.CorruptError{Path: p.volumePath(id), OffsetBytes: -1,
			Reason: fmt.Sprintf("it is the record of volume %s", rec.ID)}
	}
	if err != nil {
		return nil, err
	}
	return rec, nil
}

// IDs returns the ids of all volumes, sorted, also of those whose record cannot be read.
func (p *Pool) IDs() ([]string, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	names, err := p.fs.ReadDir(p.volumesDir())
	return slices.DeleteFunc(names, func(name string) bool { return ValidateID(name) != nil }), err
}

// List returns all volumes, by id. When some records cannot be read it returns the others and an error that names each
// bad one; volumes that come or go meanwhile may be in the list or not.
func (p *Pool) List() ([]*VolumeRecord, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	names, err := p.fs.ReadDir(p.volumesDir())
	if err != nil {
		return nil, err
	}
	return listRecords(names, p.Get, ErrNoVolume)
}

// listRecords gets the record of each directory in names, in order, and joins the errors of those that cannot be
// read. One for which get returns missing was deleted meanwhile.
func listRecords[R any](names []string, get func(id string) (*R, error), missing error) ([]*R, error) {
	list := []*R{} // not nil: that all of them are bad is no other case than that one is
	var errs []error
	for _, name := range names {
		if ValidateID(name) != nil {
			continue // being created or deleted, or not ours
		}
		rec, err := get(name)
		switch {
		case errors.Is(err, missing):
		case err != nil:
			errs = append(errs, err)
		default:
			list = append(list, rec)
		}
	}
	return list, errors.Join(errs...)
}

// Update changes a record: read, change, write, with all other changes excluded. The record that change gets is its
// own; when it returns an error nothing is written and Update returns that error. Update returns the new record. A
// volume's id does not change and its size does not shrink; growing it is Grow's business. Change must not use the
// pool.
func (p *Pool) Update(id string, change func(*VolumeRecord) error) (*VolumeRecord, error) {
	unlock, err := p.lockRecords()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return p.update(id, change)
}

// replace replaces a record. Its size is bounded, so it cannot fill a pool, and most operations that free space begin
// with it.
func (p *Pool) replace(path string, data []byte) error {
	return p.reserve().use(func() error { return vfs.WriteFileAtomic(p.fs, path, data) })
}

func (p *Pool) update(id string, change func(*VolumeRecord) error) (*VolumeRecord, error) {
	old, err := p.Get(id)
	if err != nil {
		return nil, err
	}
	r := old.Clone()
	if err := change(r); err != nil {
		return nil, err
	}
	switch {
	case r.ID != old.ID:
		return nil, fmt.Errorf("volume %s: its id cannot be changed to %q", old.ID, r.ID)
	case r.SizeBytes < old.SizeBytes:
		return nil, old.checkGrowth(r.SizeBytes)
	}
	return r, p.store(old, r)
}

// store replaces a record that differs.
func (p *Pool) store(old, r *VolumeRecord) error {
	data, err := EncodeVolumeRecord(r)
	if err != nil {
		return err
	}
	before, err := EncodeVolumeRecord(old)
	if err != nil {
		return err
	}
	if bytes.Equal(data, before) {
		return nil
	}
	if err := p.replace(p.volumePath(r.ID), data); err != nil {
		return fmt.Errorf("update volume %s: %w", r.ID, err)
	}
	return nil
}

// Shrink makes the record of a volume that no program uses say that it is smaller; one that is not larger stays. The
// image keeps its length. It is for copies that become what their primary was before the volume grew: the caller has
// made zeros of what lies behind.
func (p *Pool) Shrink(id string, sizeBytes int64) error {
	unlock, err := p.lockRecords()
	if err != nil {
		return err
	}
	defer unlock()
	old, err := p.Get(id)
	if err != nil || old.SizeBytes <= sizeBytes {
		return err
	}
	r := old.Clone()
	if r.SizeBytes = sizeBytes; r.Validate() != nil {
		return fmt.Errorf("shrink volume %s to %d bytes: %w", id, sizeBytes, r.Validate())
	}
	return p.store(old, r)
}

// ReserveImage reserves the space that a thick image lacks. The image must not be attached or open.
func (p *Pool) ReserveImage(id string) error {
	img, err := p.OpenImage(id)
	if err != nil {
		return err
	}
	err = img.reserve()
	if cerr := img.Close(); err == nil {
		err = cerr
	}
	return err
}

// OpenImage opens a volume's image as its record says; one that is too short is ErrShortImage.
func (p *Pool) OpenImage(id string) (*Image, error) {
	r, err := p.Get(id)
	if err != nil {
		return nil, err
	}
	return p.openImage(r)
}

func (p *Pool) openImage(r *VolumeRecord) (*Image, error) {
	path, err := p.ImagePath(r.ID)
	if err != nil {
		return nil, err
	}
	return OpenImage(p.fs, path, ExpectSize(r.SizeBytes), Thick(r.Thick))
}
