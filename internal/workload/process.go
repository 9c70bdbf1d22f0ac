package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ProcessOptions say what a workload process runs. Flags turns them into the arguments of `slipctl workload`, which
// turns them back.
type ProcessOptions struct {
	Kind    Kind
	Dirs    Dirs
	Clients int
	Seed    uint64
	FirstID int64
}

// Flags are the options as command line arguments.
func (o ProcessOptions) Flags() []string {
	return []string{
		"--kind", string(o.Kind), "--stock", o.Dirs.Stock, "--sales", o.Dirs.Sales, "--run", o.Dirs.Run,
		"--clients", strconv.Itoa(o.Clients), "--seed", strconv.FormatUint(o.Seed, 10), "--first-id",
		strconv.FormatInt(o.FirstID, 10),
	}
}

// Main is the body of a workload process: it opens the shop, places orders until stdin ends, and logs them to stdout.
func Main(ctx context.Context, o ProcessOptions, stdin io.Reader, stdout io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	shop, err := Open(ctx, o.Kind, o.Dirs, o.Clients)
	if err != nil {
		return err
	}
	go func() {
		// Whatever ends the read, the orders are not wanted any more.
		_, _ = io.Copy(io.Discard, stdin)
		stop()
	}()
	err = Run(ctx, shop, RunOptions{Clients: o.Clients, Seed: o.Seed, FirstID: o.FirstID, Log: stdout})
	return errors.Join(err, shop.Close())
}

// Process is a running workload, as a process of its own that can be killed with everything it started.
//
// It is the first process of a new pid namespace: when it dies, by whatever signal, the kernel kills the database
// servers with it, at the same instant. A new IPC namespace takes their shared memory along. Both need root.
type Process struct {
	cmd     *exec.Cmd
	stdin   io.Closer
	stderr  bytes.Buffer
	ended   chan struct{} // closed when the process has ended and everything it wrote was read
	waitErr error         // set before ended is closed

	mu    sync.Mutex
	acks  []Ack
	onAck chan struct{} // closed at the first acknowledgement
}

// StartProcess runs `executable workload` with the options' flags. End it with Stop or Kill.
func StartProcess(executable string, o ProcessOptions) (*Process, error) {
	p := &Process{
		cmd:   exec.Command(executable, append([]string{"workload"}, o.Flags()...)...),
		ended: make(chan struct{}), onAck: make(chan struct{}),
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC}
	p.cmd.Dir = "/"
	p.cmd.Stderr = &p.stderr
	// A pipe of our own instead of cmd.StdoutPipe: database servers inherit nothing of it, and Wait does not race with
	// the reader of the last lines.
	logReader, logWriter, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout = logWriter
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, errors.Join(err, logReader.Close(), logWriter.Close())
	}
	p.stdin = stdin
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the workload: %w", err), logReader.Close(), logWriter.Close())
	}
	_ = logWriter.Close() // the child has its own
	go func() {
		defer close(p.ended)
		readErr := errors.Join(ReadAcks(logReader, p.add), logReader.Close())
		if err := p.cmd.Wait(); err != nil {
			p.waitErr = fmt.Errorf("%w: %s", err, bytes.TrimSpace(p.stderr.Bytes()))
		}
		if readErr != nil {
			p.waitErr = errors.Join(readErr, p.waitErr)
		}
	}()
	return p, nil
}

func (p *Process) add(a Ack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.acks) == 0 {
		close(p.onAck)
	}
	p.acks = append(p.acks, a)
}

// WaitFirst waits for the first acknowledged order. It fails when the process ends before, with what it printed.
func (p *Process) WaitFirst(ctx context.Context) error {
	select {
	case <-p.onAck:
		return nil
	case <-p.ended:
		return fmt.Errorf("the workload placed no order: %w", p.waitErr)
	case <-ctx.Done():
		return fmt.Errorf("the workload placed no order: %w", ctx.Err())
	}
}

// Acks returns the orders acknowledged so far. The slice is the caller's.
func (p *Process) Acks() []Ack {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Ack(nil), p.acks...)
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Stop lets the orders under way finish, shuts the databases down in order and returns all acknowledged orders.
func (p *Process) Stop() ([]Ack, error) {
	_ = p.stdin.Close() // its end is the signal; an error means that it was closed before
	<-p.ended
	if p.waitErr != nil {
		return p.Acks(), fmt.Errorf("the workload ended with an error: %w", p.waitErr)
	}
	return p.Acks(), nil
}

// Kill ends the process and all it started with SIGKILL and returns without waiting, so that a caller can kill more at
// the same instant. Wait collects what is left.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing the workload: %w", err)
	}
	return nil
}

// Wait returns the orders acknowledged before a Kill. A process that waits for I/O in the kernel ends only when the
// I/O does, so this takes a timeout.
func (p *Process) Wait(timeout time.Duration) ([]Ack, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.ended:
		return p.Acks(), nil // killed is how it was meant to end
	case <-timer.C:
		return p.Acks(), fmt.Errorf("the killed workload, pid %d, is still there after %v: it waits in the kernel",
			p.cmd.Process.Pid, timeout)
	}
}
