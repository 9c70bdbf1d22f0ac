package blockdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Reserving the space of a thick image can take minutes. The lock of the records is not held meanwhile: a failover
// waits for that lock. Each image has a lock of its own, a flock of its file, which is held while its space is
// reserved.
//
//	create    lock the records: make <id>.creating and lock the image in it
//	          without the records' lock: make the image and the record in it
//	          lock the records: rename it to <id>
//	grow      lock the image: make it larger
//	          lock the records: put the new size into the record
//
// A crash leaves a directory <id>.creating whose image is not locked, or an image larger than its record says. Sweep
// removes the first, and the next Grow continues with the second. The records' lock is never awaited with an
// image's lock wanted: who holds the records' lock only tries an image's lock.

// Create makes a volume of zeros and returns its record with defaults filled in. It is durable, or, after an error or a
// crash, not there. An id that is taken is ErrVolumeExists. While the same id is being created, Create waits for that.
func (p *Pool) Create(rec VolumeRecord) (*VolumeRecord, error) {
	r := rec.Clone()
	r.setDefaults()
	if r.CreatedUnixNanos == 0 {
		r.CreatedUnixNanos = time.Now().UnixNano()
	}
	data, err := EncodeVolumeRecord(r)
	if err != nil {
		return nil, err
	}
	tmp := p.volumeDir(r.ID) + creatingSuffix
	image, err := p.claimVolume(r.ID, tmp)
	if errors.Is(err, ErrVolumeExists) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", r.ID, err)
	}
	defer image.Close()
	err = p.fillVolume(tmp, r, data)
	if err == nil {
		err = p.nameVolume(r.ID, tmp)
	}
	if err != nil {
		p.giveUp(tmp)
		return nil, fmt.Errorf("create volume %s: %w", r.ID, err)
	}
	return r, nil
}

// giveUp removes the directory of a volume that cannot be created; Sweep gets what is left. The caller holds the
// image's lock. The records are locked, so that no other call begins with the directory while it is removed.
func (p *Pool) giveUp(tmp string) {
	if unlock, err := p.lockRecords(); err == nil {
		_ = p.fs.RemoveAll(tmp)
		unlock()
	}
}

// claimVolume makes the directory in which a volume is created, and returns the lock of the image in it.
func (p *Pool) claimVolume(id, tmp string) (io.Closer, error) {
	path := filepath.Join(tmp, ImageFile)
	for {
		image, err := p.tryClaim(id, tmp, path)
		if !errors.Is(err, ErrLocked) {
			return image, err
		}
		// Another call creates the same volume. The directory may be gone by now: it is looked at again in any case.
		other, err := p.locks.lock(path)
		if err == nil {
			other.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// tryClaim is claimVolume without waiting: ErrLocked while another call creates the same volume.
func (p *Pool) tryClaim(id, tmp, path string) (io.Closer, error) {
	unlock, err := p.lockRecords()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := p.fs.Stat(p.volumeDir(id)); err == nil {
		return nil, fmt.Errorf("volume %s: %w", id, ErrVolumeExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if p.beingCreated(tmp) {
		return nil, ErrLocked
	}
	if err := p.fs.RemoveAll(tmp); err != nil { // of a creation that was interrupted
		return nil, err
	}
	if err := p.fs.MkdirAll(tmp); err != nil {
		return nil, err
	}
	image, err := p.locks.tryLock(path)
	if err != nil {
		_ = p.fs.RemoveAll(tmp)
		return nil, err
	}
	return image, nil
}

// beingCreated reports whether a call makes a volume in a directory now. The caller holds the records' lock.
func (p *Pool) beingCreated(tmp string) bool {
	if _, err := p.fs.Stat(tmp); err != nil {
		return false
	}
	image, err := p.locks.tryLock(filepath.Join(tmp, ImageFile))
	if err == nil {
		image.Close()
	}
	return errors.Is(err, ErrLocked)
}

// fillVolume makes what is in a volume's directory, durably. It removes nothing: the image's file is the lock.
func (p *Pool) fillVolume(dir string, r *VolumeRecord, record []byte) error {
	path := filepath.Join(dir, ImageFile)
	f, err := p.fs.Create(path)
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	img, err := imageOf(p.fs, path, f, r.SizeBytes, r.Thick)
	if err != nil {
		return err
	}
	if err := img.Close(); err != nil {
		return err
	}
	return vfs.WriteFileAtomic(p.fs, filepath.Join(dir, volumeFile), record)
}

// nameVolume gives a volume's directory its name, which is the instant the volume comes into being.
func (p *Pool) nameVolume(id, tmp string) error {
	unlock, err := p.lockRecords()
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.fs.Rename(tmp, p.volumeDir(id)); err != nil {
		return err
	}
	return p.fs.SyncDir(p.volumesDir())
}

// Grow makes a volume's image and then its record larger. It can be repeated; the size it has already is a success. An
// Image that is open elsewhere has to be grown by its owner.
func (p *Pool) Grow(id string, sizeBytes int64) (*VolumeRecord, error) {
	if err := p.checkWriter(); err != nil {
		return nil, err
	}
	before, err := p.Get(id)
	if err != nil {
		return nil, err
	}
	// The image gets no size that its record cannot have.
	if err := before.checkGrowth(sizeBytes); err != nil {
		return nil, err
	}
	if err := p.growImage(before, sizeBytes); err != nil {
		return nil, err
	}
	return p.Update(id, func(r *VolumeRecord) error {
		if r.CreatedUnixNanos != before.CreatedUnixNanos {
			return fmt.Errorf("volume %s: it was deleted and created again while it grew; try again", id)
		}
		r.SizeBytes = sizeBytes
		return nil
	})
}

// checkGrowth says why a volume cannot get a size.
func (r *VolumeRecord) checkGrowth(sizeBytes int64) error {
	if sizeBytes < r.SizeBytes {
		return fmt.Errorf("volume %s: it cannot shrink: %d bytes is less than its %d", r.ID, sizeBytes, r.SizeBytes)
	}
	grown := r.Clone()
	grown.SizeBytes = sizeBytes
	return grown.Validate()
}

func (p *Pool) growImage(r *VolumeRecord, sizeBytes int64) error {
	img, err := p.openImage(r)
	if err != nil {
		return err
	}
	lock, err := p.locks.lock(img.Path())
	if err == nil {
		err = img.Grow(sizeBytes)
		lock.Close()
	}
	if cerr := img.Close(); err == nil {
		err = cerr
	}
	return err
}
