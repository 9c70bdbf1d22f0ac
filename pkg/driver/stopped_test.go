package driver

import (
	"context"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
)

// TestStoppedFileSystem: a file system that has stopped is not handed out as a good one. While it is used somewhere the
// answer says so; when nothing uses it any more, the next call checks it and mounts it again.
func TestStoppedFileSystem(t *testing.T) {
	for what, stop := range map[string]func(h *node){
		"emergency_ro": func(h *node) {
			for i := range h.mounts {
				h.mounts[i].Stopped = "emergency_ro"
			}
		},
		"shutdown": func(h *node) { h.shutDown = map[string]bool{"7:0": true} },
	} {
		t.Run(what, func(t *testing.T) {
			h := newNode(t, nil)
			vc := capabilitytest.Mount(capabilitytest.MultiWriter, "", "noatime")
			id := h.create("v", vc, nil)
			h.must(h.stage(id, vc))
			h.must(h.publish(id, "a", vc, false))
			stop(h)
			for range 2 {
				h.want(h.publish(id, "b", vc, false), codes.FailedPrecondition, what, h.target("a"), "delete all pods")
				h.want(h.stage(id, vc), codes.FailedPrecondition, what, h.target("a"))
			}
			_, err := h.n.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id,
				VolumePath: h.target("a")})
			h.want(err, codes.FailedPrecondition, what)
			h.want(h.expand(id, 32*mib), codes.FailedPrecondition)
			if got := summary(h.nodeHealth(id, "")); len(got) != 1 || got[0] != "DEGRADED "+health.ReasonFileSystemStopped {
				t.Errorf("health %q", got)
			}
			if h.checks() > 0 {
				t.Error("checked while it is mounted")
			}

			h.must(h.unpublish(id, "a"))
			h.must(h.publish(id, "b", vc, false))
			if h.checks() != 1 || len(h.mounts) != 2 || h.mounts[0].Stopped+h.mounts[1].Stopped != "" ||
				len(summary(h.nodeHealth(id, ""))) > 0 {
				t.Errorf("%d checks, mounts %v", h.checks(), h.mounts)
			}
			mounts := 0
			for _, e := range h.events {
				if strings.HasPrefix(e, "mount /dev/loop0 "+h.staging()) && strings.HasSuffix(e, " noatime") {
					mounts++
				}
			}
			if mounts != 2 {
				t.Errorf("mounted with its options %d times: %q", mounts, h.events)
			}
			h.must(h.unpublish(id, "b"))
			stop(h)
			h.must(h.stage(id, vc))
			if h.checks() != 2 || len(h.mounts) != 1 {
				t.Errorf("%d checks, mounts %v", h.checks(), h.mounts)
			}
			h.must(h.unstage(id))
			h.clean()
		})
	}
}
