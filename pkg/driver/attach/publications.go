package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Publication is one successful, or begun, NodePublishVolume. What it says cannot all be read back from the mount
// table: not the access mode, and not whether a mount found on a target is the one that was asked for.
type Publication struct {
	TargetPath   string   `json:"targetPath"`          // without symbolic links
	GivenPath    string   `json:"givenPath,omitempty"` // as the CO named it
	ReadOnly     bool     `json:"readOnly"`
	AccessMode   string   `json:"accessMode"`
	Block        bool     `json:"block"`
	FSType       string   `json:"fsType,omitempty"`
	MountOptions []string `json:"mountOptions,omitempty"`
}

// SameArgs compares everything but the paths.
func (p Publication) SameArgs(q Publication) bool {
	return p.ReadOnly == q.ReadOnly && p.AccessMode == q.AccessMode && p.Block == q.Block && p.FSType == q.FSType &&
		capability.SameOptions(p.MountOptions, q.MountOptions)
}

// publications keeps each volume's publications in <pool>/publications/<volume id>.json, replaced atomically:
//
//	{"version": 1, "publications": [
//	  {"targetPath": "...", "readOnly": false, "accessMode": "SINGLE_NODE_WRITER", "block": false}]}
//
// An entry is written before the mount and removed after the unmount, so it may be there without a mount, never the
// other way round. It is the driver's own file and not part of the volume record because the record belongs to both
// processes of a site and, in part, to the peer; this is about one node's mount table.
//
// Calls for one volume must not run at the same time; those for different ones may.
type publications struct {
	fs  vfs.FS
	dir string
}

const (
	publicationsVersion  = 1
	maxPublicationsBytes = 16 << 20 // some 10 000 targets
)

type publicationsFile struct {
	Version      int           `json:"version"`
	Publications []Publication `json:"publications"`
}

// OpenPublications creates the directory.
func OpenPublications(fsys vfs.FS, poolDir string) (*publications, error) {
	dir := filepath.Join(poolDir, "publications")
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("create %s: %w", dir, err)
	}
	return &publications{fs: fsys, dir: dir}, nil
}

func (p *publications) Path(volumeID string) string {
	return filepath.Join(p.dir, volumeID+".json")
}

// List returns a volume's publications; none for a volume that has no file.
func (p *publications) List(volumeID string) ([]Publication, error) {
	path := p.Path(volumeID)
	data, err := vfs.ReadFile(p.fs, path, maxPublicationsBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var file publicationsFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%s is not a publication record: %w; unmount the volume's targets and remove the file", path,
			err)
	}
	if file.Version != publicationsVersion {
		return nil, fmt.Errorf("%s has version %d, this driver knows %d: run the driver that wrote it", path, file.Version,
			publicationsVersion)
	}
	return file.Publications, nil
}

// Put adds a publication, or replaces the one of its target path.
func (p *publications) Put(volumeID string, entry Publication) error {
	list, err := p.List(volumeID)
	if err != nil {
		return err
	}
	return p.write(volumeID, append(Without(list, entry.TargetPath), entry))
}

// Remove takes a target path out. One that is not in is not an error. Nor is it that there is no space for the rest: an
// entry without its mount says nothing.
func (p *publications) Remove(volumeID, targetPath string) error {
	list, err := p.List(volumeID)
	if err != nil {
		return err
	}
	rest := Without(list, targetPath)
	if len(rest) == len(list) {
		return nil
	}
	if err := p.write(volumeID, rest); !vfs.NoSpace(err) {
		return err
	}
	klog.InfoS("A target path that nothing is mounted on stays in the record of publications: the pool is full", "volume",
		volumeID, "target", targetPath)
	return nil
}

// Forget removes all of a volume's publications.
func (p *publications) Forget(volumeID string) error {
	return p.write(volumeID, nil)
}

func (p *publications) write(volumeID string, list []Publication) error {
	path := p.Path(volumeID)
	if len(list) == 0 {
		if err := vfs.RemoveAtomic(p.fs, path); err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		return nil
	}
	data, err := json.Marshal(publicationsFile{Version: publicationsVersion, Publications: list})
	if err != nil {
		return err
	}
	if err := vfs.WriteFileAtomic(p.fs, path, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func Without(list []Publication, targetPath string) []Publication {
	return slices.DeleteFunc(slices.Clone(list), func(q Publication) bool { return q.TargetPath == targetPath })
}
