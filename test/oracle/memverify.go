package main

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// Comparisons of both sites run at random beside everything else. One must never find a difference that is not there,
// whatever crashes, cuts and syncs do meanwhile; and it must find the one that is.

// beginVerify begins a comparison, unless there can be none now. The next event may interrupt it.
func (w *world) beginVerify() {
	if w.a.site == nil || w.a.group() == nil {
		return
	}
	if w.a.group().Verify() == nil {
		w.tally.verifies.Add(1)
		w.h.note("a comparison of both sites begins")
	}
}

// noDifferences judges what comparisons have found so far.
func (w *world) noDifferences() error {
	for _, s := range []*memSite{w.a, w.b} {
		if s.site == nil || s.group() == nil {
			continue
		}
		if v := s.group().Status().Verify; orZero(v.DifferenceCount) > 0 {
			return w.h.violation("%s says that a comparison at ordinal %d found differences that are not there: %v", s.name,
				orZero(v.Ordinal), v.Differences)
		}
	}
	return nil
}

// verified compares both sites, which are at rest, and returns what was found.
func (w *world) verified() (found replication.VerifyStatus, err error) {
	g := w.a.group()
	before := orZero(g.Status().Verify.FinishedUnixNanos)
	err = w.eventually("a comparison at rest", func() (bool, string) {
		found = g.Status().Verify
		if orZero(found.FinishedUnixNanos) > before && !found.Running {
			return true, ""
		}
		err := g.Verify() // again, where an earlier one runs or was interrupted
		return false, fmt.Sprintf("%+v, %v", found, err)
	})
	return found, err
}

// endVerified compares both sites in the end, with one byte of an image changed behind the back of one of them.
func (w *world) endVerified() error {
	applied := func(s *memSite) bool {
		st := s.group().Status()
		return st.AppliedOrdinal == st.HeadOrdinal
	}
	err := w.eventually("everything is applied", func() (bool, string) {
		return applied(w.a) && applied(w.b), fmt.Sprintf("%v, %v", w.a.group().Status(), w.b.group().Status())
	})
	if err != nil {
		return err
	}
	if _, err := w.verified(); err != nil {
		return err
	}
	if err := w.noDifferences(); err != nil {
		return err
	}
	s := pick(w.rng, w.a, w.b)
	volumes := s.group().Volumes()
	v := volumes[w.rng.IntN(len(volumes))]
	off := w.rng.Int64N(v.Size())
	if err := s.flip(v.ID(), off); err != nil {
		return err
	}
	w.h.note("byte %d of the image of volume %s at %s was changed", off, v.ID(), s.name)
	found, err := w.verified()
	if err != nil {
		return err
	}
	if n := orZero(found.DifferenceCount); n != 1 || len(found.Differences) != 1 ||
		found.Differences[0].VolumeID != v.ID() ||
		off < found.Differences[0].OffsetBytes ||
		off >= found.Differences[0].OffsetBytes+found.Differences[0].LengthBytes {
		return w.h.violation("a byte of volume %s was changed at %d at %s, and a comparison found %d differences: %v", v.ID(),
			off, s.name, n, found.Differences)
	}
	w.tally.differences.Add(1)
	return nil
}

// flip changes one byte of an image, as a disk does.
func (s *memSite) flip(id string, off int64) error {
	path, err := s.pool.ImagePath(id)
	if err != nil {
		return err
	}
	f, err := s.fs.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, 1)
	if _, err := f.ReadAt(p, off); err != nil {
		return err
	}
	p[0] ^= 1
	_, err = f.WriteAt(p, off)
	return err
}
