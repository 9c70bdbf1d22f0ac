package changemap

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// sample has array, run and bitmap containers.
func sample() *Map {
	m := New()
	m.MarkExtent(0, 0)
	m.MarkExtent(0, 70_000)
	m.Mark(4, 10*ExtentBytes, 100*ExtentBytes)
	for e := range uint64(10_000) {
		m.MarkExtent(9, e*3)
	}
	return m
}

func encode(t testing.TB, m *Map) []byte {
	t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// seal gives forged bytes a right length and checksum.
func seal(b []byte) []byte {
	binary.LittleEndian.PutUint64(b[16:], uint64(len(b)))
	body := b[:len(b)-sumBytes]
	binary.LittleEndian.PutUint32(b[len(body):], crc32c.Sum(body))
	return b
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	b := encode(t, sample())
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, _, err := decode(b); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d of byte %d flipped: error %v", i%8, i/8, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

func TestEveryTruncationIsFound(t *testing.T) {
	b := encode(t, sample())
	for n := range len(b) {
		if _, _, err := decode(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("truncated to %d bytes: error %v", n, err)
		}
	}
	if _, _, err := decode(append(b, 0)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a byte appended: error %v", err)
	}
}

// What a checksum does not find: content that a broken or foreign program wrote and sealed.
func TestSealedNonsense(t *testing.T) {
	two := New()
	two.MarkExtent(1, 1)
	two.MarkExtent(2, 2)
	const first = headerBytes // of the first volume
	for _, tc := range []struct {
		name   string
		forge  func(b []byte) []byte
		is     error
		saying string
	}{
		{"newer version", func(b []byte) []byte { b[8] = 3; return b }, ErrVersion, "version 3 at offset 8"},
		{"more volumes", func(b []byte) []byte { b[12] = 3; return b }, ErrCorrupt, "within a volume's header"},
		{"fewer volumes", func(b []byte) []byte { b[12] = 1; return b }, ErrCorrupt, "behind the last of 1 volumes"},
		{"order", func(b []byte) []byte { b[first] = 2; return b }, ErrCorrupt, "volume 2 comes behind volume 2"},
		{"bitmap too long", func(b []byte) []byte {
			b[first+7] = 0xff
			return b
		}, ErrCorrupt, "offset 32: bitmap of volume 1"},
		{"not a bitmap", func(b []byte) []byte { b[first+8] ^= 0xff; return b }, ErrCorrupt, "offset 32: bitmap of volume 1"},
		{"extent too far", func(b []byte) []byte {
			return append(b[:first:first], func() []byte {
				m := New()
				m.bitmap(1).Add(maxExtents)
				m.bitmap(2).Add(1)
				return encode(t, m)[first:]
			}()...)
		}, ErrCorrupt, "extent 1073741824 of volume 1"},
		{"empty bitmap", func([]byte) []byte {
			m := New()
			m.bitmap(1)
			return encode(t, m)
		}, ErrCorrupt, "bitmap of volume 1 is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := decode(seal(tc.forge(encode(t, two))))
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.saying) {
				t.Errorf("error %q, want %q saying %q", err, tc.is, tc.saying)
			}
		})
	}
}

func TestSaveAndLoad(t *testing.T) {
	fsys, path := vfs.OS, filepath.Join(t.TempDir(), "changemap")
	if _, err := Load(fsys, path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Load of a missing file: %v", err)
	}
	m := sample()
	for _, want := range []*Map{sample(), New()} {
		if err := want.Save(fsys, path); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(fsys, path); err != nil || !got.Equal(want) {
			t.Fatalf("Load after Save: %v", err)
		}
		tag := Tag{Group: [16]byte{1}, Pool: [16]byte{2}, Generation: 3}
		if err := want.SaveTagged(fsys, path, tag); err != nil {
			t.Fatal(err)
		}
		if got, have, err := LoadTagged(fsys, path); err != nil || !got.Equal(want) || have != tag {
			t.Fatalf("LoadTagged after SaveTagged: %+v, %v", have, err)
		}
	}
	if err := os.Truncate(path, 5); err != nil {
		t.Fatal(err)
	}
	_, err := Load(fsys, path)
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "offset 5") {
		t.Errorf("error %v does not name file and offset", err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 5 {
		t.Errorf("Load touched the damaged file: %v", err)
	}
	if err := m.Save(fsys, filepath.Join(path, "x")); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Save below a file: error %v", err)
	}
	if _, err := Load(fsys, filepath.Dir(path)); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("Load of a directory: error %v", err)
	}
}

// The fuzzer's input is sealed first: the checksum would hide everything behind it.
func FuzzDecode(f *testing.F) {
	f.Add(encode(f, New()), true)
	f.Add(encode(f, sample()), true)
	small := New()
	small.MarkExtent(1, 5)
	small.Mark(2, 0, 100*ExtentBytes)
	f.Add(encode(f, small), true)
	f.Add(encode(f, small), false)
	f.Add([]byte("SLIPCMAP"), false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed && len(b) >= headerBytes+sumBytes {
			b = seal(b)
		}
		m, _, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		// Whatever was accepted works and comes back the same.
		var n uint64
		for at := (Cursor{}); ; {
			v, e, run, ok := m.NextRun(at, maxExtents)
			if !ok {
				break
			}
			if run == 0 || n > m.Len() {
				t.Fatalf("run of %d extents at %d of volume %d, %d before it, Len() = %d", run, e, v, n, m.Len())
			}
			n += run
			at = Cursor{v, e + run}
		}
		if n != m.Len() {
			t.Fatalf("%d extents in runs, Len() = %d", n, m.Len())
		}
		again, _, err := decode(encode(t, m))
		if err != nil || !again.Equal(m) {
			t.Fatalf("not the same after another round: %v", err)
		}
	})
}
