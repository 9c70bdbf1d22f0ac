package host

import (
	"os"
	"path/filepath"
	"strings"
)

// maxLinks is how many links a path may lead through, as in the kernel.
const maxLinks = 40

// CanonicalPath is a path as the mount table has it: absolute and without symbolic links. Of the last element nothing
// is asked but whether it is a link: it may be a mount that hangs, or whose file system is stopped and answers every
// other question with an error.
func CanonicalPath(path string) string {
	path = AbsolutePath(path)
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
			return CanonicalDir(target)
		}
	}
	return filepath.Clean(path)
}

func AbsolutePath(path string) string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return filepath.Clean(path)
	}
	return absolute
}

// CanonicalDir is a directory's path without symbolic links, or, for one that is not there, made absolute.
func CanonicalDir(path string) string {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return CanonicalPath(path)
	}
	return AbsolutePath(resolved)
}
