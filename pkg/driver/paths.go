package driver

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// A staging or target path that is a symbolic link is resolved once, by the call that mounts on it. The stage record and the publication
// keep the path as it was given beside the one that was mounted on, so that later calls find the mount by either, also when the link
// is gone or leads elsewhere by then.

// maxLinks is how many links a path may lead through, as in the kernel.
const maxLinks = 40

// canonicalPath is a path as the mount table has it: absolute and without symbolic links. Of the last element nothing is asked but
// whether it is a link: it may be a mount that hangs, or whose file system is stopped and answers every other question with an error.
func canonicalPath(path string) string {
	path = absolutePath(path)
	for range maxLinks {
		dir, base := filepath.Split(path)
		parent, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return filepath.Clean(path) // no parent, no mount
		}
		path = filepath.Join(parent, base)
		target, err := os.Readlink(path)
		if err != nil {
			return path // not a link, or not there
		}
		if !filepath.IsAbs(target) {
			target = parent + string(filepath.Separator) + target
		}
		// Not cleaned: what is above a link is not what is above its name.
		switch path = strings.TrimRight(target, string(filepath.Separator)); filepath.Base(path) {
		case ".", "..":
			return canonicalDir(target)
		}
	}
	return filepath.Clean(path)
}

func absolutePath(path string) string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return filepath.Clean(path)
	}
	return absolute
}

// canonicalDir is a directory's path without symbolic links, or, for one that is not there, made absolute.
func canonicalDir(path string) string {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return canonicalPath(path)
	}
	return absolutePath(resolved)
}

// stagingPath is where a volume is staged, if it was staged on the given path, or where that path leads.
func stagingPath(rec *blockdev.VolumeRecord, given string) string {
	given = absolutePath(given)
	if rec.Stage != nil && (given == rec.Stage.GivenPath || given == rec.Stage.StagingPath) {
		return rec.Stage.StagingPath
	}
	return canonicalPath(given)
}

// targetPath is where a volume is published, if it was published on the given path, or where that path leads.
func targetPath(published []publication, given string) string {
	given = absolutePath(given)
	for _, p := range published {
		if given == p.GivenPath || given == p.TargetPath {
			return p.TargetPath
		}
	}
	return canonicalPath(given)
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
