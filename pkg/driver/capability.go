package driver

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// File system types that a volume can be formatted with.
const (
	fsExt4 = blockdev.FSExt4
	fsXFS  = blockdev.FSXFS

	defaultFSType = fsExt4
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30

	defaultSizeBytes = gib
	// minBlockSizeBytes is the smallest volume without a file system.
	minBlockSizeBytes = mib
	// sizeUnitBytes: sizes are multiples of it. It is the largest logical block size a loop device has here, so that
	// an image ends with a whole block on every disk.
	sizeUnitBytes = int64(4096)
)

// minSizeBytes of a volume by its file system. xfsprogs 5.19 and newer refuse less than 300 MiB; ext4 would take less, but
// below this its journal is too small to be of use.
var minSizeBytes = map[string]int64{fsExt4: 16 * mib, fsXFS: 300 * mib}

type accessMode = csi.VolumeCapability_AccessMode_Mode

// supportedModes are the access modes of a volume that lives on one node.
var supportedModes = []accessMode{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
}

// capability is a validated csi.VolumeCapability.
type capability struct {
	Mode accessMode
	// Block is a raw block volume; the other fields are then empty.
	Block        bool
	FSType       string   // empty: the volume's own or the default
	MountOptions []string // as parseMountOptions leaves them
}

// readOnly reports that nobody may write, so that neither mkfs nor fsck may run.
func (c capability) readOnly() bool {
	return c.Mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
}

// parseCapability validates one capability. Errors are status errors with InvalidArgument.
func parseCapability(vc *csi.VolumeCapability) (capability, error) {
	if vc == nil {
		return capability{}, status.Error(codes.InvalidArgument, "volume capability is missing")
	}
	c := capability{Mode: vc.GetAccessMode().GetMode()}
	if !slices.Contains(supportedModes, c.Mode) {
		return capability{}, status.Errorf(codes.InvalidArgument,
			"access mode %s is not supported: a volume is a file on one node; use ReadWriteOnce or ReadWriteOncePod (SINGLE_NODE_*)", c.Mode)
	}
	switch {
	case vc.GetBlock() != nil:
		c.Block = true
	case vc.GetMount() != nil:
		c.FSType = vc.GetMount().GetFsType()
		var err error
		if c.MountOptions, err = parseMountOptions(vc.GetMount().GetMountFlags()); err != nil {
			return capability{}, err
		}
		if c.FSType != "" {
			if err := checkFSType(c.FSType); err != nil {
				return capability{}, err
			}
		}
		if vc.GetMount().GetVolumeMountGroup() != "" {
			return capability{}, status.Error(codes.InvalidArgument,
				"volume_mount_group is not supported: VOLUME_MOUNT_GROUP is not among the node's capabilities")
		}
	default:
		return capability{}, status.Error(codes.InvalidArgument, "volume capability has neither block nor mount")
	}
	return c, nil
}

// parseCapabilities validates the capabilities of a volume and returns the file system they ask for: "" when they ask for none
// in particular, and block when all of them are for raw block.
func parseCapabilities(vcs []*csi.VolumeCapability) (fsType string, block bool, err error) {
	if len(vcs) == 0 {
		return "", false, status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	block = true
	for _, vc := range vcs {
		c, err := parseCapability(vc)
		if err != nil {
			return "", false, err
		}
		if c.Block {
			continue
		}
		block = false
		if fsType != "" && c.FSType != "" && c.FSType != fsType {
			return "", false, status.Errorf(codes.InvalidArgument, "capabilities ask for file systems %s and %s: a volume has one", fsType, c.FSType)
		}
		if c.FSType != "" {
			fsType = c.FSType
		}
	}
	return fsType, block, nil
}

func checkFSType(fsType string) error {
	if _, ok := minSizeBytes[fsType]; !ok {
		return status.Errorf(codes.InvalidArgument, "file system \"%s\" is not supported: use %s or %s", untrusted.Reason(fsType), fsExt4, fsXFS)
	}
	return nil
}

// sizeFor chooses a volume's size from a capacity range and the least size that its use needs. Errors are status errors:
// InvalidArgument for a range that no volume can be in, OutOfRange for one that this driver has no size for.
func sizeFor(capacity *csi.CapacityRange, least int64) (int64, error) {
	required, limit := capacity.GetRequiredBytes(), capacity.GetLimitBytes()
	switch {
	case required < 0 || limit < 0:
		return 0, status.Errorf(codes.InvalidArgument, "capacity range [%d, %d] has a negative bound", required, limit)
	case limit != 0 && required > limit:
		return 0, status.Errorf(codes.InvalidArgument, "capacity range: required_bytes %d is above limit_bytes %d", required, limit)
	}
	size := required
	if size == 0 {
		size = max(defaultSizeBytes, least)
		if limit != 0 {
			size = min(size, limit/sizeUnitBytes*sizeUnitBytes)
		}
	}
	size = max(size, least)
	rounded, ok := roundUp(size)
	if !ok {
		return 0, status.Errorf(codes.OutOfRange, "capacity range: required_bytes %d is more than a volume can have", required)
	}
	if limit != 0 && rounded > limit {
		return 0, status.Errorf(codes.OutOfRange,
			"capacity range: the volume would have %d bytes (at least %d, in units of %d), above limit_bytes %d: raise the limit",
			rounded, least, sizeUnitBytes, limit)
	}
	return rounded, nil
}

func roundUp(size int64) (rounded int64, ok bool) {
	rounded = (size + sizeUnitBytes - 1) / sizeUnitBytes * sizeUnitBytes
	return rounded, rounded >= size && size >= 0
}

// inRange reports whether an existing volume's size satisfies a capacity range.
func inRange(size int64, capacity *csi.CapacityRange) bool {
	return size >= capacity.GetRequiredBytes() && (capacity.GetLimitBytes() == 0 || size <= capacity.GetLimitBytes())
}

// secondPublish decides about a NodePublishVolume for a volume that is already published, by the second table of the
// specification's NodePublishVolume (the one for plugins with SINGLE_NODE_MULTI_WRITER). sameArgs: capability and readonly are
// those of the first call; otherPath: the target is not one that is published already.
func secondPublish(mode accessMode, otherPath, sameArgs bool) codes.Code {
	switch {
	case !otherPath && sameArgs:
		return codes.OK
	case !otherPath:
		return codes.AlreadyExists
	case mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return codes.OK
	default:
		return codes.FailedPrecondition
	}
}
