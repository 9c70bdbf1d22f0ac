package driver

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// BenchmarkCreateVolume creates a thin volume in a pool that has other volumes of its kind. cpu-ms/op is processor
// time, which other programs on the machine hardly change.
func BenchmarkCreateVolume(b *testing.B) {
	for kind, class := range map[string]map[string]string{"plain": nil, "replicable": {parameter.KeyReplicable: "true"}} {
		for _, volumes := range []int{0, 300, 3000} {
			b.Run(fmt.Sprintf("%s/volumes=%d", kind, volumes), func(b *testing.B) { benchmarkCreate(b, volumes, class) })
		}
	}
}

func benchmarkCreate(b *testing.B, volumes int, class map[string]string) {
	m := newMachine()
	d, err := newDriver(Options{NodeID: "node-a", PoolDir: filepath.Join(b.TempDir(), "pool"),
		SidecarEndpoint: "unix:///no-listener-here"},
		host.System{FS: vfs.OS, Mounter: fakeMounter{m}, Filesystems: fakeFileSystems{m}, Loops: fakeLoops{m},
			Writeback: fakeWriteback{m}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	for i := range volumes {
		id := fmt.Sprintf("vol-%06d", i)
		if _, err := d.store.Pool.Create(blockdev.VolumeRecord{ID: id, Name: "name-" + id, SizeBytes: 1 << 20,
			Replicable: class != nil, Parameters: class}); err != nil {
			b.Fatal(err)
		}
	}
	c := &controllerServer{d: d}
	if _, err := d.store.SharedVolumes(); err != nil { // a driver that runs has read them
		b.Fatal(err)
	}
	before := processorTime()
	for n := 0; b.Loop(); n++ {
		_, err := c.CreateVolume(context.Background(),
			createReq(fmt.Sprintf("new-%d", n), capabilitytest.Mount(capabilitytest.Writer, ""), class))
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((processorTime()-before).Seconds()*1e3/float64(b.N), "cpu-ms/op")
}

// processorTime is what this process has used, in user and kernel mode.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
