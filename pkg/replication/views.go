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

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// views are a group's. Lock order: opMu, applier.mu, mu, those of View and ViewVolume.
type views struct {
	g *Group
	// opMu makes creations and deletions one after another. Guards ended.
	opMu  sync.Mutex
	ended bool

	// mu guards list, which is only added to with applier.mu held.
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
	return g.views.create(ctx, spec)
}

// create is Group.CreateView.
func (w *views) create(ctx context.Context, spec ViewSpec) (*View, error) {
	g := w.g
	w.opMu.Lock()
	defer w.opMu.Unlock()
	if w.ended {
		return nil, ErrClosed
	}
	rec, err := w.newRecord(&spec)
	if err != nil {
		return nil, err
	}
	if err := g.log.commit(); err != nil {
		return nil, err
	}
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	// With applier.mu held no member leaves, and no image changes.
	at, err := g.points.locate(spec.Point)
	if err != nil {
		return nil, err
	}
	rec.Ordinal, rec.Timeline, rec.PointUnixNanos = at.Ordinal, at.Timeline, at.UnixNanos
	rec.Segment, rec.Offset = at.end.Segment, at.end.Offset
	if rec.Epoch = spec.Epoch; rec.Epoch != "" {
		for _, id := range spec.Shards {
			rec.Shards = append(rec.Shards, uint16(id))
		}
	}
	if rec.Volumes, err = w.members(); err != nil {
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

// newRecord checks what is asked for.
func (w *views) newRecord(spec *ViewSpec) (*blockdev.ViewRecord, error) {
	g := w.g
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
	if v := w.find(spec.Name); v != nil {
		return nil, fmt.Errorf("%w: group %s has a view %s at ordinal %d; delete it (`slipctl view delete %[2]s "+
			"%[3]s`), or give another name", ErrExists, g.Name(), spec.Name, v.rec.Ordinal)
	}
	if n := len(w.all()); n >= MaxViews {
		return nil, fmt.Errorf("%w: group %s has %s, the most that there can be; delete one (slipctl view delete)",
			core.ErrPrecondition, g.Name(), words.Count(n, "view"))
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
		return fail("a limit of %s, the least is %d", words.Count(spec.LimitBytes, "byte"), minViewBytes)
	}
	return &blockdev.ViewRecord{
		ID: id, Name: spec.Name, PoolID: g.cfg.Pool.ID(), GroupID: g.ID(), CreatedUnixNanos: g.cfg.Now().UnixNano(),
		Writable: spec.Writable, Test: spec.Test, LimitBytes: spec.LimitBytes,
	}, nil
}

// members are the members as a view of now shows them. The caller holds applier.mu.
func (w *views) members() ([]blockdev.ViewVolume, error) {
	g := w.g
	var list []blockdev.ViewVolume
	for _, v := range g.Volumes() {
		if _, err := g.cuts.cuttable(v.id); err != nil {
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

// load takes up the views that the last process left, before anything is applied. One that is lost fails. With any
// other error nothing may be applied: a view that is opened later would show what changed meanwhile.
func (w *views) load() error {
	g := w.g
	recs, err := g.cfg.Pool.ListViews()
	if err != nil && !recordfile.OnlyCorrupt(err) {
		return g.unopened("its views", err)
	}
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
		if !viewIsLost(err) {
			return g.unopened("view "+rec.Name, err)
		}
		klog.ErrorS(err, "A view cannot be opened any more; delete it", "group", g.Name(), "view", rec.Name)
		if err := v.fail(errViewLost); err != nil {
			return err
		}
	}
	return nil
}

// viewIsLost reports whether an error says that a view can never be opened again: a volume has left the group, or the
// view's files or the records that it shows are gone or damaged.
func viewIsLost(err error) bool {
	var corrupt *journal.CorruptionError
	return isLost(err) || errors.Is(err, errViewMember) || errors.Is(err, journal.ErrReleased) ||
		errors.Is(err, journal.ErrDataCRC) || errors.As(err, &corrupt)
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
func (g *Group) Views() []ViewStatus { return g.views.statuses() }

// statuses is Group.Views.
func (w *views) statuses() []ViewStatus {
	var list []ViewStatus
	for _, v := range w.all() {
		list = append(list, v.Status())
	}
	slices.SortFunc(list, func(a, b ViewStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// View returns a view by its name, or ErrNotFound.
func (g *Group) View(name string) (*View, error) { return g.views.get(name) }

// get is Group.View.
func (w *views) get(name string) (*View, error) {
	if v := w.find(name); v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("%w: group %s has no view %q; see slipctl view list", ErrNotFound, w.g.Name(), name)
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

// DeleteView throws a view away, with what was written to it. Its devices return errors from then on. One that is not
// there is ErrNotFound.
func (g *Group) DeleteView(name string) error { return g.views.remove(name) }

// remove is Group.DeleteView.
func (w *views) remove(name string) error {
	g := w.g
	w.opMu.Lock()
	defer w.opMu.Unlock()
	v, err := w.get(name)
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

// beforeApply has every view take the extents that records behind its place are about to change.
func (w *views) beforeApply(records []journal.Record) error {
	return w.each(func(v *View) error {
		at, touched := v.place(), changemap.New()
		for i := range records {
			h := &records[i].Header
			if at.Before(records[i].End) && touchesImage(h) && v.member(h.Volume) != nil {
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
