package replication

import (
	"errors"
	"fmt"
	"sync"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
)

var piecesPool = sync.Pool{New: func() any { p := make([]overlay.Piece, 0, 64); return &p }}

// ReadAt implements blockdev.Device: unapplied records first, else the image.
//
// No lock is held while data is read. A record that was applied and whose segment was released in between is found out
// by the journal (ErrReleased); its content is in the image by then, so the read looks again.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), v.size.Load()); err != nil {
		return 0, fmt.Errorf("volume %s: read of %s at %d: %w", v.id, words.Count(len(p), "byte"), off, err)
	}
	if v.overlay.Len() == 0 {
		return v.image.ReadAt(p, off)
	}
	pieces := piecesPool.Get().(*[]overlay.Piece)
	defer piecesPool.Put(pieces)
	for {
		*pieces = v.overlay.Lookup(off, int64(len(p)), (*pieces)[:0])
		err := v.readPieces(p, off, *pieces)
		if err == nil {
			return len(p), nil
		}
		if !errors.Is(err, journal.ErrReleased) {
			return 0, fmt.Errorf("volume %s: read of %s at %d: %w", v.id, words.Count(len(p), "byte"), off, err)
		}
	}
}

// ReadReadyAt implements blockdev.ReadyReader.
func (v *Volume) ReadReadyAt(p []byte, off int64) bool {
	if blockdev.CheckRange(off, int64(len(p)), v.size.Load()) != nil {
		return false
	}
	if v.overlay.Len() == 0 {
		return v.image.ReadReadyAt(p, off)
	}
	pieces := piecesPool.Get().(*[]overlay.Piece)
	defer piecesPool.Put(pieces)
	*pieces = v.overlay.Lookup(off, int64(len(p)), (*pieces)[:0])
	for _, piece := range *pieces {
		dst := p[piece.Off-off:][:piece.Len]
		ready := true
		switch {
		case !piece.Found:
			ready = v.image.ReadReadyAt(dst, piece.Off)
		case piece.Zero:
			clear(dst)
		default:
			ready = v.group.journal.ReadDataReady(piece.Loc, piece.Skip, dst)
		}
		if !ready {
			return false
		}
	}
	return true
}

func (v *Volume) readPieces(p []byte, off int64, pieces []overlay.Piece) error {
	for _, piece := range pieces {
		dst := p[piece.Off-off:][:piece.Len]
		switch {
		case !piece.Found:
			if _, err := v.image.ReadAt(dst, piece.Off); err != nil {
				return err
			}
		case piece.Zero:
			clear(dst)
		default:
			if err := v.group.journal.ReadData(piece.Loc, piece.Skip, dst); err != nil {
				return err
			}
		}
	}
	return nil
}
