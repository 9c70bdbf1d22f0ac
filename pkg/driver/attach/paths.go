package attach

import (
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// A staging or target path that is a symbolic link is resolved once, by the call that mounts on it. The stage record
// and the publication have both the given path and the resolved one. Later calls find the mount by either, also when
// the link is gone or points elsewhere by then.

// StagingPath is where a volume is staged, if it was staged on the given path, or where that path leads.
func StagingPath(rec *blockdev.VolumeRecord, given string) string {
	given = host.AbsolutePath(given)
	if rec.Stage != nil && (given == rec.Stage.GivenPath || given == rec.Stage.StagingPath) {
		return rec.Stage.StagingPath
	}
	return host.CanonicalPath(given)
}

// TargetPath is where a volume is published, if it was published on the given path, or where that path leads.
func TargetPath(published []Publication, given string) string {
	given = host.AbsolutePath(given)
	for _, p := range published {
		if given == p.GivenPath || given == p.TargetPath {
			return p.TargetPath
		}
	}
	return host.CanonicalPath(given)
}

// VolumePath is where a volume is staged or published, by the path as the CO gave it.
func (d *Attacher) VolumePath(rec *blockdev.VolumeRecord, given string) (string, error) {
	if path := StagingPath(rec, given); rec.Stage != nil && path == rec.Stage.StagingPath {
		return path, nil
	}
	published, err := d.Published(rec.ID)
	if err != nil {
		return "", err
	}
	return TargetPath(published, given), nil
}
