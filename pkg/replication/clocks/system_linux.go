package clocks

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // every instant is unknown then, and so is what is made from it
	}
	return strings.TrimSpace(string(id))
})

// At returns the instant that is now, with the wall clock that the caller has just read.
func At(wall time.Time) Instant {
	boot, bootErr := nanos(unix.CLOCK_BOOTTIME)
	raw, rawErr := nanos(unix.CLOCK_MONOTONIC_RAW)
	if bootErr != nil || rawErr != nil {
		return Instant{}
	}
	return Instant{BootID: bootID(), BootNanos: boot, RawNanos: raw, WallNanos: wall.UnixNano()}
}

func nanos(clock int32) (int64, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(clock, &ts)
	return ts.Nano(), err
}
