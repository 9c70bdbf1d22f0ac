package driver

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// TestStagedWithOtherOptions: what is staged or published in one way is not taken for what is asked for in another.
func TestStagedWithOtherOptions(t *testing.T) {
	h := newNode(t, nil)
	with := func(options ...string) *csi.VolumeCapability {
		return capabilitytest.Mount(capabilitytest.MultiWriter, "", options...)
	}
	id := h.create("v", with(), nil)
	h.want(h.stage(id, with("loop")), codes.InvalidArgument, "loop")
	h.clean()
	h.must(h.stage(id, with("noatime", "nodev")))
	h.must(h.stage(id, with("nodev,noatime", "rw"))) // the same
	h.must(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "ext4", "noatime", "nodev")))
	for _, other := range [][]string{nil, {"noatime"}, {"noatime", "nodev", "noexec"}, {"relatime", "nodev"}} {
		h.want(h.stage(id, with(other...)), codes.AlreadyExists, "noatime", "unstage it first")
	}
	h.want(h.stage(id, with("noatime", "nodev", "ro")), codes.AlreadyExists, "read-only")
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.MultiWriter, "xfs", "noatime", "nodev")), codes.AlreadyExists,
		"ext4, not xfs")
	if len(h.mounts) != 1 {
		t.Errorf("mounts %v", h.mounts)
	}

	h.want(h.publish(id, "a", with("noatime", "noexec"), false), codes.FailedPrecondition, "noexec")
	h.want(h.publish(id, "a", capabilitytest.Mount(capabilitytest.MultiWriter, "xfs"), false), codes.FailedPrecondition,
		"xfs")
	h.must(h.publish(id, "a", with("nodev", "noatime"), false))
	h.must(h.publish(id, "a", with("noatime,nodev"), false))
	h.want(h.publish(id, "a", with("noatime"), false), codes.AlreadyExists)
	h.must(h.publish(id, "b", with("noatime", "ro"), false)) // read-only is the bind mount's
	h.must(h.unpublish(id, "a"))
	h.must(h.unpublish(id, "b"))
	h.must(h.unstage(id))

	// Not staged any more, so it can be staged in another way.
	h.must(h.stage(id, with("noexec", "ro")))
	h.want(h.publish(id, "a", with("noexec"), false), codes.FailedPrecondition, "read-only")
	h.must(h.publish(id, "a", with("noexec"), true))
	h.must(h.unpublish(id, "a"))
	h.must(h.unstage(id))

	// A reader of a raw volume leaves no record that it was handed out, so it cannot be followed by a writer.
	raw := h.create("raw", capabilitytest.Block(capabilitytest.Reader), nil)
	h.must(h.stage(raw, capabilitytest.Block(capabilitytest.Reader)))
	h.want(h.publish(raw, "a", capabilitytest.Block(capabilitytest.Writer), false), codes.FailedPrecondition, "read-only")
	h.must(h.publish(raw, "a", capabilitytest.Block(capabilitytest.Reader), true))
	h.must(h.unpublish(raw, "a"))
	h.must(h.unstage(raw))
	h.clean()
}

// TestMountIsLookedAt: a mount that is not what was asked for, as mount(8) makes one of a device that cannot be
// written, is not left there.
func TestMountIsLookedAt(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	for what, change := range map[string]func(*host.MountEntry){
		"read-only":    func(m *host.MountEntry) { m.ReadOnly = true },
		"ext2":         func(m *host.MountEntry) { m.FSType = "ext2" },
		"is not there": func(m *host.MountEntry) { m.Mountpoint = h.target("elsewhere") },
	} {
		mounted := false
		h.hook = func(op string) error {
			if op == "mounts " && mounted {
				change(&h.mounts[len(h.mounts)-1])
				mounted = false
			}
			mounted = mounted || strings.HasPrefix(op, "mount ")
			return nil
		}
		h.want(h.stage(id, vc), codes.Internal, what)
		h.hook = nil
		if what == "is not there" {
			h.mounts = nil
			h.must(h.unstage(id))
		}
		h.clean()
	}
	h.must(h.stage(id, vc))
	if rec, err := h.d.store.Pool.Get(id); err != nil || rec.Format.State != blockdev.FormatFormatted {
		t.Errorf("%v, %v", rec, err)
	}
	h.must(h.unstage(id))
}
