package driver

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// argument is a field that a call must have.
type argument struct{ name, value string }

// beginCall is the head of every call that acts on a volume. It returns InvalidArgument when the volume's id or one of
// the required arguments is missing, and otherwise what begin returns.
func (d *Driver) beginCall(operation, volumeID string, required ...argument) (done func(), err error) {
	if err := checkArguments(volumeID, required...); err != nil {
		return nil, err
	}
	return d.guards.Enter(volumeID, operation)
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

// runTask runs f, for a call that acts on a volume, as a task that may outlive the call: see work.Table.Run.
func (d *Driver) runTask(ctx context.Context, operation, volumeID, key string, f func(context.Context) error) error {
	return d.tasks.Run(ctx, volumeID, operation, key, func() (func(), error) {
		return d.guards.Enter(volumeID,
			operation)
	}, f)
}
