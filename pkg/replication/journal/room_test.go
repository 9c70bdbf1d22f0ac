package journal

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// An append that was refused because there was no room is told when something in the background makes room. It would
// wait forever otherwise: everything that can be released was released, so nothing else calls it.
func TestRoomIsTold(t *testing.T) {
	const large = testSegmentBytes - 2*segmentHeaderBytes // a segment has one
	setup := func(t *testing.T, fs vfs.FS) (_ *Journal, told *int) {
		told = new(int)
		o := testOptions(fs)
		o.HardLimitBytes, o.FreeTarget = 2*testSegmentBytes, 1
		o.RoomMade = func() { *told++ }
		return mustOpen(t, o), told
	}
	refused := func(t *testing.T, j *Journal) {
		t.Helper()
		if _, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, large)); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	t.Run("released while it is read", func(t *testing.T) {
		j, told := setup(t, vfs.NewMem())
		mustAppend(t, j, large, 1)
		mustAppend(t, j, large, 2)
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
		j.mu.Lock()
		read := j.live[0]
		j.pinLocked(read)
		j.mu.Unlock()
		if err := j.Release(1); err != nil {
			t.Fatal(err)
		}
		refused(t, j)
		*told = 0
		j.unpin(read)
		if *told == 0 {
			t.Error("RoomMade was not called for the free segment")
		}
		mustAppend(t, j, large, 3)
	})
	t.Run("being prepared", func(t *testing.T) {
		var armed atomic.Bool
		entered, end := make(chan struct{}), make(chan struct{})
		j, told := setup(t, vfs.NewErrFS(vfs.NewMem(), func(op vfs.Op, _ string) error {
			if op == vfs.OpDatasync && armed.Load() {
				close(entered)
				<-end
			}
			return nil
		}))
		mustAppend(t, j, large, 1)
		armed.Store(true)
		prepared := make(chan error)
		go func() { prepared <- j.Prepare() }()
		<-entered
		refused(t, j)
		*told = 0
		close(end)
		if err := <-prepared; err != nil {
			t.Fatal(err)
		}
		if *told == 0 {
			t.Error("RoomMade was not called for the ready segment")
		}
		mustAppend(t, j, large, 2)
	})
}
