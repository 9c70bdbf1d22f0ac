package driver

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// forwarded are the methods of the replicator's service that the cluster's operator may call through the port for the
// controller: those about groups, their members and their views. What belongs to attaching and to snapshots is for the
// driver on this node alone.
var forwarded = []protoreflect.Name{"Probe", "ListGroups", "CreateGroup", "ModifyGroup", "DeleteGroup", "AddVolume",
	"RemoveVolume", "ModifyVolume", "SiteNodes", "Promote", "Demote", "Suspend", "Resume", "Relocate", "Yield", "Verify",
	"BookmarkGroup", "GroupPoints", "CommitTrial", "RollBackTrial", "CreateView", "ListViews", "DeleteView",
	"FixGroup", "ReleaseGroup", "DropShard"}

// registerForwarded serves these methods by calling the replicator beside this driver. Its answers and errors are
// passed on as they are; a message may have fields that this version does not know.
func (d *Driver) registerForwarded(server grpc.ServiceRegistrar) {
	service := sidecarpb.File_pkg_api_sidecarpb_sidecar_proto.Services().ByName("Sidecar")
	desc := grpc.ServiceDesc{ServiceName: string(service.FullName()), HandlerType: (*any)(nil),
		Metadata: sidecarpb.File_pkg_api_sidecarpb_sidecar_proto.Path()}
	for i := range service.Methods().Len() {
		if method := service.Methods().Get(i); slices.Contains(forwarded, method.Name()) {
			desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: string(method.Name()),
				Handler: forward(fmt.Sprintf("/%s/%s", service.FullName(), method.Name()), method)})
		}
	}
	server.RegisterService(&desc, d)
}

func forward(path string, method protoreflect.MethodDescriptor) grpc.MethodHandler {
	return func(server any, ctx context.Context, decode func(any) error,
		interceptor grpc.UnaryServerInterceptor) (any, error) {
		request, err := newMessage(method.Input())
		if err != nil {
			return nil, err
		}
		if err := decode(request); err != nil {
			return nil, err
		}
		d := server.(*Driver)
		handler := func(ctx context.Context, request any) (any, error) {
			// CSI calls of the controller may leave the node out; a group of the same name can be on another node.
			if md, _ := metadata.FromIncomingContext(ctx); len(md.Get(plugin.NodeMetadata)) != 1 {
				return nil, status.Errorf(codes.InvalidArgument, "the call does not name its node in %s", plugin.NodeMetadata)
			}
			if d.sidecar == nil {
				return nil, replicator.ErrNone
			}
			response, err := newMessage(method.Output())
			if err != nil {
				return nil, err
			}
			return response, d.sidecar.Forward(ctx, path, request.(proto.Message), response)
		}
		if interceptor == nil {
			return handler(ctx, request)
		}
		return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: server, FullMethod: path}, handler)
	}
}

func newMessage(desc protoreflect.MessageDescriptor) (proto.Message, error) {
	message, err := protoregistry.GlobalTypes.FindMessageByName(desc.FullName())
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return message.New().Interface(), nil
}
