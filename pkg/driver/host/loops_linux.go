package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// linuxLoops are the kernel's loop devices.
type linuxLoops struct {
	root string // where files are opened below; see blockdev.LoopConfig
}

func (l linuxLoops) Attach(config blockdev.LoopConfig) (Device, error) {
	config.Root = l.root
	device, err := blockdev.AttachLoop(config)
	if err != nil && config.DirectIO {
		// Direct I/O saves a second copy in the page cache, but not every file system can do it, and not in every block
		// size. A pool on one that cannot is slower, not unusable. For a file of the replicator it is part of the promise.
		if served, serr := isFUSE(config.BackingPath); serr == nil && !served {
			config.DirectIO = false
			device, err = blockdev.AttachLoop(config)
		}
	}
	if err != nil {
		return Device{}, err
	}
	number, err := sysAttribute(device, "dev")
	if err != nil {
		return Device{}, errors.Join(err, blockdev.DetachLoopOf(device, config.BackingPath))
	}
	return Device{Path: device, Number: number}, nil
}

const fuseSuperMagic = 0x65735546

func isFUSE(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return st.Type == fuseSuperMagic, err
}

func (linuxLoops) List() ([]LoopDevice, error) {
	infos, err := blockdev.FindLoops(func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	var devices []LoopDevice
	for _, info := range infos {
		number, err := sysAttribute(info.Device, "dev")
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		sectors, err := sysAttribute(info.Device, "size")
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseInt(sectors, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("size of %s: %w", info.Device, err)
		}
		devices = append(devices, LoopDevice{
			Device:      Device{Path: info.Device, Number: number},
			BackingPath: info.BackingPath,
			Deleted:     info.Deleted,
			SizeBytes:   n * 512, // sysfs counts 512 bytes whatever the block size
		})
	}
	return devices, nil
}

func sysAttribute(device, attribute string) (string, error) {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), attribute))
	return strings.TrimSpace(string(text)), err
}

func (linuxLoops) KeepSpace(device string) error { return blockdev.KeepLoopSpace(device) }

func (linuxLoops) SetSize(device string, sizeBytes int64) error {
	return blockdev.SetLoopSize(device, sizeBytes)
}

func (linuxLoops) File(device string) (blockdev.FileID, error) { return blockdev.LoopFile(device) }

func (linuxLoops) Detach(device LoopDevice) error {
	return blockdev.DetachLoopOf(device.Path, device.BackingPath)
}
