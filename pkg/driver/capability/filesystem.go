package capability

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// fsRaw is the file system in the format record of a raw block volume.
const Raw = blockdev.FSRaw

// ChooseFSType brings together what the capability and the StorageClass say.
func ChooseFSType(capability, class string) (string, error) {
	if class != "" {
		if err := CheckFSType(class); err != nil {
			return "", err
		}
	}
	if capability != "" && class != "" && capability != class {
		return "", status.Errorf(codes.InvalidArgument, "the capability asks for %s and parameter %s for %s", capability,
			parameter.KeyFSType, class)
	}
	if capability == "" {
		return class, nil
	}
	return capability, nil
}

func FSTypeOrDefault(fsType string) string {
	if fsType == "" {
		return defaultFSType
	}
	return fsType
}

func CheckFSType(fsType string) error {
	if _, ok := MinSizeBytes[fsType]; !ok {
		return status.Errorf(codes.InvalidArgument, "file system \"%s\" is not supported: use %s or %s",
			untrusted.Reason(fsType), Ext4, XFS)
	}
	return nil
}
