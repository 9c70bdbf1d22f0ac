package volumes

import (
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// stagingPath is where a volume is staged that this program mounts.
func (c *cli) stagingPath(id string) string {
	run := filepath.Dir(strings.TrimPrefix(c.DriverEndpoint(), "unix://"))
	return filepath.Join(run, "staged", id)
}

// capabilityOf is how a volume is used: as its record says it was made.
func capabilityOf(r *blockdev.VolumeRecord) *csi.VolumeCapability {
	return capability(r.FSType, r.FSType == "" && r.Format == nil)
}

func capability(fsType string, block bool) *csi.VolumeCapability {
	result := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	if block {
		result.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		result.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}}
	}
	return result
}
