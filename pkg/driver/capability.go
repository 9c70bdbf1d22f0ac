package driver

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"google.golang.org/grpc/codes"
)

// secondPublish decides about a NodePublishVolume for a volume that is already published, by the second table of the
// specification's NodePublishVolume (the one for plugins with SINGLE_NODE_MULTI_WRITER). sameArgs: capability and readonly are
// those of the first call; otherPath: the target is not one that is published already.
func secondPublish(mode capability.Mode, otherPath, sameArgs bool) codes.Code {
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
