package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A discard of a loop device punches a hole into its file, which would free the reserved space of a thick image. The
// kernel can be told to refuse discards. This cannot be undone (6.18 then has no granularity and refuses every
// value), and the setting stays with the device's number when the file is detached. So such a number is removed when
// it is free, and the kernel makes a new one.

// KeepLoopSpace makes discards of a device fail, as long as it is attached. It can be repeated.
func KeepLoopSpace(devPath string) error {
	limit := queueAttribute(devPath, "discard_max_bytes")
	have, err := readUint(limit)
	if err == nil && have != 0 {
		err = os.WriteFile(limit, []byte("0"), 0)
	}
	if err != nil {
		return fmt.Errorf("keep %s from being discarded: %w", devPath, err)
	}
	return nil
}

// prepareDiscards gives a device that was just attached the setting it is to have. A number with the wrong setting is
// ENXIO: do not use it.
func prepareDiscards(devPath string, keepSpace bool) error {
	if keepSpace {
		return KeepLoopSpace(devPath)
	}
	refuses, err := refusesDiscards(devPath)
	if err == nil && refuses {
		err = fmt.Errorf("%s refuses discards since it had another file: %w", devPath, unix.ENXIO)
	}
	return err
}

// refusesDiscards reports a device that could be discarded but was told not to be.
func refusesDiscards(devPath string) (bool, error) {
	can, err := readUint(queueAttribute(devPath, "discard_max_hw_bytes"))
	if err != nil {
		return false, err
	}
	may, err := readUint(queueAttribute(devPath, "discard_max_bytes"))
	return can > 0 && may == 0, err
}

// removeWithoutDiscards removes the number of a detached device that refuses discards, and leaves another one alone.
// A device that is in use again stays: its new user checks the setting.
func removeWithoutDiscards(devPath string) error {
	may, err := readUint(queueAttribute(devPath, "discard_max_bytes"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && may > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(strings.TrimPrefix(devPath, "/dev/loop"))
	if err != nil {
		return err
	}
	control, err := os.OpenFile(loopControlPath, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	err = unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_REMOVE, number)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func queueAttribute(devPath, name string) string {
	return filepath.Join(sysBlock, strings.TrimPrefix(devPath, "/dev/"), "queue", name)
}

func readUint(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
