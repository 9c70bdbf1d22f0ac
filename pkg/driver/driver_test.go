package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// node is a machine with a pool in memory, a directory for staging and target paths, and a driver.
type node struct {
	*machine
	t       *testing.T
	mem     *vfs.MemFS
	sidecar *fakeSidecar // nil for none
	dir     string

	d      *Driver
	c      *controllerServer
	n      *nodeServer
	i      *identityServer
	cancel context.CancelFunc
}

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// poolBytes is the size of a node's pool: more than a journal of the default size takes.
const poolBytes = 8 * gib

func newNode(t *testing.T, sidecar *fakeSidecar) *node {
	t.Helper()
	h := &node{machine: newMachine(), t: t, mem: vfs.NewMem(), sidecar: sidecar, dir: t.TempDir()}
	h.mem.SetCapacity(poolBytes)
	if sidecar != nil {
		sidecar.node = h
	}
	h.start(h.mem)
	t.Cleanup(h.stop)
	return h
}

func (h *node) start(fsys vfs.FS) {
	h.t.Helper()
	opts := Options{NodeID: "node-a", PoolDir: "/slipstream-test-pool", Version: "v0.0.0-test"}
	if h.sidecar != nil {
		opts.SidecarEndpoint, opts.ShimDir = h.sidecar.endpoint, h.sidecar.shimDir
	}
	var err error
	h.d, err = newDriver(opts, host.System{FS: fsys, Mounter: fakeMounter{h.machine},
		Filesystems: fakeFileSystems{h.machine},
		Loops:       fakeLoops{h.machine}, Writeback: fakeWriteback{h.machine}})
	if err != nil {
		h.t.Fatal(err)
	}
	if h.d.sidecar != nil {
		h.d.sidecar.Patience = 10 * time.Second // a busy machine; tests of a replicator that is away make it less
	}
	var ctx context.Context
	ctx, h.cancel = context.WithCancel(context.Background())
	if err := h.d.reconcile(ctx); err != nil {
		h.t.Fatal(err)
	}
	h.c, h.n, h.i = &controllerServer{d: h.d}, &nodeServer{d: h.d}, &identityServer{d: h.d}
}

func (h *node) stop() {
	h.cancel()
	if err := h.d.Close(); err != nil {
		h.t.Error(err)
	}
}

func (h *node) staging() string           { return filepath.Join(h.dir, "staging") }
func (h *node) target(name string) string { return filepath.Join(h.dir, "pods", name) }

func createReq(name string, vc *csi.VolumeCapability, params map[string]string) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{vc}, Parameters: params,
		CapacityRange: &csi.CapacityRange{RequiredBytes: 16 * mib}}
}

func (h *node) create(name string, vc *csi.VolumeCapability, params map[string]string) string {
	h.t.Helper()
	response, err := h.c.CreateVolume(context.Background(), createReq(name, vc, params))
	if err != nil {
		h.t.Fatal(err)
	}
	return response.GetVolume().GetVolumeId()
}

func (h *node) stage(id string, vc *csi.VolumeCapability) error {
	_, err := h.n.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{VolumeId: id,
		StagingTargetPath: h.staging(), VolumeCapability: vc})
	return err
}

func (h *node) publish(id, target string, vc *csi.VolumeCapability, readOnly bool) error {
	_, err := h.n.NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{VolumeId: id,
		StagingTargetPath: h.staging(),
		TargetPath:        h.target(target), VolumeCapability: vc, Readonly: readOnly})
	return err
}

func (h *node) unpublish(id, target string) error {
	_, err := h.n.NodeUnpublishVolume(context.Background(), &csi.NodeUnpublishVolumeRequest{VolumeId: id,
		TargetPath: h.target(target)})
	return err
}

func (h *node) unstage(id string) error {
	_, err := h.n.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: id,
		StagingTargetPath: h.staging()})
	return err
}

func (h *node) expand(id string, size int64) error {
	_, err := h.n.NodeExpandVolume(context.Background(), &csi.NodeExpandVolumeRequest{VolumeId: id,
		VolumePath:    h.staging(),
		CapacityRange: &csi.CapacityRange{RequiredBytes: size}})
	return err
}

func (h *node) delete(id string) error {
	_, err := h.c.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: id})
	return err
}

func (h *node) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// want fails unless err has the code, and all the words in its message.
func (h *node) want(err error, code codes.Code, words ...string) {
	h.t.Helper()
	if status.Code(err) != code {
		h.t.Fatalf("error %v, want %s", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			h.t.Fatalf("error %q does not say %q", err, w)
		}
	}
}

// clean fails when anything of a volume is left on the machine.
func (h *node) clean() {
	h.t.Helper()
	if len(h.mounts) > 0 || len(h.loops) > 0 || len(h.writeback) > 0 || len(h.frozen) > 0 {
		h.t.Fatalf("left over: mounts %v, loops %v, writeback %v, frozen %v", h.mounts, h.loops, h.writeback, h.frozen)
	}
	if h.sidecar != nil && len(h.sidecar.attached) > 0 {
		h.t.Fatalf("left attached at the replicator: %v", h.sidecar.attached)
	}
	for device, readOnly := range h.readOnly {
		if readOnly {
			h.t.Fatalf("%s stays read-only", device)
		}
	}
	names, err := h.mem.ReadDir("/slipstream-test-pool/publications")
	if err != nil || len(names) > 0 {
		h.t.Fatalf("publications left: %v, %v", names, err)
	}
}

func TestLifeOfAFileSystemVolume(t *testing.T) {
	for _, fsType := range []string{capability.Ext4, capability.XFS} {
		t.Run(fsType, func(t *testing.T) {
			h := newNode(t, nil)
			vc := capabilitytest.Mount(capabilitytest.Writer, fsType, "noatime")
			req := createReq("v", vc, nil)
			req.CapacityRange = &csi.CapacityRange{RequiredBytes: 300 * mib}
			response, err := h.c.CreateVolume(context.Background(), req)
			h.must(err)
			id := response.GetVolume().GetVolumeId()
			for range 2 { // everything twice
				h.must(h.stage(id, vc))
			}
			for range 2 {
				h.must(h.publish(id, "a", vc, false))
			}
			stats, err := h.n.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id,
				VolumePath: h.target("a")})
			if err != nil || len(stats.GetUsage()) != 2 || stats.GetUsage()[0].GetTotal() != 300*mib {
				t.Fatalf("stats %v, %v", stats, err)
			}
			_, err = h.n.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id,
				VolumePath: h.target("b")})
			h.want(err, codes.NotFound)
			for range 2 {
				h.must(h.expand(id, 400*mib))
			}
			if f := h.files[h.d.attachments.BackingPath(&blockdev.VolumeRecord{ID: id})]; f.FSBytes != 400*mib ||
				f.FSType != fsType {
				t.Errorf("after the expansion: %+v", f)
			}
			h.want(h.delete(id), codes.FailedPrecondition, "staged")
			h.want(h.unstage(id), codes.FailedPrecondition, h.target("a"), "unpublish")
			for range 2 {
				h.must(h.unpublish(id, "a"))
			}
			if _, err := os.Lstat(h.target("a")); err == nil {
				t.Error("the target path is still there")
			}
			for range 2 {
				h.must(h.unstage(id))
			}
			// A second life: mounted, never made again.
			h.must(h.stage(id, vc))
			if len(h.mkfs) != 1 {
				t.Errorf("mkfs ran %d times: %v", len(h.mkfs), h.mkfs)
			}
			if fsType == capability.XFS && !slices.ContainsFunc(h.events, func(e string) bool {
				return strings.HasSuffix(e, "xfs noatime,nouuid")
			}) {
				t.Errorf("xfs was mounted without nouuid: %v", h.events)
			}
			checked := slices.ContainsFunc(h.events, func(e string) bool { return strings.HasPrefix(e, "fsck") })
			if !checked {
				t.Error("the second mount was not checked")
			}
			h.must(h.unstage(id))
			h.must(h.delete(id))
			h.must(h.delete(id))
			h.clean()
		})
	}
}

func TestExpandOrder(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.events = nil
	h.must(h.expand(id, 32*mib))
	var order []string
	for _, e := range h.events {
		if strings.HasPrefix(e, "set size") || strings.HasPrefix(e, "grow") {
			order = append(order, e)
		}
	}
	rec, err := h.d.store.Pool.Get(id)
	h.must(err)
	if len(order) != 2 || !strings.HasPrefix(order[0], "set size /dev/loop0 33554432") ||
		!strings.HasPrefix(order[1], "grow /dev/loop0 ") || rec.SizeBytes != 32*mib {
		t.Errorf("order %q, record %d", order, rec.SizeBytes)
	}
	h.want(h.expand(id, 100*gib), codes.ResourceExhausted)
	_, err = h.n.NodeExpandVolume(context.Background(), &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: h.dir})
	h.want(err, codes.FailedPrecondition, "neither staged nor published")
	h.must(h.unstage(id))
	h.want(h.expand(id, 64*mib), codes.FailedPrecondition, "stage it first")
}

// TestExpandReadOnly: a file system that is mounted read-only cannot grow. The call says so, and the next writable
// staging does it. So it is with an expansion that a crash cut short, and with one that the file system refuses at that
// time.
func TestExpandReadOnly(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.must(h.unstage(id))
	file := h.files[h.d.attachments.BackingPath(&blockdev.VolumeRecord{ID: id})]
	for _, reader := range []*csi.VolumeCapability{capabilitytest.Mount(capabilitytest.Reader, ""),
		capabilitytest.Mount(capabilitytest.Writer, "", "ro")} {
		h.must(h.stage(id, reader))
		size := file.FSBytes + mib
		for range 2 {
			h.want(h.expand(id, size), codes.FailedPrecondition, "read-only", "staged writable")
		}
		if h.loops["/dev/loop"+strconv.Itoa(h.next-1)].SizeBytes != size || file.FSBytes != size-mib {
			t.Errorf("loops %v, file system %+v", h.loops, file)
		}
		h.must(h.unstage(id))
		h.must(h.stage(id, reader)) // still not
		h.must(h.unstage(id))
		if file.FSBytes != size-mib {
			t.Errorf("a read-only staging has grown %+v", file)
		}
		h.must(h.stage(id, vc))
		if file.FSBytes != size {
			t.Errorf("after the writable staging: %+v, want %d bytes", file, size)
		}
		h.must(h.expand(id, size))
		h.must(h.unstage(id))
	}

	size := file.FSBytes + mib
	h.must(h.stage(id, vc))
	h.hook = func(operation string) error {
		if strings.HasPrefix(operation, "grow") {
			return errors.New("refused by the test")
		}
		return nil
	}
	h.want(h.expand(id, size), codes.Internal, "refused by the test")
	h.must(h.unstage(id))
	h.must(h.stage(id, vc)) // it is as good as before
	h.must(h.unstage(id))
	h.hook = nil
	h.must(h.stage(id, vc))
	if file.FSBytes != size {
		t.Errorf("%+v, want %d bytes", file, size)
	}
	h.must(h.unstage(id))
	h.must(h.delete(id))
	h.clean()
}

func TestLifeOfABlockVolume(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Block(capabilitytest.MultiWriter)
	id := h.create("v", vc, nil)
	for range 2 {
		h.must(h.stage(id, vc))
	}
	for range 2 {
		h.must(h.publish(id, "a", vc, false))
		h.must(h.publish(id, "b", vc, false))
	}
	h.want(h.publish(id, "c", vc, true), codes.FailedPrecondition, "all its targets have to agree")
	if info, err := os.Lstat(h.target("a")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("target of a block volume: %v, %v", info, err)
	}
	stats, err := h.n.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id,
		VolumePath: h.target("a")})
	if err != nil || len(stats.GetUsage()) != 1 || stats.GetUsage()[0].GetTotal() != 16*mib {
		t.Errorf("stats %v, %v", stats, err)
	}
	h.must(h.expand(id, 20*mib))
	if h.loops["/dev/loop0"].SizeBytes != 20*mib {
		t.Errorf("device has %d bytes", h.loops["/dev/loop0"].SizeBytes)
	}
	h.must(h.unpublish(id, "a"))
	h.must(h.unpublish(id, "b"))
	h.must(h.publish(id, "c", vc, true))
	if !h.readOnly["/dev/loop0"] {
		t.Error("a read-only block volume can be written")
	}
	h.must(h.unpublish(id, "c"))
	h.must(h.unstage(id))
	if len(h.mkfs) > 0 {
		t.Errorf("a block volume was formatted: %v", h.mkfs)
	}
	// What the application wrote is not formatted later either.
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "")), codes.FailedPrecondition, "raw")
	h.must(h.delete(id))
	h.clean()
}

// TestStageRules: a volume that is staged in one way is not staged in another beside it.
func TestStageRules(t *testing.T) {
	h := newNode(t, nil)
	// A reader leaves no format record, so nothing but the stage record says that the device is in use.
	id := h.create("v", capabilitytest.Block(capabilitytest.Reader), nil)
	h.must(h.stage(id, capabilitytest.Block(capabilitytest.Reader)))
	h.must(h.publish(id, "a", capabilitytest.Block(capabilitytest.Reader), true))
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "")), codes.AlreadyExists, "unstage it first")
	if len(h.mkfs) > 0 || len(h.loops) != 1 {
		t.Errorf("mkfs %v, loops %v", h.mkfs, h.loops)
	}
	h.must(h.unpublish(id, "a"))
	h.must(h.unstage(id))

	h.must(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "")))
	h.want(h.stage(id, capabilitytest.Block(capabilitytest.Writer)), codes.AlreadyExists)
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.Reader, "")), codes.AlreadyExists, "read-only")
	_, err := h.n.NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{VolumeId: id,
		StagingTargetPath: h.target("elsewhere"),
		VolumeCapability:  capabilitytest.Mount(capabilitytest.Writer, "")})
	h.want(err, codes.FailedPrecondition, h.staging())
	// Unstaging where it is not staged takes nothing away.
	_, err = h.n.NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{VolumeId: id,
		StagingTargetPath: h.target("elsewhere")})
	h.must(err)
	if len(h.mounts) != 1 || len(h.loops) != 1 {
		t.Errorf("mounts %v, loops %v", h.mounts, h.loops)
	}
	h.must(h.unstage(id))
	h.clean()
}

func TestPublishRules(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.MultiWriter, "")
	id := h.create("v", vc, nil)
	h.want(h.publish(id, "a", vc, false), codes.FailedPrecondition, "stage it first")
	h.must(h.stage(id, vc))
	h.must(h.publish(id, "a", vc, false))
	h.want(h.publish(id, "a", vc, true), codes.AlreadyExists)
	h.want(h.publish(id, "a", capabilitytest.Mount(capabilitytest.Writer, ""), false), codes.AlreadyExists)
	h.want(h.publish(id, "b", capabilitytest.Mount(capabilitytest.SingleWriter, ""), false), codes.FailedPrecondition)
	h.must(h.publish(id, "b", vc, true)) // other path, other arguments: allowed for this mode
	h.want(h.publish(id, "c", capabilitytest.Block(capabilitytest.MultiWriter), false), codes.FailedPrecondition,
		"file system, not as a block device")
	h.mounts = append(h.mounts, host.MountEntry{Mountpoint: h.target("d"), Source: "/dev/other", Device: "8:1"})
	h.want(h.publish(id, "d", vc, false), codes.FailedPrecondition, "/dev/other")
	h.want(h.unpublish(id, "d"), codes.FailedPrecondition, "not of this volume")

	h.busy[h.target("a")] = true
	h.want(h.unpublish(id, "a"), codes.FailedPrecondition, "busy", "fuser")
	h.busy[h.target("a")] = false
	h.must(h.unpublish(id, "a"))
	h.must(h.unpublish(id, "b"))
	h.busy[h.staging()] = true
	h.want(h.unstage(id), codes.FailedPrecondition, "busy")
	if len(h.loops) != 1 {
		t.Error("a busy volume lost its device")
	}
	h.busy[h.staging()] = false

	// A directory that is not empty after the unmount is not removed with what is in it.
	h.must(h.publish(id, "a", vc, false))
	h.must(os.WriteFile(filepath.Join(h.target("a"), "precious"), []byte("x"), 0o600))
	h.want(h.unpublish(id, "a"), codes.Internal, "look what is in it")
	if _, err := os.Stat(filepath.Join(h.target("a"), "precious")); err != nil {
		t.Error(err)
	}
	h.must(os.Remove(filepath.Join(h.target("a"), "precious")))
	h.must(h.unpublish(id, "a"))
	h.mounts = slices.DeleteFunc(h.mounts, func(m host.MountEntry) bool { return m.Source == "/dev/other" })
	h.must(h.unstage(id))
	h.clean()
}

func TestNeverFormatsTwice(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.Reader, "")), codes.FailedPrecondition, "never formatted")
	h.clean()
	h.must(h.stage(id, vc))
	h.must(h.unstage(id))
	path := h.d.attachments.BackingPath(&blockdev.VolumeRecord{ID: id})
	for name, wiped := range map[string]fakeFile{
		"blank": {}, "garbage": {Data: true}, "another": {Superblock: host.Superblock{FSType: capability.XFS}},
	} {
		before := *h.files[path]
		*h.files[path] = wiped
		h.want(h.stage(id, vc), codes.FailedPrecondition, "not formatted again")
		if *h.files[path] != wiped || len(h.mkfs) != 1 {
			t.Fatalf("%s: mkfs %v", name, h.mkfs)
		}
		h.clean() // the refusal leaves nothing attached
		*h.files[path] = before
	}
	h.want(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "xfs")), codes.FailedPrecondition, "ext4")
	h.must(h.stage(id, vc))

	// A volume without a format record that has data, as a promoted copy may be.
	other := h.create("copy", vc, nil)
	h.must(h.unstage(id))
	h.files[h.d.attachments.BackingPath(&blockdev.VolumeRecord{ID: other})] = &fakeFile{Data: true}
	h.want(h.stage(other, vc), codes.FailedPrecondition, "no format record", "promoted copy")
	_, err := h.d.store.Pool.Update(other, func(r *blockdev.VolumeRecord) error {
		r.Secondary, r.Group = true, "shop"
		return nil
	})
	h.must(err)
	h.want(h.stage(other, vc), codes.FailedPrecondition, "slipctl group promote shop")
	h.clean()
}

func TestCreateVolume(t *testing.T) {
	h := newNode(t, nil)
	ctx := context.Background()
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	if again := h.create("v", vc, nil); again != id {
		t.Errorf("the same name gave %s and %s", id, again)
	}
	change := func(f func(*csi.CreateVolumeRequest)) error {
		req := createReq("v", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
		f(req)
		_, err := h.c.CreateVolume(ctx, req)
		return err
	}
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.CapacityRange.RequiredBytes = 17 * mib
	}), codes.AlreadyExists, "16777216 bytes")
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.CapacityRange = &csi.CapacityRange{RequiredBytes: 1, LimitBytes: 16*mib - 1}
	}), codes.OutOfRange)
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.VolumeCapabilities[0].GetMount().FsType = "xfs"
		r.CapacityRange = nil
	}), codes.AlreadyExists, "ext4, not xfs")
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.Parameters = map[string]string{parameter.KeyProvisioning: "thick"}
	}), codes.AlreadyExists, "other parameters: with nothing besides, now with provisioning=thick;")
	h.must(change(func(r *csi.CreateVolumeRequest) {
		r.Parameters = map[string]string{parameter.KeyProvisioning: "thin"}
	})) // the default, written out
	h.want(change(func(r *csi.CreateVolumeRequest) { r.Name = "" }), codes.InvalidArgument)
	h.want(change(func(r *csi.CreateVolumeRequest) { r.Name = strings.Repeat("x", 129) }), codes.InvalidArgument)
	h.want(change(func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }), codes.InvalidArgument)
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.MutableParameters = map[string]string{"a": "b"}
	}), codes.InvalidArgument)
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.VolumeContentSource = &csi.VolumeContentSource{}
	}), codes.InvalidArgument)
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.Parameters = map[string]string{parameter.KeyReplicable: "true"}
	}), codes.FailedPrecondition, "--sidecar")
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.VolumeCapabilities[0].GetMount().FsType = "xfs"
		r.Parameters = map[string]string{parameter.KeyFSType: "ext4"}
	}), codes.InvalidArgument)
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.Name, r.CapacityRange.RequiredBytes = "big", 2*poolBytes
	}), codes.ResourceExhausted, "node-a")
	there := &csi.TopologyRequirement{
		Requisite: []*csi.Topology{{Segments: map[string]string{plugin.TopologyKey: "node-b"}}},
	}
	h.want(change(func(r *csi.CreateVolumeRequest) {
		r.AccessibilityRequirements = there
	}), codes.ResourceExhausted, "node-a")
	there.Requisite = append(there.Requisite, h.d.topology())
	h.must(change(func(r *csi.CreateVolumeRequest) { r.AccessibilityRequirements = there }))

	// A name that a volume had once is a new volume.
	h.must(h.delete(id))
	if again := h.create("v", vc, nil); again == id {
		t.Error("a deleted volume's id came back to life")
	}
}

func TestListAndCapacity(t *testing.T) {
	h := newNode(t, nil)
	ctx := context.Background()
	want := map[string]bool{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		want[h.create(name, capabilitytest.Block(capabilitytest.Writer), nil)] = true
	}
	token, pages := "", 0
	var deleted string
	for {
		page, err := h.c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		h.must(err)
		pages++
		for _, e := range page.GetEntries() {
			if !want[e.GetVolume().GetVolumeId()] {
				t.Errorf("%s is listed twice, or should not be", e.GetVolume().GetVolumeId())
			}
			delete(want, e.GetVolume().GetVolumeId())
			deleted = e.GetVolume().GetVolumeId()
		}
		if token = page.GetNextToken(); token == "" {
			break
		}
		h.must(h.delete(deleted)) // the token names a volume that is gone
	}
	if len(want) > 0 || pages != 3 {
		t.Errorf("%d pages, missing %v", pages, want)
	}
	_, err := h.c.ListVolumes(ctx, &csi.ListVolumesRequest{StartingToken: "7"})
	h.want(err, codes.Aborted)
	_, err = h.c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: -1})
	h.want(err, codes.InvalidArgument)

	capacity := func(req *csi.GetCapacityRequest) *csi.GetCapacityResponse {
		t.Helper()
		response, err := h.c.GetCapacity(ctx, req)
		h.must(err)
		return response
	}
	all := capacity(&csi.GetCapacityRequest{
		VolumeCapabilities: []*csi.VolumeCapability{capabilitytest.Mount(capabilitytest.Writer, "xfs")},
	})
	if n := all.GetAvailableCapacity(); n <= poolBytes-49*mib || n > poolBytes-48*mib ||
		all.GetMaximumVolumeSize().GetValue() != n || all.GetMinimumVolumeSize().GetValue() != 300*mib {
		t.Errorf("capacity %v", all)
	}
	elsewhere := &csi.Topology{Segments: map[string]string{plugin.TopologyKey: "node-b"}}
	if c := capacity(&csi.GetCapacityRequest{AccessibleTopology: elsewhere}); c.GetAvailableCapacity() != 0 {
		t.Errorf("capacity of another node: %v", c)
	}
	replicable := map[string]string{parameter.KeyReplicable: "true"}
	if c := capacity(&csi.GetCapacityRequest{Parameters: replicable}); c.GetAvailableCapacity() != 0 {
		t.Errorf("capacity for replicable volumes without a replicator: %v", c)
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	h := newNode(t, nil)
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, "ext4"), nil)
	validate := func(vc *csi.VolumeCapability, params map[string]string) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return h.c.ValidateVolumeCapabilities(context.Background(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id,
			VolumeCapabilities: []*csi.VolumeCapability{vc}, Parameters: params})
	}
	for _, tc := range []struct {
		vc     *csi.VolumeCapability
		params map[string]string
		ok     bool
	}{
		{capabilitytest.Mount(capabilitytest.Reader, ""), nil, true},
		{capabilitytest.Block(capabilitytest.MultiWriter), nil, true},
		{capabilitytest.Mount(capabilitytest.Writer, "ext4"), map[string]string{parameter.KeyProvisioning: "thin"}, true},
		{capabilitytest.Mount(capabilitytest.Writer, "xfs"), nil, false},
		{capabilitytest.Mount(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, ""), nil, false},
		{capabilitytest.Mount(capabilitytest.Writer, ""), map[string]string{parameter.KeyProvisioning: "thick"}, false},
	} {
		response, err := validate(tc.vc, tc.params)
		if err != nil || (response.GetConfirmed() != nil) != tc.ok || (response.GetMessage() == "") != tc.ok {
			t.Errorf("%v %v: %v, %v; want confirmed %t", tc.vc, tc.params, response, err, tc.ok)
		}
	}
	_, err := h.c.ValidateVolumeCapabilities(context.Background(),
		&csi.ValidateVolumeCapabilitiesRequest{VolumeId: "vol-x",
			VolumeCapabilities: []*csi.VolumeCapability{capabilitytest.Mount(capabilitytest.Writer, "")}})
	h.want(err, codes.NotFound)
}

// TestSameVolumeAborts holds one call inside the machine and makes every other call for the volume.
func TestSameVolumeAborts(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	other := h.create("w", vc, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	h.mu.Lock()
	h.hook = func(op string) error {
		if strings.HasPrefix(op, "mkfs begins") {
			h.hook = nil
			h.mu.Unlock()
			close(entered)
			<-leave
			h.mu.Lock()
		}
		return nil
	}
	h.mu.Unlock()
	staged := make(chan error)
	go func() { staged <- h.stage(id, vc) }()
	select {
	case <-entered:
	case <-time.After(time.Minute):
		t.Fatal("the first call never came to mkfs")
	}
	for name, call := range map[string]func() error{
		"stage": func() error { return h.stage(id, vc) }, "unstage": func() error { return h.unstage(id) },
		"publish": func() error {
			return h.publish(id, "a", vc, false)
		}, "unpublish": func() error { return h.unpublish(id, "a") },
		"expand": func() error { return h.expand(id, 32*mib) }, "delete": func() error { return h.delete(id) },
		"create": func() error {
			_, err := h.c.CreateVolume(context.Background(), createReq("v", vc, nil))
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "NodeStageVolume") {
			t.Errorf("%s: %v, want Aborted with the name of the running call", name, err)
		}
	}
	h.must(h.delete(other)) // another volume is not held up
	close(leave)
	h.must(<-staged)
	h.must(h.unstage(id))
	h.clean()
}

func TestIdentity(t *testing.T) {
	h := newNode(t, nil)
	ctx := context.Background()
	info, err := h.i.GetPluginInfo(ctx, nil)
	if err != nil || info.GetName() != "csi.slipstream.dev" || info.GetVendorVersion() != "v0.0.0-test" {
		t.Errorf("%v, %v", info, err)
	}
	if probe, err := h.i.Probe(ctx, nil); err != nil || !probe.GetReady().GetValue() {
		t.Errorf("%v, %v", probe, err)
	}
	node, err := h.n.NodeGetInfo(ctx, nil)
	if err != nil || node.GetNodeId() != "node-a" ||
		node.GetAccessibleTopology().GetSegments()["topology.slipstream.dev/node"] != "node-a" {
		t.Errorf("%v, %v", node, err)
	}
	h.must(h.mem.Remove("/slipstream-test-pool/pool.json"))
	_, err = h.i.Probe(ctx, nil)
	h.want(err, codes.FailedPrecondition, "/slipstream-test-pool")
}
