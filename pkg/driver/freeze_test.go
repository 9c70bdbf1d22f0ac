package driver

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// TestFreezeOfOthers: a file system that another program has frozen, as a backup's hook does, stays frozen when a
// snapshot that would have frozen it is refused, and over a restart of the driver.
func TestFreezeOfOthers(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	const device = "7:0"
	h.frozen[device] = true
	_, err := h.takeSnapshot("s", id, freezing)
	h.want(err, codes.FailedPrecondition, "who else has frozen it")
	h.noSnapshots()
	if !h.frozen[device] {
		t.Fatal("a refused snapshot has thawed what another program had frozen")
	}

	// One that was taken is over: a later freeze of another program is not its.
	delete(h.frozen, device)
	_, err = h.takeSnapshot("s", id, freezing)
	h.must(err)
	h.frozen[device] = true
	h.stop()
	h.start(h.mem)
	if !h.frozen[device] {
		t.Error("a restart has thawed what another program had frozen")
	}
	h.must(h.unstage(id))
}

// TestFrozenIsUnmounted: a volume whose file system was frozen and forgotten is unpublished, unstaged and staged
// again. It is thawed before the last unmount and not before, because until then the program that froze it can still
// thaw it.
func TestFrozenIsUnmounted(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.MultiWriter, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.must(h.publish(id, "a", vc, false))
	h.frozen["7:0"] = true
	h.must(h.unpublish(id, "a"))
	h.must(h.publish(id, "a", vc, false))
	h.must(h.unpublish(id, "a"))
	if !h.frozen["7:0"] {
		t.Error("thawed by an unpublishing")
	}
	h.must(h.unstage(id))
	h.clean()

	// Not frozen, or stopped, or with a thaw that does not end.
	h.must(h.stage(id, vc))
	h.hook = func(op string) error {
		if strings.HasPrefix(op, "thaw") {
			return errors.New("not done in time for " + h.staging())
		}
		return nil
	}
	h.want(h.unstage(id), codes.Unavailable, h.staging(), "call again")
	if !slices.ContainsFunc(h.mounts, func(m host.MountEntry) bool { return m.Mountpoint == h.staging() }) {
		t.Errorf("unmounted although it may be frozen: %v", h.mounts)
	}
	h.hook = nil
	h.must(h.unstage(id))
	h.clean()
}
