package sidecar

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// toStatus gives an error its code: what a caller may do about it. The text already names the object and the next step.
func toStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	switch {
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case replication.RollingBackStatus(err) != nil: // it opens by itself
		code = codes.Unavailable
	case errors.Is(err, replication.ErrNotOpen): // before the reasons of it, which say nothing about this call
		code = codes.FailedPrecondition
	case errors.Is(err, replication.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		code = codes.NotFound
	case errors.Is(err, replication.ErrExists), errors.Is(err, fs.ErrExist):
		code = codes.AlreadyExists
	case errors.Is(err, replication.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, core.ErrPrecondition), errors.Is(err, replication.ErrNotPrimary),
		errors.Is(err, replication.ErrInUse),
		errors.Is(err, syscall.EBUSY):
		code = codes.FailedPrecondition
	case vfs.NoSpace(err):
		code = codes.ResourceExhausted
	case errors.Is(err, replication.ErrClosed), errors.Is(err, shim.ErrMountedElsewhere):
		code = codes.Unavailable
	}
	// Of several errors each has a line of its own. A message is one line: who prints it escapes what breaks lines.
	return status.Error(code, strings.ReplaceAll(err.Error(), "\n", "; "))
}
