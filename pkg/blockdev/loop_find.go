package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LoopInfo is an attached loop device as sysfs shows it.
type LoopInfo struct {
	Device      string // /dev/loopN
	Number      int
	BackingPath string // as seen from this process's root; without the kernel's " (deleted)"
	Deleted     bool   // the backing file has no name any more

	OffsetBytes    int64
	SizeLimitBytes int64 // 0: the file's size
	BlockSizeBytes int64
	DirectIO       bool
	ReadOnly       bool
	AutoClear      bool // goes with its last opener
}

// sysBlock is where the kernel shows its block devices.
const sysBlock = "/sys/block"

const deletedSuffix = " (deleted)"

// readLoop reads an attached device's attributes; fs.ErrNotExist when it is not attached. It does not touch the
// backing file, so it works while no process serves that file.
func readLoop(name string) (LoopInfo, error) {
	number, err := strconv.Atoi(strings.TrimPrefix(name, "loop"))
	if err != nil || number < 0 {
		return LoopInfo{}, fmt.Errorf("%q is not a loop device: %w", name, fs.ErrInvalid)
	}
	info := LoopInfo{Device: loopPath(number), Number: number}
	attribute := func(path string) string {
		if err != nil {
			return ""
		}
		var text []byte
		text, err = os.ReadFile(filepath.Join(sysBlock, name, path))
		return strings.TrimSuffix(string(text), "\n")
	}
	integer := func(path string) int64 {
		text := attribute(path)
		if err != nil {
			return 0
		}
		var v int64
		v, err = strconv.ParseInt(text, 10, 64)
		return v
	}
	info.BackingPath, info.Deleted = strings.CutSuffix(attribute("loop/backing_file"), deletedSuffix)
	info.OffsetBytes = integer("loop/offset")
	info.SizeLimitBytes = integer("loop/sizelimit")
	info.AutoClear = integer("loop/autoclear") != 0
	info.DirectIO = integer("loop/dio") != 0
	info.ReadOnly = integer("ro") != 0
	info.BlockSizeBytes = integer("queue/logical_block_size")
	if (err == nil && info.BackingPath == "") || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		err = fs.ErrNotExist // read in the instant of being detached: sysfs takes away attributes that are open
	}
	if err != nil {
		return LoopInfo{}, fmt.Errorf("read attributes of %s: %w", name, err)
	}
	return info, nil
}

// FindLoops returns the attached devices whose backing path matches, by number. It reads sysfs only.
func FindLoops(match func(backingPath string) bool) ([]LoopInfo, error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, err
	}
	var found []LoopInfo
	for _, e := range entries {
		if n, ok := strings.CutPrefix(e.Name(), "loop"); !ok || n == "" || strings.Trim(n, "0123456789") != "" {
			continue
		}
		info, err := readLoop(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist): // not attached, or it went while we read
		case err != nil:
			return nil, err
		case match(info.BackingPath):
			found = append(found, info)
		}
	}
	slices.SortFunc(found, func(a, b LoopInfo) int { return a.Number - b.Number })
	return found, nil
}

// FileID is a file, whatever its name is: by its file system and inode, as the kernel shows them of a loop device. A
// file system's number may be another one after a reboot. The zero value is no file.
type FileID struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// LoopFile returns a device's backing file; fs.ErrNotExist if the device is not attached. The kernel may ask the
// file's file system: it is not for the shim's files, which wait for their server.
func LoopFile(devPath string) (FileID, error) {
	dev, err := os.OpenFile(devPath, os.O_RDONLY, 0)
	if err != nil {
		return FileID{}, err
	}
	defer dev.Close()
	status, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if errors.Is(err, unix.ENXIO) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return FileID{}, fmt.Errorf("status of %s: %w", devPath, err)
	}
	return FileID{status.Device, status.Inode}, nil
}
