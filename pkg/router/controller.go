package router

import (
	"context"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

type controllerServer struct {
	csi.UnimplementedControllerServer
	r *Router
}

// contactTimeout is how long the API server has for an answer to ControllerGetCapabilities.
const contactTimeout = 5 * time.Second

// ControllerGetCapabilities is what sidecars ask when they start, and fails while the API server does not answer. A
// sidecar that starts then may draw a lasting conclusion: csi-snapshotter v8.7 asks for this and next for the kinds of
// group snapshots, takes them for missing if it gets no answer, and does without them until it is restarted.
// Refused here, it ends and is started again.
func (s *controllerServer) ControllerGetCapabilities(ctx context.Context,
	_ *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, contactTimeout)
	defer cancel()
	if err := s.r.opts.Source.Contact(ctx); err != nil {
		return nil, status.Errorf(codes.Unavailable, "the API server does not answer: %v; sidecars are not to start "+
			"before it does", err)
	}
	return plugin.ControllerCapabilities(), nil
}

// route hands a call on to the node that has the object; absent is what the call returns when no node has it.
func route[Request, Response any](ctx context.Context, r *Router, kind locatepb.Key_Kind, id string, req Request,
	call func(*node, context.Context,
		Request) (Response, error), absent func(what string) (Response, error)) (Response, error) {
	var none Response
	what := kindName(kind) + " " + fmt.Sprintf("%.80q", id)
	if id == "" {
		return none, status.Errorf(codes.InvalidArgument, "%s id is missing", kindName(kind))
	}
	at, err := r.locate(ctx, kind, id, what)
	if err != nil {
		return none, err
	}
	if at == nil {
		return absent(what)
	}
	return call(at, ctx, req)
}

func kindName(kind locatepb.Key_Kind) string {
	switch kind {
	case locatepb.Key_SNAPSHOT_ID:
		return "snapshot"
	case locatepb.Key_GROUP_SNAPSHOT_ID:
		return "group snapshot"
	}
	return "volume"
}

// notFound is for calls about something that has to be there.
func notFound[Response any](what string) (Response, error) {
	var none Response
	return none, status.Errorf(codes.NotFound, "%s: on no node", what)
}

// deleted is for deletions: what is on no node is deleted.
func deleted[Response any](response *Response) func(string) (*Response, error) {
	return func(string) (*Response, error) { return response, nil }
}

func (s *controllerServer) DeleteVolume(ctx context.Context,
	req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return route(ctx, s.r, locatepb.Key_VOLUME_ID, req.GetVolumeId(), req,
		func(n *node, ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
			return n.controller.DeleteVolume(ctx, req)
		}, deleted(&csi.DeleteVolumeResponse{}))
}

func (s *controllerServer) ValidateVolumeCapabilities(ctx context.Context,
	req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	return route(ctx, s.r, locatepb.Key_VOLUME_ID, req.GetVolumeId(), req,
		func(n *node, ctx context.Context,
			req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
			return n.controller.ValidateVolumeCapabilities(ctx, req)
		}, notFound)
}

func (s *controllerServer) ControllerGetVolume(ctx context.Context,
	req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	return route(ctx, s.r, locatepb.Key_VOLUME_ID, req.GetVolumeId(), req,
		func(n *node, ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
			return n.controller.ControllerGetVolume(ctx, req)
		}, notFound)
}

func (s *controllerServer) ControllerGetVolumeHealth(ctx context.Context,
	req *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	return route(ctx, s.r, locatepb.Key_VOLUME_ID, req.GetVolumeId(), req,
		func(n *node, ctx context.Context,
			req *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
			return n.controller.ControllerGetVolumeHealth(ctx, req)
		}, notFound)
}

func (s *controllerServer) ControllerModifyVolume(ctx context.Context,
	req *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	return route(ctx, s.r, locatepb.Key_VOLUME_ID, req.GetVolumeId(), req,
		func(n *node, ctx context.Context,
			req *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
			return n.controller.ControllerModifyVolume(ctx, req)
		}, notFound)
}

// CreateSnapshot goes to the source volume's node. Snapshots of one volume are on one node, so that no lease is needed
// to keep a name from being made twice there.
func (s *controllerServer) CreateSnapshot(ctx context.Context,
	req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	switch {
	case req.GetName() == "":
		return nil, status.Error(codes.InvalidArgument, "snapshot name is missing")
	case req.GetSourceVolumeId() == "":
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %q: source volume id is missing", req.GetName())
	}
	sources := []string{req.GetSourceVolumeId()}
	all, err := s.r.askSnapshot(ctx, locatepb.Key_SNAPSHOT_NAME, req.GetName(), sources)
	if err != nil {
		return nil, err
	}
	at, err := all.placeSnapshot(req.GetName(), "snapshot name", sources)
	if err != nil {
		return nil, err
	}
	return at.controller.CreateSnapshot(ctx, req)
}

// askSnapshot asks the nodes for the name of a snapshot, and for its source volumes.
func (r *Router) askSnapshot(ctx context.Context, kind locatepb.Key_Kind, name string,
	sources []string) (answers, error) {
	keys := []*locatepb.Key{key(kind, name)}
	for _, id := range sources {
		keys = append(keys, key(locatepb.Key_VOLUME_ID, id))
	}
	return r.ask(ctx, "", keys...)
}

// placeSnapshot returns the node that all source volumes are on, from the answers to askSnapshot. A node that has the
// name already is the one, or contradicts.
func (all answers) placeSnapshot(name, what string, sources []string) (*node, error) {
	named, err := all.only(0, what+" "+name)
	if err != nil {
		return nil, err
	}
	var at *node
	for i, id := range sources {
		h, err := all.only(i+1, "volume "+id)
		if err != nil {
			return nil, err
		}
		switch {
		case h == nil && named != nil:
			continue // the snapshot outlives its volume; the node knows whether it is this one's
		case h == nil:
			if err := all.silence("volume "+id, anyNode); err != nil {
				return nil, err
			}
			return nil, status.Errorf(codes.NotFound, "%s %q: source volume %q is on no node", what, name, id)
		case at != nil && at != h.node:
			return nil, status.Errorf(codes.FailedPrecondition, "%s %q: volume %s is on node %s and volume %s on node %s: "+
				"only volumes on one node can be in one snapshot", what, name, sources[0], at.name, id, h.node.name)
		}
		at = h.node
	}
	if named == nil {
		return at, nil
	}
	if at != nil && at != named.node {
		return nil, status.Errorf(codes.AlreadyExists, "%s %q exists (%s) on node %s, and the source volume %s is on node "+
			"%s; choose another name",
			what, name, named.id, named.node.name, sources[0], at.name)
	}
	return named.node, nil
}

func (s *controllerServer) DeleteSnapshot(ctx context.Context,
	req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	return route(ctx, s.r, locatepb.Key_SNAPSHOT_ID, req.GetSnapshotId(), req,
		func(n *node, ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
			return n.controller.DeleteSnapshot(ctx, req)
		}, deleted(&csi.DeleteSnapshotResponse{}))
}

func (s *controllerServer) GetSnapshot(ctx context.Context,
	req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	return route(ctx, s.r, locatepb.Key_SNAPSHOT_ID, req.GetSnapshotId(), req,
		func(n *node, ctx context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
			return n.controller.GetSnapshot(ctx, req)
		}, notFound)
}
