package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
)

// SnapshotState is where a snapshot is in its life.
type SnapshotState string

const (
	// SnapshotCreating: its record is there, its image may not be, or is of no use.
	SnapshotCreating SnapshotState = "creating"
	// SnapshotCopying: what it holds is fixed, and is being copied.
	SnapshotCopying SnapshotState = "copying"
	SnapshotReady   SnapshotState = "ready"
	// SnapshotFailed: it will never be ready; FailReason says why.
	SnapshotFailed SnapshotState = "failed"
)

// SnapshotMethod is how a snapshot's image came about.
type SnapshotMethod string

const (
	// MethodReflink: it shares blocks with the volume's image.
	MethodReflink SnapshotMethod = "reflink"
	// MethodCopy: what the volume's image held was copied.
	MethodCopy SnapshotMethod = "copy"
)

// SnapshotCut says where in a group's history a snapshot was taken. The zero value is that of a volume without a group.
type SnapshotCut struct {
	GroupID   string `json:"groupID,omitempty"`
	Group     string `json:"group,omitempty"`
	Timeline  string `json:"timeline,omitempty"`
	Ordinal   uint64 `json:"ordinal,omitempty"`
	UnixNanos int64  `json:"unixNanos,omitempty"`
	// Epoch is the one that a shard was cut at together with others (epoch.ID); empty for a cut of one group alone.
	Epoch string `json:"epoch,omitempty"`
}

// SnapshotTail says that a snapshot holds what a site had written past a fork of its group, when the site gave way. The
// snapshots of one tail are of one ordinal: that of their cut.
type SnapshotTail struct {
	ID string `json:"id"`
	// ForkOrdinal is the last ordinal that the other site has too.
	ForkOrdinal uint64 `json:"forkOrdinal"`
	// Writes, Bytes and times are of the writes past the fork; Partial: of the newest of them only.
	Writes         uint64 `json:"writes"`
	Bytes          uint64 `json:"bytes"`
	FirstUnixNanos int64  `json:"firstUnixNanos,omitempty"`
	LastUnixNanos  int64  `json:"lastUnixNanos,omitempty"`
	Partial        bool   `json:"partial,omitempty"`
}

// SnapshotRecord is what is durable about a snapshot; the body of snapshot.json.
type SnapshotRecord struct {
	ID             string `json:"id"`
	Name           string `json:"name"` // as the CSI request named it
	SourceVolumeID string `json:"sourceVolumeID"`
	// GroupSnapshotID and GroupSnapshotName are empty for a snapshot that was asked for alone.
	GroupSnapshotID   string `json:"groupSnapshotID,omitempty"`
	GroupSnapshotName string `json:"groupSnapshotName,omitempty"`

	// What the volume was at the time.
	SizeBytes      int64         `json:"sizeBytes"`
	BlockSizeBytes int64         `json:"blockSizeBytes"`
	FSType         string        `json:"fsType,omitempty"`
	Format         *FormatRecord `json:"format,omitempty"`
	Thick          bool          `json:"thick,omitempty"`
	Replicable     bool          `json:"replicable,omitempty"`
	Order          Order         `json:"order,omitempty"`

	State       SnapshotState  `json:"state"`
	FailReason  string         `json:"failReason,omitempty"`
	Method      SnapshotMethod `json:"method,omitempty"`
	CopiedBytes int64          `json:"copiedBytes,omitempty"`
	// Freezing: the volume's file system is being frozen for the snapshot, or is frozen. It is set before and cleared
	// after.
	Freezing bool        `json:"freezing,omitempty"`
	Cut      SnapshotCut `json:"cut,omitzero"`
	// Tail is set for a snapshot that a group made when its site gave way; nil for all others.
	Tail *SnapshotTail `json:"tail,omitempty"`
	// ParentID is the snapshot of the same volume that its changed blocks are relative to; empty for none.
	ParentID         string            `json:"parentID,omitempty"`
	Parameters       map[string]string `json:"parameters,omitempty"`
	CreatedUnixNanos int64             `json:"createdUnixNanos"`
}

// Validate says what is wrong with a record.
func (r *SnapshotRecord) Validate() error {
	if err := ValidateID(r.ID); err != nil {
		return fmt.Errorf("snapshot %w", err)
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("snapshot %s: %s", r.ID, fmt.Sprintf(format, args...))
	}
	if err := ValidateID(r.SourceVolumeID); err != nil {
		return fail("source volume %v", err)
	}
	if err := checkShape(r.SizeBytes, r.BlockSizeBytes, r.Order); err != nil {
		return fail("%v", err)
	}
	if err := checkContent(r.FSType, r.Format); err != nil {
		return fail("%v", err)
	}
	switch {
	case !slices.Contains([]SnapshotState{SnapshotCreating, SnapshotCopying, SnapshotReady, SnapshotFailed}, r.State):
		return fail("state %q is unknown", r.State)
	case !slices.Contains([]SnapshotMethod{"", MethodReflink, MethodCopy}, r.Method):
		return fail("method %q is unknown", r.Method)
	case r.ParentID == r.ID:
		return fail("it is its own parent")
	case r.ParentID != "" && ValidateID(r.ParentID) != nil:
		return fail("parent %v", ValidateID(r.ParentID))
	}
	return nil
}

// Errors about snapshots, to be matched with errors.Is. One that is missing also matches fs.ErrNotExist, one that is
// there already fs.ErrExist.
var (
	ErrNoSnapshot     = fmt.Errorf("no such snapshot: %w", fs.ErrNotExist)
	ErrSnapshotExists = fmt.Errorf("snapshot exists: %w", fs.ErrExist)
)

const (
	snapshotFile = "snapshot.json"
	kindSnapshot = "snapshot"
)

func (p *Pool) snapshotsDir() string          { return filepath.Join(p.dir, "snapshots") }
func (p *Pool) snapshotDir(id string) string  { return filepath.Join(p.snapshotsDir(), id) }
func (p *Pool) snapshotPath(id string) string { return filepath.Join(p.snapshotDir(id), snapshotFile) }

// SnapshotDir is where a snapshot's files are, or would be.
func (p *Pool) SnapshotDir(id string) (string, error) {
	if err := ValidateID(id); err != nil {
		return "", fmt.Errorf("snapshot %w", err)
	}
	return p.snapshotDir(id), nil
}

// SnapshotImagePath is where a snapshot's image is, or would be.
func (p *Pool) SnapshotImagePath(id string) (string, error) {
	dir, err := p.SnapshotDir(id)
	return filepath.Join(dir, ImageFile), err
}

// CreateSnapshot makes a snapshot's record, without an image, and returns it with defaults filled in: state creating,
// the present time. It is durable, or, after an error or a crash, not there. An id that is taken is
// ErrSnapshotExists.
func (p *Pool) CreateSnapshot(rec SnapshotRecord) (*SnapshotRecord, error) {
	if rec.State == "" {
		rec.State = SnapshotCreating
	}
	if rec.CreatedUnixNanos == 0 {
		rec.CreatedUnixNanos = time.Now().UnixNano()
	}
	if err := rec.Validate(); err != nil {
		return nil, err
	}
	data, err := recordfile.Encode(kindSnapshot, &rec)
	if err != nil {
		return nil, err
	}
	err = p.makeRecordDir(p.snapshotsDir(), rec.ID, snapshotFile, data, "snapshot", ErrSnapshotExists)
	if err != nil {
		return nil, err
	}
	return p.GetSnapshot(rec.ID)
}

// GetSnapshot returns a snapshot's record: the caller's own copy. One that is not there is ErrNoSnapshot; a damaged
// record is a *recordfile.CorruptError.
func (p *Pool) GetSnapshot(id string) (*SnapshotRecord, error) {
	if err := ValidateID(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSnapshot, err)
	}
	if err := p.checkEntry(p.snapshotDir(id)); err != nil {
		return nil, err
	}
	r := &SnapshotRecord{}
	err := recordfile.Read(p.fs, p.snapshotPath(id), kindSnapshot, r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, p.missing("snapshot", id, ErrNoSnapshot)
	}
	if err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, &recordfile.CorruptError{Path: p.snapshotPath(id), OffsetBytes: -1, Reason: err.Error()}
	}
	if r.ID != id {
		return nil, &recordfile.CorruptError{Path: p.snapshotPath(id), OffsetBytes: -1,
			Reason: fmt.Sprintf("it is the record of snapshot %s", r.ID)}
	}
	return r, nil
}

// ListSnapshots returns all snapshots, by id. When some records cannot be read it returns the others and an error
// that names each bad one.
func (p *Pool) ListSnapshots() ([]*SnapshotRecord, error) {
	ids, err := p.SnapshotIDs()
	if err != nil || ids == nil {
		return nil, err
	}
	return listRecords(ids, p.GetSnapshot, ErrNoSnapshot)
}

// SnapshotIDs returns the ids of all snapshots, sorted, also of those whose record cannot be read.
func (p *Pool) SnapshotIDs() ([]string, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	names, err := p.fs.ReadDir(p.snapshotsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return slices.DeleteFunc(names, func(name string) bool { return ValidateID(name) != nil }), err
}

// UpdateSnapshot changes a record: read, change, write, with all other changes of records excluded. When change
// returns an error nothing is written and UpdateSnapshot returns that error. A snapshot's id and volume do not
// change. Change must not use the pool.
func (p *Pool) UpdateSnapshot(id string, change func(*SnapshotRecord) error) (*SnapshotRecord, error) {
	unlock, err := p.lockRecords()
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := p.GetSnapshot(id)
	if err != nil {
		return nil, err
	}
	volume := r.SourceVolumeID
	before, err := recordfile.Encode(kindSnapshot, r)
	if err != nil {
		return nil, err
	}
	if err := change(r); err != nil {
		return nil, err
	}
	if r.ID != id || r.SourceVolumeID != volume {
		return nil, fmt.Errorf("snapshot %s of volume %s: it cannot become snapshot %s of volume %s", id, volume, r.ID,
			r.SourceVolumeID)
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	data, err := recordfile.Encode(kindSnapshot, r)
	if err != nil || bytes.Equal(data, before) {
		return r, err
	}
	if err := p.replace(p.snapshotPath(id), data); err != nil {
		return nil, fmt.Errorf("update snapshot %s: %w", id, err)
	}
	return r, nil
}

// DeleteSnapshot removes a snapshot in any state, also one whose record is damaged. One that is not there is a
// success. The caller makes sure that its image is not being made.
func (p *Pool) DeleteSnapshot(id string) error {
	if err := ValidateID(id); err != nil {
		return fmt.Errorf("snapshot %w", err)
	}
	return p.removeDir(p.snapshotsDir(), id, "snapshot")
}
