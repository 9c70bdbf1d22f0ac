package work

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

const (
	// callWaitLimit is how long a call waits for its task if the caller's deadline is later.
	callWaitLimit = time.Minute
	// AnswerMargin is the part of a caller's deadline that is left to send the answer.
	AnswerMargin = time.Second
	// callFailureLife is how long the failure of a task that no call waited for is kept for the next call. Kubelet calls
	// again within two minutes.
	callFailureLife = 10 * time.Minute
)

// call is what a call has started: checking, making, mounting or growing a file system. A time limit would end such
// work, and the repetition of the call would start it again and again. Instead the call ends with Aborted and the task
// continues. A repetition of the call waits for the task that it finds, and returns its result. The task holds the
// volume's guard until it ends.
type call struct {
	operation string
	arguments string // a call with others does not wait for the task
	began     time.Time
	step      atomic.Value // string
	waited    bool         // a call waits for the task; guarded by Table.mu
	ended     time.Time    // valid when the task's done is closed
}

// Doing notes the current step of the call task that ctx belongs to, for messages. Other contexts are ignored.
func Doing(ctx context.Context, step string) {
	if t, ok := ctx.Value(taskContextKey{}).(*task); ok && t.call != nil {
		t.call.step.Store(step)
	}
}

// Run runs f for a volume, or waits for the f that an earlier call with the same operation and arguments started. f's
// context does not end with the caller's, but with StopCall and Close. guard enters the volume for f and fails while
// other work on it is running; what it returns is called when f has ended. An error is a status error: Aborted if f has
// not ended within the caller's deadline.
func (t *Table) Run(ctx context.Context, id, operation, arguments string,
	guard func() (leave func(), err error), f func(context.Context) error) error {
	task, err := t.beginCall(id, operation, arguments, guard, f)
	if err != nil {
		return err
	}
	defer t.endWaiting(task)
	ctx, cancel := context.WithTimeout(ctx, callWaitLimit)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-AnswerMargin))
		defer cancel()
	}
	select {
	case <-task.done:
	case <-ctx.Done():
		step, _ := task.call.step.Load().(string)
		return status.Errorf(codes.Aborted, "volume %s: %s is still running, for %v now (%s), and continues; call again",
			id, operation, time.Since(task.call.began).Round(time.Second), step)
	}
	t.remove(taskKey{kindCall, id}, task)
	return task.err
}

func (t *Table) endWaiting(task *task) {
	t.mu.Lock()
	defer t.mu.Unlock()
	task.call.waited = false
}

// beginCall returns the task that a call has to wait for.
func (t *Table) beginCall(id, operation, arguments string, guard func() (func(), error),
	f func(context.Context) error) (*task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := taskKey{kindCall, id}
	if old := t.tasks[key]; old != nil && old.answers(operation, arguments) {
		old.call.waited = true
		return old, nil
	}
	leave, err := guard()
	if err != nil {
		return nil, err
	}
	c := &call{operation: operation, arguments: arguments, began: time.Now(), waited: true}
	c.step.Store("started")
	task := &task{call: c}
	t.start(key, task, func(ctx context.Context) error {
		err := f(ctx)
		if err != nil && ctx.Err() != nil {
			err = status.Errorf(codes.Aborted, "volume %s: %s was interrupted: %s; call again",
				id, operation, status.Convert(err).Message())
		}
		return err
	}, func() {
		c.ended = time.Now()
		if took := c.ended.Sub(c.began); took > callWaitLimit {
			klog.InfoS("A long operation has ended", "volume", id, "operation", operation,
				"took", took.Round(time.Second), "err", task.err)
		}
		leave()
	})
	return task, nil
}

// answers reports whether the task's result is that of a call. The caller holds Table.mu.
func (t *task) answers(operation, arguments string) bool {
	return t.call.operation == operation && t.call.arguments == arguments && !t.call.waited && !t.stale()
}

// stale reports a result that is not for a later call: a failure that is too old, and a success. The next call finds
// out for itself what a successful one has done.
func (t *task) stale() bool {
	select {
	case <-t.done:
		return t.err == nil || time.Since(t.call.ended) > callFailureLife
	default:
		return false
	}
}

// StopCall ends the call task of a volume that no call waits for, and drops its result. It waits for the end for up to
// callWaitLimit: a program that waits in the kernel for its device does not end when it is killed.
func (t *Table) StopCall(ctx context.Context, id string) {
	key := taskKey{kindCall, id}
	task := t.find(key)
	if task == nil || t.isWaited(task) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callWaitLimit)
	defer cancel()
	task.cancel()
	select {
	case <-task.done:
		t.remove(key, task)
	case <-ctx.Done():
	}
}

func (t *Table) isWaited(task *task) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return task.call.waited
}
