package driver

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// TestPathsThatAreLinks: staging and target paths that are links are mounted on where the links lead, and found again
// by the links as they were, also when these are gone.
func TestPathsThatAreLinks(t *testing.T) {
	h := newNode(t, nil)
	ctx := context.Background()
	real := host.CanonicalDir(h.dir)
	for _, dir := range []string{"real/staging", "real/targets", "links", "elsewhere"} {
		h.must(os.MkdirAll(filepath.Join(real, dir), 0o750))
	}
	staging, target := filepath.Join(real, "links", "staging"), filepath.Join(real, "links", "target")
	h.must(os.Symlink("../real/hop", staging))
	h.must(os.Symlink("staging/", filepath.Join(real, "real", "hop")))
	h.must(os.Symlink(filepath.Join(real, "real", "targets", "a"), target)) // which is not there yet
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	stage := func() error {
		_, err := h.n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: staging,
			VolumeCapability: vc})
		return err
	}
	publish := func() error {
		_, err := h.n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: staging,
			TargetPath: target, VolumeCapability: vc})
		return err
	}
	mounted := func(want ...string) {
		t.Helper()
		var got []string
		for _, m := range h.mounts {
			got = append(got, strings.TrimPrefix(m.Mountpoint, real+"/"))
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("mounted on %q, want %q", got, want)
		}
	}
	for range 2 {
		h.must(stage())
		h.must(publish())
	}
	mounted("real/staging", "real/targets/a")

	// The links lead elsewhere now, and then nowhere.
	for _, link := range []string{staging, target} {
		h.must(os.Remove(link))
		h.must(os.Symlink(filepath.Join(real, "elsewhere"), link))
	}
	h.must(stage())
	h.must(publish())
	mounted("real/staging", "real/targets/a")
	for _, path := range []string{staging, target} {
		h.must(os.Remove(path))
		if _, err := h.n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path}); err != nil {
			t.Error(err)
		}
		if _, err := h.n.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: path}); err != nil {
			t.Error(err)
		}
	}
	_, err := h.n.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id,
		VolumePath: filepath.Join(real, "elsewhere")})
	h.want(err, codes.NotFound)
	for range 2 {
		_, err = h.n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
		h.must(err)
	}
	mounted("real/staging")
	for range 2 {
		_, err = h.n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: staging})
		h.must(err)
	}
	h.clean()
}
