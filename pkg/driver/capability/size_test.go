package capability

import (
	"math"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func TestSizeFor(t *testing.T) {
	for _, tc := range []struct {
		required, limit, least int64
		want                   int64
		code                   codes.Code
	}{
		{0, 0, mib, gib, codes.OK},
		{0, 0, 2 * gib, 2 * gib, codes.OK},
		{0, 100 * mib, mib, 100 * mib, codes.OK}, // the default is not above the limit
		{0, 100*mib + 1, mib, 100 * mib, codes.OK},
		{1, 0, mib, mib, codes.OK},
		{5*mib + 1, 0, mib, 5*mib + 4096, codes.OK},
		{5 * mib, 5 * mib, mib, 5 * mib, codes.OK},
		{5*mib + 1, 5*mib + 2, mib, 0, codes.OutOfRange}, // no multiple of the block size between them
		{1, mib, 300 * mib, 0, codes.OutOfRange},         // xfs under a limit
		{2, 1, mib, 0, codes.InvalidArgument},
		{-1, 0, mib, 0, codes.InvalidArgument},
		{0, -1, mib, 0, codes.InvalidArgument},
		{math.MaxInt64, 0, mib, 0, codes.OutOfRange},
	} {
		got, err := SizeFor(&csi.CapacityRange{RequiredBytes: tc.required, LimitBytes: tc.limit}, tc.least)
		if got != tc.want || status.Code(err) != tc.code {
			t.Errorf("[%d, %d] at least %d: got %d, %v; want %d, %s", tc.required, tc.limit, tc.least, got, err, tc.want,
				tc.code)
		}
	}
	if got, err := SizeFor(nil, mib); got != gib || err != nil {
		t.Errorf("no range: %d, %v", got, err)
	}
}

func TestExpandedSize(t *testing.T) {
	for _, tc := range []struct {
		current, required, limit int64
		want                     int64
		code                     codes.Code
	}{
		{gib, 0, 0, gib, codes.OK},
		{gib, 2 * gib, 0, 2 * gib, codes.OK},
		{2 * gib, gib, 0, 2 * gib, codes.OK}, // as large as asked for already
		{gib, 0, 4 * gib, gib, codes.OK},     // a limit alone asks for nothing
		{2 * gib, 0, gib, 0, codes.OutOfRange},
		{gib, 3 * gib, 2 * gib, 0, codes.InvalidArgument},
		{gib, -1, 0, 0, codes.InvalidArgument},
		{gib, math.MaxInt64, 0, 0, codes.OutOfRange},
	} {
		got, err := ExpandedSize(tc.current, &csi.CapacityRange{RequiredBytes: tc.required, LimitBytes: tc.limit})
		if got != tc.want || status.Code(err) != tc.code {
			t.Errorf("%d in [%d, %d]: got %d, %v; want %d, %s", tc.current, tc.required, tc.limit, got, err, tc.want, tc.code)
		}
	}
}
