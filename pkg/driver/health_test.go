package driver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func (h *node) controllerHealth(id string) []*csi.VolumeHealth_VolumeHealthEntry {
	h.t.Helper()
	response, err := h.c.ControllerGetVolumeHealth(context.Background(),
		&csi.ControllerGetVolumeHealthRequest{VolumeId: id})
	h.must(err)
	return h.checked(id, response.GetVolumeHealth())
}

func (h *node) nodeHealth(id, publishPath string) []*csi.VolumeHealth_VolumeHealthEntry {
	h.t.Helper()
	response, err := h.n.NodeGetVolumeHealth(context.Background(), &csi.NodeGetVolumeHealthRequest{VolumeId: id,
		VolumePublishPath: publishPath,
		StagingTargetPath: h.staging()})
	h.must(err)
	return h.checked(id, response.GetVolumeHealth())
}

// checked fails for what the specification forbids, and for a message that does not say which volume it is about.
func (h *node) checked(id string, health *csi.VolumeHealth) []*csi.VolumeHealth_VolumeHealthEntry {
	h.t.Helper()
	if health.GetVolumeId() != id {
		h.t.Errorf("health of %q, asked for %q", health.GetVolumeId(), id)
	}
	seen := map[string]bool{}
	for _, e := range health.GetHealthStatuses() {
		key := e.GetStatus().String() + e.GetReason()
		if seen[key] || e.GetStatus() == 0 || e.GetReason() == "" {
			h.t.Errorf("twice, or without status or reason: %v", e)
		}
		seen[key] = true
		if !strings.Contains(e.GetMessage(), "volume "+id) {
			h.t.Errorf("the message of %s does not name volume %s: %q", e.GetReason(), id, e.GetMessage())
		}
	}
	return health.GetHealthStatuses()
}

// wantHealth fails unless the conditions are exactly these: "STATUS Reason".
func (h *node) wantHealth(got []*csi.VolumeHealth_VolumeHealthEntry, want ...string) {
	h.t.Helper()
	if !slices.Equal(summary(got), want) {
		h.t.Errorf("conditions %v, want %q", got, want)
	}
}

func summary(entries []*csi.VolumeHealth_VolumeHealthEntry) []string {
	var all []string
	for _, e := range entries {
		all = append(all, e.GetStatus().String()+" "+e.GetReason())
	}
	return all
}

// wantWords fails unless the message of the only condition has all the words.
func (h *node) wantWords(got []*csi.VolumeHealth_VolumeHealthEntry, words ...string) {
	h.t.Helper()
	for _, w := range words {
		if len(got) != 1 || !strings.Contains(got[0].GetMessage(), w) {
			h.t.Errorf("%v does not say %q", got, w)
		}
	}
}

func (h *node) image(id string) string {
	h.t.Helper()
	path, err := h.d.store.Pool.ImagePath(id)
	h.must(err)
	return path
}

// truncate cuts the file, or makes it larger, behind everybody's back.
func (h *node) truncate(path string, size int64) {
	h.t.Helper()
	f, err := h.mem.Open(path)
	h.must(err)
	defer f.Close()
	h.must(f.Truncate(size))
}

func TestHealthOfImage(t *testing.T) {
	h := newNode(t, nil)
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
	h.wantHealth(h.controllerHealth(id))
	h.wantHealth(h.nodeHealth(id, ""))

	h.truncate(h.image(id), 16*mib-1)
	short := h.controllerHealth(id)
	h.wantHealth(short, "DATA_LOSS ImageShort")
	h.wantWords(short, h.image(id), "16777215 bytes", "16777216", "restore")
	h.truncate(h.image(id), 20*mib) // growing extends the file before the record
	h.wantHealth(h.controllerHealth(id))

	saved := h.mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100})
	h.must(h.mem.Remove(h.image(id)))
	missing := h.controllerHealth(id)
	h.wantHealth(missing, "DATA_LOSS ImageMissing")
	h.wantWords(missing, h.image(id), "missing", "restore")
	h.wantHealth(h.nodeHealth(id, ""), "DATA_LOSS ImageMissing")

	// The record.
	h.stop()
	h.mem = saved
	h.start(h.mem)
	record := strings.TrimSuffix(h.image(id), "image") + "volume.json"
	data, err := vfs.ReadFile(h.mem, record, 1<<30)
	h.must(err)
	h.truncate(record, int64(len(data))/2)
	damaged := h.controllerHealth(id)
	h.wantHealth(damaged, "INACCESSIBLE RecordDamaged")
	h.wantWords(damaged, record)
	h.wantHealth(h.nodeHealth(id, ""), "INACCESSIBLE RecordDamaged")
	storage := h.storageHealth()
	if len(storage) != 1 || storage[0].GetReason() != health.ReasonRecordDamaged ||
		!strings.Contains(storage[0].GetMessage(), id) {
		t.Errorf("storage health %v", storage)
	}

	for _, err := range []error{
		second(h.c.ControllerGetVolumeHealth(context.Background(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "vol-x"})),
		second(h.n.NodeGetVolumeHealth(context.Background(), &csi.NodeGetVolumeHealthRequest{VolumeId: "vol-x"})),
	} {
		h.want(err, codes.NotFound, "vol-x")
	}
	for _, err := range []error{
		second(h.c.ControllerGetVolumeHealth(context.Background(), &csi.ControllerGetVolumeHealthRequest{})),
		second(h.n.NodeGetVolumeHealth(context.Background(), &csi.NodeGetVolumeHealthRequest{})),
	} {
		h.want(err, codes.InvalidArgument)
	}
}

// TestHealthOfUnreadableImage: a file system that fails where the image is says nothing about the image being there,
// and is told from one that has lost it. Other volumes are as they were, and the condition goes when the file system
// answers again.
func TestHealthOfUnreadableImage(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id, other := h.create("v", vc, nil), h.create("w", vc, nil)
	h.must(h.stage(id, vc))
	h.stop()
	var failing atomic.Bool
	image := h.imagePath(id)
	h.start(vfs.NewErrFS(h.mem, func(op vfs.Op, name string) error {
		if name == image && failing.Load() {
			return unix.EIO
		}
		return nil
	}))
	h.wantHealth(h.controllerHealth(id))
	failing.Store(true)
	for _, got := range [][]*csi.VolumeHealth_VolumeHealthEntry{h.controllerHealth(id), h.nodeHealth(id, "")} {
		h.wantHealth(got, "INACCESSIBLE "+health.ReasonImageUnreadable)
		h.wantWords(got, image, unix.EIO.Error(), "check the file system", h.d.opts.PoolDir)
	}
	h.wantHealth(h.controllerHealth(other))
	failing.Store(false)
	h.wantHealth(h.controllerHealth(id))
	h.must(h.unstage(id))
}

func second[T any](_ T, err error) error { return err }

func (h *node) storageHealth() []*csi.NodeGetStorageHealthResponse_StorageBackendHealth {
	h.t.Helper()
	response, err := h.n.NodeGetStorageHealth(context.Background(), &csi.NodeGetStorageHealthRequest{})
	h.must(err)
	seen := map[string]bool{}
	for _, e := range response.GetBackendHealth() {
		if seen[e.GetReason()] || e.GetStatus() == 0 || e.GetReason() == "" || e.GetMessage() == "" {
			h.t.Errorf("twice, or incomplete: %v", e)
		}
		seen[e.GetReason()] = true
	}
	return response.GetBackendHealth()
}

func (h *node) wantStorage(want ...string) {
	h.t.Helper()
	var got []string
	for _, e := range h.storageHealth() {
		got = append(got, e.GetStatus().String()+" "+e.GetReason())
	}
	if !slices.Equal(got, want) {
		h.t.Errorf("storage health %q, want %q", got, want)
	}
}

func TestHealthOfPool(t *testing.T) {
	h := newNode(t, nil)
	thin := h.create("thin", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
	thick := h.create("thick", capabilitytest.Mount(capabilitytest.Writer, ""),
		map[string]string{parameter.KeyProvisioning: parameter.ProvisioningThick})
	h.wantStorage()
	h.mem.SetCapacity(18 * mib) // 16 MiB are the thick volume's
	nearly := h.controllerHealth(thin)
	h.wantHealth(nearly, "DEGRADED PoolNearlyFull")
	h.wantWords(nearly, "/slipstream-test-pool", "node-a", "free some")
	h.wantHealth(h.controllerHealth(thick)) // has what it needs
	h.wantStorage("STORAGE_DEGRADED PoolNearlyFull")
	h.mem.SetCapacity(17 * mib)
	h.wantHealth(h.controllerHealth(thin), "DEGRADED PoolFull")
	h.wantStorage("STORAGE_DEGRADED PoolFull")
	h.mem.SetCapacity(gib)
	h.wantHealth(h.controllerHealth(thin))
	h.must(h.mem.Remove("/slipstream-test-pool/pool.json"))
	h.wantStorage("STORAGE_UNREACHABLE PoolUnavailable")
}

func TestHealthOfStagedVolume(t *testing.T) {
	h := newNode(t, nil)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	id := h.create("v", vc, nil)
	h.must(h.stage(id, vc))
	h.must(h.publish(id, "a", vc, false))
	h.wantHealth(h.nodeHealth(id, h.target("a")))

	h.mounts[0].Stopped = "emergency_ro"
	stopped := h.nodeHealth(id, "")
	h.wantHealth(stopped, "DEGRADED FileSystemStopped")
	h.wantWords(stopped, "emergency_ro", "kernel's log", "delete the pods")
	h.mounts[0].Stopped = ""

	target := h.mounts[1]
	h.mounts = h.mounts[:1]
	gone := h.nodeHealth(id, h.target("a"))
	h.wantHealth(gone, "INACCESSIBLE NotMounted")
	h.wantWords(gone, h.target("a"))
	h.wantHealth(h.nodeHealth(id, h.target("never")))

	h.mounts = []host.MountEntry{target}
	unmounted := h.nodeHealth(id, "")
	h.wantHealth(unmounted, "INACCESSIBLE NotMounted")
	h.wantWords(unmounted, h.staging())

	// The file may be gone under the device; then that is the condition.
	h.loops["/dev/loop0"].Deleted = true
	h.must(h.mem.Remove(h.image(id)))
	h.mounts = nil
	h.wantHealth(h.nodeHealth(id, ""), "DATA_LOSS ImageMissing", "INACCESSIBLE NotMounted")

	clear(h.loops)
	h.wantHealth(h.controllerHealth(id), "DATA_LOSS ImageMissing") // the device is the node's affair
	h.wantHealth(h.nodeHealth(id, ""), "DATA_LOSS ImageMissing", "INACCESSIBLE LoopDeviceGone")

	block := h.create("b", capabilitytest.Block(capabilitytest.Writer), nil)
	h.must(h.stage(block, capabilitytest.Block(capabilitytest.Writer)))
	h.wantHealth(h.nodeHealth(block, ""))
	h.reboot()
	lost := h.nodeHealth(block, "")
	h.wantHealth(lost, "INACCESSIBLE LoopDeviceGone")
	h.wantWords(lost, h.image(block), "restarted", "delete the pods")
	h.must(h.stage(block, capabilitytest.Block(capabilitytest.Writer)))
	h.wantHealth(h.nodeHealth(block, ""))

	// Detached behind a pod's back: the way that the message names is open, also when the number has another owner by now.
	h.must(h.publish(block, "b", capabilitytest.Block(capabilitytest.Writer), false))
	for _, l := range h.loops {
		l.BackingPath = "/another/file"
		h.inodes[l.Path] = blockdev.FileID{Device: 1, Inode: 99}
	}
	h.wantHealth(h.nodeHealth(block, h.target("b")), "INACCESSIBLE LoopDeviceGone")
	h.must(h.unpublish(block, "b"))
	h.must(h.unstage(block))
	if len(h.mounts) != 0 || len(h.loops) != 1 {
		t.Errorf("mounts %v, loops %v", h.mounts, h.loops)
	}
	h.mounts = append(h.mounts, host.MountEntry{Mountpoint: h.target("b"), Source: "devtmpfs", Device: "0:5",
		Root: "/loop9", FSType: "devtmpfs"})
	h.want(h.unpublish(block, "b"), codes.FailedPrecondition, "not of this volume")
}

func TestHealthWithoutReplicator(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	plain := h.create("plain", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""),
		map[string]string{parameter.KeyConsistencyGroup: "shop"})
	_, err := h.d.store.Pool.Update(id, func(r *blockdev.VolumeRecord) error { r.Group = "shop"; return nil })
	h.must(err)
	h.wantHealth(h.controllerHealth(id))

	s.groups["broken"] = &sidecarpb.GroupStatus{Name: "dir-1", State: sidecarpb.GroupState_GROUP_STATE_FAILED,
		StateReason: "group.json is damaged"}
	shop := s.groups["shop"]
	delete(s.groups, "shop")
	unknown := h.controllerHealth(id)
	h.wantHealth(unknown, "INACCESSIBLE GroupUnavailable")
	h.wantWords(unknown, "shop", "dir-1: group.json is damaged")
	h.wantStorage("STORAGE_DEGRADED GroupUnavailable")
	s.groups["shop"] = shop
	delete(s.groups, "broken")

	h.d.sidecar.Patience = 500 * time.Millisecond
	s.stop()
	absent := h.controllerHealth(id)
	h.wantHealth(absent, "INACCESSIBLE ReplicatorUnavailable")
	h.wantWords(absent, s.endpoint, "see that the replicator runs")
	h.wantHealth(h.controllerHealth(plain))
	h.wantStorage("STORAGE_DEGRADED ReplicatorUnavailable")
	s.start(t)
	h.d.sidecar.Patience = patience
	h.wantHealth(h.controllerHealth(id))
	h.wantStorage()
}

// TestGroupConditions are those that no test below brings about with real replicators, and the words of all.
func TestGroupConditions(t *testing.T) {
	const (
		idle       = sidecarpb.GroupState_GROUP_STATE_IDLE
		connecting = sidecarpb.GroupState_GROUP_STATE_CONNECTING
		streaming  = sidecarpb.GroupState_GROUP_STATE_STREAMING
		failed     = sidecarpb.GroupState_GROUP_STATE_FAILED
		primary    = sidecarpb.Role_ROLE_PRIMARY
		secondary  = sidecarpb.Role_ROLE_SECONDARY
		stall      = sidecarpb.JournalFull_JOURNAL_FULL_STALL
	)
	stalling := func(state sidecarpb.GroupState, role sidecarpb.Role, used int64) *sidecarpb.GroupStatus {
		return &sidecarpb.GroupStatus{State: state, Role: role, JournalFull: stall, JournalSizeBytes: 1000,
			JournalUsedBytes: used}
	}
	for _, tc := range []struct {
		group *sidecarpb.GroupStatus
		want  []string
	}{
		{&sidecarpb.GroupStatus{State: idle, StateReason: "the group has no peer"}, nil},
		{&sidecarpb.GroupStatus{State: streaming}, nil},
		{&sidecarpb.GroupStatus{State: streaming, ApplyError: "no space"}, []string{"DEGRADED ApplyStuck"}},
		{&sidecarpb.GroupStatus{State: idle, StateReason: "the group has no peer", ApplyError: "no space"},
			[]string{"DEGRADED ApplyStuck"}},
		{&sidecarpb.GroupStatus{State: failed, StateReason: "the journal is damaged"},
			[]string{"INACCESSIBLE GroupUnavailable"}},
		{stalling(streaming, primary, 900), nil},
		{stalling(streaming, primary, 901), []string{"DEGRADED JournalNearlyFull"}},
		{stalling(streaming, secondary, 1000), nil},
		{&sidecarpb.GroupStatus{State: streaming, Role: primary, JournalSizeBytes: 1000, JournalUsedBytes: 1000}, nil},
		{&sidecarpb.GroupStatus{State: streaming, Role: primary, RpoTargetSeconds: 5, LagSeconds: new(4.5)}, nil},
		{&sidecarpb.GroupStatus{State: streaming, Role: primary, RpoTargetSeconds: 5, LagSeconds: new(12.5), Lagging: true},
			[]string{"DEGRADED ReplicationLagging"}},
		{&sidecarpb.GroupStatus{State: streaming, Role: secondary, RpoTargetSeconds: 5, Lagging: true},
			[]string{"DEGRADED ReplicationLagging"}},
		{&sidecarpb.GroupStatus{State: streaming, Verify: &sidecarpb.VerifyStatus{DifferenceCount: new(uint64(0))}}, nil},
		{&sidecarpb.GroupStatus{State: streaming, Verify: &sidecarpb.VerifyStatus{DifferenceCount: new(uint64(1)),
			Differences: []*sidecarpb.VolumeExtent{{VolumeId: "vol-1", OffsetBytes: 65536, LengthBytes: 65536}}}},
			[]string{"DEGRADED SitesDiffer"}},
		{&sidecarpb.GroupStatus{State: streaming, Verify: &sidecarpb.VerifyStatus{DifferenceCount: new(uint64(1)),
			Differences: []*sidecarpb.VolumeExtent{{VolumeId: "vol-2", OffsetBytes: 65536, LengthBytes: 65536}}}}, nil},
		{&sidecarpb.GroupStatus{State: streaming, Verify: &sidecarpb.VerifyStatus{DifferenceCount: new(uint64(9)),
			Differences: []*sidecarpb.VolumeExtent{{VolumeId: "vol-2", OffsetBytes: 65536, LengthBytes: 65536}}}},
			[]string{"DEGRADED SitesDiffer"}},
		{&sidecarpb.GroupStatus{State: sidecarpb.GroupState_GROUP_STATE_SUSPENDED, StateReason: "since noon"},
			[]string{"DEGRADED ReplicationSuspended"}},
		{&sidecarpb.GroupStatus{State: streaming, Role: secondary, HistoryTargetSeconds: 60, HistoryShort: true},
			[]string{"DEGRADED HistoryShort"}},
		{stalling(connecting, primary, 1000), []string{"DEGRADED ReplicationSuspended", "DEGRADED JournalNearlyFull"}},
	} {
		tc.group.Name, tc.group.Peer = "shop", "west"
		var found health.Conditions
		health.GroupConditions(&found, &blockdev.VolumeRecord{ID: "vol-1"}, tc.group)
		if !slices.Equal(summary(found), tc.want) {
			t.Errorf("%v: %q, want %q", tc.group, summary(found), tc.want)
		}
		for _, e := range found {
			if !strings.Contains(e.GetMessage(), "volume vol-1") || !strings.Contains(e.GetMessage(), "shop") ||
				!strings.Contains(e.GetMessage(), cmp.Or(tc.group.ApplyError, tc.group.StateReason)) {
				t.Errorf("%v: message %q", tc.group, e.GetMessage())
			}
		}
	}
}

// TestListHealth pages through abnormal volumes while volumes come, go and recover.
func TestListHealth(t *testing.T) {
	h := newNode(t, nil)
	list := func(token string, most int32) *csi.ControllerListVolumeHealthResponse {
		t.Helper()
		response, err := h.c.ControllerListVolumeHealth(context.Background(),
			&csi.ControllerListVolumeHealthRequest{StartingToken: token, MaxEntries: most})
		h.must(err)
		for _, e := range response.GetEntries() {
			h.checked(e.GetVolumeId(), e)
		}
		return response
	}
	var ids []string
	for i := range 7 {
		ids = append(ids, h.create(fmt.Sprint("v", i), capabilitytest.Mount(capabilitytest.Writer, ""), nil))
	}
	slices.Sort(ids)
	if all := list("", 0); len(all.GetEntries()) != 0 || all.GetNextToken() != "" {
		t.Errorf("healthy volumes are listed: %v", all)
	}
	for _, i := range []int{1, 2, 4, 6} {
		h.truncate(h.image(ids[i]), mib)
	}
	h.truncate(strings.TrimSuffix(h.image(ids[5]), "image")+"volume.json", 3)
	first := list("", 2)
	if got := entryIDs(first); !slices.Equal(got, []string{ids[1], ids[2]}) || first.GetNextToken() == "" {
		t.Fatalf("first page %v", first)
	}
	// What comes before the token does not matter any more, the volume that it names included.
	h.must(h.delete(ids[2]))
	h.truncate(h.image(ids[0]), mib)
	h.truncate(h.image(ids[4]), 16*mib)
	rest := list(first.GetNextToken(), 2)
	if got := entryIDs(rest); !slices.Equal(got, []string{ids[5], ids[6]}) || rest.GetNextToken() != "" {
		t.Errorf("second page %v: as many as asked for are left, and there is no third page", rest)
	}
	_, err := h.c.ControllerListVolumeHealth(context.Background(),
		&csi.ControllerListVolumeHealthRequest{StartingToken: "17"})
	h.want(err, codes.Aborted, "from the beginning")
	_, err = h.c.ControllerListVolumeHealth(context.Background(), &csi.ControllerListVolumeHealthRequest{MaxEntries: -1})
	h.want(err, codes.InvalidArgument)
}

func entryIDs(r *csi.ControllerListVolumeHealthResponse) (ids []string) {
	for _, e := range r.GetEntries() {
		ids = append(ids, e.GetVolumeId())
	}
	return ids
}

func TestGetVolume(t *testing.T) {
	h := newNode(t, nil)
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""), nil)
	get := func(id string) (*csi.ControllerGetVolumeResponse, error) {
		return h.c.ControllerGetVolume(context.Background(), &csi.ControllerGetVolumeRequest{VolumeId: id})
	}
	response, err := get(id)
	h.must(err)
	v := response.GetVolume()
	if v.GetVolumeId() != id || v.GetCapacityBytes() != 16*mib ||
		v.GetAccessibleTopology()[0].GetSegments()[plugin.TopologyKey] != "node-a" || response.GetStatus() == nil {
		t.Errorf("%v", response)
	}
	h.must(h.stage(id, capabilitytest.Mount(capabilitytest.Writer, "")))
	h.must(h.expand(id, 24*mib))
	if response, err = get(id); err != nil || response.GetVolume().GetCapacityBytes() != 24*mib {
		t.Errorf("after an expansion: %v, %v", response, err)
	}
	h.must(h.unstage(id))
	h.must(h.delete(id))
	_, err = get(id)
	h.want(err, codes.NotFound, id)
	_, err = get("../" + id)
	h.want(err, codes.NotFound)
	_, err = get("")
	h.want(err, codes.InvalidArgument)
}

// TestListVolumesPages: a token stays good whatever comes and goes, also the volume that it names.
func TestListVolumesPages(t *testing.T) {
	h := newNode(t, nil)
	list := func(token string, most int32) (ids []string, next string) {
		t.Helper()
		response, err := h.c.ListVolumes(context.Background(), &csi.ListVolumesRequest{StartingToken: token,
			MaxEntries: most})
		h.must(err)
		for _, e := range response.GetEntries() {
			ids = append(ids, e.GetVolume().GetVolumeId())
		}
		return ids, response.GetNextToken()
	}
	var ids []string
	for i := range 6 {
		ids = append(ids, h.create(fmt.Sprint("v", i), capabilitytest.Mount(capabilitytest.Writer, ""), nil))
	}
	slices.Sort(ids)
	for most := int32(1); most <= 7; most++ {
		var got []string
		for token := ""; ; {
			page, next := list(token, most)
			if len(page) > int(most) || len(page) == 0 {
				t.Fatalf("a page of %d of at most %d", len(page), most)
			}
			got = append(got, page...)
			if token = next; next == "" {
				break
			}
		}
		if !slices.Equal(got, ids) {
			t.Errorf("in pages of %d: %q, want %q", most, got, ids)
		}
	}
	_, token := list("", 3)
	h.must(h.delete(ids[2]))
	h.must(h.delete(ids[4]))
	if got, next := list(token, 3); !slices.Equal(got, []string{ids[3], ids[5]}) || next != "" {
		t.Errorf("after deletions: %q, %q", got, next)
	}
}
