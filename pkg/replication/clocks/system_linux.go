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

// Read returns the instant that is now, with a wall clock that is read beside the others. They are read again where
// more than ReadingError passed meanwhile: a thread may lose its processor between two of them.
func Read(wall func() time.Time) Instant {
	const tries = 16
	var best Instant
	var shortest time.Duration
	for i := range tries {
		began := time.Now()
		instant := readOnce(wall())
		took := time.Since(began)
		if i == 0 || took < shortest {
			best, shortest = instant, took
		}
		if shortest <= ReadingError {
			break
		}
	}
	return best
}

func readOnce(wall time.Time) Instant {
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
