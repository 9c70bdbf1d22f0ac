// Package host is what the driver does to the machine: mounts, loop devices, file systems and their programs, freezing,
// and paths. Each part is an interface, so that tests run without root; Linux returns the real one.
//
// It knows no volumes and no records, and decides nothing: package attach does. All of it is safe for concurrent use.
//
// In a build with the tag slipstream_bugs it counts its steps and can kill the process before one of them
// (killsteps_on.go).
package host

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Writeback is keeper.Watcher, as far as it is used here.
type Writeback interface {
	Add(path string) error
	Remove(ctx context.Context, path string) error
}

// System is what a Driver does to the machine.
type System struct {
	FS          vfs.FS
	Mounter     Mounter
	Filesystems FileSystems
	Loops       Loops
	Writeback   Writeback
}

// linuxSystem returns the node itself. hostRoot is Options.HostRoot.
func Linux(hostRoot string, writeback Writeback) System {
	return withKillSteps(System{
		FS:          vfs.OS,
		Mounter:     linuxMounter{},
		Filesystems: linuxFileSystems{},
		Loops:       linuxLoops{root: hostRoot},
		Writeback:   writeback,
	})
}
