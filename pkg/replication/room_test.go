package replication

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A writer waits for room while every segment that was released is still being read. When the readers are done the
// writer goes on, though nothing is left to release.
func TestWriterGoesOnWhenReadersAreDone(t *testing.T) {
	var armed atomic.Bool
	entered, end := make(chan struct{}), make(chan struct{})
	endReads := sync.OnceFunc(func() { close(end) })
	s := newTestSite(t, link.NewNetwork(nil), "site-a", func(c *Config) {
		c.CommitInterval = time.Hour
		c.MemoryBytes = 1 // as little as there can be: the reads are to go to the files
		c.FS = vfs.NewErrFS(c.FS, func(op vfs.Op, name string) error {
			if op == vfs.OpRead && strings.HasSuffix(name, ".seg") && armed.Load() {
				entered <- struct{}{}
				<-end
			}
			return nil
		})
	})
	g := s.createGroup("shop", "", 1, 64<<20, nil)
	v := volumeOf(t, g, "v0")
	limit := 2 * int64(MinJournalBytes) // as journalLimits has it
	p := block('x', int(g.log.maxRecordBytes()))
	var written int64
	for g.journal.UsedBytes() < limit { // nothing is durable, so nothing is applied or released
		mustWrite(t, v, written, p)
		written += int64(len(p))
	}
	t.Cleanup(endReads) // before the site's own, which waits for the readers
	g.applier.mu.Lock() // apply reads segments, too, and must not be one of those that wait
	armed.Store(true)
	read := make(chan error, int(written)/len(p))
	readers := 0
	for off := int64(0); off < written; off += int64(len(p)) {
		go func() {
			_, err := v.ReadAt(make([]byte, 1), off)
			read <- err
		}()
		select {
		case <-entered:
			readers++
		case err := <-read: // of one of the newest records, from memory
			if err != nil {
				t.Error(err)
			}
		}
	}
	armed.Store(false)
	g.applier.mu.Unlock()
	mustFlush(t, v)
	waited := make(chan error, 1)
	go func() {
		for range 2 * g.log.segBytes.Load() / int64(len(p)) { // more than the last segment has room for
			if _, err := v.WriteAt(p, 0); err != nil {
				waited <- err
				return
			}
		}
		waited <- nil
	}()
	eventually(t, "all that is sealed was released", func() bool { return len(g.journal.Segments()) == 1 })
	time.Sleep(5 * g.cfg.ApplyInterval) // the writer is refused for the last time
	select {
	case err := <-waited:
		t.Errorf("the writer found room (%v): the test shows nothing", err)
	default:
	}
	endReads()
	for range readers {
		if err := <-read; err != nil {
			t.Error(err)
		}
	}
	select {
	case err := <-waited:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the writer waits forever")
	}
}
