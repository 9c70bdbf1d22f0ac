package driver

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// inflight is the set of volumes that a call is working on. A second call for the same volume is told to come back
// (Aborted), as the CSI specification asks for, rather than made to wait: a queue of calls behind one that hangs in the
// kernel would hold a goroutine each, and a global lock would let one hung volume stop all of them.
//
// It is safe for concurrent use.
type inflight struct {
	mu   sync.Mutex
	busy map[string]string // key -> operation
}

func newInflight() *inflight {
	return &inflight{busy: make(map[string]string)}
}

// argument is a field that a call must have.
type argument struct{ name, value string }

// beginCall is the head of every call that acts on a volume. It returns InvalidArgument when the volume's id or one of the
// required arguments is missing, and otherwise what begin returns.
func (d *Driver) beginCall(operation, volumeID string, required ...argument) (done func(), err error) {
	if err := checkArguments(volumeID, required...); err != nil {
		return nil, err
	}
	return d.inflight.begin(volumeID, operation)
}

func checkArguments(volumeID string, required ...argument) error {
	if volumeID == "" {
		return status.Error(codes.InvalidArgument, "volume id is missing")
	}
	for _, a := range required {
		if a.value == "" {
			return status.Errorf(codes.InvalidArgument, "volume %s: %s is missing", volumeID, a.name)
		}
	}
	return nil
}

// work runs f, for a call that acts on a volume, in the background: see background.run.
func (d *Driver) work(ctx context.Context, operation, volumeID, key string, f func(context.Context) error) error {
	return d.background.run(ctx, volumeID, operation, key, func() (func(), error) { return d.inflight.begin(volumeID, operation) }, f)
}

// begin enters key. The caller calls done when the operation is over; err is a status error with Aborted when another
// operation is at work on key, and done is nil then.
func (f *inflight) begin(key, operation string) (done func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if other, ok := f.busy[key]; ok {
		return nil, status.Errorf(codes.Aborted, "%s of %q: %s of the same volume is still running; call again later", operation, key, other)
	}
	f.busy[key] = operation
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.busy, key)
	}, nil
}
