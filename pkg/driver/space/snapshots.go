package space

import (
	"fmt"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// CreateSnapshots makes the records of snapshots of as many volumes, in state creating, if the pool has room for all of
// them: from then on the ledger counts them. Without the room nothing is made, and the error is ResourceExhausted. It
// returns those that were made, also with an error.
//
// A snapshot keeps what its volume will overwrite, and that is at most what the volume has allocated. One that shares
// blocks has all of that from the beginning, so nothing has to be free for it now, but it goes off what thin volumes
// are promised; a copy has to be allocated.
func (d *Accounts) CreateSnapshots(wanted []blockdev.SnapshotRecord) (list []*blockdev.SnapshotRecord, err error) {
	d.Reserved.Mu.Lock()
	defer d.Reserved.Mu.Unlock()
	if err := d.SnapshotSpace(wanted); err != nil {
		return nil, err
	}
	for _, snap := range wanted {
		stored, err := d.store.Pool.CreateSnapshot(snap)
		if err != nil {
			return list, store.SnapshotError("create", snap.ID, err)
		}
		list = append(list, stored)
	}
	return list, nil
}

// SnapshotSpace refuses snapshots that the pool has no room for. The caller holds reservations.mu.
func (d *Accounts) SnapshotSpace(wanted []blockdev.SnapshotRecord) error {
	shares, err := d.Sharing.Ask(d)
	if err != nil {
		code := codes.Internal
		if vfs.NoSpace(err) {
			code = codes.ResourceExhausted
		}
		return status.Errorf(code, "pool %s: find out whether its file system can share blocks: %v", d.opts.PoolDir, err)
	}
	l, err := d.ledger(map[string]int64{})
	if err != nil {
		return err
	}
	before := l
	var need int64
	var volumes []string
	images := images{d: d, allocated: map[string]int64{}}
	for _, snap := range wanted {
		allocated, err := images.add(snap.SourceVolumeID)
		if err != nil {
			return status.Errorf(codes.Internal, "volume %s: what its image takes: %v", snap.SourceVolumeID, err)
		}
		holds := min(allocated, snap.SizeBytes)
		need += holds
		volumes = append(volumes, fmt.Sprintf("%s (%s allocated)", snap.SourceVolumeID, words.Count(allocated, "byte")))
		if id := snap.Parameters[store.NoteClone]; id != "" {
			// Its image becomes that of a volume that has its space promised, unless that is thick, and gets a copy.
			clone, err := d.store.Volume(id)
			if err != nil {
				return err
			}
			if !clone.Thick {
				l.Thin -= clone.SizeBytes
			}
		}
		if shares && !snap.Thick {
			l.addSnapshot(holds, holds)
		} else {
			l.addSnapshot(holds, 0)
		}
	}
	if need == 0 && !l.NoInodes || l.holds() {
		return nil
	}
	how := "by copying them, as " + d.copyReason(shares)
	if shares && l.Owed == before.Owed {
		how = "by sharing their blocks, and keeps what is overwritten"
	}
	return status.Errorf(codes.ResourceExhausted, "snapshot %q of %s takes up to %s of pool %s on node %s, %s; "+
		"there is room for %d: %s; "+
		"delete snapshots or volumes, make its file system larger, or run the driver with a higher overcommit ratio if "+
		"only thin volumes' promises are in the way",
		wanted[0].Name, strings.Join(volumes, ", "), words.Count(need, "byte"), d.opts.PoolDir, d.opts.NodeID, how,
		before.snapshotRoom(l.Owed > before.Owed), before)
}

// copyReason says why a snapshot is a copy.
func (d *Accounts) copyReason(shares bool) string {
	if shares {
		return "a block shared with a thick volume has no reserved space"
	}
	return "its file system cannot share blocks between files"
}

// holds reports whether everything promised has room: what is owed now, thin volumes when they are full, and the files
// of one thing more.
func (l Ledger) holds() bool {
	return !l.NoInodes && l.Owed <= l.Free-l.Reserve && l.Thin <= scale(max(l.base(), 0), l.Ratio)
}

// snapshotRoom is how much more snapshots may keep.
func (l Ledger) snapshotRoom(copied bool) int64 {
	room := l.base() - scale(l.Thin, 1/l.Ratio)
	if copied {
		room = min(room, l.Free-l.Reserve-l.Owed)
	}
	return max(room, 0)
}

// sharing knows whether the pool's file system can share blocks between files, once a caller has asked.
type blockSharing struct {
	mu            sync.Mutex
	known, shares bool
}

func (s *blockSharing) Ask(d *Accounts) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known {
		return s.shares, nil
	}
	shares, err := blockdev.SharesBlocks(d.fs, d.opts.PoolDir)
	if err != nil {
		return false, err
	}
	s.known, s.shares = true, shares
	return shares, nil
}
