package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// killer kills a driver before the n-th thing it does to the machine, the pool's files or the replicator: from then on
// everything fails for it, also what it does to clean up, and what it does beside its calls.
type killer struct {
	mu     sync.Mutex
	left   int
	armed  bool // not while the driver starts: one that dies there is not yet one
	struck bool
}

func (k *killer) dead() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.struck
}

func (k *killer) arm() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.armed = true
}

func (k *killer) before() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.struck:
		return errDead
	case !k.armed:
		return nil
	}
	k.left--
	if k.left <= 0 {
		k.struck = true
		return errDead
	}
	return nil
}

// startMortal starts a driver that k kills.
func (h *node) startMortal(k *killer) {
	h.t.Helper()
	h.start(vfs.NewErrFS(h.mem, func(op vfs.Op, _ string) error {
		switch op {
		case vfs.OpOpen, vfs.OpReadDir, vfs.OpStat, vfs.OpRead, vfs.OpSize, vfs.OpNextData, vfs.OpSpace:
			if k.dead() {
				return errDead
			}
			return nil // reading changes nothing, so dying before it is dying before what follows
		}
		return k.before()
	}))
	h.hook = func(string) error { return k.before() }
	if h.sidecar != nil {
		h.sidecar.mu.Lock()
		h.sidecar.hook = func(string) error {
			if err := k.before(); err != nil {
				return status.Error(codes.Unavailable, err.Error())
			}
			return nil
		}
		h.sidecar.mu.Unlock()
	}
	k.arm()
}

// restart starts another driver on what the killed one left: after a power loss without the kernel's tables, and with
// no more of the pool than what was synced.
func (h *node) restart(powerLoss bool) {
	h.t.Helper()
	h.stop()
	h.hook = nil
	if h.sidecar != nil {
		h.sidecar.mu.Lock()
		h.sidecar.hook = nil
		if powerLoss {
			clear(h.sidecar.attached)
		}
		h.sidecar.mu.Unlock()
	}
	if powerLoss {
		h.mem = h.mem.CrashClone(vfs.CrashConfig{})
		h.reboot()
	}
	h.start(h.mem)
}

// TestDeathBetweenAnyTwoSteps kills the driver at each step of a volume's life in turn, by SIGKILL or by a power loss,
// and has another one finish it: as a CO would, by calling again.
func TestDeathBetweenAnyTwoSteps(t *testing.T) {
	kinds := []struct {
		name    string
		vc      *csi.VolumeCapability
		params  map[string]string
		sidecar bool
	}{
		{name: "file system", vc: capabilitytest.Mount(capabilitytest.Writer, "ext4")},
		{name: "block", vc: capabilitytest.Block(capabilitytest.Writer)},
		{name: "thick", vc: capabilitytest.Mount(capabilitytest.Writer, "ext4"),
			params: map[string]string{parameter.KeyProvisioning: "thick"}},
		{name: "replicable", vc: capabilitytest.Mount(capabilitytest.Writer, "ext4"),
			params: map[string]string{parameter.KeyConsistencyGroup: "shop", parameter.KeyRemote: "west"}, sidecar: true},
	}
	for _, kind := range kinds {
		for _, powerLoss := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/power loss %t", kind.name, powerLoss), func(t *testing.T) {
				for step := 1; ; step++ {
					var sidecar *fakeSidecar
					if kind.sidecar {
						sidecar = startSidecar(t)
					}
					h := newNode(t, sidecar)
					h.stop()
					k := &killer{left: step}
					h.startMortal(k)
					h.lifeWithAKill(k, kind.vc, kind.params, powerLoss, step)
					if !k.dead() {
						t.Logf("%d steps", step-1)
						if step < 20 {
							t.Errorf("a life of %d steps: the killer does not see them", step-1)
						}
						return
					}
				}
			})
		}
	}
}

// lifeWithAKill runs a volume's life under k. When k strikes, a new driver goes on: with the call that failed, or after
// a power loss from the stage on, since nothing is staged any more.
func (h *node) lifeWithAKill(k *killer, vc *csi.VolumeCapability, params map[string]string, powerLoss bool, step int) {
	h.t.Helper()
	fatal := func(format string, args ...any) {
		h.t.Helper()
		h.t.Fatalf("death before step %d: %s", step, fmt.Sprintf(format, args...))
	}
	var id string
	marked := false
	block := vc.GetBlock() != nil
	content := func() *fakeFile {
		rec, err := h.d.store.Volume(id)
		if err != nil {
			fatal("%v", err)
		}
		return h.files[h.d.attachments.BackingPath(rec)]
	}
	calls := []struct {
		name string
		do   func() error
	}{
		{"create", func() error {
			response, err := h.c.CreateVolume(context.Background(), createReq("v", vc, params))
			if err == nil {
				id = response.GetVolume().GetVolumeId()
			}
			return err
		}},
		{"stage", func() error { return h.stage(id, vc) }},
		{"publish", func() error { return h.publish(id, "a", vc, false) }},
		{"write", func() error {
			if f := content(); !block && !k.dead() {
				f.Data, marked = true, true // mkfs would take it away
			}
			return nil
		}},
		{"expand", func() error { return h.expand(id, 24*mib) }},
		{"unpublish", func() error { return h.unpublish(id, "a") }},
		{"unstage", func() error { return h.unstage(id) }},
		{"stage again", func() error { return h.stage(id, vc) }},
		{"check", func() error {
			if f := content(); marked && !f.Data {
				fatal("what was written is gone: %+v, mkfs ran: %v", f, h.mkfs)
			}
			return nil
		}},
		{"unstage again", func() error { return h.unstage(id) }},
		{"delete", func() error { return h.delete(id) }},
	}
	wasDead := false
	for i := 0; i < len(calls); i++ {
		err := calls[i].do()
		if k.dead() && !wasDead {
			wasDead = true
			h.restart(powerLoss)
			if powerLoss && i > 1 && i < 5 {
				i = 0 // back to the stage
			} else {
				i-- // the same call again, whether it failed or its answer was lost
			}
			continue
		}
		if err != nil {
			fatal("%s: %v", calls[i].name, err)
		}
	}
	h.clean()
	if recs, err := h.d.store.Pool.List(); err != nil || len(recs) > 0 {
		fatal("left in the pool: %v, %v", recs, err)
	}
	names, err := h.mem.ReadDir("/slipstream-test-pool/volumes")
	if err != nil || len(names) > 0 {
		fatal("left in the pool: %v, %v", names, err)
	}
	if h.sidecar != nil && len(h.sidecar.groups) > 0 {
		fatal("left at the replicator: %v", h.sidecar.groups)
	}
	if limit := 2; len(h.mkfs) > limit || (!block && len(h.mkfs) == 0) || (block && len(h.mkfs) > 0) {
		fatal("mkfs ran %d times: %v", len(h.mkfs), h.mkfs)
	}
}

// TestDeathInMkfs looks at the one place where formatting a second time is right.
func TestDeathInMkfs(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.hook = func(op string) error {
		if op == "mkfs ends /dev/loop0" {
			return errDead
		}
		return nil
	}
	h.want(h.stage(id, vc), codes.Internal, "format")
	rec, err := h.d.store.Pool.Get(id)
	h.must(err)
	if rec.Format == nil || rec.Format.State != blockdev.FormatFormatting || rec.Format.UUID == "" {
		t.Fatalf("format record %+v", rec.Format)
	}
	interrupted := rec.Format.UUID
	h.hook = nil
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "xfs")), codes.FailedPrecondition)
	h.must(h.stage(id, vc))
	if rec, err = h.d.store.Pool.Get(id); err != nil || rec.Format.State != blockdev.FormatFormatted ||
		rec.Format.UUID != interrupted {
		t.Errorf("format record %+v, %v", rec.Format, err)
	}
	if len(h.mkfs) != 2 {
		t.Errorf("mkfs %v", h.mkfs)
	}
	h.must(h.unstage(id))
	h.clean()
}

func TestErrDeadIsNotTakenForSuccess(t *testing.T) {
	k := &killer{left: 2, armed: true}
	if k.before() != nil || !errors.Is(k.before(), errDead) || !errors.Is(k.before(), errDead) {
		t.Error("the killer does not kill at the second step, or lets go again")
	}
}
