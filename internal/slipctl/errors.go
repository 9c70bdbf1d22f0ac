package slipctl

import (
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// usageError is a mistake in the command line.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// lateError is a wait that --timeout ended.
type lateError struct{ message string }

func (e *lateError) Error() string { return e.message }

// explain turns an error into what a person reads and the exit status. sidecar is the socket that was asked, empty for
// pods.
func explain(err error, sidecar string) (string, int) {
	if usage, ok := err.(*usageError); ok {
		return usage.message, exitUsage
	}
	if errors.Is(err, fs.ErrNotExist) {
		return err.Error(), exitNotFound
	}
	var late *lateError
	if errors.As(err, &late) {
		return late.Error(), exitTimeout
	}
	s, ok := status.FromError(err)
	if !ok {
		return err.Error(), exitFailure
	}
	message := s.Message()
	switch s.Code() {
	case codes.Unavailable:
		if sidecar == "" {
			return message, exitFailure
		}
		return fmt.Sprintf("no replicator answers at %s: %s\nIs it running? Its --endpoint is what --sidecar or "+
			"SLIPSTREAM_SIDECAR has to name here.",
			sidecar, message), exitFailure
	case codes.NotFound:
		return message + "\n`slipctl group list` and `slipctl volume list` show what there is.", exitNotFound
	case codes.AlreadyExists:
		return message + "\nIt exists with other properties: choose another name, or remove it first.", exitFailure
	case codes.FailedPrecondition:
		return message, exitPrecondition
	case codes.Aborted:
		return message + "\nAnother command works on it: try again when that one is done.", exitFailure
	case codes.ResourceExhausted:
		return message + "\nMake room on the pool's file system, then repeat the command.", exitFailure
	case codes.InvalidArgument:
		return message, exitUsage
	case codes.DeadlineExceeded:
		return message + "\nThe replicator did not answer in time. The command may have taken effect: look with `slipctl " +
			"group status`, then repeat it.", exitFailure
	}
	return fmt.Sprintf("%s: %s", s.Code(), message), exitFailure
}
