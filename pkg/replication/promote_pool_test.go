package replication

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// TestPromoteBesideReservation: a failover does not wait until the space of another thick volume is reserved, and
// the pool's records say afterwards that the group is primary here.
func TestPromoteBesideReservation(t *testing.T) {
	net := link.NewNetwork(nil)
	a, b := newTestSite(t, net, "a", nil), newTestSite(t, net, "b", nil)
	b.kill()
	reserving, proceed := make(chan struct{}), make(chan struct{})
	b.before = func(op vfs.Op, name string) {
		if op == vfs.OpPreallocate && filepath.Base(name) == blockdev.ImageFile {
			close(reserving)
			<-proceed
		}
	}
	b.open()
	g := a.createGroup("g", "b", 2, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block(1, 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	copied := caughtUp(t, g, b)

	created := make(chan error)
	go func() {
		_, err := b.pool.Create(blockdev.VolumeRecord{ID: "thick", Name: "thick", SizeBytes: 1 << 20, Thick: true})
		created <- err
	}()
	<-reserving
	promoted := make(chan error)
	go func() { _, err := copied.Promote(true); promoted <- err }()
	select {
	case err := <-promoted:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Error("the promotion waits for the space of a volume without a group")
	}
	for _, id := range []string{"v0", "v1"} {
		if rec, err := b.pool.Get(id); err != nil || rec.Secondary {
			t.Errorf("%v, %v", rec, err)
		}
	}
	if _, err := b.pool.Get("thick"); !errors.Is(err, blockdev.ErrNoVolume) {
		t.Errorf("the volume is there before its space: %v", err)
	}
	close(proceed)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
}
