package driver

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// BenchmarkCreateVolume creates and deletes a thin volume in a pool that has other volumes.
func BenchmarkCreateVolume(b *testing.B) {
	for _, volumes := range []int{0, 3000} {
		b.Run(fmt.Sprintf("volumes=%d", volumes), func(b *testing.B) { benchmarkCreate(b, volumes) })
	}
}

func benchmarkCreate(b *testing.B, volumes int) {
	m := newMachine()
	d, err := newDriver(Options{NodeID: "node-a", PoolDir: filepath.Join(b.TempDir(), "pool")},
		host.System{FS: vfs.OS, Mounter: fakeMounter{m}, Filesystems: fakeFileSystems{m}, Loops: fakeLoops{m},
			Writeback: fakeWriteback{m}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	for i := range volumes {
		id := fmt.Sprintf("vol-%06d", i)
		if _, err := d.store.Pool.Create(blockdev.VolumeRecord{ID: id, Name: "name-" + id, SizeBytes: 1 << 20}); err != nil {
			b.Fatal(err)
		}
	}
	c := &controllerServer{d: d}
	for n := 0; b.Loop(); n++ {
		_, err := c.CreateVolume(context.Background(),
			createReq(fmt.Sprintf("new-%d", n), capabilitytest.Mount(capabilitytest.Writer, ""), nil))
		if err != nil {
			b.Fatal(err)
		}
	}
}
