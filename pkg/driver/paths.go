package driver

import (
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// A staging or target path that is a symbolic link is resolved once, by the call that mounts on it. The stage record and the publication
// keep the path as it was given beside the one that was mounted on, so that later calls find the mount by either, also when the link
// is gone or leads elsewhere by then.

// stagingPath is where a volume is staged, if it was staged on the given path, or where that path leads.
func stagingPath(rec *blockdev.VolumeRecord, given string) string {
	given = host.AbsolutePath(given)
	if rec.Stage != nil && (given == rec.Stage.GivenPath || given == rec.Stage.StagingPath) {
		return rec.Stage.StagingPath
	}
	return host.CanonicalPath(given)
}

// targetPath is where a volume is published, if it was published on the given path, or where that path leads.
func targetPath(published []publication, given string) string {
	given = host.AbsolutePath(given)
	for _, p := range published {
		if given == p.GivenPath || given == p.TargetPath {
			return p.TargetPath
		}
	}
	return host.CanonicalPath(given)
}

// volumePath is where a volume is staged or published, by the path as the CO gave it.
func (d *Driver) volumePath(rec *blockdev.VolumeRecord, given string) (string, error) {
	if path := stagingPath(rec, given); rec.Stage != nil && path == rec.Stage.StagingPath {
		return path, nil
	}
	published, err := d.published(rec.ID)
	if err != nil {
		return "", err
	}
	return targetPath(published, given), nil
}
