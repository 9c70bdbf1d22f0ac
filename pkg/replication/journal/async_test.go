package journal

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// TestSyncAsync appends and syncs from many goroutines, some waiting and some not: each is told once, and not before
// its record is durable.
func TestSyncAsync(t *testing.T) {
	j := mustOpen(t, testOptions(vfs.NewMem()))
	var told sync.WaitGroup
	var writers sync.WaitGroup
	const each = 100
	for w := range 8 {
		writers.Go(func() {
			for range each {
				h, _ := mustAppend(t, j, 100, byte(w))
				if w%4 == 0 {
					if err := j.Sync(); err != nil || j.Durable() < h.Ordinal {
						t.Errorf("sync of %d: %v, durable %d", h.Ordinal, err, j.Durable())
					}
					continue
				}
				told.Add(1) // a second call would make Done panic
				j.SyncAsync(func(err error) {
					defer told.Done()
					if durable := j.Durable(); err != nil || durable < h.Ordinal {
						t.Errorf("told that %d is durable (%v), but durable is %d", h.Ordinal, err, durable)
					}
				})
			}
		})
	}
	writers.Wait()
	told.Wait()
	if j.Durable() != j.Head() {
		t.Errorf("durable %d, head %d", j.Durable(), j.Head())
	}
	called := false
	j.SyncAsync(func(err error) { called = err == nil })
	if !called {
		t.Error("with nothing to sync, the answer did not come at once")
	}
}

// TestSyncAsyncFails lets the fdatasync fail while others wait for the next one: all hear of it.
func TestSyncAsyncFails(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var gate atomic.Bool
	fs := vfs.NewErrFS(vfs.NewMem(), func(op vfs.Op, _ string) error {
		if op != vfs.OpDatasync || !gate.Load() {
			return nil
		}
		entered <- struct{}{}
		<-release
		return syscall.EIO
	})
	j := mustOpen(t, testOptions(fs))
	mustAppend(t, j, 100, 1)
	gate.Store(true)
	results := make(chan error, 4)
	go j.SyncAsync(func(err error) { results <- err })
	<-entered
	mustAppend(t, j, 100, 2)
	for range 3 {
		j.SyncAsync(func(err error) { results <- err })
	}
	close(release)
	for range 4 {
		if err := <-results; !errors.Is(err, ErrFailed) {
			t.Errorf("got %v", err)
		}
	}
	if j.Durable() != 0 {
		t.Errorf("durable %d", j.Durable())
	}
}

// TestSyncLater: the one who is told to leads, for all who come until it has, and those that come while it does. An
// error reaches them all, and a journal that is closed meanwhile waits for the leader.
func TestSyncLater(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var gate atomic.Bool
	fs := vfs.NewErrFS(vfs.NewMem(), func(op vfs.Op, _ string) error {
		if op == vfs.OpDatasync && gate.Load() {
			entered <- struct{}{}
			<-release
		}
		return nil
	})
	j := mustOpen(t, testOptions(fs))
	results := make(chan error, 10)
	tell := func(err error) { results <- err }
	mustAppend(t, j, 100, 1) // makes a segment
	gate.Store(true)
	lead := j.SyncLater(tell)
	if lead == nil {
		t.Fatal("no sync runs, and the caller was not told to run one")
	}
	for range 2 {
		mustAppend(t, j, 100, 2)
		if j.SyncLater(tell) != nil {
			t.Error("two leaders")
		}
	}
	if len(results) > 0 {
		t.Error("told before a sync")
	}
	led := make(chan struct{})
	go func() {
		lead()
		close(led)
	}()
	<-entered
	mustAppend(t, j, 100, 3)
	if j.SyncLater(tell) != nil {
		t.Error("a second leader while the first one syncs")
	}
	release <- struct{}{}
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	<-entered // it goes on by itself
	if len(results) > 0 {
		t.Error("told before the second sync ended")
	}
	closed := make(chan error)
	go func() { closed <- j.Close() }()
	release <- struct{}{}
	if err := <-results; err != nil {
		t.Error(err)
	}
	<-led
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if lead := j.SyncLater(tell); lead != nil {
		t.Error("a closed journal has a leader")
	}
	if err := <-results; !errors.Is(err, ErrClosed) {
		t.Errorf("a closed journal: %v", err)
	}
}
