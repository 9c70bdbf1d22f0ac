package driver

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
)

// checks counts the checks of file systems that began.
func (h *node) checks() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if strings.HasPrefix(e, "fsck") {
			n++
		}
	}
	return n
}

// TestLongCheck: a check that takes longer than a call waits goes on when the call has ended, and the next call has its
// result. It does not begin anew.
func TestLongCheck(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.must(h.unstage(id))

	entered, leave := make(chan struct{}), make(chan error)
	h.check = func(ctx context.Context) error {
		entered <- struct{}{}
		select {
		case err := <-leave:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// impatient stages, and gives up when the check has begun, if it begins one.
	impatient := func(begins bool) error {
		ctx, cancel := context.WithCancel(context.Background())
		if begins {
			go func() {
				<-entered
				cancel()
			}()
		} else {
			cancel()
		}
		_, err := h.n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: h.staging(),
			VolumeCapability: vc})
		return err
	}
	h.want(impatient(true), codes.Aborted, id, "ext4 is checked", "call again")
	h.want(impatient(false), codes.Aborted, "ext4 is checked")
	// another call
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "", "noatime")), codes.Aborted, "NodeStageVolume")
	h.want(h.publish(id, "a", vc, false), codes.Aborted, "NodeStageVolume")
	if len(h.mounts) > 0 || len(h.loops) != 1 {
		t.Errorf("while it is checked: mounts %v, loops %v", h.mounts, h.loops)
	}
	staged := make(chan error)
	go func() { staged <- h.stage(id, vc) }()
	leave <- nil
	h.must(<-staged)
	if n := h.checks(); n != 1 || len(h.mounts) != 1 {
		t.Errorf("%d checks, mounts %v", n, h.mounts)
	}
	h.must(h.unstage(id))

	// A failure while no call waits is told to the next call, once, and leaves nothing.
	h.want(impatient(true), codes.Aborted)
	leave <- errors.New("test: beyond repair")
	h.idle(id)
	h.clean()
	h.want(h.stage(id, vc), codes.Internal, "beyond repair", "e2fsck")
	h.want(impatient(true), codes.Aborted)

	// The volume is not wanted any more: the check ends.
	h.must(h.unstage(id))
	h.clean()
	if n := h.checks(); n != 3 {
		t.Errorf("%d checks, want 3", n)
	}

	// So it does with the driver, and the next one begins it anew.
	h.want(impatient(true), codes.Aborted)
	h.stop()
	h.check = nil
	h.start(h.mem)
	h.must(h.stage(id, vc))
	h.must(h.unstage(id))
	h.clean()
}

// idle waits until no call's work is under way for a volume.
func (h *node) idle(id string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		if done, err := h.d.guards.Enter(id, "test"); err == nil {
			done()
			return
		}
		time.Sleep(time.Millisecond)
	}
	h.t.Fatal("a call's work does not end")
}
