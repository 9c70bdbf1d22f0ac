package driver

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestReadingWaits: a copy reads its source until it settles, and who asks between then and its end waits for that.
func TestReadingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCopies()
		read, recorded := make(chan struct{}), make(chan struct{})
		i := c.start("snap", "vol", 1, func(_ context.Context, i *imageCopy) error {
			<-read
			i.settle()
			<-recorded
			return nil
		})
		if got := c.reading("vol"); got != i {
			t.Fatalf("while it is read: %v", got)
		}
		close(read)
		synctest.Wait()
		answer := make(chan *imageCopy, 1)
		go func() { answer <- c.reading("vol") }()
		synctest.Wait()
		select {
		case got := <-answer:
			t.Fatalf("answered %v before the copy ended", got)
		default:
		}
		close(recorded)
		if got := <-answer; got != nil {
			t.Fatalf("after its end: %v", got)
		}
	})
}
