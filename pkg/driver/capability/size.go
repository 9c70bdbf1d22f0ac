package capability

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// ExpandedSize is the size that a volume gets. One that is larger than asked for stays as it is, unless it is above the
// limit.
func ExpandedSize(current int64, capacity *csi.CapacityRange) (int64, error) {
	required, limit := capacity.GetRequiredBytes(), capacity.GetLimitBytes()
	if limit > 0 && current > limit {
		return 0, status.Errorf(codes.OutOfRange, "it has %s, above limit_bytes %d, and cannot shrink",
			words.Count(current, "byte"), limit)
	}
	if required >= 0 {
		required = max(required, current)
	}
	return SizeFor(&csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}, MinBlockSizeBytes)
}

const (
	defaultSizeBytes = int64(1) << 30
	// MinBlockSizeBytes is the smallest volume without a file system.
	MinBlockSizeBytes = int64(1) << 20
	// SizeUnitBytes: sizes are multiples of it. It is the largest logical block size a loop device has here, so that
	// an image ends with a whole block on every disk.
	SizeUnitBytes = int64(4096)
)

// MinSizeBytes of a volume by its file system. xfsprogs 5.19 and newer refuse less than 300 MiB; ext4 would take less,
// but below this its journal is too small to be of use.
var MinSizeBytes = map[string]int64{Ext4: 16 << 20, XFS: 300 << 20}

// SizeFor chooses a volume's size from a capacity range and the least size that its use needs. Errors are status
// errors: InvalidArgument for a range that no volume can be in, OutOfRange for one that this driver has no size for.
func SizeFor(capacity *csi.CapacityRange, least int64) (int64, error) {
	required, limit := capacity.GetRequiredBytes(), capacity.GetLimitBytes()
	switch {
	case required < 0 || limit < 0:
		return 0, status.Errorf(codes.InvalidArgument, "capacity range [%d, %d] has a negative bound", required, limit)
	case limit != 0 && required > limit:
		return 0, status.Errorf(codes.InvalidArgument, "capacity range: required_bytes %d is above limit_bytes %d", required,
			limit)
	}
	size := required
	if size == 0 {
		size = max(defaultSizeBytes, least)
		if limit != 0 {
			size = min(size, limit/SizeUnitBytes*SizeUnitBytes)
		}
	}
	size = max(size, least)
	rounded, ok := roundUp(size)
	if !ok {
		return 0, status.Errorf(codes.OutOfRange, "capacity range: required_bytes %d is more than a volume can have",
			required)
	}
	if limit != 0 && rounded > limit {
		return 0, status.Errorf(codes.OutOfRange,
			"capacity range: the volume would have %s (at least %d, in units of %d), above limit_bytes %d: raise the "+
				"limit",
			words.Count(rounded, "byte"), least, SizeUnitBytes, limit)
	}
	return rounded, nil
}

func roundUp(size int64) (rounded int64, ok bool) {
	rounded = (size + SizeUnitBytes - 1) / SizeUnitBytes * SizeUnitBytes
	return rounded, rounded >= size && size >= 0
}

// InRange reports whether an existing volume's size satisfies a capacity range.
func InRange(size int64, capacity *csi.CapacityRange) bool {
	return size >= capacity.GetRequiredBytes() && (capacity.GetLimitBytes() == 0 || size <= capacity.GetLimitBytes())
}
