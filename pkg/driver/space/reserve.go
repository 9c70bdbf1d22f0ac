package space

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// CapacityOptions say how much of its file system a pool may promise.
type CapacityOptions struct {
	// OvercommitRatio is what the sizes of thin volumes may add up to, as a multiple of the space there is for them; at
	// least 1, and 1 when it is 0. Above 1 the pool can be full before its volumes are.
	OvercommitRatio float64
	// Reserve is never promised to a volume: room for records, and for growth between two looks at the disk.
	Reserve Reserve
}

func (o *CapacityOptions) Check() error {
	if o.OvercommitRatio == 0 {
		o.OvercommitRatio = 1
	}
	if !(o.OvercommitRatio >= 1) || math.IsInf(o.OvercommitRatio, 0) {
		return fmt.Errorf("overcommit ratio %g is less than 1, or not a number: to keep space free use the reserve",
			o.OvercommitRatio)
	}
	return nil
}

// Reserve is a part of a file system, as a number of bytes or a share of its size. The zero value is none.
type Reserve struct {
	Bytes   int64
	percent float64
}

// DefaultReserve is the program's.
var DefaultReserve = Reserve{percent: 1}

// ParseReserve reads a quantity such as 10Gi, a percentage such as 1%, or 0.
func ParseReserve(text string) (Reserve, error) {
	if text == "0" {
		return Reserve{}, nil
	}
	if number, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || !(percent >= 0 && percent < 100) {
			return Reserve{}, fmt.Errorf("%q is not a percentage from 0%% to less than 100%%", text)
		}
		return Reserve{percent: percent}, nil
	}
	bytes, err := parameter.ParseQuantity(text)
	return Reserve{Bytes: bytes}, err
}

// Of is the reserve of a file system of that size.
func (r Reserve) Of(totalBytes int64) int64 {
	return r.Bytes + int64(float64(totalBytes)*r.percent/100)
}

// Set implements flag.Value.
func (r *Reserve) Set(text string) (err error) {
	*r, err = ParseReserve(text)
	return err
}

// String is what Set reads.
func (r Reserve) String() string {
	if r.percent != 0 {
		return strconv.FormatFloat(r.percent, 'g', -1, 64) + "%"
	}
	return strconv.FormatInt(r.Bytes, 10)
}
