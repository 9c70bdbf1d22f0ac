package replication

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// BenchmarkReplicate writes 4 KiB at one site, with a flush every fourth time, and waits in the end until both sites of
// the process have applied everything to real files. The link is in memory. cpu-us/op is processor time of both sites.
// With the least memory nearly all records are read back from the journals.
func BenchmarkReplicate(b *testing.B) {
	for _, memory := range []int64{1, 8 << 20} {
		b.Run(fmt.Sprintf("memory=%d", memory), func(b *testing.B) { benchmarkReplicate(b, memory) })
	}
}

func benchmarkReplicate(b *testing.B, memoryBytes int64) {
	const sizeBytes = 64 << 20
	net := link.NewNetwork(nil)
	open := func(name string) (*Site, *blockdev.Pool) {
		pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(b.TempDir(), "pool"), blockdev.WhoReplicator)
		if err != nil {
			b.Fatal(err)
		}
		s, err := Open(Config{FS: vfs.OS, Pool: pool, Site: name, Dialer: net.Dialer(name), MemoryBytes: memoryBytes,
			PeerAddress: func(string) string { return "memory" }, ApplyInterval: 500 * time.Millisecond})
		if err != nil {
			b.Fatal(err)
		}
		net.Attach(name, s)
		b.Cleanup(func() {
			net.Detach(name)
			s.Kill()
			pool.Close()
		})
		return s, pool
	}
	here, pool := open("site-a")
	there, _ := open("site-b")
	g, err := here.CreateGroup(GroupSpec{Name: "shop", Settings: core.Settings{Peer: "site-b",
		JournalSizeBytes: 256 << 20}})
	if err != nil {
		b.Fatal(err)
	}
	rec, err := pool.Create(blockdev.VolumeRecord{ID: "v0", Name: "v0", SizeBytes: sizeBytes, Replicable: true})
	if err == nil {
		err = g.AddVolume(rec, nil)
	}
	if err != nil {
		b.Fatal(err)
	}
	v, err := g.Volume("v0")
	if err != nil {
		b.Fatal(err)
	}
	settled := func() bool {
		copied, err := there.Group("shop")
		if err != nil {
			return false
		}
		head, s, c := g.journal.Head(), g.Status(), copied.Status()
		return s.AppliedOrdinal == head && c.AppliedOrdinal == head && s.ChangeMapBytes == 0
	}
	settle := func() {
		for end := time.Now().Add(time.Minute); !settled(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				b.Fatal("the copy does not catch up")
			}
		}
	}
	settle()
	usage := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	data := make([]byte, 4096)
	before := usage()
	b.ReportAllocs()
	n := 0
	for ; b.Loop(); n++ {
		if _, err := v.WriteAt(data, int64(n*7919%(sizeBytes/4096))*4096); err != nil {
			b.Fatal(err)
		}
		if n%4 == 3 {
			if err := v.Flush(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := v.Flush(); err != nil {
		b.Fatal(err)
	}
	settle()
	b.ReportMetric(float64((usage()-before).Nanoseconds())/1e3/float64(n), "cpu-us/op")
	memory := here.Memory()
	b.ReportMetric(float64(memory.FromMemory)/float64(max(1, memory.FromMemory+memory.FromFiles)), "from-memory")
}
