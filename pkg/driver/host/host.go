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

// Linux returns the node itself. hostRoot is Options.HostRoot.
func Linux(hostRoot string, writeback Writeback) System {
	return withKillSteps(System{
		FS:          vfs.OS,
		Mounter:     linuxMounter{},
		Filesystems: linuxFileSystems{},
		Loops:       linuxLoops{root: hostRoot},
		Writeback:   writeback,
	})
}
