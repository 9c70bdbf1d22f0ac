package capability

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
)

func TestParseCapability(t *testing.T) {
	for _, mode := range []Mode{capabilitytest.Writer, capabilitytest.Reader, capabilitytest.SingleWriter,
		capabilitytest.MultiWriter} {
		if c, err := Parse(capabilitytest.Mount(mode, "xfs")); err != nil || c.FSType != "xfs" || c.Block {
			t.Errorf("%s: %+v, %v", mode, c, err)
		}
		if c, err := Parse(capabilitytest.Block(mode)); err != nil || !c.Block {
			t.Errorf("%s: %+v, %v", mode, c, err)
		}
	}
	group := capabilitytest.Mount(capabilitytest.Writer, "")
	group.GetMount().VolumeMountGroup = "1000"
	for name, vc := range map[string]*csi.VolumeCapability{
		"none":        nil,
		"empty":       {},
		"no type":     {AccessMode: &csi.VolumeCapability_AccessMode{Mode: capabilitytest.Writer}},
		"many nodes":  capabilitytest.Mount(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, ""),
		"many read":   capabilitytest.Mount(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, ""),
		"file system": capabilitytest.Mount(capabilitytest.Writer, "btrfs"),
		"group":       group,
	} {
		if _, err := Parse(vc); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: error %v, want InvalidArgument", name, err)
		}
	}
	if _, _, err := ParseAll([]*csi.VolumeCapability{capabilitytest.Mount(capabilitytest.Writer, "xfs"),
		capabilitytest.Mount(capabilitytest.Writer, "ext4")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("two file systems: error %v, want InvalidArgument", err)
	}
	if fsType, block, err := ParseAll([]*csi.VolumeCapability{capabilitytest.Block(capabilitytest.Writer),
		capabilitytest.Mount(capabilitytest.Writer, "xfs")}); err != nil || block || fsType != "xfs" {
		t.Errorf("block and mount: %q %t %v", fsType, block, err)
	}
}
