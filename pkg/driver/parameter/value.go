package parameter

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// parseBool takes "true" and "false" only: strconv.ParseBool would take "T" and "1", which no documentation promises.
func parseBool(value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is not true or false", value)
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)

func parseName(value string) (string, error) {
	if !namePattern.MatchString(value) {
		return "", fmt.Errorf("%q is not a name: at most 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter "+
			"or digit", value)
	}
	return value, nil
}

// parseMillis reads a duration in whole milliseconds, as 500ms, 5s or 1h, or 0.
func parseMillis(value string) (int64, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d%time.Millisecond != 0 || d.Milliseconds() > core.MaxRPOTargetMillis {
		return 0, fmt.Errorf("%q is not a duration such as 500ms, 5s or 1h, of whole milliseconds and at most a year", value)
	}
	return d.Milliseconds(), nil
}

var quantitySuffixes = []struct {
	suffix string
	factor int64
}{
	// Binary suffixes first: "Mi" also ends in a letter that a decimal suffix could match.
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
	{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15},
	{"", 1},
}

// ParseQuantity reads a number of bytes in the notation of Kubernetes quantities: digits and one of the suffixes Ki,
// Mi, Gi, Ti, Pi, k, M, G, T, P, or none. Fractions and exponents, which Kubernetes also knows, are refused rather than
// rounded.
func ParseQuantity(value string) (int64, error) {
	for _, s := range quantitySuffixes {
		digits, ok := strings.CutSuffix(value, s.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil {
			break
		}
		if n == 0 {
			return 0, fmt.Errorf("%q is zero", value)
		}
		if int64(n) > math.MaxInt64/s.factor {
			return 0, fmt.Errorf("%q is more than the largest possible size", value)
		}
		return int64(n) * s.factor, nil
	}
	return 0, fmt.Errorf("%q is not a quantity such as 64Mi or 1Gi", value)
}
