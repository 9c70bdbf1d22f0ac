package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// MaxOutputBytes is how much of a program's output goes into an error message.
const MaxOutputBytes = 2048

// CommandError is a program that did not succeed.
type CommandError struct {
	Command string
	Output  string
	// ExitCode is -1 when the program was killed, could not be started, or did not end in time.
	ExitCode int
	Err      error
}

func (e *CommandError) Error() string {
	if e.Output == "" {
		return fmt.Sprintf("%s: %v", e.Command, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, e.Output)
}

func (e *CommandError) Unwrap() error { return e.Err }

// Run runs a program to its end or to ctx's, and returns what it printed. An error is a *commandError; it unwraps to
// ctx's when that is why the program ended.
//
// The program dies with the driver: a mkfs that outlived it would write into a device that the next driver has already
// mounted. It has no terminal, so nothing it could ask is ever answered.
//
// A program that waits in the kernel does not end when it is killed. run returns nevertheless, one second after ctx,
// and leaves a goroutine behind that waits for the program: the call fails, the driver does not.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	type result struct {
		output []byte
		err    error
	}
	finished := make(chan result, 1)
	go func() {
		// The signal on the parent's death is sent when the thread that forked ends, so this one has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var output bytes.Buffer
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = &output, &output
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		finished <- result{output.Bytes(), err}
	}()

	var r result
	select {
	case r = <-finished:
	case <-ctx.Done():
		select {
		case r = <-finished:
		case <-time.After(time.Second):
			r.err = errors.New("killed, but it has not ended")
		}
	}
	output := strings.TrimSpace(string(r.output))
	if len(output) > MaxOutputBytes {
		output = "..." + output[len(output)-MaxOutputBytes:]
	}
	if r.err == nil {
		return output, nil
	}
	failure := &CommandError{Command: strings.Join(append([]string{name}, args...), " "), Output: output, ExitCode: -1,
		Err: r.err}
	var exit *exec.ExitError
	if errors.As(r.err, &exit) {
		failure.ExitCode = exit.ExitCode()
	}
	if ctx.Err() != nil {
		failure.ExitCode = -1
		failure.Err = fmt.Errorf("%w (%v)", ctx.Err(), r.err)
	}
	return output, failure
}
