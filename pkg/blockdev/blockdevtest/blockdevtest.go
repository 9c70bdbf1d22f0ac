// Package blockdevtest is the conformance suite of blockdev.Device: what every device does, whatever is under it.
//
// It is not a crash test: it flushes, but does not look at what a crash leaves.
package blockdevtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// Options says what a device is exempt from.
type Options struct {
	// GranularityBytes: reads and writes are multiples of it at multiples of it; 0 is 1.
	GranularityBytes int
	// ClearGranularityBytes is the same for Discard and Zero; 0 is GranularityBytes.
	ClearGranularityBytes int
	// SkipOutOfRange leaves out the case for ranges outside the device, where something else answers with its own errors.
	SkipOutOfRange bool
	// RandomOps is how many operations the random case does; 0 is 2000.
	RandomOps int
}

// Open makes a fresh device of zeros. It closes it with t.Cleanup.
type Open func(t *testing.T, sizeBytes int64) blockdev.Device

type suite struct {
	Options
	open Open
}

// Run runs the suite as subtests under name.
func Run(t *testing.T, name string, open Open, options ...Options) {
	s := suite{open: open}
	if len(options) > 0 {
		s.Options = options[0]
	}
	s.GranularityBytes = max(s.GranularityBytes, 1)
	if s.ClearGranularityBytes == 0 {
		s.ClearGranularityBytes = s.GranularityBytes
	}
	if s.RandomOps == 0 {
		s.RandomOps = 2000
	}
	cases := []struct {
		name string
		run  func(*testing.T)
	}{
		{"fresh", s.fresh},
		{"own writes", s.ownWrites},
		{"unaligned", s.unaligned},
		{"out of range", s.outOfRange},
		{"discard", func(t *testing.T) { s.clearing(t, blockdev.Device.Discard) }},
		{"zero", func(t *testing.T) { s.clearing(t, blockdev.Device.Zero) }},
		{"large", s.large},
		{"empty", s.empty},
		{"buffer not retained", s.notRetained},
		{"concurrent writers", s.concurrent},
		{"random", s.random},
	}
	for _, c := range cases {
		t.Run(name+"/"+c.name, c.run)
	}
}

const sizeBytes = 4 << 20

// pattern returns bytes that differ from their neighbours and from those of another seed.
func pattern(seed, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], uint64(seed))
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails; its speed is what makes the suite's
	return p
}

func write(t *testing.T, d blockdev.Device, p []byte, off int64) {
	t.Helper()
	if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("write of %d bytes at %d = %d, %v", len(p), off, n, err)
	}
}

// want compares a range of the device.
func want(t *testing.T, d blockdev.Device, off int64, expected []byte) {
	t.Helper()
	got := bytes.Repeat([]byte{0xEE}, len(expected)) // nothing may be left of it
	if n, err := d.ReadAt(got, off); n != len(got) || err != nil {
		t.Fatalf("read of %d bytes at %d = %d, %v", len(got), off, n, err)
	}
	if i := mismatch(got, expected); i >= 0 {
		t.Fatalf("read of %d bytes at %d: byte %d (device offset %d) is %#x, want %#x",
			len(got), off, i, off+int64(i), got[i], expected[i])
	}
}

func mismatch(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func flush(t *testing.T, d blockdev.Device) {
	t.Helper()
	if err := d.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

func (s suite) fresh(t *testing.T) {
	for _, size := range []int64{4096, 1 << 20, sizeBytes + 4096} {
		d := s.open(t, size)
		if got := d.Size(); got != size {
			t.Errorf("Size is %d, want %d", got, size)
		}
		want(t, d, 0, make([]byte, size))
		flush(t, d)
	}
}

func (s suite) ownWrites(t *testing.T) {
	d := s.open(t, sizeBytes)
	expected := make([]byte, sizeBytes)
	for i, off := range []int64{0, 4096, 65536 - 4096, 65536, 1<<20 - 8192, sizeBytes - 4096, 4096} {
		p := pattern(i, 4096)
		write(t, d, p, off)
		want(t, d, off, p)
		copy(expected[off:], p)
	}
	want(t, d, 0, expected)
	flush(t, d)
	want(t, d, 0, expected)
}

func (s suite) unaligned(t *testing.T) {
	d := s.open(t, sizeBytes)
	g := int64(s.GranularityBytes)
	expected := make([]byte, sizeBytes)
	for i, r := range [][2]int64{
		{1, 1}, {511, 2}, {513, 4096}, {4095, 2}, {4095, 4098}, {65535, 131074}, {sizeBytes - 1, 1}, {sizeBytes - 5000, 5000},
	} {
		off := r[0] / g * g
		n := min(max(r[1]/g*g, g), sizeBytes-off)
		p := pattern(i, int(n))
		write(t, d, p, off)
		copy(expected[off:], p)
		want(t, d, off, p)
		from, to := max(off-g, 0), min(off+n+g, sizeBytes)
		want(t, d, from, expected[from:to])
	}
	want(t, d, 0, expected)
}

func (s suite) outOfRange(t *testing.T) {
	if s.SkipOutOfRange {
		t.Skip("something before the device answers for ranges outside")
	}
	d := s.open(t, sizeBytes)
	ones := bytes.Repeat([]byte{1}, 8192)
	write(t, d, ones[:4096], sizeBytes-4096)
	for _, r := range [][2]int64{
		{sizeBytes, 4096}, {sizeBytes - 4096, 8192}, {sizeBytes + 4096, 4096}, {-4096, 4096}, {1 << 62, 4096},
		{1<<63 - 4096, 8192},
	} {
		off, n := r[0], r[1]
		for name, err := range map[string]error{
			"read":    second(d.ReadAt(make([]byte, n), off)),
			"write":   second(d.WriteAt(ones[:n], off)),
			"discard": d.Discard(off, n),
			"zero":    d.Zero(off, n),
		} {
			if !errors.Is(err, blockdev.ErrOutOfRange) {
				t.Errorf("%s [%d, +%d) of %d: %v, want ErrOutOfRange", name, off, n, sizeBytes, err)
			}
		}
	}
	for _, r := range [][2]int64{{0, -4096}, {0, sizeBytes + 4096}, {4096, 1<<63 - 1}} {
		for name, err := range map[string]error{"discard": d.Discard(r[0], r[1]), "zero": d.Zero(r[0], r[1])} {
			if !errors.Is(err, blockdev.ErrOutOfRange) {
				t.Errorf("%s [%d, +%d) of %d: %v, want ErrOutOfRange", name, r[0], r[1], sizeBytes, err)
			}
		}
	}
	if got := d.Size(); got != sizeBytes {
		t.Errorf("Size is %d afterwards", got)
	}
	want(t, d, 0, make([]byte, sizeBytes-4096))
	want(t, d, sizeBytes-4096, ones[:4096])
}

func second(_ int, err error) error { return err }

func (s suite) clearing(t *testing.T, clearRange func(d blockdev.Device, off, n int64) error) {
	d := s.open(t, sizeBytes)
	g := int64(s.ClearGranularityBytes)
	for i, r := range [][2]int64{
		{4096, 4096}, {100, 200}, {4000, 200}, {5000, 20000}, {65536, 65536}, {65000, 70000}, {0, 1 << 20},
		{sizeBytes - 4096, 4096}, {0, sizeBytes}, {0, sizeBytes},
	} {
		expected := pattern(i, sizeBytes)
		write(t, d, expected, 0)
		if i%2 == 1 {
			flush(t, d) // whether what is cleared was written out or not
		}
		off := r[0] / g * g
		n := min(max(r[1]/g*g, g), sizeBytes-off)
		if err := clearRange(d, off, n); err != nil {
			t.Fatalf("[%d, +%d): %v", off, n, err)
		}
		clear(expected[off : off+n])
		want(t, d, 0, expected)
		flush(t, d)
		want(t, d, 0, expected)
		// What was cleared can be written.
		p := pattern(100+i, 4096)
		at := min(off/4096*4096, sizeBytes-4096)
		write(t, d, p, at)
		want(t, d, at, p)
	}
	if err := clearRange(d, 0, 0); err != nil {
		t.Errorf("an empty range: %v", err)
	}
}

func (s suite) large(t *testing.T) {
	const size = 16 << 20
	d := s.open(t, size)
	expected := make([]byte, size)
	for i, n := range []int{1 << 20, 1<<20 + 4096, 5<<20 + 8192, 8 << 20} {
		p := pattern(i, n)
		off := int64(i) * (1<<20 + 12288)
		write(t, d, p, off)
		copy(expected[off:], p)
	}
	want(t, d, 0, expected)
	flush(t, d)
	want(t, d, 0, expected)
}

func (s suite) empty(t *testing.T) {
	d := s.open(t, sizeBytes)
	for _, off := range []int64{0, 4096, sizeBytes} {
		if n, err := d.ReadAt(nil, off); n != 0 || err != nil {
			t.Errorf("empty read at %d = %d, %v", off, n, err)
		}
		if n, err := d.WriteAt(nil, off); n != 0 || err != nil {
			t.Errorf("empty write at %d = %d, %v", off, n, err)
		}
	}
	want(t, d, 0, make([]byte, sizeBytes))
}

func (s suite) notRetained(t *testing.T) {
	d := s.open(t, sizeBytes)
	p := pattern(1, 65536)
	expected := bytes.Clone(p)
	write(t, d, p, 4096)
	clear(p)
	want(t, d, 4096, expected)
	flush(t, d)
	want(t, d, 4096, expected)
}

// concurrent has writers that own interleaved blocks, beside readers and flushes. Each reads its own writes.
func (s suite) concurrent(t *testing.T) {
	const writers, block = 8, 4096
	d := s.open(t, sizeBytes)
	expected := make([]byte, sizeBytes)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for w := range writers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			if err := s.ownBlocks(d, rng, expected, w, writers, block); err != nil {
				t.Errorf("writer %d: %v", w, err)
			}
		})
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		buf := make([]byte, 1<<20)
		for off := int64(0); ; off = (off + int64(len(buf))) % sizeBytes {
			if n, err := d.ReadAt(buf, off); n != len(buf) || err != nil {
				t.Errorf("reader at %d: %d, %v", off, n, err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	wg.Wait()
	close(stop)
	others.Wait()
	want(t, d, 0, expected)
	flush(t, d)
	want(t, d, 0, expected)
}

// ownBlocks writes, clears and reads the blocks w, w+step, w+2*step, and so on; expected is updated in these blocks
// only.
func (s suite) ownBlocks(d blockdev.Device, rng *rand.Rand, expected []byte, w, step, block int) error {
	blocks := len(expected) / block / step
	got := make([]byte, block)
	for i := range 200 {
		off := (rng.IntN(blocks)*step + w) * block
		mine := expected[off : off+block]
		var err error
		switch k := rng.IntN(10); {
		case k == 0:
			clear(mine)
			err = d.Discard(int64(off), int64(block))
		case k == 1:
			clear(mine)
			err = d.Zero(int64(off), int64(block))
		case k == 2 && i%4 == 0:
			err = d.Flush()
		default:
			copy(mine, pattern(rng.Int(), block))
			_, err = d.WriteAt(mine, int64(off))
		}
		if err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
		if n, err := d.ReadAt(got, int64(off)); n != block || err != nil {
			return fmt.Errorf("read at %d: %d, %w", off, n, err)
		}
		if j := mismatch(got, mine); j >= 0 {
			return fmt.Errorf("at %d: byte %d is %#x, want %#x", off, j, got[j], mine[j])
		}
	}
	return nil
}

// random does operations one after another on the device and on a byte slice.
func (s suite) random(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	d := s.open(t, sizeBytes)
	expected := make([]byte, sizeBytes)
	var history []string
	remember := func(format string, args ...any) {
		history = append(history, fmt.Sprintf(format, args...))
		history = history[max(0, len(history)-20):]
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("last operations:\n%s", strings.Join(history, "\n"))
		}
	})
	for range s.RandomOps {
		kind := rng.IntN(20)
		g := int64(s.GranularityBytes)
		if kind >= 14 && kind < 18 {
			g = int64(s.ClearGranularityBytes)
		}
		// Most ranges are short and close together, so that they overlap.
		maxBytes, area := int64(64<<10), int64(512<<10)
		if rng.IntN(10) == 0 {
			maxBytes, area = 1<<20, sizeBytes
		}
		off := rng.Int64N(area/g) * g
		n := min((rng.Int64N(maxBytes/g)+1)*g, sizeBytes-off)
		switch {
		case kind < 8:
			remember("write [%d, +%d)", off, n)
			p := pattern(rng.Int(), int(n))
			write(t, d, p, off)
			copy(expected[off:], p)
		case kind < 14:
			remember("read [%d, +%d)", off, n)
			want(t, d, off, expected[off:off+n])
		case kind < 16:
			remember("discard [%d, +%d)", off, n)
			if err := d.Discard(off, n); err != nil {
				t.Fatal(err)
			}
			clear(expected[off : off+n])
		case kind < 18:
			remember("zero [%d, +%d)", off, n)
			if err := d.Zero(off, n); err != nil {
				t.Fatal(err)
			}
			clear(expected[off : off+n])
		case rng.IntN(5) == 0:
			remember("flush")
			flush(t, d)
		}
	}
	remember("read all")
	want(t, d, 0, expected)
}
