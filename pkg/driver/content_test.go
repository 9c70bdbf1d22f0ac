package driver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/snapshots"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func fromSnapshot(id string) *csi.VolumeContentSource {
	return contentSource(&blockdev.ContentSource{SnapshotID: id})
}
func fromVolume(id string) *csi.VolumeContentSource {
	return contentSource(&blockdev.ContentSource{VolumeID: id})
}

// makeFrom creates a volume from a source, as a CO does: again while the answer is Aborted.
func (h *node) makeFrom(name string, source *csi.VolumeContentSource, vc *csi.VolumeCapability, size int64,
	params map[string]string) (id string, err error) {
	h.t.Helper()
	req := createReq(name, vc, params)
	req.VolumeContentSource, req.CapacityRange = source, &csi.CapacityRange{RequiredBytes: size}
	return id, h.await(func() (bool, error) {
		response, err := h.c.CreateVolume(context.Background(), req)
		if status.Code(err) == codes.Aborted {
			return false, nil
		}
		id = response.GetVolume().GetVolumeId()
		if err == nil && response.GetVolume().GetContentSource().String() != source.String() {
			return false, fmt.Errorf("content source %v, want %v", response.GetVolume().GetContentSource(), source)
		}
		return err == nil, err
	})
}

// like makes what the machine finds on one image what it finds on another: the machine does not read images.
func (h *node) like(source, target string) {
	if f := h.files[h.imagePath(source)]; f != nil {
		c := *f
		h.files[h.imagePath(target)] = &c
	}
}

// TestVolumesFromSources makes volumes from snapshots and from mounted volumes, of the same size and larger, thin and
// thick.
func TestVolumesFromSources(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		for _, isThick := range []bool{false, true} {
			t.Run(fmt.Sprintf("reflink %t, thick %t", reflink, isThick), func(t *testing.T) {
				h := newNode(t, nil)
				h.mem.SetReflink(reflink)
				vc := capabilitytest.Mount(capabilitytest.Writer, "")
				origin := h.create("v", vc, thick(isThick))
				h.must(h.stage(origin, vc))
				h.put(h.imagePath(origin), "content", 4*mib)
				if !reflink {
					h.must(h.unstage(origin))
				}
				snap, err := h.takeSnapshot("s", origin, nil)
				h.must(err)
				h.must(h.awaitSnapshot(snap.GetSnapshotId()))
				var made []string
				for i, source := range []*csi.VolumeContentSource{fromSnapshot(snap.GetSnapshotId()), fromVolume(origin)} {
					for _, size := range []int64{0, 16 * mib, 24 * mib} {
						for _, targetThick := range []bool{false, true} {
							name := fmt.Sprintf("w%d-%d-%t", i, size, targetThick)
							id, err := h.makeFrom(name, source, vc, size, thick(targetThick))
							h.must(err)
							again, err := h.makeFrom(name, source, vc, size, thick(targetThick))
							h.must(err)
							rec, err := h.d.store.Pool.Get(id)
							h.must(err)
							want := max(size, 16*mib)
							if again != id || rec.SizeBytes != want || rec.State != blockdev.VolumeReady || rec.Format == nil ||
								rec.GrowFileSystem != (want > 16*mib) || rec.CopiedBytes != 0 {
								t.Errorf("%s: %s, then %s, %+v", name, id, again, rec)
							}
							if got := h.read(h.imagePath(id), 4*mib, 7); got != "content" {
								t.Errorf("%s has %q", name, got)
							}
							if info, err := h.mem.Stat(h.imagePath(id)); err != nil || info.Size() != want {
								t.Errorf("%s: image %v, %v", name, info, err)
							}
							if targetThick && allocatedBytes(t, h, id) < want {
								t.Errorf("%s is thick and has %d bytes allocated", name, allocatedBytes(t, h, id))
							}
							h.like(origin, id)
							made = append(made, id)
						}
					}
				}
				if names, err := h.mem.ReadDir("/slipstream-test-pool/snapshots"); err != nil || len(names) != 1 {
					t.Errorf("snapshots %v, %v: those of clones stay", names, err)
				}
				// In any order; what was made stays.
				if reflink {
					h.must(h.unstage(origin))
				}
				h.must(h.delete(origin))
				h.must(h.deleteSnapshot(snap.GetSnapshotId()))
				for _, id := range made {
					if got := h.read(h.imagePath(id), 4*mib, 7); got != "content" {
						t.Errorf("%s has %q", id, got)
					}
					h.must(h.stage(id, vc))
					rec, err := h.d.store.Pool.Get(id)
					h.must(err)
					if f := h.files[h.imagePath(id)]; f.FSBytes != rec.SizeBytes || rec.GrowFileSystem {
						t.Errorf("%s: file system of %d bytes in %d, to be grown %t", id, f.FSBytes, rec.SizeBytes, rec.GrowFileSystem)
					}
					h.must(h.unstage(id))
					h.must(h.delete(id))
				}
				if len(h.mkfs) != 1 {
					t.Errorf("mkfs ran %d times: %v", len(h.mkfs), h.mkfs)
				}
				h.noSnapshots()
				h.clean()
			})
		}
	}
}

// A claim that is made again from a snapshot of its volume, as it was, is not refused for what its volume was rounded
// up by, neither by csi-provisioner, which looks at the snapshot's size, nor by the driver.
func TestTheSameClaimRestores(t *testing.T) {
	h := newNode(t, nil)
	h.mem.SetReflink(true)
	for _, tc := range []struct {
		name            string
		vc              *csi.VolumeCapability
		asked, has, say int64
	}{
		{"less-than-ext4-takes", capabilitytest.Mount(capabilitytest.Writer, capability.Ext4), mib, 16 * mib, 0},
		{"less-than-xfs-takes", capabilitytest.Mount(capabilitytest.Writer, capability.XFS), 100 * mib, 300 * mib, 0},
		{"whole", capabilitytest.Mount(capabilitytest.Writer, capability.Ext4), 20 * mib, 20 * mib, 20 * mib},
		{"decimal", capabilitytest.Mount(capabilitytest.Writer, capability.Ext4), 20_000_000, 20_000_768, 19_996_673},
		{"raw", capabilitytest.Block(capabilitytest.Writer), 2 * mib, 2 * mib, 2 * mib},
		{"decimal-raw", capabilitytest.Block(capabilitytest.Writer), 2_000_000, 2_002_944, 1_998_849},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.t = t
			id, err := h.makeFrom(tc.name, nil, tc.vc, tc.asked, nil)
			h.must(err)
			h.must(h.stage(id, tc.vc))
			h.must(h.unstage(id))
			snap, err := h.takeSnapshot("snapshot-of-"+tc.name, id, nil)
			h.must(err)
			if snap.GetSizeBytes() != tc.say || tc.say > tc.asked {
				t.Errorf("the snapshot's size is %d, want %d", snap.GetSizeBytes(), tc.say)
			}
			for _, asked := range []int64{max(tc.say, 1), tc.asked} {
				restored, err := h.makeFrom(fmt.Sprintf("%s-%d", tc.name, asked), fromSnapshot(snap.GetSnapshotId()), tc.vc, asked,
					nil)
				h.must(err)
				if rec, err := h.d.store.Pool.Get(restored); err != nil || rec.SizeBytes != tc.has {
					t.Errorf("%d asked for: %+v, %v, want %d", asked, rec, err, tc.has)
				}
			}
			if tc.say > 0 {
				_, err = h.makeFrom(tc.name+"-smaller", fromSnapshot(snap.GetSnapshotId()), tc.vc, tc.has-capability.SizeUnitBytes,
					nil)
				h.want(err, codes.OutOfRange, "not smaller than its source")
			}
		})
	}
}

func TestSourcesThatDoNotFit(t *testing.T) {
	h := newNode(t, nil)
	h.mem.SetReflink(true)
	fs, raw := capabilitytest.Mount(capabilitytest.Writer, "ext4"), capabilitytest.Block(capabilitytest.Writer)
	b := h.create("b", raw, nil)
	larger := createReq("v", fs, nil)
	larger.CapacityRange.RequiredBytes = 20 * mib
	response, err := h.c.CreateVolume(context.Background(), larger)
	h.must(err)
	v := response.GetVolume().GetVolumeId()
	for id, vc := range map[string]*csi.VolumeCapability{v: fs, b: raw} {
		h.must(h.stage(id, vc))
		h.must(h.unstage(id))
	}
	snap, err := h.takeSnapshot("s", v, nil)
	h.must(err)
	here := &csi.TopologyRequirement{Requisite: []*csi.Topology{h.d.topology()}}
	for _, tc := range []struct {
		name   string
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		words  string
	}{
		{"none", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = &csi.VolumeContentSource{}
		}, codes.InvalidArgument, "neither"},
		{"no snapshot", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = fromSnapshot("snap-none")
		}, codes.NotFound, "snap-none"},
		{"no volume", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = fromVolume("vol-none")
		}, codes.NotFound, "vol-none"},
		{"snapshot elsewhere", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource, r.AccessibilityRequirements = fromSnapshot("snap-none"), here
		}, codes.ResourceExhausted, "node-a"},
		{"volume elsewhere", func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource, r.AccessibilityRequirements = fromVolume("vol-none"), here
		}, codes.ResourceExhausted, "node-a"},
		{"smaller", func(r *csi.CreateVolumeRequest) {
			r.CapacityRange.RequiredBytes = 20*mib - capability.SizeUnitBytes
		}, codes.OutOfRange, "20971520"},
		{"limited", func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{LimitBytes: 20*mib - capability.SizeUnitBytes}
		}, codes.OutOfRange, ""},
		{"other file system", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{capabilitytest.Mount(capabilitytest.Writer, "xfs")}
			r.CapacityRange.RequiredBytes = 400 * mib
		}, codes.InvalidArgument, "ext4"},
		{"raw", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = fromVolume(b) }, codes.InvalidArgument, "raw"},
	} {
		req := createReq("w", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
		req.VolumeContentSource = fromSnapshot(snap.GetSnapshotId())
		tc.change(req)
		_, err := h.c.CreateVolume(context.Background(), req)
		if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.words) {
			t.Errorf("%s: %v, want %s and %q", tc.name, err, tc.code, tc.words)
		}
	}
	if _, err := h.makeFrom("w", fromSnapshot(snap.GetSnapshotId()), raw, 0, nil); err != nil {
		t.Errorf("a file system as a raw block volume: %v", err)
	}
	req := createReq("w", raw, nil)
	_, err = h.c.CreateVolume(context.Background(), req)
	h.want(err, codes.AlreadyExists, "made from snapshot", "nothing")
	req.VolumeContentSource = fromVolume(v)
	_, err = h.c.CreateVolume(context.Background(), req)
	h.want(err, codes.AlreadyExists, "made from snapshot", v)

	// A mounted volume that cannot be cloned: refused for good, and nothing is left.
	h.mem.SetReflink(false)
	h.must(h.stage(v, fs))
	_, err = h.makeFrom("x", fromVolume(v), fs, 0, nil)
	h.want(err, codes.FailedPrecondition, "in use")
	if recs, err := h.d.store.Pool.List(); err != nil || len(recs) != 3 {
		t.Errorf("volumes %v, %v", recs, err)
	}
	if ids, _ := h.listSnapshots(&csi.ListSnapshotsRequest{}); !slices.Equal(ids, []string{snap.GetSnapshotId()}) {
		t.Errorf("snapshots %v", ids)
	}
	h.must(h.unstage(v))
}

// TestContentComesLater: a copy that takes longer than the call is Aborted until it is there, goes on after a restart,
// and holds what it reads.
func TestContentComesLater(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Block(capabilitytest.Writer)
	origin := h.create("v", vc, nil)
	h.put(h.imagePath(origin), "content", 4*mib)
	snap, err := h.takeSnapshot("s", origin, nil)
	h.must(err)
	h.must(h.awaitSnapshot(snap.GetSnapshotId()))

	release := h.holdCopies()
	req := createReq("w", vc, nil)
	req.VolumeContentSource = fromSnapshot(snap.GetSnapshotId())
	call := func() (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), snapshots.ContentWaitMargin+50*time.Millisecond)
		defer cancel()
		response, err := h.c.CreateVolume(ctx, req)
		return response.GetVolume().GetVolumeId(), err
	}
	for range 2 {
		_, err = call()
		h.want(err, codes.Aborted, "0 of 16777216 bytes", snap.GetSnapshotId())
	}
	h.want(h.deleteSnapshot(snap.GetSnapshotId()), codes.Aborted, "call again")
	if response, err := h.c.ListVolumes(context.Background(), &csi.ListVolumesRequest{}); err != nil ||
		len(response.GetEntries()) != 1 {
		t.Errorf("listed %v, %v: a volume without content is none", response, err)
	}
	// The volume's record says where to go on.
	recs, err := h.d.store.Pool.List()
	h.must(err)
	for _, rec := range recs {
		if rec.ID == origin {
			continue
		}
		h.want(h.stage(rec.ID, vc), codes.FailedPrecondition, "creating")
	}
	h.cancel()
	release()
	h.must(h.d.Close())
	h.mem = h.mem.CrashClone(vfs.CrashConfig{})
	h.start(h.mem)
	id, err := h.makeFrom("w", req.GetVolumeContentSource(), vc, 16*mib, nil)
	h.must(err)
	if got := h.read(h.imagePath(id), 4*mib, 7); got != "content" {
		t.Errorf("the volume has %q", got)
	}

	// Given up before it is there.
	release = h.holdCopies()
	req.Name = "x"
	_, err = call()
	h.want(err, codes.Aborted)
	recs, err = h.d.store.Pool.List()
	h.must(err)
	for _, rec := range recs {
		if rec.Name == "x" {
			h.must(h.delete(rec.ID))
		}
	}
	release()
	h.must(h.deleteSnapshot(snap.GetSnapshotId()))
	h.must(h.delete(id))
	h.must(h.delete(origin))
	h.noSnapshots()
}

// TestCopyGoesOnAfterARestart: from where it was, also where the driver would try to clone first. The pool's file
// system cannot.
func TestCopyGoesOnAfterARestart(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Block(capabilitytest.Writer)
	origin := h.create("v", vc, nil)
	h.put(h.imagePath(origin), "content", 12*mib)
	snap, err := h.takeSnapshot("s", origin, nil)
	h.must(err)
	h.must(h.awaitSnapshot(snap.GetSnapshotId()))
	id := h.create("w", vc, nil)
	_, err = h.d.store.Pool.Update(id, func(r *blockdev.VolumeRecord) error {
		r.State, r.CopiedBytes = blockdev.VolumeCreating, 8*mib
		r.Source = &blockdev.ContentSource{SnapshotID: snap.GetSnapshotId()}
		return nil
	})
	h.must(err)
	h.put(h.imagePath(id), "copied", 4*mib) // the snapshot has a hole here
	h.stop()
	h.start(h.mem)
	again, err := h.makeFrom("w", fromSnapshot(snap.GetSnapshotId()), vc, 16*mib, nil)
	h.must(err)
	if again != id {
		t.Fatalf("made %s, want %s", again, id)
	}
	for off, want := range map[int64]string{4 * mib: "copied", 12 * mib: "content"} {
		if got := h.read(h.imagePath(id), off, len(want)); got != want {
			t.Errorf("at %d the volume has %q, want %q", off, got, want)
		}
	}
}

// TestCloneOfAGroupsVolume: by a cut, while it is mounted, into the same group.
func TestCloneOfAGroupsVolume(t *testing.T) {
	h := newNode(t, startSidecar(t))
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	class := map[string]string{parameter.KeyConsistencyGroup: "shop"}
	origin := h.create("v", vc, class)
	h.must(h.stage(origin, vc))
	h.put(h.imagePath(origin), "content", 4*mib)
	id, err := h.makeFrom("w", fromVolume(origin), vc, 32*mib, class)
	h.must(err)
	rec, err := h.d.store.Pool.Get(id)
	h.must(err)
	if rec.Group != "shop" || !rec.Replicable || !rec.GrowFileSystem || h.read(h.imagePath(id), 4*mib, 7) != "content" {
		t.Errorf("record %+v", rec)
	}
	cut := slices.IndexFunc(h.sidecar.calls, func(c string) bool { return strings.HasPrefix(c, "CutGroup shop") })
	joined := slices.Index(h.sidecar.calls, "AddVolume shop "+id)
	if cut < 0 || joined < cut {
		t.Errorf("calls %q: the volume has to have its content before it joins", h.sidecar.calls)
	}
	h.noSnapshots()
	h.must(h.unstage(origin))
	h.must(h.delete(origin))
	h.must(h.delete(id))
	h.clean()
}
