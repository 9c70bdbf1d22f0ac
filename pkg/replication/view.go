package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
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
	// failed is why the view shows nothing any more; nil while it does. stored: that is durable.
	failed error
	stored bool
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

// views are a group's. Lock order: opMu, Group.applyMu, mu, those of View and ViewVolume.
type views struct {
	g *Group
	// opMu makes creations and deletions one after another. Guards ended.
	opMu  sync.Mutex
	ended bool

	// mu guards list, which is only added to with applyMu held.
	mu   sync.Mutex
	list []*View
}

// all returns the views at this instant.
func (w *views) all() []*View {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

func (w *views) find(name string) *View {
	for _, v := range w.all() {
		if v.rec.Name == name {
			return v
		}
	}
	return nil
}

// CreateView opens the group at a point, at a primary or a secondary. The view exists, durably, when it returns.
// Neither writers nor the link wait for it, and apply no longer than for a cut.
//
// Errors: ErrInvalid for a specification that cannot be right, ErrExists for a name that is taken, core.ErrPrecondition
// for a point that is not there (any more) and in the middle of a sync.
func (g *Group) CreateView(ctx context.Context, spec ViewSpec) (*View, error) {
	w := g.views
	w.opMu.Lock()
	defer w.opMu.Unlock()
	if w.ended {
		return nil, ErrClosed
	}
	rec, err := g.newViewRecord(&spec)
	if err != nil {
		return nil, err
	}
	if err := g.commit(); err != nil {
		return nil, err
	}
	g.applyMu.Lock()
	defer g.applyMu.Unlock()
	// With applyMu held no member leaves, and no image changes.
	at, err := g.points.locate(spec.Point)
	if err != nil {
		return nil, err
	}
	rec.Ordinal, rec.Timeline, rec.PointUnixNanos = at.Ordinal, at.Timeline, at.UnixNanos
	rec.Segment, rec.Offset = at.end.Segment, at.end.Offset
	if rec.Volumes, err = g.viewVolumes(); err != nil {
		return nil, err
	}
	v := newView(g, *rec)
	if err := v.indexRecords(ctx); err != nil {
		return nil, err
	}
	if err := g.cfg.Pool.CreateView(*rec, v.create); err != nil {
		return nil, fmt.Errorf("group %s: %w", g.Name(), err)
	}
	if err := v.open(); err != nil {
		v.close()
		return nil, errors.Join(fmt.Errorf("group %s: %w", g.Name(), err), g.cfg.Pool.DeleteView(rec.ID))
	}
	w.mu.Lock()
	w.list = append(w.list, v)
	w.mu.Unlock()
	klog.InfoS("View opened", "group", g.Name(), "view", rec.Name, "ordinal", rec.Ordinal, "writable", rec.Writable)
	return v, nil
}

// newViewRecord checks what is asked for.
func (g *Group) newViewRecord(spec *ViewSpec) (*blockdev.ViewRecord, error) {
	fail := func(format string, args ...any) (*blockdev.ViewRecord, error) {
		return nil, fmt.Errorf("%w: group %s: view: %s", ErrInvalid, g.Name(), fmt.Sprintf(format, args...))
	}
	id := uuid.NewString()
	if spec.Name == "" {
		spec.Name = id[:8]
	}
	if err := blockdev.ValidateID(spec.Name); err != nil || len(spec.Name) > blockdev.MaxViewNameBytes {
		return fail("name %.80q: want 1 to %d of a-z, 0-9 and -, not beginning with -", spec.Name,
			blockdev.MaxViewNameBytes)
	}
	if v := g.views.find(spec.Name); v != nil {
		return nil, fmt.Errorf("%w: group %s: view %s, at ordinal %d; delete it (slipctl view delete), or give another name",
			ErrExists, g.Name(), spec.Name, v.rec.Ordinal)
	}
	if n := len(g.views.all()); n >= MaxViews {
		return nil, fmt.Errorf("%w: group %s has %d views, the most that there can be; delete one (slipctl view delete)",
			core.ErrPrecondition, g.Name(), n)
	}
	if spec.LimitBytes == 0 {
		_, free, err := g.cfg.Pool.Space()
		if err != nil {
			return nil, err
		}
		var most int64
		for _, v := range g.Volumes() {
			most += v.Size() + changemap.ExtentBytes
		}
		spec.LimitBytes = max(min(free/2, most), minViewBytes)
	}
	if spec.LimitBytes < minViewBytes {
		return fail("a limit of %d bytes, the least is %d", spec.LimitBytes, minViewBytes)
	}
	return &blockdev.ViewRecord{
		ID: id, Name: spec.Name, PoolID: g.cfg.Pool.ID(), GroupID: g.ID(), CreatedUnixNanos: g.cfg.Now().UnixNano(),
		Writable: spec.Writable, Test: spec.Test, LimitBytes: spec.LimitBytes,
	}, nil
}

// viewVolumes are the members as a view of now shows them. The caller holds applyMu.
func (g *Group) viewVolumes() ([]blockdev.ViewVolume, error) {
	var list []blockdev.ViewVolume
	for _, v := range g.Volumes() {
		if _, err := g.cuttable(v.id); err != nil {
			return nil, err
		}
		rec, err := g.cfg.Pool.Get(v.id)
		if err != nil {
			return nil, err
		}
		fsType := ""
		if rec.Format != nil {
			fsType = rec.Format.FSType
		}
		list = append(list, blockdev.ViewVolume{VolumeID: v.id, Index: v.index, SizeBytes: v.size.Load(),
			BlockSizeBytes: rec.BlockSizeBytes, FSType: fsType})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: group %s has no volumes to show", core.ErrPrecondition, g.Name())
	}
	slices.SortFunc(list, func(a, b blockdev.ViewVolume) int { return strings.Compare(a.VolumeID, b.VolumeID) })
	return list, nil
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
			if m := v.member(r.Header.Volume); m != nil && touchesImage(r.Header.Kind) {
				m.indexRecord(r.Header, r.Loc)
			}
		}
		if len(records) == 0 {
			break
		}
	}
	return nil
}

// load takes up the views that the last process left, before anything is applied.
func (w *views) load() error {
	g := w.g
	recs, err := g.cfg.Pool.ListViews()
	if err != nil {
		klog.ErrorS(err, "Some views cannot be read; delete their directories", "group", g.Name())
	}
	for _, rec := range recs {
		if rec.GroupID != g.ID() || rec.PoolID != g.cfg.Pool.ID() {
			continue
		}
		v := newView(g, *rec)
		w.list = append(w.list, v)
		err := v.open()
		if err == nil {
			err = v.indexRecords(context.Background())
		}
		if err == nil {
			continue
		}
		klog.ErrorS(err, "A view cannot be opened any more; delete it", "group", g.Name(), "view", rec.Name)
		if err := v.fail(errViewLost); err != nil {
			return err
		}
	}
	return nil
}

// close ends all views; the next process goes on from what is on disk.
func (w *views) close() {
	w.opMu.Lock()
	w.ended = true
	w.opMu.Unlock()
	for _, v := range w.all() {
		v.end(ErrClosed)
		v.close()
	}
}

// Views returns the group's views, by name.
func (g *Group) Views() []ViewStatus {
	var list []ViewStatus
	for _, v := range g.views.all() {
		list = append(list, v.Status())
	}
	slices.SortFunc(list, func(a, b ViewStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// View returns a view by its name, or ErrNotFound.
func (g *Group) View(name string) (*View, error) {
	if v := g.views.find(name); v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("%w: group %s has no view %q; see slipctl view list", ErrNotFound, g.Name(), name)
}

// ViewVolume returns a volume of a view of any group of the site, or ErrNotFound.
func (s *Site) ViewVolume(viewID string, index uint32) (*ViewVolume, error) {
	for _, g := range s.Groups() {
		for _, v := range g.views.all() {
			if m := v.member(index); v.rec.ID == viewID && m != nil {
				return m, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: view %s with a volume %d", ErrNotFound, viewID, index)
}

// Status is the view for people.
func (v *View) Status() ViewStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	return ViewStatus{ViewRecord: v.rec, Group: v.g.Name(), UsedBytes: v.filled * changemap.ExtentBytes, Failed: v.failed}
}

// Volumes are the view's block devices, by volume id.
func (v *View) Volumes() []*ViewVolume { return v.volumes }

// DeleteView throws a view away, with what was written to it. Its devices return errors from then on. One that is not
// there is ErrNotFound.
func (g *Group) DeleteView(name string) error {
	w := g.views
	w.opMu.Lock()
	defer w.opMu.Unlock()
	v, err := g.View(name)
	if err != nil {
		return err
	}
	if err := v.fail(errViewDeleted); err != nil {
		return err
	}
	if err := g.cfg.Pool.DeleteView(v.rec.ID); err != nil {
		return err
	}
	w.mu.Lock()
	w.list = slices.DeleteFunc(w.list, func(other *View) bool { return other == v })
	w.mu.Unlock()
	v.close()
	klog.InfoS("View deleted", "group", g.Name(), "view", name)
	return nil
}

// end makes the view show nothing any more, for the first reason that is given.
func (v *View) end(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed == nil {
		v.failed = why
	}
}

// usable returns why the view shows nothing.
func (v *View) usable() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed != nil {
		return fmt.Errorf("view %s of group %s: %w", v.rec.Name, v.g.Name(), v.failed)
	}
	return nil
}

// fail ends the view for good, durably, by removing its logs. An image may change past the view only then. It needs no
// space, as the disk may be full, and gives the view's space back.
func (v *View) fail(why error) error {
	v.end(why)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stored {
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
	v.stored, v.filled = true, 0
	return nil
}

// fill charges extents to the view's limit, or gives them back with a negative n.
func (v *View) fill(n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n > 0 && (v.filled+n)*changemap.ExtentBytes > v.rec.LimitBytes {
		return fmt.Errorf("view %s of group %s: %w of %d bytes", v.rec.Name, v.g.Name(), ErrViewFull, v.rec.LimitBytes)
	}
	v.filled += n
	return nil
}

// beforeApply has every view take the extents that records behind its place are about to change.
func (w *views) beforeApply(records []journal.Record) error {
	return w.each(func(v *View) error {
		at, touched := v.place(), changemap.New()
		for i := range records {
			h := &records[i].Header
			if at.Before(records[i].End) && touchesImage(h.Kind) && v.member(h.Volume) != nil {
				touched.Mark(h.Volume, h.Offset, int64(h.Length))
			}
		}
		return v.take(touched)
	})
}

// beforeChange has every view take extents of members, by their indices, that are about to change in the images.
func (w *views) beforeChange(touched *changemap.Map) error {
	return w.each(func(v *View) error { return v.take(touched) })
}

// each has every view take what is about to change. A view that cannot fails.
func (w *views) each(take func(v *View) error) error {
	for _, v := range w.all() {
		err := v.usable()
		if err == nil {
			err = take(v)
		}
		if errors.Is(err, ErrClosed) {
			return err // nothing may be applied any more
		}
		if err != nil { // also where an earlier failure is not stored yet
			if err := v.fail(err); err != nil {
				return err
			}
		}
	}
	return nil
}

// place is behind the last record that the view shows.
func (v *View) place() journal.Position {
	return journal.Position{Segment: v.rec.Segment, Offset: v.rec.Offset}
}

// stop returns the place of the first view between two positions, or the second position.
func (w *views) stop(from, to journal.Position) journal.Position {
	for _, v := range w.all() {
		if at := v.place(); from.Before(at) && at.Before(to) {
			to = at
		}
	}
	return to
}

// applied takes a record that is in its image now out of the indices of views.
func (w *views) applied(r *journal.Record) {
	for _, v := range w.all() {
		if m := v.member(r.Header.Volume); m != nil {
			m.index.Remove(r.Header.Offset, int64(r.Header.Length), r.Loc)
		}
	}
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

// showing returns a view that shows a volume; nil if none does.
func (w *views) showing(volumeID string) *View {
	for _, v := range w.all() {
		for _, m := range v.volumes {
			if m.VolumeID == volumeID && v.usable() == nil {
				return v
			}
		}
	}
	return nil
}

// failAll fails the views that show a volume, durably: its image leaves the group's care.
func (w *views) failAll(volumeID string, why error) error {
	for {
		v := w.showing(volumeID)
		if v == nil {
			return nil
		}
		if err := v.fail(why); err != nil {
			return err
		}
	}
}
