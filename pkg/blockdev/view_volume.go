package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// A volume of a view can be a volume of the node, too, so that the driver stages and publishes it. Its record is in the
// pool as that of every volume, and it has no image: its device is over the file that the replicator serves for the
// view. Its id follows from the view, so that one volume of a view is one volume of the node.

// ViewRef names a volume of a view.
type ViewRef struct {
	ViewID string `json:"viewID"`
	Index  uint32 `json:"index"`
	// Group and Name are those of the view, as the replicator wants them.
	Group string `json:"group"`
	Name  string `json:"name"`
	// Writable is what the view was opened as.
	Writable bool `json:"writable,omitempty"`
}

// ServedDir is the directory, below that of the shims, in which the replicator serves the volumes of views: each in a
// directory that has its ViewVolumeID for a name.
const ServedDir = ".views"

const viewVolumePrefix = "view-"

// ViewVolumeID is the id of a view's volume, by the index of the member that it shows: what CSI calls it, and what the
// keeper knows its descriptor by.
func ViewVolumeID(viewID string, index uint32) string {
	return fmt.Sprintf("%s%s-%d", viewVolumePrefix, viewID, index)
}

// ParseViewVolumeID is the reverse of ViewVolumeID.
func ParseViewVolumeID(id string) (viewID string, index uint32, ok bool) {
	rest, ok := strings.CutPrefix(id, viewVolumePrefix)
	at := strings.LastIndexByte(rest, '-')
	if !ok || at < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(rest[at+1:], 10, 32)
	return rest[:at], uint32(n), err == nil && ViewVolumeID(rest[:at], uint32(n)) == id
}

// Volume returns a volume of a view by its index, or nil.
func (r *ViewRecord) Volume(index uint32) *ViewVolume {
	for i := range r.Volumes {
		if r.Volumes[i].Index == index {
			return &r.Volumes[i]
		}
	}
	return nil
}

// ViewFailed reports whether a view shows nothing any more: one of its logs is gone. A view that is not there is
// ErrNoView.
func (p *Pool) ViewFailed(id string) (bool, error) {
	r, err := p.GetView(id)
	if err != nil {
		return false, err
	}
	for _, v := range r.Volumes {
		_, err := p.fs.Stat(filepath.Join(p.ViewDir(id), v.LogName()))
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// CreateViewVolume makes the record of a volume that shows a view, durably, and returns it with defaults filled in. An
// id that is taken is ErrVolumeExists.
func (p *Pool) CreateViewVolume(rec VolumeRecord) (*VolumeRecord, error) {
	r := rec.WithDefaults()
	if r.View == nil {
		return nil, fmt.Errorf("create volume %s: it shows no view", r.ID)
	}
	data, err := EncodeVolumeRecord(r)
	if err != nil {
		return nil, err
	}
	if err := p.makeRecordDir(p.volumesDir(), r.ID, volumeFile, data, "volume", ErrVolumeExists); err != nil {
		return nil, err
	}
	return r, nil
}
