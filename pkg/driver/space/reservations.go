package space

import (
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// reservations are the volumes that calls are making or growing, with their future sizes. The space that one call has
// found counts for all others until the volume's record says so. Two calls cannot both take the last space.
type reservations struct {
	Mu      sync.Mutex // held while the pool is added up
	Volumes map[string]reservation
}

type reservation struct {
	rec     *blockdev.VolumeRecord
	journal parameter.Journal // of a group that may have still to be made
}

// merge returns the records with the reservations applied.
func (r *reservations) merge(recs []*blockdev.VolumeRecord) []*blockdev.VolumeRecord {
	merged := slices.Clone(recs)
	for id, reservation := range r.Volumes {
		reserved := reservation.rec
		i := slices.IndexFunc(merged, func(rec *blockdev.VolumeRecord) bool { return rec.ID == id })
		switch {
		case i < 0:
			merged = append(merged, reserved)
		case reserved.SizeBytes > merged[i].SizeBytes:
			merged[i] = reserved
		}
	}
	return merged
}

// ReserveSpace reserves the space of a volume as rec describes it, of which it has hadBytes already. The caller calls
// release when the record is durable or will never be. journal is that of the group that the volume is to join. The
// error is ResourceExhausted if the pool has no room. Calls
// for one volume must not run at the same time.
func (d *Accounts) ReserveSpace(rec *blockdev.VolumeRecord, hadBytes int64,
	journal parameter.Journal) (release func(), err error) {
	wanted := map[string]int64{}
	if journal.Group != "" {
		wanted[journal.Group] = journal.Bytes
	}
	d.Reserved.Mu.Lock()
	defer d.Reserved.Mu.Unlock()
	more := rec.SizeBytes - hadBytes
	least, err := d.leastLedger(maps.Clone(wanted))
	if err != nil {
		return nil, err
	}
	if _, most := least.Available(rec.Thick); more <= most && least.Apart.holds() {
		return d.reserve(rec, journal), nil
	}
	l, err := d.ledger(wanted)
	if err != nil {
		return nil, err
	}
	l.NoInodes = l.NoInodes && hadBytes == 0 // growing takes none
	if _, most := l.Available(rec.Thick); more > most {
		return nil, status.Errorf(codes.ResourceExhausted, "volume %q (%s) needs %s, pool %s on node %s has room "+
			"for %d: %s; "+
			"delete volumes or snapshots, or make its file system larger", rec.Name, rec.ID, words.Count(more, "byte"),
			d.opts.PoolDir, d.opts.NodeID, most, l)
	}
	if wanted[journal.Group] > 0 && !l.Apart.holds() { // of a group that there is not yet
		return nil, status.Errorf(codes.ResourceExhausted, "volume %q (%s) needs a journal of %s for group %s, and "+
			"the journals' file system at %s on "+
			"node %s has %d free, less a reserve of %d, of which %d are promised with it; make it larger, or the journals "+
			"smaller (%s)", rec.Name, rec.ID, words.Count(journal.Bytes, "byte"),
			journal.Group, d.store.Pool.GroupsDir(), d.opts.NodeID, l.Apart.Free, l.Apart.Reserve, l.Apart.Owed,
			parameter.KeyJournalSize)
	}
	return d.reserve(rec, journal), nil
}

// reserve notes a volume's space as taken until release is called. The caller holds Reserved.Mu.
func (d *Accounts) reserve(rec *blockdev.VolumeRecord, journal parameter.Journal) (release func()) {
	d.Reserved.Volumes[rec.ID] = reservation{rec: rec.Clone(), journal: journal}
	return func() {
		d.Reserved.Mu.Lock()
		defer d.Reserved.Mu.Unlock()
		delete(d.Reserved.Volumes, rec.ID)
	}
}
