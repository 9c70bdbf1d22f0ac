package driver

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// TestCreateVolumeCalls: a volume comes into its group with one call of the replicator, also if the group has to be
// made, and the note that the driver made the group is durable before.
func TestCreateVolumeCalls(t *testing.T) {
	s := startSidecar(t)
	h := newNode(t, s)
	vc := capabilitytest.Mount(capabilitytest.Writer, "")
	create := func(name string, class map[string]string, want ...string) (id string) {
		t.Helper()
		s.mu.Lock()
		s.methods = nil
		s.mu.Unlock()
		id = h.create(name, vc, class)
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.Equal(s.methods, want) {
			t.Errorf("%s: calls %q, want %q", name, s.methods, want)
		}
		return id
	}
	s.hook = func(call string) error {
		if !strings.HasPrefix(call, "CreateGroup ") {
			return nil
		}
		recs, err := h.d.store.Pool.List()
		group := strings.TrimPrefix(call, "CreateGroup ")
		if err != nil || !slices.ContainsFunc(recs, func(r *blockdev.VolumeRecord) bool {
			return slices.Contains(parameter.CreatedGroups(r), group)
		}) {
			t.Errorf("%s: no volume has the note that the driver makes the group: %v, %v", call, recs, err)
		}
		return nil
	}
	class := map[string]string{parameter.KeyConsistencyGroup: "shop"}
	first := create("a", class, "JoinGroup")
	create("b", class, "JoinGroup")
	create("a", class, "JoinGroup") // a repetition
	own := create("c", map[string]string{parameter.KeyRemote: "west"}, "JoinGroup")
	create("d", map[string]string{parameter.KeyReplicable: "true"})
	for id, group := range map[string]string{first: "shop", own: own} {
		if rec, err := h.d.store.Volume(id); err != nil || !slices.Equal(parameter.CreatedGroups(rec), []string{group}) {
			t.Errorf("volume %s: %v, %v", id, rec, err)
		}
	}

	// A group that a person made is seen in the pool. One that is made after the driver has looked is found by the
	// replicator, and the note goes.
	manual := map[string]string{parameter.KeyConsistencyGroup: "manual"}
	s.groups["manual"] = &sidecarpb.GroupStatus{Name: "manual", JournalSizeBytes: gib}
	late := create("e", manual, "JoinGroup", "JoinGroup")
	dir := filepath.Join(h.d.store.Pool.GroupsDir(), "0d4ae4b4-4ea9-4a18-93a9-5bd9a4b5a0ef")
	h.must(h.mem.MkdirAll(dir))
	h.must(recordfile.Write(h.mem, filepath.Join(dir, core.MetaFile), core.MetaKind,
		&core.Meta{Version: core.MetaVersion, GroupID: filepath.Base(dir), Name: "manual",
			Settings: core.Settings{JournalSizeBytes: core.MinJournalBytes, JournalFull: core.PolicyTrack}}))
	seen := create("f", manual, "JoinGroup")
	for _, id := range []string{late, seen} {
		if rec, err := h.d.store.Volume(id); err != nil || len(parameter.CreatedGroups(rec)) > 0 {
			t.Errorf("volume %s: %v, %v", id, rec, err)
		}
	}
	// It is deleted at the same time: nothing is made in its place that is never deleted.
	delete(s.groups, "manual")
	_, err := h.c.CreateVolume(context.Background(), createReq("g", vc, manual))
	h.want(err, codes.Aborted, "manual")
	if s.groups["manual"] != nil {
		t.Error("a group was made without a note")
	}
}

// TestCreateVolumeReads: CreateVolume reads as many records in a pool with many volumes as in one with few.
func TestCreateVolumeReads(t *testing.T) {
	reads := func(volumes int) int64 {
		var opened atomic.Int64
		counted := vfs.NewErrFS(vfs.OS, func(op vfs.Op, name string) error {
			if op == vfs.OpOpen && filepath.Ext(name) == ".json" {
				opened.Add(1)
			}
			return nil
		})
		s := startSidecar(t)
		m := newMachine()
		d, err := newDriver(Options{NodeID: "node-a", PoolDir: filepath.Join(t.TempDir(), "pool"),
			SidecarEndpoint: s.endpoint, ShimDir: s.shimDir},
			host.System{FS: counted, Mounter: fakeMounter{m}, Filesystems: fakeFileSystems{m}, Loops: fakeLoops{m},
				Writeback: fakeWriteback{m}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		d.sidecar.Patience = time.Minute
		s.node = &node{machine: m, t: t, mem: vfs.NewMem(), d: d}
		for i := range volumes {
			id := fmt.Sprintf("vol-%06d", i)
			_, err := d.store.Pool.Create(blockdev.VolumeRecord{ID: id, Name: "name-" + id, SizeBytes: 1 << 20,
				Replicable: true, Parameters: map[string]string{parameter.KeyReplicable: "true"}})
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.store.SharedVolumes(); err != nil { // a driver that runs has read them
			t.Fatal(err)
		}
		c := &controllerServer{d: d}
		class := map[string]string{parameter.KeyConsistencyGroup: "shop"}
		create := func(name string) {
			t.Helper()
			if _, err := c.CreateVolume(context.Background(), createReq(name,
				capabilitytest.Mount(capabilitytest.Writer, ""), class)); err != nil {
				t.Fatal(err)
			}
		}
		create("first")
		opened.Store(0)
		create("second")
		return opened.Load()
	}
	if few, many := reads(3), reads(60); few != many || few == 0 {
		t.Errorf("%d reads of records with 3 volumes, %d with 60", few, many)
	}
}
