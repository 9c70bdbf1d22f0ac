package router

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// A group snapshot over several nodes has a part on each, with one id that says how many snapshots there are in all.
//
//	look    a part on every node, of one id, and all snapshots there: it is the answer
//	clear   else parts that are there were left by a call that was interrupted; they are deleted
//	fix     the replicators keep all shards of the group at one epoch
//	take    each node takes its part, at the epoch
//
// Nothing is kept here, so a repetition begins anew wherever a call was interrupted.

// releaseTimeout bounds what is done after a call has failed.
const releaseTimeout = 30 * time.Second

// partOf is the part of a request for one node.
type partOf struct {
	node *node
	req  *csi.CreateVolumeGroupSnapshotRequest
}

// parts distributes the volumes of a request to their nodes, by name, from the answers to askSnapshot. nil: they, and
// what is there of the group snapshot already, are on one node.
func parts(all answers, req *csi.CreateVolumeGroupSnapshotRequest) (list []partOf, err error) {
	for i, id := range req.GetSourceVolumeIds() {
		h, err := all.only(i+1, "volume "+id)
		if err != nil {
			return nil, err
		}
		if h == nil {
			continue
		}
		at := slices.IndexFunc(list, func(p partOf) bool { return p.node == h.node })
		if at < 0 {
			part := proto.Clone(req).(*csi.CreateVolumeGroupSnapshotRequest)
			part.SourceVolumeIds = nil
			list, at = append(list, partOf{h.node, part}), len(list)
		}
		list[at].req.SourceVolumeIds = append(list[at].req.SourceVolumeIds, id)
	}
	if len(list) < 2 && len(all.holders(0)) < 2 {
		return nil, nil
	}
	for i, id := range req.GetSourceVolumeIds() {
		if len(all.holders(i+1)) > 0 {
			continue
		}
		if err := all.silence("volume "+id, anyNode); err != nil {
			return nil, err
		}
		return nil, status.Errorf(codes.NotFound, "group snapshot name %q: source volume %q is on no node", req.GetName(),
			id)
	}
	return list, nil
}

// createOverNodes takes a group snapshot whose volumes are on several nodes.
func (s *groupServer) createOverNodes(ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest, parts []partOf) (
	*csi.CreateVolumeGroupSnapshotResponse, error) {
	unlock, err := s.r.locks.try("group snapshot name " + req.GetName())
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Another controller would take the first parts for what an interrupted call left.
	lease := rand.Text()
	all, err := s.r.ask(ctx, lease, key(locatepb.Key_GROUP_SNAPSHOT_NAME, req.GetName()))
	if err != nil {
		return nil, err
	}
	defer s.r.endLease(ctx, all, lease)
	if err := all.aborted(); err != nil {
		return nil, err
	}
	if err := all.silence("a part of group snapshot "+req.GetName(), anyNode); err != nil {
		return nil, err
	}
	found, err := s.look(ctx, req, parts, all.holders(0))
	if err != nil || found != nil {
		return found, err
	}
	fixed, release, err := s.fix(ctx, parts)
	if err != nil {
		return nil, err
	}
	defer release()
	part := plugin.GroupPart{ID: plugin.NewGroupSnapshotID(len(req.GetSourceVolumeIds())), Epoch: fixed}
	var taken []*csi.VolumeGroupSnapshot
	for _, p := range parts {
		answer, err := p.node.groups.CreateVolumeGroupSnapshot(asPart(ctx, part), p.req)
		if err != nil {
			s.clear(context.WithoutCancel(ctx), parts, part.ID)
			return nil, err
		}
		taken = append(taken, answer.GetGroupSnapshot())
	}
	merged := mergeParts(taken)
	if err := complete(merged); err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: merged}, nil
}

func asPart(ctx context.Context, p plugin.GroupPart) context.Context {
	return metadata.AppendToOutgoingContext(ctx, plugin.GroupPartMetadata, p.String())
}

// look returns the group snapshot if all of it is there, and deletes what an interrupted call left.
func (s *groupServer) look(ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest, parts []partOf,
	named []holder) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	var found []*csi.VolumeGroupSnapshot
	var nodes []partOf
	for _, h := range named {
		n := h.node
		i := slices.IndexFunc(parts, func(p partOf) bool { return p.node == n })
		if i < 0 {
			return nil, status.Errorf(codes.AlreadyExists, "group snapshot %q exists on node %s, with other volumes; choose "+
				"another name", req.GetName(), n.name)
		}
		answer, err := n.groups.CreateVolumeGroupSnapshot(asPart(ctx, plugin.GroupPart{}), parts[i].req)
		switch {
		case status.Code(err) == codes.NotFound: // the node clears it when it takes its part
		case err != nil:
			return nil, err
		default:
			found, nodes = append(found, answer.GetGroupSnapshot()), append(nodes, parts[i])
		}
	}
	if len(found) == len(parts) {
		if merged := mergeParts(found); complete(merged) == nil {
			return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: merged}, nil
		}
	}
	for i, part := range found {
		if size := plugin.GroupSnapshotSize(part.GetGroupSnapshotId()); size == 0 || size == len(part.GetSnapshots()) {
			return nil, status.Errorf(codes.AlreadyExists, "group snapshot %q exists (%s) on node %s alone; choose another name",
				req.GetName(), part.GetGroupSnapshotId(), nodes[i].node.name)
		}
		if _, err := nodes[i].node.groups.DeleteVolumeGroupSnapshot(ctx,
			&csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: part.GetGroupSnapshotId()}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// fix has the replicators keep the group at one epoch.
func (s *groupServer) fix(ctx context.Context, parts []partOf) (at string, release func(), err error) {
	volume := parts[0].req.GetSourceVolumeIds()[0]
	replicator := sidecarpb.NewSidecarClient(parts[0].node.conn)
	fixed, err := replicator.FixGroup(ctx, &sidecarpb.FixGroupRequest{VolumeId: volume})
	if err != nil {
		var where []string
		for _, p := range parts {
			where = append(where, fmt.Sprintf("%s on node %s", strings.Join(p.req.GetSourceVolumeIds(), ", "), p.node.name))
		}
		return "", nil, status.Errorf(status.Code(err), "the volumes are on several nodes (%s), and are snapshotted "+
			"together at an epoch of their group: %s", strings.Join(where, "; "), status.Convert(err).Message())
	}
	return fixed.GetEpoch(), func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		_, err := replicator.ReleaseGroup(ctx, &sidecarpb.ReleaseGroupRequest{VolumeId: volume, Holder: fixed.GetHolder()})
		if err != nil {
			klog.V(2).InfoS("A group that is kept at an epoch goes on by itself", "volume", volume, "reason", err)
		}
	}, nil
}

// clear deletes the parts of a group snapshot that is not whole, as far as the nodes answer. A repetition of the call
// deletes the others.
func (s *groupServer) clear(ctx context.Context, parts []partOf, id string) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range parts {
		wg.Go(func() {
			_, err := p.node.groups.DeleteVolumeGroupSnapshot(ctx, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: id})
			if err != nil {
				klog.InfoS("A part of a group snapshot that failed is deleted when it is asked for again", "id", id, "node",
					p.node.name, "reason", err)
			}
		})
	}
	wg.Wait()
}

// mergeParts makes one group snapshot of its parts.
func mergeParts(parts []*csi.VolumeGroupSnapshot) *csi.VolumeGroupSnapshot {
	whole := &csi.VolumeGroupSnapshot{GroupSnapshotId: parts[0].GetGroupSnapshotId(), ReadyToUse: true,
		CreationTime: parts[0].GetCreationTime()}
	for _, p := range parts {
		if p.GetGroupSnapshotId() != whole.GetGroupSnapshotId() {
			whole.GroupSnapshotId = ""
		}
		whole.Snapshots = append(whole.Snapshots, p.GetSnapshots()...)
		whole.ReadyToUse = whole.GetReadyToUse() && p.GetReadyToUse()
		if whole.GetCreationTime().AsTime().Before(p.GetCreationTime().AsTime()) {
			whole.CreationTime = p.GetCreationTime()
		}
	}
	return whole
}

// complete is an error if parts of a group snapshot over several nodes are missing, or of different ones.
func complete(whole *csi.VolumeGroupSnapshot) error {
	if want := plugin.GroupSnapshotSize(whole.GetGroupSnapshotId()); want != len(whole.GetSnapshots()) {
		return status.Errorf(codes.Internal, "group snapshot %s has %d of its %s", whole.GetGroupSnapshotId(),
			len(whole.GetSnapshots()), words.Count(want, "snapshot"))
	}
	return nil
}

// deleteOverNodes deletes all parts of a group snapshot. What is silent may have one.
func (s *groupServer) deleteOverNodes(ctx context.Context,
	req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	all, err := s.r.ask(ctx, "", key(locatepb.Key_GROUP_SNAPSHOT_ID, req.GetGroupSnapshotId()))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, h := range all.holders(0) {
		if _, err := h.node.groups.DeleteVolumeGroupSnapshot(ctx, req); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return nil, status.Error(status.Code(errs[0]), errors.Join(errs...).Error())
	}
	if err := all.silence("a part of group snapshot "+req.GetGroupSnapshotId(), anyNode); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// getOverNodes returns a group snapshot with all of its parts.
func (s *groupServer) getOverNodes(ctx context.Context,
	req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	all, err := s.r.ask(ctx, "", key(locatepb.Key_GROUP_SNAPSHOT_ID, req.GetGroupSnapshotId()))
	if err != nil {
		return nil, err
	}
	var parts []*csi.VolumeGroupSnapshot
	for _, h := range all.holders(0) {
		answer, err := h.node.groups.GetVolumeGroupSnapshot(ctx, req)
		if err != nil {
			return nil, err
		}
		parts = append(parts, answer.GetGroupSnapshot())
	}
	if len(parts) > 0 {
		if whole := mergeParts(parts); complete(whole) == nil {
			return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: whole}, nil
		}
	}
	if err := all.silence("a part of group snapshot "+req.GetGroupSnapshotId(), anyNode); err != nil {
		return nil, err
	}
	return nil, status.Errorf(codes.NotFound, "group snapshot %s: not on the nodes, or not all of it",
		req.GetGroupSnapshotId())
}
