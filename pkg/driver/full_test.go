package driver

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
)

// TestGiveBackOnAFullPool: volumes are unpublished, unstaged and deleted, snapshots and group snapshots too, where the
// pool has not a byte and not an inode left, with and without a restart of the driver; then there is room again.
func TestGiveBackOnAFullPool(t *testing.T) {
	for _, group := range []string{"", "shop"} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("group %q, restart %t", group, restart), func(t *testing.T) {
				h := newNode(t, startSidecar(t))
				var params map[string]string
				if group != "" {
					params = map[string]string{parameter.KeyConsistencyGroup: group}
				}
				vc := capabilitytest.Mount(capabilitytest.MultiWriter, "")
				id := h.create("v", vc, params)
				other := h.create("w", vc, params)
				h.must(h.stage(id, vc))
				h.must(h.publish(id, "a", vc, false))
				h.must(h.publish(id, "b", vc, false))
				snap, err := h.takeSnapshot("s", other, nil)
				h.must(err)
				h.must(h.awaitSnapshot(snap.GetSnapshotId()))
				both, err := h.takeGroup("both", []string{id, other}, freezing)
				h.must(err)
				var members []string
				for _, s := range both.GetSnapshots() {
					h.must(h.awaitSnapshot(s.GetSnapshotId()))
					members = append(members, s.GetSnapshotId())
				}

				h.mem.Exhaust()
				if restart {
					h.stop()
					h.start(h.mem)
				}
				if available, most := h.capacity(nil); available != 0 || most != 0 {
					t.Errorf("a full pool has room for %d, %d at most", available, most)
				}
				_, err = h.createSized("another", 16*mib, nil)
				h.want(err, codes.ResourceExhausted, "inodes")
				h.wantHealth(h.controllerHealth(other), "DEGRADED PoolFull")

				h.must(h.unpublish(id, "a"))
				h.must(h.unpublish(id, "b"))
				h.must(h.unstage(id))
				h.must(h.deleteSnapshot(snap.GetSnapshotId()))
				h.must(h.deleteGroup(both.GetGroupSnapshotId(), members...))
				h.must(h.delete(id))
				h.must(h.delete(other))
				h.noSnapshots()
				h.clean()
				h.mem.SetCapacity(poolBytes)
				h.create("another", vc, nil)
			})
		}
	}
}

// TestInodesAreCapacity: a pool that has bytes and no inodes has no room for volumes and snapshots, and says why;
// volumes grow.
func TestInodesAreCapacity(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.wantHealth(h.controllerHealth(id))
	h.mem.SetInodes(64)
	if _, most := h.capacity(nil); most == 0 {
		t.Error("no room")
	}
	_, free, err := h.mem.Inodes("/")
	h.must(err)
	h.mem.SetInodes(64 - free + space.VolumeInodes)
	h.must(h.expand(id, 32*mib))
	h.wantHealth(h.controllerHealth(id))
	h.mem.SetInodes(64 - free + space.VolumeInodes - 1)
	if available, most := h.capacity(nil); available != 0 || most != 0 {
		t.Errorf("without inodes there is room for %d, %d at most", available, most)
	}
	h.wantHealth(h.controllerHealth(id), "DEGRADED PoolFull")
	h.wantWords(h.controllerHealth(id), "inodes", "/slipstream-test-pool")
	_, err = h.createSized("w", 16*mib, nil)
	h.want(err, codes.ResourceExhausted, "inodes")
	_, err = h.takeSnapshot("s", id, freezing)
	h.want(err, codes.ResourceExhausted, "inodes")
	h.must(h.expand(id, 48*mib))
}

// TestStalePublication: where the record of publications can not even be replaced, unpublishing succeeds all the same,
// and what stays in it does not count.
func TestStalePublication(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.MultiWriter, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.must(h.publish(id, "a", vc, false))
	h.must(h.publish(id, "b", vc, false))
	h.must(h.mem.Remove(h.d.attachments.Publications.Path(id) + ".tmp"))
	h.mem.Exhaust()
	h.must(h.unpublish(id, "a"))
	h.must(h.unpublish(id, "a"))
	h.must(h.unpublish(id, "b"))
	h.must(h.unstage(id))
	h.must(h.delete(id))
}
