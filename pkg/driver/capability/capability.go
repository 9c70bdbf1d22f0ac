package capability

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// MountsReadOnly reports that the file system itself is mounted read-only.
func (c Volume) MountsReadOnly() bool {
	return c.ReadOnly() || slices.Contains(c.MountOptions, "ro")
}

func MountOptions(fsType string, want Volume) []string {
	options := slices.Clone(want.MountOptions)
	if want.ReadOnly() && !slices.Contains(options, "ro") {
		options = append(options, "ro")
	}
	// A copy of a volume has the UUID of its original, and XFS mounts a UUID only once.
	if fsType == XFS && !slices.Contains(options, "nouuid") {
		options = append(options, "nouuid")
	}
	return options
}

// File system types that a volume can be formatted with.
const (
	Ext4 = blockdev.FSExt4
	XFS  = blockdev.FSXFS

	defaultFSType = Ext4
)

type Mode = csi.VolumeCapability_AccessMode_Mode

// SupportedModes are the access modes of a volume that lives on one node.
var SupportedModes = []Mode{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
}

// capability is a validated csi.VolumeCapability.
type Volume struct {
	Mode Mode
	// Block is a raw block volume; the other fields are then empty.
	Block        bool
	FSType       string   // empty: the volume's own or the default
	MountOptions []string // as parseMountOptions leaves them
}

// ReadOnly reports that writing is not allowed, so that neither mkfs nor fsck may run.
func (c Volume) ReadOnly() bool {
	return c.Mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
}

// Parse validates one capability. Errors are status errors with InvalidArgument.
func Parse(vc *csi.VolumeCapability) (Volume, error) {
	if vc == nil {
		return Volume{}, status.Error(codes.InvalidArgument, "volume capability is missing")
	}
	c := Volume{Mode: vc.GetAccessMode().GetMode()}
	if !slices.Contains(SupportedModes, c.Mode) {
		return Volume{}, status.Errorf(codes.InvalidArgument,
			"access mode %s is not supported: a volume is a file on one node; use ReadWriteOnce or ReadWriteOncePod "+
				"(SINGLE_NODE_*)", c.Mode)
	}
	switch {
	case vc.GetBlock() != nil:
		c.Block = true
	case vc.GetMount() != nil:
		c.FSType = vc.GetMount().GetFsType()
		var err error
		if c.MountOptions, err = parseMountOptions(vc.GetMount().GetMountFlags()); err != nil {
			return Volume{}, err
		}
		if c.FSType != "" {
			if err := CheckFSType(c.FSType); err != nil {
				return Volume{}, err
			}
		}
		if vc.GetMount().GetVolumeMountGroup() != "" {
			return Volume{}, status.Error(codes.InvalidArgument,
				"volume_mount_group is not supported: VOLUME_MOUNT_GROUP is not among the node's capabilities")
		}
	default:
		return Volume{}, status.Error(codes.InvalidArgument, "volume capability has neither block nor mount")
	}
	return c, nil
}

// ParseAll validates the capabilities of a volume and returns the file system they ask for: "" when they ask
// for none in particular, and block when all of them are for raw block.
func ParseAll(vcs []*csi.VolumeCapability) (fsType string, block bool, err error) {
	if len(vcs) == 0 {
		return "", false, status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	block = true
	for _, vc := range vcs {
		c, err := Parse(vc)
		if err != nil {
			return "", false, err
		}
		if c.Block {
			continue
		}
		block = false
		if fsType != "" && c.FSType != "" && c.FSType != fsType {
			return "", false, status.Errorf(codes.InvalidArgument, "capabilities ask for file systems %s and %s: a volume "+
				"has one", fsType, c.FSType)
		}
		if c.FSType != "" {
			fsType = c.FSType
		}
	}
	return fsType, block, nil
}
