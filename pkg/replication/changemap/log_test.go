package changemap

import (
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const logPath = "/log"

func readLog(t testing.TB, fs vfs.FS) *Map {
	t.Helper()
	l, m, err := OpenLog(fs, logPath)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return m
}

// A log is the union of what was appended, through reopening and power losses in the middle of an append: what Append
// had returned for is there, and what it had not is there whole, in part, or not at all.
func TestLogModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 0))
		fs := vfs.NewMem()
		l, err := CreateLog(fs, logPath)
		if err != nil {
			t.Fatal(err)
		}
		want := New()
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			m := New()
			for range rapid.IntRange(0, 40).Draw(t, "runs") {
				m.Mark(0, int64(rng.IntN(3000))*ExtentBytes, int64(1+rng.IntN(8))*ExtentBytes)
			}
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0: // a power loss after the write and before the sync
				f, _ := fs.Open(logPath)
				size, _ := f.Size()
				torn := *l
				torn.file = noSync{l.file}
				if err := torn.Append(m); err != nil {
					t.Fatal(err)
				}
				fs = fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
				var got *Map
				if l, got, err = OpenLog(fs, logPath); err != nil {
					t.Fatalf("after a torn append at %d: %v", size, err)
				}
				both := want.Clone()
				both.Merge(m)
				least := want.Clone()
				least.Merge(got)
				most := both.Clone()
				most.Merge(got)
				if !least.Equal(got) || !most.Equal(both) {
					t.Fatal("a torn append lost what was there, or brought what never was")
				}
				want = got
			case 1:
				l.Close()
				var got *Map
				if l, got, err = OpenLog(fs, logPath); err != nil {
					t.Fatal(err)
				}
				if !got.Equal(want) {
					t.Fatal("reopened log differs")
				}
			default:
				if err := l.Append(m); err != nil {
					t.Fatal(err)
				}
				want.Merge(m)
				fs2 := fs.CrashClone(vfs.CrashConfig{})
				_, got, err := OpenLog(fs2, logPath)
				if err != nil || !got.Equal(want) {
					t.Fatalf("after a power loss behind an append: %v", err)
				}
			}
		}
	})
}

// noSync is a file whose syncs do nothing.
type noSync struct{ vfs.File }

func (noSync) Datasync() error { return nil }

// Damage to a frame that is not the last one is an error that names the place; to the last one it is a torn append.
func TestLogDamage(t *testing.T) {
	fs := vfs.NewMem()
	l, err := CreateLog(fs, logPath)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		m := New()
		m.Mark(0, i*10*ExtentBytes, ExtentBytes)
		if err := l.Append(m); err != nil {
			t.Fatal(err)
		}
	}
	const frame = frameHeader + runBytes + frameTrailer
	for off := range int64(3 * frame) {
		clone := fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100})
		f, err := clone.Open(logPath)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0x10
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		_, m, err := OpenLog(clone, logPath)
		if off < 2*frame {
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), logPath) {
				t.Fatalf("byte %d: %v", off, err)
			}
			continue
		}
		if err != nil || m.Len() != 2 || !m.Has(0, 0) || !m.Has(0, 10) {
			t.Fatalf("byte %d of the last frame: %v, %v", off, m, err)
		}
	}
}

// An append of more runs than a frame holds is several frames.
func TestLogLongAppend(t *testing.T) {
	fs := vfs.NewMem()
	l, err := CreateLog(fs, logPath)
	if err != nil {
		t.Fatal(err)
	}
	m := New()
	for e := range uint64(3 * maxFrameRuns) {
		m.MarkExtent(0, 2*e)
	}
	if err := l.Append(m); err != nil {
		t.Fatal(err)
	}
	if !readLog(t, fs).Equal(m) {
		t.Fatal("it differs")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(m); err == nil {
		t.Fatal("a closed log takes an append")
	}
}

// After an append that failed half way the log takes the next one, and a restart finds that.
func TestLogAfterFailedAppend(t *testing.T) {
	mem, fail := vfs.NewMem(), vfs.Op("")
	fs := vfs.NewErrFS(mem, func(op vfs.Op, _ string) error {
		if op == fail {
			return syscall.ENOSPC
		}
		return nil
	})
	l, err := CreateLog(fs, logPath)
	if err != nil {
		t.Fatal(err)
	}
	want := New()
	for i, op := range []vfs.Op{"", vfs.OpDatasync, "", vfs.OpWrite, "", vfs.OpTruncate, ""} {
		m := New()
		for e := range uint64(20 - i) { // shorter frames over longer ones
			m.MarkExtent(0, uint64(i)*100+2*e)
		}
		fail = op
		if op == vfs.OpTruncate {
			l.torn = true
		}
		err := l.Append(m)
		if (err != nil) != (op != "") {
			t.Fatalf("append %d, with %q failing: %v", i, op, err)
		}
		fail = ""
		if err == nil {
			want.Merge(m)
			if !readLog(t, mem).Equal(want) {
				t.Fatalf("after append %d the log differs", i)
			}
		}
	}
}

func FuzzLog(f *testing.F) {
	fs := vfs.NewMem()
	l, err := CreateLog(fs, logPath)
	if err != nil {
		f.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for range 3 {
		m := New()
		m.Mark(0, rng.Int64N(1<<40), 1<<20)
		if err := l.Append(m); err != nil {
			f.Fatal(err)
		}
	}
	seed, err := vfs.ReadFile(fs, logPath, 1<<30)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-3])
	f.Fuzz(func(t *testing.T, data []byte) {
		m, end, err := decodeLog(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, end2, err := decodeLog(data[:end])
		if err != nil || end2 != end || !again.Equal(m) {
			t.Fatalf("what was read up to %d reads differently alone: %v", end, err)
		}
	})
}
