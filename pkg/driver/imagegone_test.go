package driver

import (
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// TestImageRemovedInUse: what happens to an image's name, or to its volume's directory, does not end the use of its
// device. The volume is not deleted while it is mounted, and can be unpublished and unstaged, before and after a
// restart of the driver.
func TestImageRemovedInUse(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(h *node, id string) // of the pool
		now    string                   // what the kernel shows of the device's file; empty: the same name
		gone   bool                     // it has no name
	}{
		"image removed": {change: func(h *node, id string) { h.must(h.mem.Remove(h.image(id))) }, gone: true},
		"image renamed": {change: func(h *node, id string) {
			h.must(h.mem.Rename(h.image(id), "/elsewhere"))
		}, now: "/elsewhere"},
		"directory removed": {change: func(h *node, id string) {
			h.must(h.mem.RemoveAll(filepath.Dir(h.image(id))))
		}, gone: true},
		"directory moved": {change: func(h *node, id string) {
			h.must(h.mem.Rename(filepath.Dir(h.image(id)), "/backup"))
		}, now: "/backup/ID/image"},
		"directory deleting": {change: func(h *node, id string) {
			h.must(h.mem.RemoveAll(filepath.Dir(h.image(id))))
		}, now: "POOL/ID.deleting/image", gone: true},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				h := newNode(t, nil)
				vc := capabilitytest.Mount(capabilitytest.Writer, "")
				id := h.create("v", vc, nil)
				h.must(h.stage(id, vc))
				h.must(h.publish(id, "a", vc, false))
				tc.change(h, id)
				l := h.loops["/dev/loop0"]
				l.Deleted = tc.gone
				switch tc.now {
				case "":
				case "/backup/ID/image":
					l.BackingPath = "/backup/" + id + "/image"
				case "POOL/ID.deleting/image":
					l.BackingPath = filepath.Dir(h.image(id)) + ".deleting/image"
				default:
					l.BackingPath = tc.now
				}
				if restart {
					h.stop()
					h.start(h.mem)
				}
				h.want(h.delete(id), codes.FailedPrecondition, "removed or renamed", "/dev/loop0")
				if len(h.mounts) != 2 || len(h.loops) != 1 {
					t.Fatalf("mounts %v, loops %v", h.mounts, h.loops)
				}
				if _, err := h.d.store.Pool.Get(id); err == nil {
					h.want(h.stage(id, vc), codes.FailedPrecondition, "copy the device")
					h.want(h.publish(id, "b", vc, false), codes.FailedPrecondition, "copy the device")
				}
				h.want(h.unstage(id), codes.FailedPrecondition, "still mounted")
				for range 2 {
					h.must(h.unpublish(id, "a"))
				}
				for range 2 {
					h.must(h.unstage(id))
				}
				for range 2 {
					h.must(h.delete(id))
				}
				h.clean()
			})
		}
	}
}

// TestStrangersDevice: a device that has the number of a staged volume's, over another file, is not the volume's.
func TestStrangersDevice(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.reboot()
	h.loops["/dev/loop0"] = &host.LoopDevice{Device: host.Device{Path: "/dev/loop0", Number: "7:0"},
		BackingPath: "/another/file"}
	h.inodes["/dev/loop0"] = blockdev.FileID{Device: 1, Inode: 99}
	h.must(h.unstage(id))
	h.must(h.delete(id))
	if len(h.loops) != 1 {
		t.Errorf("a stranger's device was detached")
	}
}

func TestCatchesARemovedImage(t *testing.T) {
	testenv.Catches(t, bug.ForgetRemovedImage, "TestImageRemovedInUse")
}
