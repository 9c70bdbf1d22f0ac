package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// errSourceChanged is why a copy is none whose source may have been written to meanwhile.
var errSourceChanged = errors.New("its volume went into a consistency group while it was copied; take it again")

// copies are the images that this process is copying in the background. One is copied at a time: two would only make each other's
// reads jump. What a copy makes, from what, and how far it is, is in the record of what it makes, so the next
// process goes on (see resumeCopies).
//
// It is safe for concurrent use.
type copies struct {
	ctx    context.Context
	cancel context.CancelFunc
	slot   chan struct{}

	mu      sync.Mutex
	running map[string]*imageCopy // by the id of the volume or snapshot that is made
}

// imageCopy is one that is under way, or waits for its turn.
type imageCopy struct {
	id        string // of what is made
	source    string // id of the volume or snapshot whose image is read
	sizeBytes int64

	copied atomic.Int64
	// settling: nothing is read any more, and the record is about to say so.
	settling atomic.Bool
	cancel   context.CancelFunc
	done     chan struct{}
	err      error // valid when done is closed
}

func newCopies() *copies {
	c := &copies{slot: make(chan struct{}, 1), running: map[string]*imageCopy{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// start runs a copy in the background, or returns the one that runs already. run has to see to it that the record of what
// it makes says how it ended, and calls settle before that.
func (c *copies) start(id, source string, sizeBytes int64, run func(context.Context, *imageCopy) error) *imageCopy {
	c.mu.Lock()
	defer c.mu.Unlock()
	if running, ok := c.running[id]; ok {
		return running
	}
	i := &imageCopy{id: id, source: source, sizeBytes: sizeBytes, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(c.ctx)
	i.cancel = cancel
	c.running[id] = i
	go func() {
		defer cancel()
		select {
		case c.slot <- struct{}{}:
			i.err = run(ctx, i)
			<-c.slot
		case <-ctx.Done():
			i.err = ctx.Err()
		}
		c.mu.Lock()
		delete(c.running, id)
		c.mu.Unlock()
		close(i.done)
	}()
	return i
}

// settle is called by the copy when it has read all that it will, before its record says how it ended.
func (i *imageCopy) settle() { i.settling.Store(true) }

// of returns the copy that makes a volume or snapshot, or nil.
func (c *copies) of(id string) *imageCopy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[id]
}

// reading returns a copy that reads the image of a volume or snapshot, or nil. It waits for those that are about to end: who has
// read in its record that a copy is there need not be told that it is still made.
func (c *copies) reading(source string) *imageCopy {
	for {
		i := c.reader(source)
		if i == nil || !i.settling.Load() {
			return i
		}
		<-i.done
	}
}

func (c *copies) reader(source string) *imageCopy {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.running {
		if i.source == source {
			return i
		}
	}
	return nil
}

// stop ends the copy that makes a volume or snapshot, if there is one, and waits for its end.
func (c *copies) stop(id string) {
	if i := c.of(id); i != nil {
		i.cancel()
		<-i.done
	}
}

// close interrupts all copies; the next process goes on with them.
func (c *copies) close() error {
	c.cancel()
	c.mu.Lock()
	var all []*imageCopy
	for _, i := range c.running {
		all = append(all, i)
	}
	c.mu.Unlock()
	for _, i := range all {
		<-i.done
	}
	return nil
}

// String says how far it is, for messages.
func (i *imageCopy) String() string {
	return fmt.Sprintf("%d of %d bytes are copied", i.copied.Load(), i.sizeBytes)
}
