package operatortest

import (
	"context"
	"path"
	"reflect"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Death ends an operator at one call that changes something, at the API server or the engine: before the call has an
// effect, or after it, so that its answer is lost. A nil Death lets everything pass.
type Death struct {
	At    int  // the number of the call, from 1
	After bool // the call has its effect

	mu   sync.Mutex
	n    int
	dead bool
	what string // the call that it died at
}

var errDead = status.Error(codes.Unavailable, "the operator was killed")

func (d *Death) around(what string, do func() error) error {
	if d == nil {
		return do()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDead
	}
	d.n++
	if d.n != d.At {
		return do()
	}
	d.dead, d.what = true, what
	if d.After {
		_ = do() // the answer is lost
	}
	return errDead
}

// IsDead reports whether the operator has met its death.
func (d *Death) IsDead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// dyingConn calls the methods of a node as a connection would.
type dyingConn struct {
	node  *Node
	death *Death
}

// reads change nothing: a death at one of them is the death before the next change.
var reads = []string{"ListGroups", "GroupPoints", "ListViews", "SiteNodes"}

func (c *dyingConn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	name := path.Base(method)
	do := func() error {
		out := reflect.ValueOf(c.node).MethodByName(name).Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(args)})
		if err, _ := out[1].Interface().(error); err != nil {
			return err
		}
		proto.Merge(reply.(proto.Message), out[0].Interface().(proto.Message))
		return nil
	}
	if slices.Contains(reads, name) {
		if c.death.IsDead() {
			return errDead
		}
		return do()
	}
	return c.death.around(name, do)
}

func (c *dyingConn) NewStream(context.Context, *grpc.StreamDesc, string,
	...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

// Calls returns how many calls were seen, and at which one the operator died.
func (d *Death) Calls() (n int, diedAt string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n, d.what
}
