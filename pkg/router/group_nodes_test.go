package router

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	engine "github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// shop is a group over nodes with a volume on each, to which one writer writes in turn: write k is on node k%n, in
// block k/n, and is begun when the one before is answered.
type shop struct {
	c       *cluster
	nodes   []string
	volumes []string
	devices []*engine.Volume
	next    uint64
}

const shopBlock = 4096

func newShop(t *testing.T, c *cluster, r *testRouter, nodes ...string) *shop {
	t.Helper()
	s := &shop{c: c, nodes: nodes}
	for i, node := range nodes {
		name := "shop-" + node
		g, err := c.nodes[node].engine.CreateGroup(engine.GroupSpec{Name: name, Settings: core.Settings{Peer: "site-b",
			JournalSizeBytes: engine.MinJournalBytes,
			Shard:            core.Shard{Group: "shop", ID: epoch.ShardID(i), EpochMillis: 100}}})
		if err != nil {
			t.Fatal(err)
		}
		id, _ := r.create(t, createReq("data-"+node, on(node), map[string]string{parameter.KeyConsistencyGroup: name}))
		device, err := g.Volume(id)
		if err != nil {
			t.Fatal(err)
		}
		s.volumes, s.devices = append(s.volumes, id), append(s.devices, device)
	}
	return s
}

func (s *shop) write() error {
	n := uint64(len(s.nodes))
	device := s.devices[s.next%n]
	block := make([]byte, shopBlock)
	binary.LittleEndian.PutUint64(block, s.next+1)
	if _, err := device.WriteAt(block, int64(s.next/n)*shopBlock%device.Size()); err != nil {
		return err
	}
	done := make(chan error, 1)
	if lead := device.Commit(func(err error) { done <- err }); lead != nil {
		lead()
	}
	if err := <-done; err != nil {
		return err
	}
	s.next++
	return nil
}

// check reads snapshots, and returns the last write that they have. A write whose cause is missing fails the test. The
// blocks are overwritten again and again: of each, the next write is the one that would have replaced it.
func (s *shop) check(t *testing.T, list []*csi.Snapshot) uint64 {
	t.Helper()
	n := uint64(len(s.nodes))
	blocks := uint64(s.devices[0].Size()) / shopBlock
	have := make([][]uint64, len(s.nodes))
	last := uint64(0)
	for _, snap := range list {
		i := slices.Index(s.volumes, snap.GetSourceVolumeId())
		if i < 0 {
			t.Fatalf("a snapshot of volume %s", snap.GetSourceVolumeId())
		}
		pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(s.c.dir, s.nodes[i], "pool"), blockdev.WhoReader)
		if err != nil {
			t.Fatal(err)
		}
		path, err := pool.SnapshotImagePath(snap.GetSnapshotId())
		pool.Close()
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for off := 0; off+8 <= len(data); off += shopBlock {
			have[i] = append(have[i], binary.LittleEndian.Uint64(data[off:]))
			last = max(last, have[i][len(have[i])-1])
		}
	}
	for k := last; k > 0 && k+blocks*n > last; k-- { // earlier ones are overwritten
		if got := have[(k-1)%n][(k-1)/n%blocks]; got != k {
			t.Fatalf("write %d is there, and write %d that caused it is not; its block has %d", last, k, got)
		}
	}
	return last
}

// epochs are those of the snapshots of a name on the nodes.
func (s *shop) epochs(t *testing.T, name string) (list []string) {
	t.Helper()
	for _, node := range s.nodes {
		pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(s.c.dir, node, "pool"), blockdev.WhoReader)
		if err != nil {
			t.Fatal(err)
		}
		recs, err := pool.ListSnapshots()
		pool.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range recs {
			if rec.GroupSnapshotName == name {
				list = append(list, rec.Cut.Epoch)
			}
		}
	}
	return list
}

// TestGroupSnapshotOverNodes takes group snapshots of volumes on three nodes while a writer goes from one to the next.
// All are of one epoch, also after a call that was interrupted behind any node.
func TestGroupSnapshotOverNodes(t *testing.T) {
	c := newCluster(t, "a", "b", "c")
	r, ctx := c.router(), testContext(t)
	r.connected(t, "a", "b", "c")
	s := newShop(t, c, r, "a", "b", "c")
	groups := &groupServer{r: r.Router}
	var stop atomic.Bool
	stopped := make(chan error, 1)
	go func() {
		for !stop.Load() {
			if err := s.write(); err != nil {
				stopped <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
		stopped <- nil
	}()
	defer func() {
		stop.Store(true)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}()
	ready := func(id string) *csi.VolumeGroupSnapshot {
		t.Helper()
		var whole *csi.VolumeGroupSnapshot
		waitFor(t, "the group snapshot to be ready", func() bool {
			answer, err := groups.GetVolumeGroupSnapshot(ctx, &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: id})
			if err != nil {
				t.Fatal(err)
			}
			whole = answer.GetGroupSnapshot()
			return whole.GetReadyToUse()
		})
		return whole
	}
	for left := range len(s.nodes) {
		req := &csi.CreateVolumeGroupSnapshotRequest{Name: fmt.Sprintf("backup-%d", left), SourceVolumeIds: s.volumes}
		// A controller that ended after some parts.
		all, err := groups.r.askSnapshot(ctx, locatepb.Key_GROUP_SNAPSHOT_NAME, req.Name, req.SourceVolumeIds)
		if err != nil {
			t.Fatal(err)
		}
		parts, err := parts(all, req)
		if err != nil || len(parts) != len(s.nodes) {
			t.Fatalf("%d parts, %v", len(parts), err)
		}
		if left > 0 {
			at, release, err := groups.fix(ctx, parts)
			if err != nil {
				t.Fatal(err)
			}
			part := plugin.GroupPart{ID: plugin.NewGroupSnapshotID(len(s.volumes)), Epoch: at}
			for _, p := range parts[:left] {
				if _, err := p.node.groups.CreateVolumeGroupSnapshot(asPart(ctx, part), p.req); err != nil {
					t.Fatal(err)
				}
			}
			release() // or after half a minute
			_, err = groups.GetVolumeGroupSnapshot(ctx, &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: part.ID})
			wantCode(t, "a group snapshot without all of its parts", err, codes.NotFound)
		}
		answer, err := groups.CreateVolumeGroupSnapshot(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		whole := ready(answer.GetGroupSnapshot().GetGroupSnapshotId())
		if got := s.check(t, whole.GetSnapshots()); got == 0 || len(whole.GetSnapshots()) != len(s.nodes) {
			t.Errorf("%d writes in %d snapshots", got, len(whole.GetSnapshots()))
		}
		at := s.epochs(t, req.GetName())
		if len(at) != len(s.nodes) || at[0] == "" || len(slices.Compact(at)) != 1 {
			t.Errorf("the snapshots are of the epochs %q", at)
		}
		again, err := groups.CreateVolumeGroupSnapshot(ctx, req)
		if err != nil || again.GetGroupSnapshot().GetGroupSnapshotId() != whole.GetGroupSnapshotId() {
			t.Errorf("the repetition: %v, %v", again.GetGroupSnapshot().GetGroupSnapshotId(), err)
		}
		fewer := &csi.CreateVolumeGroupSnapshotRequest{Name: req.GetName(), SourceVolumeIds: s.volumes[:2]}
		_, err = groups.CreateVolumeGroupSnapshot(ctx, fewer)
		wantCode(t, "other volumes under the name", err, codes.AlreadyExists)

		remove := &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: whole.GetGroupSnapshotId()}
		for _, snap := range whole.GetSnapshots() {
			remove.SnapshotIds = append(remove.SnapshotIds, snap.GetSnapshotId())
		}
		for range 2 {
			if _, err := groups.DeleteVolumeGroupSnapshot(ctx, remove); err != nil {
				t.Fatal(err)
			}
		}
		if at := s.epochs(t, req.GetName()); len(at) > 0 {
			t.Errorf("after the deletion there are snapshots of %q", at)
		}
	}
	alone, _ := r.create(t, createReq("alone", on("a"), map[string]string{parameter.KeyReplicable: "true"}))
	_, err := groups.CreateVolumeGroupSnapshot(ctx, &csi.CreateVolumeGroupSnapshotRequest{Name: "mixed",
		SourceVolumeIds: []string{alone, s.volumes[1]}})
	wantCode(t, "a volume of no group with one of another node", err, codes.FailedPrecondition)
	c.nodes["c"].kill()
	_, err = groups.DeleteVolumeGroupSnapshot(ctx, &csi.DeleteVolumeGroupSnapshotRequest{
		GroupSnapshotId: plugin.NewGroupSnapshotID(3)})
	wantCode(t, "a deletion while a node that may have a part is silent", err, codes.Unavailable)
}
