package router

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// metadataServer routes the questions for changed blocks to the node of the snapshot. Of two snapshots the node itself
// says when it lacks the other.
type metadataServer struct {
	csi.UnimplementedSnapshotMetadataServer
	r *Router
}

func (s *metadataServer) GetMetadataAllocated(req *csi.GetMetadataAllocatedRequest,
	stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	at, err := s.node(stream.Context(), "snapshot_id", req.GetSnapshotId())
	if err != nil {
		return err
	}
	answer, err := at.metadata.GetMetadataAllocated(stream.Context(), req)
	if err != nil {
		return at.failure(stream.Context(), err)
	}
	return forward(at, stream.Context(), answer.Recv, stream.Send)
}

func (s *metadataServer) GetMetadataDelta(req *csi.GetMetadataDeltaRequest,
	stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	at, err := s.node(stream.Context(), "target_snapshot_id", req.GetTargetSnapshotId())
	if err != nil {
		return err
	}
	answer, err := at.metadata.GetMetadataDelta(stream.Context(), req)
	if err != nil {
		return at.failure(stream.Context(), err)
	}
	return forward(at, stream.Context(), answer.Recv, stream.Send)
}

func (s *metadataServer) node(ctx context.Context, field, id string) (*node, error) {
	if id == "" {
		return nil, status.Errorf(codes.InvalidArgument, "%s is missing", field)
	}
	what := fmt.Sprintf("snapshot %.80q", id)
	at, err := s.r.locate(ctx, locatepb.Key_SNAPSHOT_ID, id, what)
	if err == nil && at == nil {
		return notFound[*node](what)
	}
	return at, err
}

// forward passes a stream on, message by message, so that no more of it is here than that.
func forward[M any](at *node, ctx context.Context, receive func() (M, error), send func(M) error) error {
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return at.failure(ctx, err)
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

// nameStream is nameUnary for streams; their errors come later.
func (n *node) nameStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(metadata.AppendToOutgoingContext(ctx, plugin.NodeMetadata, n.name), desc, conn, method, opts...)
}
