package journal

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// The benchmarks run on the file system that holds the temporary directory: set TMPDIR to the one to measure.

func benchOptions(b *testing.B) Options {
	return Options{FS: vfs.OS, Dir: b.TempDir(), SegmentBytes: 64 << 20, FreeTarget: 2}
}

// keepSmall releases what was written once it is durable, so that a long run reuses its segments.
func keepSmall(b *testing.B, j *Journal) {
	if s := j.Segments(); len(s) > 2 {
		if err := j.Sync(); err != nil {
			b.Fatal(err)
		}
		if err := j.Release(s[len(s)-2].Sequence); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend4KiB(b *testing.B) {
	j := mustOpen(b, benchOptions(b))
	if err := j.Prepare(); err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, _, err := j.Append(Header{Kind: KindWrite}, data); err != nil {
			b.Fatal(err)
		}
		if i%10000 == 0 {
			keepSmall(b, j)
		}
	}
}

func BenchmarkAppendSync4KiB(b *testing.B) {
	j := mustOpen(b, benchOptions(b))
	if err := j.Prepare(); err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 4096)
	b.SetBytes(4096)
	for i := 0; b.Loop(); i++ {
		if _, _, err := j.Append(Header{Kind: KindWrite}, data); err != nil {
			b.Fatal(err)
		}
		if err := j.Sync(); err != nil {
			b.Fatal(err)
		}
		if i%10000 == 0 {
			keepSmall(b, j)
		}
	}
}

func BenchmarkAppendSyncParallel8(b *testing.B) {
	j := mustOpen(b, benchOptions(b))
	if err := j.Prepare(); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(4) // times GOMAXPROCS
	b.SetBytes(4096)
	b.RunParallel(func(pb *testing.PB) {
		data := make([]byte, 4096)
		for pb.Next() {
			if _, _, err := j.Append(Header{Kind: KindWrite}, data); err != nil {
				b.Error(err)
			}
			if err := j.Sync(); err != nil {
				b.Error(err)
			}
		}
	})
}

func fill(b *testing.B, o Options, bytes int64) *Journal {
	j := mustOpen(b, o)
	data := make([]byte, 4096)
	for i := 0; j.UsedBytes() <= bytes; i++ {
		if i%1000 == 0 {
			if err := j.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		if _, _, err := j.Append(Header{Kind: KindWrite}, data); err != nil {
			b.Fatal(err)
		}
	}
	if err := j.Sync(); err != nil {
		b.Fatal(err)
	}
	return j
}

// BenchmarkRecover opens a journal of 256 MiB that is in the page cache.
func BenchmarkRecover(b *testing.B) {
	o := benchOptions(b)
	if err := fill(b, o, 256<<20).Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(256 << 20)
	for b.Loop() {
		j, err := Open(o)
		if err != nil {
			b.Fatal(err)
		}
		j.Close()
	}
}

// BenchmarkFollow appends 8 records of 4 KiB, makes them durable and reads them with two cursors, as the sender and
// apply do. read-cpu-us/record is the processor time of both cursors, in user and kernel mode.
func BenchmarkFollow(b *testing.B) {
	for _, memory := range []*Memory{nil, NewMemory(DefaultMemoryBytes)} {
		b.Run(fmt.Sprint("memory=", memory != nil), func(b *testing.B) {
			const records = 8
			o := benchOptions(b)
			o.Memory = memory
			j, err := Open(o)
			if err != nil {
				b.Fatal(err)
			}
			defer j.Close()
			cursors := [2]*Cursor{}
			data := make([]byte, 4096)
			var read time.Duration
			b.ReportAllocs()
			for b.Loop() {
				for range records {
					if _, _, err := j.Append(Header{Kind: KindWrite}, data); err != nil {
						b.Fatal(err)
					}
				}
				if err := j.Sync(); err != nil {
					b.Fatal(err)
				}
				runtime.LockOSThread()
				before := threadTime(b)
				for i, c := range cursors {
					if c == nil {
						c = j.NewCursor(Position{1, segmentHeaderBytes})
						cursors[i] = c
						defer c.Close()
					}
					recs, err := c.Next(1 << 20)
					if err != nil || len(recs) != records {
						b.Fatal(len(recs), err)
					}
				}
				read += threadTime(b) - before
				runtime.UnlockOSThread()
				keepSmall(b, j)
			}
			b.ReportMetric(float64(read.Nanoseconds())/1e3/float64(records*b.N), "read-cpu-us/record")
		})
	}
}

// BenchmarkPositionOf looks for the ordinal that a peer has acknowledged, 20 records behind the head, as each heartbeat
// and each status does. file-B/op is read from the journal's files.
func BenchmarkPositionOf(b *testing.B) {
	for _, memory := range []*Memory{nil, NewMemory(DefaultMemoryBytes)} {
		b.Run(fmt.Sprint("memory=", memory != nil), func(b *testing.B) {
			var fileBytes atomic.Int64
			o := benchOptions(b)
			o.Memory, o.FS = memory, countReads(o.FS, &fileBytes)
			j := mustOpen(b, o)
			for range 1000 {
				mustAppend(b, j, 4096, 'x')
			}
			b.ReportAllocs()
			fileBytes.Store(0)
			for b.Loop() {
				if _, ok, err := j.PositionOf(j.Head() - 20); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
			b.ReportMetric(float64(fileBytes.Load())/float64(b.N), "file-B/op")
		})
	}
}

// threadTime is what the calling thread has used, in user and kernel mode.
func threadTime(b *testing.B) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		b.Fatal(err)
	}
	return time.Duration(now.Nano())
}

func BenchmarkCursor(b *testing.B) {
	j := fill(b, benchOptions(b), 64<<20)
	b.ReportAllocs()
	var read int64
	start := time.Now()
	for b.Loop() {
		c := j.NewCursor(Position{1, segmentHeaderBytes})
		for {
			recs, err := c.Next(1 << 20)
			if err != nil {
				b.Fatal(err)
			}
			if recs == nil {
				break
			}
			for _, r := range recs {
				read += int64(len(r.Data))
			}
		}
		c.Close()
	}
	b.ReportMetric(float64(read)/1e6/time.Since(start).Seconds(), "MB/s")
}
