package replication

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// The flush of the journal, which the application waits for, shares the disk with what apply writes into the images.
// Were that left to the fdatasync at the end of a pass, thousands of pages would be in the disk's queue at once, and
// the flush behind them. So a pass sends its pages to the disk a few at a time (writeOut), and a pass that no caller
// waits for is spread over the time until the next one (passPace).

const (
	// pacedPieces are how many writes into an image go to the disk together while there is time, hurriedPieces while there
	// is none. A disk does the former in the time of a flush. The latter it can sort.
	pacedPieces   = 4
	hurriedPieces = 32
	// writeOutInterval is how often a pass with much to write does so. More often would cost processor time, of which a
	// busy machine has less than of the disk's.
	writeOutInterval = time.Millisecond
	pieceBytes       = 4 << 10
	// writeOutBytes is the limit for large writes.
	writeOutBytes = 256 << 10
	// maxRest bounds a rest, and so how long who comes to need the pass waits before it hurries.
	maxRest = 2 * time.Millisecond
)

// passMutex is held by a pass of apply. It knows whether a caller waits for it.
type passMutex struct {
	mu      sync.Mutex
	waiting atomic.Int32
}

func (m *passMutex) Lock() {
	m.waiting.Add(1)
	m.mu.Lock()
	m.waiting.Add(-1)
}

func (m *passMutex) Unlock() { m.mu.Unlock() }

// passPace says when a pass rests. Used by one goroutine.
type passPace struct {
	// over is how long the pass may take; 0 for a pass that a caller waits for.
	over time.Duration
	// hurried asks whether a caller has come to wait for it.
	hurried     func() bool
	began       time.Time
	bytes, done int64 // of the journal: of the whole pass, and behind which the pass is
}

// ahead is how much earlier than at an even pace the pass has come to where it is. It is not positive for a pass that
// has to hurry.
func (p *passPace) ahead(now time.Time) time.Duration {
	if p.over == 0 || p.bytes == 0 || p.hurried() {
		return -math.MaxInt64
	}
	return time.Duration(float64(p.over)*float64(min(p.done, p.bytes))/float64(p.bytes)) - now.Sub(p.began)
}

// pieces is how many writes go to the disk together.
func (p *passPace) pieces() int {
	if p.over < writeOutInterval {
		return hurriedPieces
	}
	return int(max(pacedPieces, min(hurriedPieces, p.bytes/pieceBytes/int64(p.over/writeOutInterval))))
}

// writeOut sends what a pass writes into an image to the disk.
type writeOut struct {
	image *blockdev.Image
	pace  *passPace

	pieces   int
	bytes    int64
	from, to int64 // what was written since lies between them
}

// wrote is called behind each write. Its errors are those of the image's Flush.
func (w *writeOut) wrote(off, n int64) error {
	if w.pieces == 0 {
		w.from, w.to = off, off+n
	}
	w.from, w.to = min(w.from, off), max(w.to, off+n)
	w.pieces++
	w.bytes += n
	if w.pieces < w.pace.pieces() && w.bytes < writeOutBytes {
		return nil
	}
	ahead := w.pace.ahead(time.Now())
	if ahead < -w.pace.over/2 && w.pieces < hurriedPieces && w.bytes < writeOutBytes {
		return nil
	}
	w.pieces, w.bytes = 0, 0
	if err := w.image.WriteOut(w.from, w.to-w.from); err != nil {
		return err
	}
	if ahead > 0 {
		rest := unix.NsecToTimespec(int64(min(ahead, maxRest)))
		_ = unix.Nanosleep(&rest, nil)
	}
	return nil
}
