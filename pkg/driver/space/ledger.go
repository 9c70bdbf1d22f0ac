package space

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// What new volumes can have of a pool is not what is free on its file system: thin volumes will fill up, journals will
// grow to their size, a snapshot keeps what its volume overwrites. The ledger adds up what the pool has promised; a
// volume is made, or grown, only where the sum stays within the file system:
//
//	base = free + used by the pool - reserve - thick volumes - journals at their largest - what snapshots keep
//	thin volumes <= base x overcommit ratio
//	free - reserve >= what thick volumes, journals and snapshots have still to allocate
//
// Everything in it comes from the records and from the file system, so it is the same after a crash. What other
// programs have on the file system is neither free nor used by the pool, and so not in base.

// Ledger is what a pool has and has promised, in bytes.
type Ledger struct {
	Free    int64 // on the file system
	Used    int64 // by images and journals of the pool; what reflinked images share counts once
	Reserve int64

	Thin      int64 // sizes of thin volumes, secondary copies included
	Thick     int64 // sizes of thick ones
	Journals  int64 // the most that the journals can take
	Snapshots int64 // what snapshots and views hold, or will
	// Owed is the part of Thick, Journals and Snapshots that is not allocated yet.
	Owed int64

	// NoInodes: the file system has not the inodes left that another volume takes.
	NoInodes bool

	Ratio float64 // of thin volumes' sizes to the space for them

	// Apart is set where the journals are on a file system of their own; then they are in no other sum.
	Apart *apart
}

// apart is what the file system of the journals has and what they have still to allocate of it, in bytes.
type apart struct{ Free, Reserve, Owed int64 }

// holds reports whether there is room for all that the journals may take.
func (a *apart) holds() bool { return a == nil || a.Free-a.Reserve >= a.Owed }

// base is the space that thin volumes share.
func (l Ledger) base() int64 {
	return l.Free + l.Used - l.Reserve - l.Thick - l.Journals - l.Snapshots
}

// Available is what new volumes can have together, and most the largest that one of them can be.
func (l Ledger) Available(thick bool) (available, most int64) {
	headroom, base := l.Free-l.Reserve-l.Owed, l.base()
	if headroom <= 0 || base <= 0 || l.NoInodes {
		return 0, 0
	}
	if thick {
		available = min(headroom, base-scale(l.Thin, 1/l.Ratio))
	} else {
		available = scale(base, l.Ratio) - l.Thin
	}
	available = max(available, 0) / capability.SizeUnitBytes * capability.SizeUnitBytes
	// Also with a ratio above one: a volume that the whole pool has no room for can never be filled.
	return available, min(available, base/capability.SizeUnitBytes*capability.SizeUnitBytes)
}

// scale multiplies, without going past what an int64 holds.
func scale(n int64, by float64) int64 {
	if by == 1 {
		return n
	}
	if product := float64(n) * by; product < math.MaxInt64/2 {
		return int64(product)
	}
	return math.MaxInt64 / 2
}

// VolumeInodes are the inodes that a volume takes: a directory, the image, its record and its publications with their
// spares, and what the directories above them may need.
const VolumeInodes = 8

func (l Ledger) String() string {
	inodes := ""
	if l.NoInodes {
		inodes = fmt.Sprintf("fewer than %s are free, which a volume takes; ", words.Count(VolumeInodes, "inode"))
	}
	return inodes + fmt.Sprintf("%s are free and %d used by the pool, less a reserve of %d; thick volumes are "+
		"promised %d, journals %d, snapshots %d, "+
		"thin volumes %d with an overcommit ratio of %g", words.Count(l.Free, "byte"), l.Used, l.Reserve, l.Thick,
		l.Journals, l.Snapshots, l.Thin, l.Ratio)
}

// addThick, and the others, add a promise of which a part is allocated.
func (l *Ledger) addThick(promised, allocated int64) {
	l.Thick += promised
	l.Owed += max(promised-allocated, 0)
}

func (l *Ledger) addJournal(promised, allocated int64) {
	if l.Apart != nil {
		l.Apart.Owed += max(promised-allocated, 0)
		return
	}
	l.Journals += max(promised, allocated)
	l.Owed += max(promised-allocated, 0)
	l.Used += allocated
}

func (l *Ledger) addSnapshot(promised, allocated int64) {
	l.Snapshots += max(promised, allocated)
	l.Owed += max(promised-allocated, 0)
}

// ledger adds up the pool: what is recorded, the reservations of running calls, and wanted journals, by their
// groups' names, of groups that do not exist yet. It changes wanted. An error is a status error. The caller holds
// reservations.mu.
func (d *Accounts) ledger(wanted map[string]int64) (Ledger, error) {
	return d.addUp(wanted, &images{d: d, allocated: map[string]int64{}})
}

// leastLedger is ledger without a look at images and journals, which takes long with thousands of them: as if none of
// them had allocated anything. The pool has at least the room that the result says. With snapshots the result is empty:
// only their images say what they keep.
func (d *Accounts) leastLedger(wanted map[string]int64) (Ledger, error) {
	snapshots, err := d.store.Pool.SnapshotIDs()
	if err != nil {
		return Ledger{}, d.store.ListError("snapshots", err)
	}
	if len(snapshots) > 0 {
		return Ledger{}, nil
	}
	return d.addUp(wanted, &images{d: d, unseen: true})
}

func (d *Accounts) addUp(wanted map[string]int64, images *images) (Ledger, error) {
	l := Ledger{Ratio: d.Capacity.OvercommitRatio}
	fail := func(err error) (Ledger, error) {
		return l, status.Errorf(codes.Internal, "capacity of pool %s: %v", d.opts.PoolDir, err)
	}
	total, before, err := d.store.Pool.Space()
	if err != nil {
		return fail(err)
	}
	recs, journals, err := d.store.VolumesAndJournals()
	if err != nil {
		return l, err
	}
	for _, journal := range journals {
		wanted[journal.Group] = max(wanted[journal.Group], journal.Bytes)
	}
	for _, r := range d.Reserved.Volumes {
		if r.journal.Group != "" {
			wanted[r.journal.Group] = max(wanted[r.journal.Group], r.journal.Bytes)
		}
	}
	recs = d.Reserved.merge(recs)
	for _, rec := range recs {
		if rec.View != nil {
			continue // the view holds what it takes; see addViews
		}
		allocated, err := images.add(rec.ID)
		if err != nil {
			return fail(err)
		}
		if rec.Thick {
			l.addThick(rec.SizeBytes, allocated)
		} else {
			l.Thin += rec.SizeBytes
		}
	}
	snapshots, err := d.store.Snapshots()
	if err != nil {
		return l, err
	}
	if err := d.addSnapshots(&l, images, snapshots); err != nil {
		return fail(err)
	}
	if err := d.addViews(&l, images); err != nil {
		return fail(err)
	}
	if err := d.addJournals(&l, wanted, images.unseen); err != nil {
		return fail(err)
	}
	used, err := images.together()
	if err != nil {
		return fail(err)
	}
	l.Used += used
	// What was allocated or given back while this was added up must not count as free and as used.
	_, after, err := d.store.Pool.Space()
	if err != nil {
		return fail(err)
	}
	inodes, freeInodes, err := d.store.Pool.Inodes()
	if err != nil {
		return fail(err)
	}
	l.NoInodes = inodes > 0 && freeInodes < VolumeInodes
	// What the pool keeps for giving space back is a part of the reserve that is there already.
	held, err := d.store.Pool.ReserveBytes()
	if err != nil {
		return fail(err)
	}
	l.Free, l.Reserve = min(before, after)+held, max(d.Capacity.Reserve.Of(total), held)
	return l, nil
}

// images are the image files of a pool and what each of them takes.
type images struct {
	d         *Accounts
	paths     []string
	total     int64            // of paths, each by itself
	allocated map[string]int64 // by volume id
	unseen    bool             // counts nothing and looks at nothing
}

// together returns what the images take together. It does not look at them again if they cannot share blocks.
func (i *images) together() (int64, error) {
	if i.unseen || !i.d.store.Pool.MayShareBlocks() {
		return i.total, nil
	}
	return i.d.store.Pool.AllocatedTogether(i.paths)
}

// add returns what a volume's image takes; a volume that is being made has it in another directory.
func (i *images) add(volumeID string) (int64, error) {
	if i.unseen {
		return 0, nil
	}
	paths := i.d.store.Pool.ImagePaths(volumeID)
	// Most volumes are complete. One that is renamed to its own directory meanwhile is found at the third look.
	for _, path := range []string{paths[1], paths[0], paths[1]} {
		allocated, found, err := i.take(path)
		if err != nil {
			return 0, err
		}
		if found {
			i.allocated[volumeID] = allocated
			return allocated, nil
		}
	}
	return 0, nil
}

func (i *images) take(path string) (allocated int64, found bool, err error) {
	info, err := i.d.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	i.paths = append(i.paths, path)
	allocated, err = vfs.AllocatedBytes(info)
	i.total += allocated
	return allocated, true, err
}

// addSnapshots: a snapshot that is ready keeps what its image takes; one that is being copied will take as much as its
// volume has.
func (d *Accounts) addSnapshots(l *Ledger, images *images, snapshots []*blockdev.SnapshotRecord) error {
	for _, s := range snapshots {
		path, err := d.store.Pool.SnapshotImagePath(s.ID)
		if err != nil {
			return err
		}
		allocated, _, err := images.take(path)
		if err != nil {
			return err
		}
		promised := allocated
		if s.State == blockdev.SnapshotCreating || s.State == blockdev.SnapshotCopying {
			promised = max(allocated, min(s.SizeBytes, images.allocated[s.SourceVolumeID]))
		}
		l.addSnapshot(promised, allocated)
	}
	return nil
}

// addViews: a view may take as much as its limit.
func (d *Accounts) addViews(l *Ledger, images *images) error {
	views, err := d.store.Pool.ListViews()
	if err != nil {
		klog.ErrorS(err, "Capacity is reckoned without views whose records cannot be read", "pool", d.opts.PoolDir)
	}
	for _, v := range views {
		var total int64
		for _, path := range d.store.Pool.ViewPaths(v) {
			allocated, _, err := images.take(path)
			if err != nil {
				return err
			}
			total += allocated
		}
		l.addSnapshot(v.LimitBytes, total)
	}
	return nil
}

// addJournals adds the journals that there are and those of groups that are still to be made, to what the pool has
// promised or, where they are on a file system of their own, to what that one has. unseen: as if none had allocated
// anything.
func (d *Accounts) addJournals(l *Ledger, wanted map[string]int64, unseen bool) error {
	if own, has := d.JournalFileSystem(); own.Err != nil {
		return own.Err
	} else if has {
		l.Apart = &apart{Free: own.FreeBytes, Reserve: d.Capacity.Reserve.Of(own.TotalBytes)}
	}
	groups := d.store.Pool.GroupsDir()
	ids, err := d.fs.ReadDir(groups)
	if err != nil {
		return err
	}
	for _, id := range ids {
		group, err := d.store.GroupRecord(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // being made or deleted
		}
		if err != nil {
			// What its journal takes is not free, and what it may take more not known: the replicator refuses the group too.
			klog.ErrorS(err, "Capacity is reckoned without the journal of a group whose record cannot be read", "group", id)
			continue
		}
		delete(wanted, group.Name)
		var allocated int64
		if !unseen {
			if allocated, err = d.allocatedIn(filepath.Join(groups, id, core.JournalDir)); err != nil {
				return err
			}
		}
		l.addJournal(group.JournalLimitBytes, allocated)
	}
	for _, bytes := range wanted {
		l.addJournal(bytes, 0)
	}
	return nil
}

// allocatedIn is what the files of a directory take.
func (d *Accounts) allocatedIn(dir string) (total int64, err error) {
	names, err := d.fs.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, name := range names {
		info, err := d.fs.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		allocated, err := vfs.AllocatedBytes(info)
		if err != nil {
			return 0, err
		}
		total += allocated
	}
	return total, nil
}

// Room is what volumes with these parameters can have, as ledger.available says it. The journal of a group that they
// are the first of takes its part first.
func (d *Accounts) Room(p parameter.Volume) (available, most int64, err error) {
	wanted := map[string]int64{}
	// A name that no group can have stands for the id that a volume would have.
	name := p.GroupName("(new)")
	if name != "" {
		wanted[name] = p.JournalLimitBytes()
	}
	d.Reserved.Mu.Lock()
	defer d.Reserved.Mu.Unlock()
	l, err := d.ledger(wanted)
	if err != nil {
		return 0, 0, err
	}
	if wanted[name] > 0 && !l.Apart.holds() {
		return 0, 0, nil
	}
	available, most = l.Available(p.Thick)
	return available, most, nil
}
