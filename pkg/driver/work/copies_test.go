package work

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestReadingWaits: a copy reads its source until it calls DoneReading. CopyReading waits from then to the end.
func TestReadingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewTable()
		read, recorded := make(chan struct{}), make(chan struct{})
		i := c.StartCopy("snap", "vol", 1, func(_ context.Context, i *Copy) error {
			<-read
			i.DoneReading()
			<-recorded
			return nil
		})
		if got := c.CopyReading("vol"); got != i {
			t.Fatalf("while it is read: %v", got)
		}
		close(read)
		synctest.Wait()
		answer := make(chan *Copy, 1)
		go func() { answer <- c.CopyReading("vol") }()
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
