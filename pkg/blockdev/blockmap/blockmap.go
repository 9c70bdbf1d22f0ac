// Package blockmap says which ranges of an image hold data, and in which ranges two images of a volume may differ, from
// what the file system knows about them and never from their contents.
//
// Every answer is a superset: a range may be named that is zeros, or the same in both. One that is not named is
// zeros, or the same. In doubt a range is named.
//
// A map is a function that finds its next range, so that a map of any size costs no memory, and reading can begin
// anywhere. It knows nothing of snapshots, their order, or change sets of groups, which a caller brings as one more
// Map.
//
// A Map is for one goroutine. The images must not be written to.
package blockmap

import (
	"errors"
	"io"
	"math"
	"sort"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Map returns the first range [start, end) that has a byte at or behind off, cut so that it begins at off or behind, or
// io.EOF. What lies between off and start is not in the map. Two ranges in a row may touch.
type Map func(off int64) (start, end int64, err error)

// Allocated is where a file may hold other than zeros.
func Allocated(f vfs.File) Map { return remember(f.NextData) }

// remember caches the last answer.
func remember(m Map) Map {
	from, start, end := int64(0), int64(0), int64(-1) // the answer holds for every offset in [from, end)
	return func(off int64) (int64, int64, error) {
		if off < from || off >= end {
			s, e, err := m(off)
			if err != nil {
				return 0, 0, err
			}
			from, start, end = off, s, e
		}
		return max(start, off), end, nil
	}
}

// Union is what is in a or in b. Where both begin the longer range is returned.
func Union(a, b Map) Map {
	return func(off int64) (int64, int64, error) {
		s, e, err := a(off)
		if err != nil && err != io.EOF {
			return 0, 0, err
		}
		s2, e2, err2 := b(off)
		if err2 == io.EOF {
			return s, e, err
		}
		if err2 != nil {
			return 0, 0, err2
		}
		if err == io.EOF || s2 < s || s2 == s && e2 > e {
			return s2, e2, nil
		}
		return s, e, nil
	}
}

// Differing is where base and target, two images of the same volume at different times, may differ. Where the file
// system shares blocks between files and says where they are, what they share is left out; elsewhere it is all that
// either of them has allocated, since what neither has is zeros in both.
func Differing(base, target vfs.File) (Map, error) {
	b, err := list(base)
	if errors.Is(err, errors.ErrUnsupported) {
		return Union(Allocated(base), Allocated(target)), nil
	}
	if err != nil {
		return nil, err
	}
	t, err := list(target)
	if err != nil {
		return nil, err
	}
	return unshared(b, t), nil
}

// list returns the extents of a file, or errors.ErrUnsupported at once.
func list(f vfs.File) (*extents, error) {
	l, ok := f.(vfs.ExtentLister)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	if _, err := l.Extents(0); err != nil {
		return nil, err
	}
	return &extents{next: l.Extents}, nil
}

// extents finds the extents of a file, with the last batch that the file system gave kept.
type extents struct {
	next  func(off int64) ([]vfs.Extent, error)
	from  int64 // the batch has all extents that end behind from, up to the end of its last
	batch []vfs.Extent
	ended bool // there is none that ends behind from
}

// at returns the first extent that ends behind off; ok is false when there is none.
func (x *extents) at(off int64) (e vfs.Extent, ok bool, err error) {
	if x.ended && off >= x.from {
		return vfs.Extent{}, false, nil
	}
	if n := len(x.batch); n == 0 || off < x.from || off >= x.batch[n-1].End() {
		batch, err := x.next(off)
		if err != nil {
			return vfs.Extent{}, false, err
		}
		x.from, x.batch, x.ended = off, batch, len(batch) == 0
		if x.ended {
			return vfs.Extent{}, false, nil
		}
	}
	i := sort.Search(len(x.batch), func(i int) bool { return x.batch[i].End() > off })
	return x.batch[i], true, nil
}

// unshared is what base or target have an extent for, and do not share.
func unshared(base, target *extents) Map {
	return func(off int64) (int64, int64, error) {
		for {
			b, inBase, err := base.at(off)
			if err != nil {
				return 0, 0, err
			}
			t, inTarget, err := target.at(off)
			if err != nil {
				return 0, 0, err
			}
			if !inBase && !inTarget {
				return 0, 0, io.EOF
			}
			// Up to end, either both have one extent or one of them has a hole.
			end := int64(math.MaxInt64)
			for _, e := range []struct {
				vfs.Extent
				ok bool
			}{{b, inBase}, {t, inTarget}} {
				if e.ok && e.Off > off {
					end = min(end, e.Off)
				} else if e.ok {
					end = min(end, e.End())
				}
			}
			inBase, inTarget = inBase && b.Off <= off, inTarget && t.Off <= off
			switch {
			case !inBase && !inTarget:
			case inBase && inTarget && shares(b, t, off):
			default:
				return off, end, nil
			}
			off = end
		}
	}
}

// shares reports whether two extents that cover off have the same blocks there, and so to the nearer end of them.
func shares(b, t vfs.Extent, off int64) bool {
	return b.Shared && t.Shared && b.Physical+(off-b.Off) == t.Physical+(off-t.Off)
}

// Window is a map's part from off to size, with ranges that touch put together and their bounds rounded outwards to a
// multiple of unit, but not past size, and, for the first one, not to before off's own unit. It is for one pass: each
// call continues behind the last range.
func Window(m Map, off, size, unit int64) (next func() (start, end int64, err error)) {
	at := off / unit * unit
	return func() (int64, int64, error) {
		start, end, err := m(at)
		if err == nil && start >= size {
			err = io.EOF
		}
		if err != nil {
			return 0, 0, err
		}
		start = start / unit * unit
		for end < size {
			end = roundUp(end, unit)
			s, e, err := m(end)
			if err == io.EOF || err == nil && s >= roundUp(end+1, unit) {
				break
			}
			if err != nil {
				return 0, 0, err
			}
			end = e
		}
		end = min(roundUp(end, unit), size)
		at = end
		return start, end, nil
	}
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
