package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// script is the state of a datadriven script. See testdata/*.txt; commands:
//
//	open [oldest=N] [start=N] [min-durable=N] [limit=SEGMENTS]   prints what is recovered
//	append KIND... [bytes=N] [ordinal=N] [repeat=N]
//	sync | roll timeline=N | release through=N | prepare target=N | close
//	crash [percent=N] [seed=N]      loses power
//	flip file=N offset=N | truncate file=N bytes=N
//	fail-writes n=N                 the next n writes fail
//	segments | dump
//	read from=N                     with a cursor, from behind ordinal N
type script struct {
	mem      *vfs.MemFS
	o        Options
	j        *Journal
	failures int
}

func (s *script) open(b *strings.Builder) {
	n := 0
	var last uint64
	s.o.FS = vfs.NewErrFS(s.mem, func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && s.failures > 0 {
			s.failures--
			return errInjected
		}
		return nil
	})
	s.o.Visit = func(h Header, _ Location) error { n++; last = h.Ordinal; return nil }
	j, err := Open(s.o)
	if err != nil {
		fmt.Fprintln(b, err)
		return
	}
	s.j = j
	fmt.Fprintf(b, "recovered %d records, last ordinal %d, head %d durable %d end %v\n", n, last, j.Head(), j.Durable(),
		j.End())
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	var b strings.Builder
	num := func(key string, def int) int {
		d.MaybeScanArgs(t, key, &def)
		return def
	}
	done := func(err error) {
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	switch d.Cmd {
	case "open":
		s.o.OldestSegment = uint64(num("oldest", 0))
		s.o.StartOrdinal = uint64(num("start", 0))
		s.o.MinDurableOrdinal = uint64(num("min-durable", 0))
		s.o.HardLimitBytes = int64(num("limit", 0)) * testSegmentBytes
		s.open(&b)
	case "append":
		for range num("repeat", 1) {
			for _, arg := range d.CmdArgs {
				var kind Kind
				for k := KindWrite; k <= KindHole; k++ {
					if k.String() == arg.Key {
						kind = k
					}
				}
				if kind == 0 {
					continue
				}
				h := Header{Kind: kind, Ordinal: uint64(num("ordinal", 0)), Length: 4096, UnixNanos: time.Unix(1e9, 0).UnixNano()}
				var data []byte
				if kind.HasData() {
					data = bytes.Repeat([]byte{0x55}, num("bytes", 100))
				}
				h, loc, err := s.j.Append(h, data)
				if err != nil {
					fmt.Fprintln(&b, err)
					continue
				}
				fmt.Fprintf(&b, "%s %d durable %d at %d:%d\n", h.Kind, h.Ordinal, h.DurableOrdinal, loc.Segment,
					loc.Offset-recordHeaderBytes)
			}
		}
	case "sync":
		done(s.j.Sync())
		fmt.Fprintf(&b, "durable %d, %v\n", s.j.Durable(), s.j.DurableEnd())
	case "roll":
		done(s.j.Roll([16]byte{byte(num("timeline", 0))}))
	case "release":
		done(s.j.Release(uint64(num("through", 0))))
	case "prepare":
		s.j.o.FreeTarget = num("target", 0)
		done(s.j.Prepare())
		fmt.Fprintf(&b, "used %d, total %d segments\n", s.j.UsedBytes()/testSegmentBytes, s.j.TotalBytes()/testSegmentBytes)
	case "close":
		done(s.j.Close())
	case "crash":
		clone := s.mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: num("percent", 0),
			RNG: rand.New(rand.NewPCG(uint64(num("seed", 0)), 0))})
		s.j.Close()
		s.mem = clone
	case "flip", "truncate":
		f, err := s.mem.Open(path.Join(s.o.Dir, fmt.Sprintf("%08d.seg", num("file", 0))))
		if err != nil {
			t.Fatal(err)
		}
		if d.Cmd == "truncate" {
			done(f.Truncate(int64(num("bytes", 0))))
		} else {
			var c [1]byte
			off := int64(num("offset", 0))
			if _, err := f.ReadAt(c[:], off); err != nil {
				t.Fatal(err)
			}
			c[0] ^= 0x10
			if _, err := f.WriteAt(c[:], off); err != nil {
				t.Fatal(err)
			}
		}
		done(f.Datasync())
		f.Close()
	case "fail-writes":
		s.failures = num("n", 1)
	case "segments":
		for _, i := range s.j.Segments() {
			fmt.Fprintf(&b, "%d: ordinals %d to %d, %d bytes, sealed %v, timeline %d\n", i.Sequence, i.FirstOrdinal,
				i.LastOrdinal, i.Bytes, i.Sealed, i.Timeline[0])
		}
		fmt.Fprintf(&b, "used %d, total %d\n", s.j.UsedBytes()/testSegmentBytes, s.j.TotalBytes()/testSegmentBytes)
	case "dump":
		done(Dump(s.mem, s.o.Dir, &b, DumpOptions{JSON: d.HasArg("json"), Segments: d.HasArg("segments"),
			OldestSegment: uint64(num("oldest", 0)), MinDurableOrdinal: uint64(num("min-durable", 0))}))
		lines := strings.Split(b.String(), "\n")
		for i := range lines {
			lines[i] = strings.TrimRight(lines[i], " ")
		}
		return strings.Trim(strings.ReplaceAll(strings.Join(lines, "\n"), "\n\n", "\n"), "\n") + "\n"
	case "read":
		pos, ok, err := s.j.PositionOf(uint64(num("from", 0)))
		if !ok || err != nil {
			fmt.Fprintln(&b, "released or out of order:", err)
			break
		}
		fmt.Fprintf(&b, "from %v\n", pos)
		c := s.j.NewCursor(pos)
		for {
			recs, err := c.Next(1)
			if err != nil || recs == nil {
				done(err)
				break
			}
			for _, r := range recs {
				fmt.Fprintf(&b, "%s %d at %v\n", r.Header.Kind, r.Header.Ordinal, r.Loc)
			}
		}
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	if b.Len() == 0 {
		return "ok\n"
	}
	return b.String()
}

func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, file string) {
		s := &script{mem: vfs.NewMem()}
		s.o = testOptions(nil)
		defer func() {
			if s.j != nil {
				if err := s.j.Close(); err != nil && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
			}
		}()
		datadriven.RunTest(t, file, s.run)
	})
}
