package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// ViewRecord is what is durable about a view of a group: the body of view.json. It is written once, and never changes.
type ViewRecord struct {
	ID string `json:"id"`
	// Name is unique among the views of a group.
	Name    string `json:"name"`
	PoolID  string `json:"poolID"`
	GroupID string `json:"groupID"`
	// Timeline and Ordinal are the instant that the view shows.
	Timeline string `json:"timeline"`
	Ordinal  uint64 `json:"ordinal"`
	// PointUnixNanos is when the write with that ordinal happened, by the wall clock of its site; 0 where it is not known.
	PointUnixNanos   int64 `json:"pointUnixNanos,omitempty"`
	CreatedUnixNanos int64 `json:"createdUnixNanos"`
	// Segment and Offset are the place in the group's journal behind the last record that the view shows.
	Segment  uint64 `json:"segment"`
	Offset   int64  `json:"offset"`
	Writable bool   `json:"writable,omitempty"`
	// Test marks the view of a test failover.
	Test bool `json:"test,omitempty"`
	// LimitBytes is the most that the view may hold of its own: what apply has overwritten since, and its own writes.
	LimitBytes int64        `json:"limitBytes"`
	Volumes    []ViewVolume `json:"volumes"`
	// Epoch is the one that the view of a shard shows (epoch.ID), and Shards are the numbers of all shards that were
	// opened at it together, under the same name. Empty for a view of one group alone.
	Epoch  string   `json:"epoch,omitempty"`
	Shards []uint16 `json:"shards,omitempty"`
}

// ViewVolume is a member of the group as a view shows it.
type ViewVolume struct {
	VolumeID       string `json:"volumeID"`
	Index          uint32 `json:"index"`
	SizeBytes      int64  `json:"sizeBytes"`
	BlockSizeBytes int64  `json:"blockSizeBytes"`
	FSType         string `json:"fsType,omitempty"`
}

// Bounds of a view.
const (
	MaxViewNameBytes = 63
	maxViewVolumes   = 1 << 16
)

// Validate says what is wrong with a record.
func (r *ViewRecord) Validate() error {
	if err := ValidateID(r.ID); err != nil {
		return fmt.Errorf("view %w", err)
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("view %s: %s", r.ID, fmt.Sprintf(format, args...))
	}
	switch {
	case ValidateID(r.Name) != nil || len(r.Name) > MaxViewNameBytes:
		return fail("name %.80q: want 1 to %d of a-z, 0-9 and -, not beginning with -", r.Name, MaxViewNameBytes)
	case r.PoolID == "" || r.GroupID == "":
		return fail("pool or group is missing")
	case r.LimitBytes <= 0 || r.Offset < 0:
		return fail("limit %d or offset %d is impossible", r.LimitBytes, r.Offset)
	case len(r.Volumes) == 0 || len(r.Volumes) > maxViewVolumes:
		return fail("%d volumes", len(r.Volumes))
	}
	seen := map[uint32]bool{}
	for _, v := range r.Volumes {
		if err := ValidateID(v.VolumeID); err != nil {
			return fail("volume %v", err)
		}
		if err := checkShape(v.SizeBytes, v.BlockSizeBytes, OrderFlush); err != nil {
			return fail("volume %s: %v", v.VolumeID, err)
		}
		if seen[v.Index] {
			return fail("index %d is there twice", v.Index)
		}
		seen[v.Index] = true
	}
	return nil
}

// Errors about views, to be matched with errors.Is.
var ErrNoView = fmt.Errorf("no such view: %w", fs.ErrNotExist)

const (
	viewFile = "view.json"
	kindView = "view"
)

func (p *Pool) viewsDir() string { return filepath.Join(p.dir, "views") }

// ViewDir is where a view's files are, or would be.
func (p *Pool) ViewDir(id string) string { return filepath.Join(p.viewsDir(), id) }

// CreateView makes a view's directory with its record and with what fill puts there, durably. It is there as a whole,
// or, after an error or a crash, not at all.
func (p *Pool) CreateView(rec ViewRecord, fill func(dir string) error) error {
	if err := rec.Validate(); err != nil {
		return err
	}
	data, err := recordfile.Encode(kindView, &rec)
	if err != nil {
		return err
	}
	unlock, err := p.lockRecords()
	if err != nil {
		return err
	}
	defer unlock()
	err = p.makeDir(p.viewsDir(), rec.ID, func(dir string) error {
		if err := fill(dir); err != nil {
			return err
		}
		return vfs.WriteFileAtomic(p.fs, filepath.Join(dir, viewFile), data)
	})
	if err != nil {
		return fmt.Errorf("create view %s: %w", rec.Name, err)
	}
	return nil
}

// GetView returns a view's record. One that is not there is ErrNoView; a damaged record is a *recordfile.CorruptError.
func (p *Pool) GetView(id string) (*ViewRecord, error) {
	if err := ValidateID(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoView, err)
	}
	if err := p.checkEntry(p.ViewDir(id)); err != nil {
		return nil, err
	}
	path := filepath.Join(p.ViewDir(id), viewFile)
	r := &ViewRecord{}
	err := recordfile.Read(p.fs, path, kindView, r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, p.missing("view", id, ErrNoView)
	}
	if err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, &recordfile.CorruptError{Path: path, OffsetBytes: -1, Reason: err.Error()}
	}
	if r.ID != id {
		return nil, &recordfile.CorruptError{Path: path, OffsetBytes: -1, Reason: "it is the record of view " + r.ID}
	}
	return r, nil
}

// ListViews returns all views, by id. When some records cannot be read it returns the others and an error that names
// each bad one.
func (p *Pool) ListViews() ([]*ViewRecord, error) {
	names, err := p.fs.ReadDir(p.viewsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return listRecords(names, p.GetView, ErrNoView)
}

// ViewPaths are the files in which a view holds what is its own.
func (p *Pool) ViewPaths(r *ViewRecord) []string {
	var paths []string
	for _, v := range r.Volumes {
		paths = append(paths, filepath.Join(p.ViewDir(r.ID), v.ImageName()), filepath.Join(p.ViewDir(r.ID), v.LogName()))
	}
	slices.Sort(paths)
	return paths
}

// ImageName and LogName are the names of a volume's files in the directory of a view: its own extents, and which they
// are.
func (v *ViewVolume) ImageName() string { return fmt.Sprintf("%d.image", v.Index) }

// LogName is the name of the log of extents; see ImageName.
func (v *ViewVolume) LogName() string { return fmt.Sprintf("%d.extents", v.Index) }

// DeleteView removes a view and gives its space back, also on a full file system. One that is not there is a success.
func (p *Pool) DeleteView(id string) error {
	if err := ValidateID(id); err != nil {
		return fmt.Errorf("view %w", err)
	}
	return p.removeDir(p.viewsDir(), id, "view")
}
