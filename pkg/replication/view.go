package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A view is the group at one ordinal, as block devices, while the group goes on. Nothing is copied to open one:
//
//	open    an index is made of the journal's records from where the images are up to the ordinal
//	read    an extent that the view owns, from the view's own file; else the index first, and then the image
//	write   the view takes the extent into its own file first, as it was at the ordinal
//	apply   up to the ordinal, what apply puts into an image leaves the index, as it leaves that of the volume;
//	        behind it, before apply changes an extent, the view takes the extent into its own file
//
// No segment is kept in the journal for a view: a segment leaves the journal when it is applied, and then the images
// have its records. A pass of apply ends at the ordinal of each view, so that it puts nothing from behind the ordinal
// in the place of a record before it.
//
// What a view holds is bounded by its limit. Where the limit or the disk is reached, a write to the view fails with
// ENOSPC, but apply does not wait: the view fails, for good, and gives its space back.
//
// A view survives a restart. Which extents it owns is in a log (changemap.Log) that is durable before an image changes
// and before a write to the view returns. A failed view is one whose logs are gone.
//
// view_volume.go has the device, points.go the ordinals that a view can be opened at.

// MaxViews is how many views a group can have at once: apply copies an extent once for each.
const MaxViews = 8

// minViewBytes is the least limit of a view: less would fail at once.
const minViewBytes = 16 * changemap.ExtentBytes

// Reasons why a view has failed.
var (
	errViewMember  = errors.New("one of its volumes was taken out of the group")
	errViewDeleted = errors.New("it is being deleted")
	errViewLost    = errors.New("it failed before a restart: its limit or the disk was full, or a volume left the group")
	// ErrViewFull: the view has reached its limit.
	ErrViewFull = errors.New("the view has reached its limit of own space")
	// ErrReadOnly: a write to a view that was opened without being writable.
	ErrReadOnly = errors.New("the view is read-only")
)

// ViewSpec says what view is wanted.
type ViewSpec struct {
	Name  string
	Point Point
	// Writable: the devices take writes, which only the view sees.
	Writable bool
	// Test marks the view of a test failover.
	Test bool
	// Epoch is the one that a shard is opened at together with the others, which are Shards, ascending; empty for a
	// view of one group alone. Point is at its boundary.
	Epoch  string
	Shards []epoch.ShardID
	// LimitBytes bounds what the view holds of its own; 0: half of what is free in the pool, or all that the volumes can
	// take if that is less.
	LimitBytes int64
}

// View is an open view. Its methods are safe for concurrent use.
type View struct {
	g       *Group
	rec     blockdev.ViewRecord
	volumes []*ViewVolume

	mu sync.Mutex
	// outcome says whether the view shows something, and why not.
	outcome keepOutcome
	// filled is how many extents hold something in the view's own files.
	filled int64
}

// ViewStatus is a view for people.
type ViewStatus struct {
	blockdev.ViewRecord
	Group string
	// UsedBytes is what the view holds of its own.
	UsedBytes int64
	// Failed is why the view shows nothing any more; nil while it does.
	Failed error
}

func newView(g *Group, rec blockdev.ViewRecord) *View {
	v := &View{g: g, rec: rec}
	for _, m := range rec.Volumes {
		v.volumes = append(v.volumes, newViewVolume(v, m))
	}
	return v
}

// create makes the volumes' files in a directory, durably.
func (v *View) create(dir string) error {
	for _, m := range v.volumes {
		if err := m.create(dir); err != nil {
			return err
		}
	}
	return nil
}

// open opens what create made. fs.ErrNotExist: the view has failed.
func (v *View) open() error {
	dir := v.g.cfg.Pool.ViewDir(v.rec.ID)
	for _, m := range v.volumes {
		if err := m.open(dir); err != nil {
			return fmt.Errorf("view %s: volume %s: %w", v.rec.Name, m.VolumeID, err)
		}
	}
	return nil
}

func (v *View) close() {
	for _, m := range v.volumes {
		m.close()
	}
}

// indexRecords makes the index of the records that are not applied, up to the view's place. Nothing may be applied
// meanwhile.
func (v *View) indexRecords(ctx context.Context) error {
	g, limit := v.g, v.place()
	if !g.checkpoint.read().Applied.Before(limit) {
		return nil
	}
	cursor := g.journal.NewCursor(g.checkpoint.read().Applied)
	defer cursor.Close()
	for cursor.Position().Before(limit) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		records, err := cursor.Next(applyChunkBytes)
		if err != nil {
			return fmt.Errorf("group %s: view %s: %w", g.Name(), v.rec.Name, err)
		}
		for i := range records {
			r := &records[i]
			if limit.Before(r.End) {
				return nil
			}
			if m := v.member(r.Header.Volume); m != nil && touchesImage(&r.Header) {
				m.indexRecord(r.Header, r.Loc)
			}
		}
		if len(records) == 0 {
			break
		}
	}
	return nil
}

// Status is the view for people.
func (v *View) Status() ViewStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	return ViewStatus{ViewRecord: v.rec, Group: v.g.Name(), UsedBytes: v.filled * changemap.ExtentBytes,
		Failed: v.outcome.reason}
}

// Volumes are the view's block devices, by volume id.
func (v *View) Volumes() []*ViewVolume { return v.volumes }

// end makes the view show nothing any more, for the first reason that is given.
func (v *View) end(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.outcome.fail(why) // refused if there was a reason before
}

// usable returns why the view shows nothing.
func (v *View) usable() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.outcome.hasFailed() {
		return fmt.Errorf("view %s of group %s: %w", v.rec.Name, v.g.Name(), v.outcome.reason)
	}
	return nil
}

// fail ends the view for good, durably, by removing its logs. An image may change past the view only then. It needs no
// space, as the disk may be full, and gives the view's space back.
func (v *View) fail(why error) error {
	v.end(why)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.outcome.isFinal() {
		return nil
	}
	if !errors.Is(why, errViewDeleted) {
		klog.ErrorS(why, "View failed; delete it", "group", v.g.Name(), "view", v.rec.Name)
	}
	dir := v.g.cfg.Pool.ViewDir(v.rec.ID)
	var err error
	for _, m := range v.volumes {
		err = errors.Join(err, m.removeLog(dir))
	}
	if err == nil {
		err = v.g.cfg.FS.SyncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("view %s of group %s failed (%w), and so did noting that: %w", v.rec.Name, v.g.Name(), why, err)
	}
	for _, m := range v.volumes {
		m.giveBack(dir)
	}
	v.outcome.failureStored()
	v.filled = 0
	return nil
}

// fill charges extents to the view's limit, or gives them back with a negative n.
func (v *View) fill(n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n > 0 && (v.filled+n)*changemap.ExtentBytes > v.rec.LimitBytes {
		return fmt.Errorf("view %s of group %s: %w of %s", v.rec.Name, v.g.Name(), ErrViewFull,
			words.Count(v.rec.LimitBytes, "byte"))
	}
	v.filled += n
	return nil
}

// place is behind the last record that the view shows.
func (v *View) place() journal.Position {
	return journal.Position{Segment: v.rec.Segment, Offset: v.rec.Offset}
}

func (v *View) member(index uint32) *ViewVolume {
	for _, m := range v.volumes {
		if m.Index == index {
			return m
		}
	}
	return nil
}

// take has the view take extents of members, by their indices.
func (v *View) take(touched *changemap.Map) error {
	for _, m := range v.volumes {
		if own := m.part(touched); own.Len() > 0 {
			if err := m.own(own); err != nil {
				return err
			}
		}
	}
	return nil
}
