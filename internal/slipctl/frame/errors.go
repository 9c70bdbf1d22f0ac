package frame

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// usageError is a mistake in the command line.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

// Usagef is the error of a mistake in the command line.
func Usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// lateError is a wait that --timeout ended.
type lateError struct{ message string }

// Latef is the error of a wait that --timeout ended.
func Latef(format string, args ...any) error {
	return &lateError{fmt.Sprintf(format, args...)}
}

func (e *lateError) Error() string { return e.message }

// Explain turns an error into what a person reads and the exit status.
func Explain(err error) (string, int) {
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
		return err.Error(), ExitFailure
	}
	message := s.Message()
	switch s.Code() {
	case codes.NotFound:
		if !strings.Contains(message, "slipctl ") { // else it says itself how to find what there is
			message += "\n`slipctl group list` and `slipctl volume list` show what there is."
		}
		return message, exitNotFound
	case codes.AlreadyExists, codes.Unavailable:
		return message, ExitFailure
	case codes.FailedPrecondition:
		return message, exitPrecondition
	case codes.Aborted:
		return message + "\nAnother command works on it: try again when that one is done.", ExitFailure
	case codes.ResourceExhausted:
		return message + "\nMake room on the pool's file system, then repeat the command.", ExitFailure
	case codes.InvalidArgument:
		return message, exitUsage
	case codes.DeadlineExceeded:
		return message + "\nThe replicator did not answer in time. The command may have taken effect: look with `slipctl " +
			"group status`, then repeat it.", ExitFailure
	}
	return fmt.Sprintf("%s: %s", s.Code(), message), ExitFailure
}
