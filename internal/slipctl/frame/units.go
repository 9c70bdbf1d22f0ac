package frame

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// ParseBytes reads a size as Kubernetes writes it: 1Gi, 64Mi, 512Ki, or a number of bytes.
func ParseBytes(s string) (int64, error) {
	number, factor := s, int64(1)
	for i, suffix := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			number, factor = n, int64(1)<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/factor {
		return 0, fmt.Errorf("size %q: it is written as 1Gi, 64Mi, 512Ki, or as a number of bytes", s)
	}
	return n * factor, nil
}

// FormatBytes writes a size with three digits.
func FormatBytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), ""
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		value, unit = value/1024, u
		if value < 1000 {
			break
		}
	}
	switch {
	case value < 10:
		return fmt.Sprintf("%.2f %s", value, unit)
	case value < 100:
		return fmt.Sprintf("%.1f %s", value, unit)
	}
	return fmt.Sprintf("%.0f %s", value, unit)
}

// Unknown is shown for a value that is not known, which is not zero.
const Unknown = "unknown"

// OrUnknown formats a value that may be absent.
func OrUnknown[T any](value *T, format func(T) string) string {
	if value == nil {
		return Unknown
	}
	return format(*value)
}

// FormatCount returns a function that writes a number with what it counts. The noun is in the singular.
func FormatCount(noun string) func(uint64) string {
	return func(n uint64) string { return words.Count(n, noun) }
}

// FormatSeconds writes a duration as people read a lag.
func FormatSeconds(s float64) string {
	switch d := time.Duration(s * float64(time.Second)); {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}

// WhenText is a time of a site's clock.
func WhenText(unixNanos int64) string { return time.Unix(0, unixNanos).UTC().Format(time.RFC3339) }
