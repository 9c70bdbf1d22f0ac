package driver

import (
	"fmt"
	"math"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	modeWriter       = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	modeReader       = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	modeSingleWriter = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	modeMultiWriter  = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
)

func mountCapability(mode accessMode, fsType string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

func blockCapability(mode accessMode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func TestParseCapability(t *testing.T) {
	for _, mode := range []accessMode{modeWriter, modeReader, modeSingleWriter, modeMultiWriter} {
		if c, err := parseCapability(mountCapability(mode, "xfs")); err != nil || c.FSType != "xfs" || c.Block {
			t.Errorf("%s: %+v, %v", mode, c, err)
		}
		if c, err := parseCapability(blockCapability(mode)); err != nil || !c.Block {
			t.Errorf("%s: %+v, %v", mode, c, err)
		}
	}
	group := mountCapability(modeWriter, "")
	group.GetMount().VolumeMountGroup = "1000"
	for name, vc := range map[string]*csi.VolumeCapability{
		"none":        nil,
		"empty":       {},
		"no type":     {AccessMode: &csi.VolumeCapability_AccessMode{Mode: modeWriter}},
		"many nodes":  mountCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, ""),
		"many read":   mountCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, ""),
		"file system": mountCapability(modeWriter, "btrfs"),
		"group":       group,
	} {
		if _, err := parseCapability(vc); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: error %v, want InvalidArgument", name, err)
		}
	}
	if _, _, err := parseCapabilities([]*csi.VolumeCapability{mountCapability(modeWriter, "xfs"), mountCapability(modeWriter, "ext4")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("two file systems: error %v, want InvalidArgument", err)
	}
	if fsType, block, err := parseCapabilities([]*csi.VolumeCapability{blockCapability(modeWriter), mountCapability(modeWriter, "xfs")}); err != nil || block || fsType != "xfs" {
		t.Errorf("block and mount: %q %t %v", fsType, block, err)
	}
}

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
		got, err := sizeFor(&csi.CapacityRange{RequiredBytes: tc.required, LimitBytes: tc.limit}, tc.least)
		if got != tc.want || status.Code(err) != tc.code {
			t.Errorf("[%d, %d] at least %d: got %d, %v; want %d, %s", tc.required, tc.limit, tc.least, got, err, tc.want, tc.code)
		}
	}
	if got, err := sizeFor(nil, mib); got != gib || err != nil {
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
		got, err := expandedSize(tc.current, &csi.CapacityRange{RequiredBytes: tc.required, LimitBytes: tc.limit})
		if got != tc.want || status.Code(err) != tc.code {
			t.Errorf("%d in [%d, %d]: got %d, %v; want %d, %s", tc.current, tc.required, tc.limit, got, err, tc.want, tc.code)
		}
	}
}

// TestSecondPublish is the second table of the specification's NodePublishVolume, row by row.
func TestSecondPublish(t *testing.T) {
	const ok, exists, failed = codes.OK, codes.AlreadyExists, codes.FailedPrecondition
	for mode, row := range map[accessMode][4]codes.Code{
		// T1=T2 P1=P2, T1=T2 P1!=P2, T1!=T2 P1=P2, T1!=T2 P1!=P2
		modeSingleWriter: {ok, exists, failed, failed},
		modeMultiWriter:  {ok, exists, ok, ok},
		modeWriter:       {ok, exists, failed, failed},
		modeReader:       {ok, exists, failed, failed},
	} {
		for i, want := range row {
			otherPath, sameArgs := i >= 2, i%2 == 0
			t.Run(fmt.Sprintf("%s/other path %t/same arguments %t", mode, otherPath, sameArgs), func(t *testing.T) {
				if got := secondPublish(mode, otherPath, sameArgs); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}
