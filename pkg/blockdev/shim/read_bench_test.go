package shim_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// plainReads hides that an image can tell which reads need no wait.
type plainReads struct{ blockdev.Device }

// readyReads is an image as the workers serve it.
type readyReads struct {
	plainReads
	image *blockdev.Image
}

func (d readyReads) ReadReadyAt(p []byte, off int64) bool { return d.image.ReadReadyAt(p, off) }

// BenchmarkRead reads 4 KiB at random places of an image that is in the page cache, from as many goroutines as depth
// says. cpu-us/op is processor time of readers and workers; switches/op are voluntary context switches.
func BenchmarkRead(b *testing.B) {
	testenv.RequireFUSE(b)
	const size = 64 << 20
	for _, depth := range []int{1, 16} {
		for _, ready := range []bool{false, true} {
			b.Run(fmt.Sprintf("depth=%d/ready=%t", depth, ready), func(b *testing.B) {
				dir := b.TempDir()
				image, err := blockdev.CreateImage(vfs.OS, filepath.Join(dir, "image"), size, false)
				if err != nil {
					b.Fatal(err)
				}
				defer image.Close()
				for off := int64(0); off < size; off += 1 << 20 {
					if _, err := image.WriteAt(make([]byte, 1<<20), off); err != nil {
						b.Fatal(err)
					}
				}
				var device blockdev.Device = plainReads{image}
				if ready {
					device = readyReads{plainReads{image}, image}
				}
				benchmarkRead(b, device, filepath.Join(dir, "mnt"), depth, size)
			})
		}
	}
}

func benchmarkRead(b *testing.B, device blockdev.Device, mount string, depth int, size int64) {
	srv, err := shim.Mount(shim.Config{MountPoint: mount, Mode: shim.ModeAck, VolumeID: "bench"}, device)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := srv.Unmount(); err != nil {
			b.Error(err)
		}
	}()
	f, err := os.OpenFile(filepath.Join(mount, shim.FileName), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	usage := func() (u syscall.Rusage) {
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u
	}
	before := usage()
	b.ResetTimer()
	var readers sync.WaitGroup
	for i := range depth {
		readers.Go(func() {
			p, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				b.Error(err)
				return
			}
			defer func() { _ = unix.Munmap(p) }()
			for range (b.N + i) / depth {
				if _, err := f.ReadAt(p, rand.Int64N(size/4096)*4096); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	readers.Wait()
	b.StopTimer()
	after := usage()
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(cpu.Nanoseconds())/1e3/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(after.Nvcsw-before.Nvcsw)/float64(b.N), "switches/op")
}
