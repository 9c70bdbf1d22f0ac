package journal

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// image is a journal's directory as bytes.
type image map[string][]byte

func readImage(t testing.TB, fs vfs.FS, dir string) image {
	t.Helper()
	names, err := fs.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	img := image{}
	for _, name := range names {
		f, err := fs.OpenReadOnly(path.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		if n, err := f.ReadAt(b, 0); int64(n) < size {
			t.Fatal(err)
		}
		img[name] = b
		f.Close()
	}
	return img
}

func (img image) write(t testing.TB, fs vfs.FS, dir string) {
	t.Helper()
	if err := fs.MkdirAll(dir); err != nil {
		t.Fatal(err)
	}
	for name, b := range img {
		f, err := fs.Create(path.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil && len(b) > 0 {
			t.Fatal(err)
		}
		f.Close()
	}
}

// smallJournal writes three segments with a few records each, some without an ordinal of their own, all durable, and
// one free segment that was used before.
func smallJournal(t testing.TB) (image, []Header, Options) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.OldestSegment = 2
	j := mustOpen(t, testOptions(fs))
	var all []Header
	add := func(kind Kind, n int) {
		h, _, err := j.Append(Header{Kind: kind, Length: 64, UnixNanos: 1}, bytes.Repeat([]byte{0xaa}, n))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	sync := func() {
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	roll := func() {
		if err := j.Roll([16]byte{2}); err != nil {
			t.Fatal(err)
		}
	}
	add(KindWrite, 100)
	add(KindWrite, 100)
	sync()
	roll()
	all = nil
	for range 2 {
		add(KindWrite, 70)
		add(KindDiscard, 0)
		sync()
		add(KindExtent, 64)
		sync()
		add(KindExtent, 1)
		add(KindHole, 0)
		sync()
		roll()
	}
	add(KindExtent, 10)
	sync()
	add(KindVolume, 30)
	sync()
	if err := j.Release(1); err != nil {
		t.Fatal(err)
	}
	head := j.Head()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	o.MinDurableOrdinal = head
	return readImage(t, fs, o.Dir), all, o
}

// TestEveryBitFlip damages each bit of a durable journal in turn. Each flip is either harmless, everything is
// recovered, or reported as corruption of the right file, at an offset not behind the flip. Without the checkpoint's
// word only what nothing behind it vouches for may be lost: the last record.
func TestEveryBitFlip(t *testing.T) {
	img, want, opts := smallJournal(t)
	type span struct{ from, to int }
	used := map[string][]span{}
	for name, b := range img {
		// Everything but the zeros and the stale data of the free segment; those are covered by a coarser step below.
		end := len(b)
		for end > 0 && b[end-1] == 0 {
			end--
		}
		used[name] = []span{{0, segmentHeaderFields}, {segmentHeaderCopyAt, segmentHeaderCopyAt + segmentHeaderFields},
			{segmentHeaderBytes, end + 128}}
	}
	for _, vouched := range []bool{true, false} {
		reported, harmless, lost := 0, 0, 0
		for name := range img {
			for _, sp := range used[name] {
				for at := sp.from; at < sp.to; at++ {
					for bit := range 8 {
						if (at < segmentHeaderBytes && at%64 > 16 && bit != at%8) || testing.Short() && bit != at%8 {
							continue
						}
						img[name][at] ^= 1 << bit
						n, err := recoverImage(img, opts, vouched)
						var c *CorruptionError
						switch {
						case err == nil && n == len(want):
							harmless++
						case errors.As(err, &c):
							reported++
							if path.Base(c.File) != name || c.Offset > int64(at) || c.Reason == "" {
								t.Errorf("%s byte %d bit %d: reported as %v", name, at, bit, err)
							}
						case err == nil && !vouched && n == len(want)-1:
							lost++
						case err == nil && !vouched && at < segmentHeaderFields && n >= len(want)-2:
							t.Errorf("%s byte %d bit %d: a segment was lost", name, at, bit)
						default:
							t.Errorf("%s byte %d bit %d: recovered %d of %d, %v", name, at, bit, n, len(want), err)
						}
						img[name][at] ^= 1 << bit
					}
				}
			}
		}
		t.Logf("vouched %v: reported %d, harmless %d, last record lost %d", vouched, reported, harmless, lost)
		if reported == 0 || harmless == 0 || (lost > 0) == vouched {
			t.Error("the test does not reach what it is about")
		}
	}
}

// memFile is a read-only view of an image as the scanner needs it; recovery of a million variants would be slow on
// MemFS.
type memFile struct {
	vfs.File
	b []byte
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}
func (f *memFile) Size() (int64, error) { return int64(len(f.b)), nil }
func (f *memFile) Close() error         { return nil }

type memDir struct {
	vfs.FS
	img image
}

func (d memDir) ReadDir(string) ([]string, error) {
	var names []string
	for name := range d.img {
		names = append(names, name)
	}
	return names, nil
}

var scanBuf []byte

func recoverImage(img image, o Options, vouched bool) (int, error) {
	files, err := readSegments(memDir{img: img}, o.Dir, func(name string) (vfs.File, error) {
		return &memFile{b: img[path.Base(name)]}, nil
	})
	if err != nil {
		return 0, err
	}
	n := 0
	sc := &scanner{oldest: o.OldestSegment, start: o.StartOrdinal, buf: scanBuf,
		visit: func(diskHeader, Location) error { n++; return nil }}
	if vouched {
		sc.minDurable = o.MinDurableOrdinal
	}
	err = sc.scan(files)
	scanBuf = sc.buf
	return n, err
}

// TestTruncated cuts each file at many places: a live one is corruption, a free one does not matter.
func TestTruncated(t *testing.T) {
	img, want, opts := smallJournal(t)
	for name, b := range img {
		for _, size := range []int{0, 1, 511, 4095, 4096, 4097, 4200, 5000, len(b) / 2, len(b) - 1} {
			cut := image{}
			for n, b := range img {
				cut[n] = b
			}
			cut[name] = b[:size]
			fs := vfs.NewMem()
			cut.write(t, fs, opts.Dir)
			o := opts
			o.FS = fs
			before := readImage(t, fs, o.Dir)
			j, err := Open(o)
			var c *CorruptionError
			switch {
			case name == "00000001.seg":
				if err != nil || j.Head() != want[len(want)-1].Ordinal {
					t.Errorf("free segment cut to %d: %v", size, err)
				}
			case !errors.As(err, &c):
				t.Errorf("%s cut to %d: %v", name, size, err)
			default:
				if size >= segmentHeaderBytes && (path.Base(c.File) != name || c.Offset != int64(size)) {
					t.Errorf("%s cut to %d: %v", name, size, err)
				}
				if after := readImage(t, fs, o.Dir); fmt.Sprint(after) != fmt.Sprint(before) {
					t.Errorf("%s cut to %d: corruption, but something was changed", name, size)
				}
			}
			if j != nil {
				j.Close()
			}
			var out strings.Builder
			if err := Dump(fs, o.Dir, &out, DumpOptions{}); err != nil {
				t.Errorf("dump of %s cut to %d: %v", name, size, err)
			}
		}
	}
}

func TestForeignSegment(t *testing.T) {
	img, _, opts := smallJournal(t)
	fs := vfs.NewMem()
	img.write(t, fs, opts.Dir)
	opts.FS = fs
	opts.GroupID = [16]byte{9}
	if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "belongs to group") {
		t.Fatal(err)
	}
	opts.GroupID = [16]byte{1}
	opts.Shard = 1
	if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "belongs to group") {
		t.Fatal(err)
	}
}

func TestMissingSegment(t *testing.T) {
	img, _, opts := smallJournal(t)
	for name := range img {
		if name == "00000001.seg" {
			continue
		}
		part := image{}
		for n, b := range img {
			if n != name {
				part[n] = b
			}
		}
		fs := vfs.NewMem()
		part.write(t, fs, opts.Dir)
		o := opts
		o.FS = fs
		var c *CorruptionError
		if _, err := Open(o); !errors.As(err, &c) {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func FuzzDecodeWire(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendWire(nil, Header{Kind: KindWrite, Length: 3, DataCRC: DataCRC([]byte("abc"))}, []byte("abc")))
	f.Add(AppendWire(nil, Header{Kind: KindSyncEnd, Ordinal: 1 << 60}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, data, rest, err := DecodeWire(b)
		if err != nil {
			return
		}
		if again := AppendWire(nil, h, data); !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Fatalf("%+v encodes as %x, was %x", h, again, b)
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	s := segmentHeader{sequence: 1, firstOrdinal: 1, segmentBytes: 1 << 20}
	b := make([]byte, segmentHeaderBytes)
	s.encode(b)
	f.Add(b[:segmentHeaderFields-4])
	f.Fuzz(func(t *testing.T, in []byte) {
		b := make([]byte, segmentHeaderFields)
		copy(b, in)
		sealChecksum(b)
		var s segmentHeader
		if s.decode(b) != nil {
			return
		}
		out := make([]byte, segmentHeaderBytes)
		s.encode(out)
		var back segmentHeader
		if err := back.decode(out); err != nil || back != s {
			t.Fatalf("%+v comes back as %+v, %v", s, back, err)
		}
	})
}

// sealChecksum makes the checksum right, or a fuzzer would not get past it.
func sealChecksum(b []byte) {
	c := crc32c.Sum(b[:segmentHeaderFields-4])
	b[508], b[509], b[510], b[511] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
}

// FuzzRecovery opens journals with arbitrary bytes in them, with right checksums on the segment header. It must not
// panic, and what it recovers once it must recover again, followed by what is appended then.
func FuzzRecovery(f *testing.F) {
	img, _, _ := smallJournal(f)
	f.Add(img["00000002.seg"][:5000], []byte{}, true)
	f.Add(img["00000002.seg"][:5000], img["00000003.seg"][:5000], true)
	f.Add([]byte{1, 2, 3}, img["00000003.seg"][:5000], false)
	f.Fuzz(func(t *testing.T, a, b []byte, seal bool) {
		img := image{"00000001.seg": make([]byte, testSegmentBytes), "00000002.seg": make([]byte, testSegmentBytes)}
		copy(img["00000001.seg"], a)
		copy(img["00000002.seg"], b)
		if seal {
			sealChecksum(img["00000001.seg"])
			sealChecksum(img["00000002.seg"])
		}
		fs := vfs.NewMem()
		o := testOptions(fs)
		o.OldestSegment = 2
		img.write(t, fs, o.Dir)
		if err := Dump(fs, o.Dir, new(bytes.Buffer), DumpOptions{}); err != nil {
			t.Fatal(err)
		}
		var first, second []Header
		o.Visit = func(h Header, _ Location) error { first = append(first, h); return nil }
		j, err := Open(o)
		if err != nil {
			return
		}
		h, _, err := j.Append(Header{Kind: KindWrite}, []byte("more"))
		j.Close()
		if err != nil {
			if errors.Is(err, ErrOutOfOrder) {
				return // the fuzzer set the head to the last ordinal there is
			}
			t.Fatal(err)
		}
		o.Visit = func(h Header, _ Location) error { second = append(second, h); return nil }
		j, err = Open(o)
		if err != nil {
			t.Fatal(err)
		}
		j.Close()
		if want := append(first, h); fmt.Sprint(want) != fmt.Sprint(second) {
			t.Fatalf("first %+v then %+v", want, second)
		}
	})
}

// TestBrokenChain: a record that verifies by itself but was not written behind the one that is before it now.
func TestBrokenChain(t *testing.T) {
	img, _, opts := smallJournal(t)
	b := img["00000002.seg"]
	var s segmentHeader
	if err := s.decode(b[:segmentHeaderFields]); err != nil {
		t.Fatal(err)
	}
	var first, second diskHeader
	if err := first.decode(b[segmentHeaderBytes:], s.seed(), segmentHeaderBytes); err != nil {
		t.Fatal(err)
	}
	at := segmentHeaderBytes + recordBytes(first.dataBytes())
	if err := second.decode(b[at:], s.seed(), at); err != nil {
		t.Fatal(err)
	}
	second.prevCRC ^= 1
	second.encode(b[at:], s.seed(), at)
	var c *CorruptionError
	if _, err := recoverImage(img, opts, true); !errors.As(err, &c) || c.Offset != at ||
		!strings.Contains(c.Reason, "does not continue the one before it") {
		t.Fatalf("recovered: %v", err)
	}
}
