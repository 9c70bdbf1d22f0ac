package replication

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// byteRange is a range of a member. Off and n are bytes.
type byteRange struct {
	volume uint32
	off, n int64
}

const (
	// maxTailRanges bounds a list of ranges: in memory, on disk, and of what a peer may send.
	maxTailRanges = 1 << 20
	// firstTailUnit is what ranges are rounded out to first where there are more. The changes of a volume of 64 TiB
	// fit into the list with the 11th doubling.
	firstTailUnit = 64 << 10
)

// rangeSet collects ranges. The zero value is empty.
type rangeSet struct {
	list []byteRange
	// limit is maxTailRanges unless a test wants fewer; unit is what ranges are rounded out to; 0: they are exact.
	limit, compactAt int
	unit             int64
}

// add adds n bytes at off of a member. Ranges that do not lie within the largest volume are not added.
func (s *rangeSet) add(volume uint32, off, n int64) {
	if n <= 0 || off < 0 || off > core.MaxVolumeBytes-n {
		return
	}
	if s.limit == 0 {
		s.limit = maxTailRanges
	}
	s.list = append(s.list, s.round(byteRange{volume, off, n}))
	if len(s.list) > max(s.compactAt, 2*s.limit) {
		s.compact()
		s.compactAt = 2 * len(s.list)
	}
}

func (s *rangeSet) round(r byteRange) byteRange {
	if s.unit == 0 {
		return r
	}
	off := r.off - r.off%s.unit
	end := min((r.off+r.n+s.unit-1)/s.unit*s.unit, core.MaxVolumeBytes)
	return byteRange{r.volume, off, end - off}
}

// compact sorts and joins, and rounds out as long as there are too many.
func (s *rangeSet) compact() {
	s.join()
	for s.limit > 0 && len(s.list) > s.limit {
		s.unit = max(2*s.unit, firstTailUnit)
		for i, r := range s.list {
			s.list[i] = s.round(r)
		}
		s.join()
	}
}

func (s *rangeSet) join() {
	slices.SortFunc(s.list, func(a, b byteRange) int {
		return cmp.Or(cmp.Compare(a.volume, b.volume), cmp.Compare(a.off, b.off))
	})
	joined := s.list[:0]
	for _, r := range s.list {
		if n := len(joined); n > 0 {
			if last := &joined[n-1]; last.volume == r.volume && r.off <= last.off+last.n {
				last.n = max(last.n, r.off+r.n-last.off)
				continue
			}
		}
		joined = append(joined, r)
	}
	s.list = joined
}

// ranges returns what was added, ascending; no two overlap or touch.
func (s *rangeSet) ranges() []byteRange {
	s.compact()
	return s.list
}

func rangeBytes(list []byteRange) (n uint64) {
	for _, r := range list {
		n += uint64(r.n)
	}
	return n
}

// encodeRanges is the form that TailRanges in link.proto describes. last is the range before the first one.
func encodeRanges(list []byteRange, last byteRange) []byte {
	var b []byte
	for _, r := range list {
		if r.volume != last.volume {
			b = binary.AppendUvarint(b, uint64(r.volume-last.volume))
			last = byteRange{volume: r.volume}
		} else {
			b = binary.AppendUvarint(b, 0)
		}
		b = binary.AppendUvarint(b, uint64(r.off-last.off-last.n))
		b = binary.AppendUvarint(b, uint64(r.n))
		last = r
	}
	return b
}

// decodeRanges appends what encodeRanges made to a list. It takes nothing that is not ascending, lies outside of the
// largest volume, or makes the list longer than limit.
func decodeRanges(list []byteRange, b []byte, limit int) ([]byteRange, error) {
	var last byteRange
	if n := len(list); n > 0 {
		last = list[n-1]
	}
	first := len(list) == 0
	for len(b) > 0 {
		var v [3]uint64
		for i := range v {
			n := 0
			if v[i], n = binary.Uvarint(b); n <= 0 {
				return nil, fmt.Errorf("%w: ranges are cut", ErrInvalid)
			}
			b = b[n:]
		}
		if v[0] > core.MaxMemberIndex || v[1] > core.MaxVolumeBytes || v[2] > core.MaxVolumeBytes || v[2] == 0 {
			return nil, fmt.Errorf("%w: range of %s, %d behind the one before", ErrInvalid, words.Count(v[2], "byte"),
				v[1])
		}
		next := byteRange{last.volume + uint32(v[0]), int64(v[1]), int64(v[2])}
		if v[0] == 0 {
			if next.off += last.off + last.n; v[1] == 0 && !first {
				return nil, fmt.Errorf("%w: two ranges touch at offset %d", ErrInvalid, next.off)
			}
		}
		switch {
		case next.volume > core.MaxMemberIndex || next.off > core.MaxVolumeBytes-next.n:
			return nil, fmt.Errorf("%w: range of %s at offset %d of member %d", ErrInvalid, words.Count(next.n, "byte"),
				next.off, next.volume)
		case len(list) == limit:
			return nil, fmt.Errorf("%w: more than %s", ErrInvalid, words.Count(limit, "range"))
		}
		list, last, first = append(list, next), next, false
	}
	return list, nil
}
