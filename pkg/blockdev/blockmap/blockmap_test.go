package blockmap

import (
	"errors"
	"io"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const block = 4096

// fakeFile is a file as a file system that shares blocks knows it: for each block where it is, 0 for a hole.
type fakeFile struct {
	vfs.File // none: what is not here is not used
	disk     *fakeDisk
	blocks   []int
	batch    int // extents in an answer
	calls    int
}

// fakeDisk says for each block by how many files it is used, and whether the file system can tell where it is.
type fakeDisk struct {
	users []int
	plain []bool
}

func (d *fakeDisk) add(plain bool) int {
	d.users, d.plain = append(d.users, 1), append(d.plain, plain)
	return len(d.users)
}

func (f *fakeFile) clone() *fakeFile {
	for _, p := range f.blocks {
		if p > 0 {
			f.disk.users[p-1]++
		}
	}
	return &fakeFile{disk: f.disk, blocks: slices.Clone(f.blocks), batch: f.batch}
}

// set makes a block another one, or a hole.
func (f *fakeFile) set(i, physical int) {
	if old := f.blocks[i]; old > 0 {
		f.disk.users[old-1]--
	}
	f.blocks[i] = physical
}

func (f *fakeFile) Extents(off int64) ([]vfs.Extent, error) {
	f.calls++
	var list []vfs.Extent
	for i := off / block; i < int64(len(f.blocks)); i++ {
		p := f.blocks[i]
		if p == 0 {
			continue
		}
		e := vfs.Extent{Off: i * block, Len: block}
		if f.disk.plain[p-1] && f.disk.users[p-1] > 1 {
			e.Shared, e.Physical = true, int64(p)*block
		}
		if n := len(list); n > 0 {
			last := &list[n-1]
			if last.End() == e.Off && last.Shared == e.Shared && (!e.Shared || last.Physical+last.Len == e.Physical) {
				last.Len += block
				continue
			}
			if n == f.batch {
				break
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// NextData is for a file system that cannot tell where blocks are.
func (f *fakeFile) NextData(off int64) (int64, int64, error) {
	for i := off / block; i < int64(len(f.blocks)); i++ {
		if f.blocks[i] == 0 {
			continue
		}
		end := i
		for end < int64(len(f.blocks)) && f.blocks[end] != 0 {
			end++
		}
		return max(off, i*block), end * block, nil
	}
	return 0, 0, io.EOF
}

// collect reads a window to its end and demands that its ranges are in order, do not touch, and keep to units and size.
func collect(t *rapid.T, m Map, off, size, unit int64) (ranges [][2]int64) {
	next := Window(m, off, size, unit)
	at := int64(-1)
	for {
		start, end, err := next()
		if err == io.EOF {
			return ranges
		}
		if err != nil {
			t.Fatal(err)
		}
		if start <= at || start >= end || end > size || end <= off || start < off/unit*unit || start%unit != 0 ||
			(end%unit != 0 && end != size) {
			t.Fatalf("[%d, %d) behind %d, from %d of %d in units of %d", start, end, at, off, size, unit)
		}
		ranges = append(ranges, [2]int64{start, end})
		at = end
	}
}

func has(ranges [][2]int64, i int) bool {
	return slices.ContainsFunc(ranges, func(r [2]int64) bool { return r[0] <= int64(i)*block && int64(i+1)*block <= r[1] })
}

// TestDiffering takes clones of a file that is written to, and compares what two of them differ in with what the map
// says: no block too few, and none that they share.
func TestDiffering(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(rt, "blocks")
		disk := &fakeDisk{}
		f := &fakeFile{disk: disk, blocks: make([]int, n), batch: rapid.IntRange(1, 4).Draw(rt, "batch")}
		write := func() {
			for range rapid.IntRange(0, 12).Draw(rt, "writes") {
				at := rapid.IntRange(0, n-1).Draw(rt, "at")
				hole, plain := rapid.IntRange(0, 3).Draw(rt, "kind") == 0, rapid.IntRange(0, 5).Draw(rt, "plain") > 0
				for i := at; i < min(n, at+rapid.IntRange(1, 6).Draw(rt, "length")); i++ {
					if hole {
						f.set(i, 0)
					} else {
						f.set(i, disk.add(plain))
					}
				}
			}
		}
		write()
		base := f.clone()
		write()
		target := f.clone()
		if rapid.Bool().Draw(rt, "other snapshots") { // which share with either what the two do not share
			base.clone()
			target.clone()
		}
		if rapid.Bool().Draw(rt, "the volume goes on") {
			write()
		}
		m, err := Differing(base, target)
		if err != nil {
			rt.Fatal(err)
		}
		size := int64(n) * block
		from := rapid.Int64Range(0, size).Draw(rt, "from")
		ranges := collect(rt, m, from, size, block)
		plainBase, plainTarget := &struct{ vfs.File }{base}, &struct{ vfs.File }{target} // without Extents
		m, err = Differing(plainBase, plainTarget)
		if err != nil {
			rt.Fatal(err)
		}
		coarse := collect(rt, m, from, size, block)
		allocated := collect(rt, Allocated(target), from, size, block)
		for i := range n {
			if int64(i+1)*block <= from {
				continue
			}
			b, tt := base.blocks[i], target.blocks[i]
			if b != tt && !has(ranges, i) {
				rt.Fatalf("block %d differs (%d, %d) and is not in %v", i, b, tt, ranges)
			}
			if b == tt && (b == 0 || disk.plain[b-1]) && has(ranges, i) {
				rt.Fatalf("block %d is the same (%d) and is in %v", i, b, ranges)
			}
			if (b != 0 || tt != 0) != has(coarse, i) {
				rt.Fatalf("block %d (%d, %d) against %v, without extents", i, b, tt, coarse)
			}
			if (tt != 0) != has(allocated, i) {
				rt.Fatalf("block %d (%d) against %v", i, tt, allocated)
			}
		}
	})
}

// TestWindow compares windows with a naive reading of ranges that need not be whole units.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const size, unit = 40, 4
		inside := make([]bool, size+10)
		for range rapid.IntRange(0, 6).Draw(rt, "ranges") {
			at := rapid.IntRange(0, size+5).Draw(rt, "at")
			for i := at; i < min(len(inside), at+rapid.IntRange(1, 9).Draw(rt, "length")); i++ {
				inside[i] = true
			}
		}
		longest := rapid.IntRange(1, 5).Draw(rt, "longest") // ranges come in pieces that touch
		m := remember(func(off int64) (int64, int64, error) {
			for s := int(off); s < len(inside); s++ {
				if !inside[s] {
					continue
				}
				e := s
				for e < len(inside) && e < s+longest && inside[e] {
					e++
				}
				return int64(s), int64(e), nil
			}
			return 0, 0, io.EOF
		})
		from := rapid.IntRange(0, size).Draw(rt, "from")
		ranges := collect(rt, m, int64(from), size, unit)
		for i := from / unit * unit; i < size; i++ {
			want := slices.Contains(inside[i/unit*unit:i/unit*unit+unit], true)
			got := slices.ContainsFunc(ranges, func(r [2]int64) bool { return r[0] <= int64(i) && int64(i) < r[1] })
			if got != want {
				rt.Fatalf("byte %d of %v from %d: in %v", i, inside, from, ranges)
			}
		}
	})
}

func TestUnion(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(rt, "blocks")
		file := func(label string) *fakeFile {
			return &fakeFile{blocks: rapid.SliceOfN(rapid.IntRange(0, 1), n, n).Draw(rt, label)}
		}
		a, b := file("a"), file("b")
		ranges := collect(rt, Union(Allocated(a), Allocated(b)), 0, int64(n)*block, block)
		for i := range n {
			if has(ranges, i) != (a.blocks[i]+b.blocks[i] > 0) {
				rt.Fatalf("block %d of %v and %v: %v", i, a.blocks, b.blocks, ranges)
			}
		}
	})
}

// An error is never the end of a map.
func TestErrors(t *testing.T) {
	broken := errors.New("broken")
	bad := Map(func(int64) (int64, int64, error) { return 0, 0, broken })
	good := Map(func(off int64) (int64, int64, error) { return off, off + block, nil })
	none := Map(func(int64) (int64, int64, error) { return 0, 0, io.EOF })
	for name, m := range map[string]Map{
		"a": Union(bad, good), "b": Union(good, bad),
		"a, nothing in b": Union(bad, none), "b, nothing in a": Union(none, bad),
		"behind the first range": func(off int64) (int64, int64, error) {
			if off == 0 {
				return 0, block, nil
			}
			return 0, 0, broken
		}} {
		if _, _, err := Window(m, 0, 10*block, block)(); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Differing(&failing{err: broken}, &fakeFile{}); !errors.Is(err, broken) {
		t.Errorf("extents of the base: %v", err)
	}
	if _, err := Differing(&fakeFile{disk: &fakeDisk{}}, &failing{err: broken}); !errors.Is(err, broken) {
		t.Errorf("extents of the target: %v", err)
	}
	later := &failing{after: 1, err: broken}
	m, err := Differing(&fakeFile{disk: &fakeDisk{}}, later)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m(0); !errors.Is(err, broken) {
		t.Errorf("later: %v", err)
	}
}

type failing struct {
	vfs.File
	after int
	err   error
}

func (f *failing) Extents(int64) ([]vfs.Extent, error) {
	if f.after--; f.after >= 0 {
		return nil, nil
	}
	return nil, f.err
}
