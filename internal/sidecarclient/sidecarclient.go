// Package sidecarclient is what all callers of a replicator have in common: how large its answers may be, and that the
// texts in them can be shown. The replicator cuts and escapes what comes from peers; a caller does not rely on it,
// because the replicator may be of another release.
//
// It has no state.
package sidecarclient

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// maxMessageBytes bounds an answer: some ten thousand groups or volumes with everything that is said of them. gRPC's
// own bound is 4 MiB.
const maxMessageBytes = 64 << 20

// maxTextBytes bounds one text of an answer.
const maxTextBytes = 8 << 10

// DialOptions are those of a connection to a replicator, besides credentials and address.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithChainUnaryInterceptor(cleanUnary),
		grpc.WithChainStreamInterceptor(cleanStream),
	}
}

// Cleaned returns a connection whose unary calls clean what they return, where DialOptions cannot be given because the
// connection is for other services, too.
func Cleaned(conn grpc.ClientConnInterface) grpc.ClientConnInterface { return cleaned{conn} }

type cleaned struct{ grpc.ClientConnInterface }

func (c cleaned) Invoke(ctx context.Context, method string, req, reply any, opts ...grpc.CallOption) error {
	err := c.ClientConnInterface.Invoke(ctx, method, req, reply, opts...)
	if m, ok := reply.(proto.Message); ok {
		Clean(m)
	}
	return cleanError(err)
}

func cleanUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker,
	opts ...grpc.CallOption) error {
	err := invoker(ctx, method, req, reply, cc, opts...)
	if m, ok := reply.(proto.Message); ok {
		Clean(m)
	}
	return cleanError(err)
}

func cleanStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, cc, method, opts...)
	return cleanedStream{s}, cleanError(err)
}

type cleanedStream struct{ grpc.ClientStream }

func (s cleanedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if p, ok := m.(proto.Message); ok && err == nil {
		Clean(p)
	}
	return cleanError(err)
}

// cleanError returns an error of a call with its message as Clean would have it, and the same code.
func cleanError(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	if text := untrusted.Escape(s.Message(), maxTextBytes); text != s.Message() {
		cleaned := s.Proto()
		cleaned.Message = text
		return status.ErrorProto(cleaned)
	}
	return err
}

// Clean escapes and cuts every text in a message, at any depth.
func Clean(m proto.Message) { clean(m.ProtoReflect()) }

func clean(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap(): // no answer has one
		case f.IsList():
			list := v.List()
			for i := range list.Len() {
				if c, changed := cleanValue(f, list.Get(i)); changed {
					list.Set(i, c)
				}
			}
		default:
			if c, changed := cleanValue(f, v); changed {
				m.Set(f, c)
			}
		}
		return true
	})
}

func cleanValue(f protoreflect.FieldDescriptor, v protoreflect.Value) (cleaned protoreflect.Value, changed bool) {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		clean(v.Message())
	case protoreflect.StringKind:
		if text := untrusted.Escape(v.String(), maxTextBytes); text != v.String() {
			return protoreflect.ValueOfString(text), true
		}
	}
	return v, false
}
