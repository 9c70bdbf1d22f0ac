package replication

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// A set of ranges covers what was added, exactly while there are few, and comes back from its encoded form.
func TestRangeSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const units = 64
		limit := rapid.SampledFrom([]int{0, 3, 8}).Draw(t, "limit")
		s := rangeSet{limit: limit}
		var want [2][units]bool
		for range rapid.IntRange(0, 60).Draw(t, "adds") {
			v := rapid.IntRange(0, 1).Draw(t, "volume")
			off := rapid.IntRange(0, units-1).Draw(t, "off")
			n := rapid.IntRange(0, units-off).Draw(t, "n")
			s.add(uint32(v), int64(off)*firstTailUnit/4, int64(n)*firstTailUnit/4)
			for i := off; i < off+n; i++ {
				want[v][i] = true
			}
		}
		list := s.ranges()
		if limit > 0 && len(list) > limit {
			t.Fatalf("%d ranges, the limit is %d", len(list), limit)
		}
		var got [2][units]bool
		for i, r := range list {
			if i > 0 && r.volume == list[i-1].volume && r.off <= list[i-1].off+list[i-1].n {
				t.Fatalf("ranges %v touch", list)
			}
			for u := r.off / (firstTailUnit / 4); u < (r.off+r.n)/(firstTailUnit/4) && u < units; u++ {
				got[r.volume][u] = true
			}
		}
		for v := range want {
			for i := range want[v] {
				if want[v][i] && !got[v][i] || s.unit == 0 && got[v][i] && !want[v][i] {
					t.Fatalf("unit %d of volume %d: added %v, in the set %v", i, v, want[v][i], got[v][i])
				}
			}
		}
		cut := rapid.IntRange(0, len(list)).Draw(t, "cut")
		var last byteRange
		if cut > 0 {
			last = list[cut-1]
		}
		back, err := decodeRanges(nil, encodeRanges(list[:cut], byteRange{}), maxTailRanges)
		if err == nil {
			back, err = decodeRanges(back, encodeRanges(list[cut:], last), maxTailRanges)
		}
		if err != nil || !slices.Equal(back, list) {
			t.Fatalf("%v came back as %v: %v", list, back, err)
		}
		if len(list) > 0 {
			if _, err := decodeRanges(nil, encodeRanges(list, byteRange{}), len(list)-1); err == nil {
				t.Fatal("more ranges than the limit")
			}
		}
	})
}

// FuzzDecodeRanges: what a peer sends is refused, or a list that encodes to the same.
func FuzzDecodeRanges(f *testing.F) {
	f.Add(encodeRanges([]byteRange{{0, 0, 4096}, {0, 8192, 1}, {3, 7, 9}}, byteRange{}))
	f.Add(encodeRanges([]byteRange{{core.MaxMemberIndex, core.MaxVolumeBytes - 1, 1}}, byteRange{}))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeRanges(nil, b, 1000)
		if err != nil {
			return
		}
		for i, r := range list {
			if r.n <= 0 || r.off < 0 || r.off > core.MaxVolumeBytes-r.n || r.volume > core.MaxMemberIndex {
				t.Fatalf("range %+v", r)
			}
			if i > 0 && r.volume == list[i-1].volume && r.off <= list[i-1].off+list[i-1].n {
				t.Fatalf("ranges %+v and %+v touch", list[i-1], r)
			}
		}
		if again := encodeRanges(list, byteRange{}); len(again) > len(b) || len(again) == len(b) && !bytes.Equal(again, b) {
			t.Fatalf("%x encodes to %x", b, again)
		}
	})
}
