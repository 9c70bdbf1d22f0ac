// Package work keeps track of what the driver is working on: Guards are the objects that calls work on, and a Table has
// the tasks that outlive a call.
//
// There are two kinds of tasks. A call task does the work of a CSI call that can take longer than a call may
// (calls.go). A copy task copies an image in the background (copies.go).
//
// The package knows no volumes, devices or records. Tasks are functions, and objects are ids.
package work

import (
	"context"
	"sync"
)

// Table has the tasks that this process runs. It is safe for concurrent use.
type Table struct {
	ctx    context.Context
	cancel context.CancelFunc
	slot   chan struct{} // taken by the copy that runs

	mu    sync.Mutex
	tasks map[taskKey]*task
}

// taskKey names a task. A volume can have a task of each kind.
type taskKey struct {
	kind kind
	id   string // of the volume, or of the volume or snapshot that a copy makes
}

type kind string

const (
	kindCall kind = "call"
	kindCopy kind = "copy"
)

// task is one function that runs, or has ended and whose result no call has taken yet.
type task struct {
	cancel context.CancelFunc
	done   chan struct{} // closed at the end
	err    error         // valid when done is closed

	call *call // of a call task, else nil
	copy *Copy // of a copy task, else nil
}

// NewTable returns an empty table. Close it.
func NewTable() *Table {
	t := &Table{slot: make(chan struct{}, 1), tasks: map[taskKey]*task{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// start adds a task and runs f in a goroutine. f's context ends with stop and Close. finished is called after f and
// before done is closed, without the lock. The caller holds mu.
func (t *Table) start(key taskKey, new *task, f func(context.Context) error, finished func()) {
	ctx, cancel := context.WithCancel(context.WithValue(t.ctx, taskContextKey{}, new))
	new.cancel, new.done = cancel, make(chan struct{})
	t.tasks[key] = new
	go func() {
		defer cancel()
		new.err = f(ctx)
		finished()
		close(new.done)
	}()
}

type taskContextKey struct{}

// find returns a task or nil.
func (t *Table) find(key taskKey) *task {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tasks[key]
}

// remove removes a task unless another one has taken its place.
func (t *Table) remove(key taskKey, old *task) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tasks[key] == old {
		delete(t.tasks, key)
	}
}

// Close ends all tasks and waits for them. Copies continue in the next process; calls are repeated by the CO.
func (t *Table) Close() error {
	t.cancel()
	t.mu.Lock()
	var all []*task
	for _, task := range t.tasks {
		all = append(all, task)
	}
	t.mu.Unlock()
	for _, task := range all {
		<-task.done
	}
	return nil
}
