package work

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// Copy is the copying of one image in the background. One image is copied at a time: two copies at once would only make
// the disk seek between them. What is copied, from where and how far is in the record of the volume or snapshot that is
// made, so the next process can continue.
type Copy struct {
	task *task

	id        string // of what is made
	source    string // id of the volume or snapshot whose image is read
	sizeBytes int64

	copied      atomic.Int64
	doneReading atomic.Bool // nothing is read any more, and the record is about to say so
}

// StartCopy runs a copy in the background, or returns the one that already runs for id. source is the volume or
// snapshot whose image is read; empty for none. run must record how the copy ended, and call DoneReading before that.
func (t *Table) StartCopy(id, source string, sizeBytes int64, run func(context.Context, *Copy) error) *Copy {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := taskKey{kindCopy, id}
	if running := t.tasks[key]; running != nil {
		return running.copy
	}
	c := &Copy{id: id, source: source, sizeBytes: sizeBytes}
	c.task = &task{copy: c}
	t.start(key, c.task, func(ctx context.Context) error {
		select {
		case t.slot <- struct{}{}:
			defer func() { <-t.slot }()
			return run(ctx, c)
		case <-ctx.Done():
			return ctx.Err()
		}
	}, func() { t.remove(key, c.task) })
	return c
}

// ID returns the id of the volume or snapshot that is made.
func (c *Copy) ID() string { return c.id }

// Source returns the id of the volume or snapshot whose image is read.
func (c *Copy) Source() string { return c.source }

// SetCopied notes how much is copied, in bytes.
func (c *Copy) SetCopied(bytes int64) { c.copied.Store(bytes) }

// DoneReading notes that the copy does not read its source any more. The copy calls it before it records how it ended.
func (c *Copy) DoneReading() { c.doneReading.Store(true) }

// Done is closed when the copy has ended.
func (c *Copy) Done() <-chan struct{} { return c.task.done }

// Err returns the copy's error. It is valid when Done is closed.
func (c *Copy) Err() error { return c.task.err }

// String says how far the copy is, for messages.
func (c *Copy) String() string {
	return fmt.Sprintf("%d of %s are copied", c.copied.Load(), words.Count(c.sizeBytes, "byte"))
}

// Copy returns the copy that makes a volume or snapshot, or nil.
func (t *Table) Copy(id string) *Copy {
	if task := t.find(taskKey{kindCopy, id}); task != nil {
		return task.copy
	}
	return nil
}

// CopyReading returns a copy that reads the image of a volume or snapshot, or nil. It waits for copies that have read
// everything and are about to end: a caller that saw in a record that a copy is complete must not be told that it is
// still being made.
func (t *Table) CopyReading(source string) *Copy {
	for {
		c := t.reader(source)
		if c == nil || !c.doneReading.Load() {
			return c
		}
		<-c.Done()
	}
}

// WhyRead says in words which copy reads a volume's image, which must not change meanwhile; empty if none does.
func (t *Table) WhyRead(volumeID string) string {
	c := t.CopyReading(volumeID)
	if c == nil {
		return ""
	}
	return fmt.Sprintf("its image is being copied for %s, %s", c.id, c)
}

func (t *Table) reader(source string) *Copy {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, task := range t.tasks {
		if task.copy != nil && task.copy.source == source {
			return task.copy
		}
	}
	return nil
}

// StopCopy ends the copy that makes a volume or snapshot, if there is one, and waits for its end.
func (t *Table) StopCopy(id string) {
	if c := t.Copy(id); c != nil {
		c.task.cancel()
		<-c.Done()
	}
}
