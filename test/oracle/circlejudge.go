package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// promoteBy promotes a copy by force, and demands that it is a prefix of one of the lines. It returns its ordinal.
func (c *circle) promoteBy(s *memSite, who string, lines ...[]entry) (uint64, *core.Loss, error) {
	if st := s.group().Status(); c.whole && !st.Promotable {
		return 0, nil, c.h.violation("%s had a whole copy, and cannot be promoted: %v", who, st)
	}
	var loss *core.Loss
	err := c.eventually("the promotion of "+who, func() (bool, string) {
		var err error
		loss, err = s.group().Promote(true)
		return err == nil || !errors.Is(err, core.ErrPrecondition), fmt.Sprint(err)
	})
	if err != nil {
		return 0, nil, err
	}
	err = c.eventually("the group of "+who, func() (bool, string) { return s.group() != nil, fmt.Sprint(s.site.Broken()) })
	if err != nil {
		return 0, nil, err
	}
	if loss == nil {
		return 0, nil, c.h.violation("%s cannot be promoted", who)
	}
	at := s.group().Status().HeadOrdinal
	if at != loss.RecoveredOrdinal || at < c.floor {
		return 0, nil, c.h.violation("%s was promoted at ordinal %d, reports %d, and had a whole copy of %d", who, at,
			loss.RecoveredOrdinal, c.floor)
	}
	var wrong error
	for _, line := range lines {
		if wrong = c.holds(s, who, line, at, leaving(line, at)...); wrong == nil {
			return at, loss, nil
		}
	}
	return 0, nil, wrong
}

// leaving are the volumes that leave the group behind an ordinal. A secondary takes them out before it has the record
// that says so: a crash between the two must not leave a member that is gone at the primary.
func leaving(line []entry, n uint64) (list []int) {
	for _, e := range line[min(n, uint64(len(line))):] {
		if e.member != nil && e.member.gone {
			list = append(list, e.member.volume)
		}
	}
	return list
}

// drill asks what a promotion of the secondary would give if the power of both sites failed at this instant. others are
// lines that it may be of, beside its primary's.
func (c *circle) drill(when string, others ...[]entry) error {
	c.observe()
	clone := c.secondary.clone(c.unsynced(), c.rng)
	who := fmt.Sprintf("the secondary at %s in a drill, %s", clone.name, when)
	if err := clone.open(); err != nil {
		return c.h.violation("%s does not start: %v", who, err)
	}
	defer clone.kill()
	g := clone.group()
	if g == nil {
		return c.h.violation("%s has forgotten its group", who)
	}
	st := g.Status()
	if st.Role != core.RoleSecondary {
		return nil // it gives way, and does not follow yet
	}
	if st.Before != nil {
		c.tally.circle.drillsInSync.Add(1)
	}
	if !st.Promotable && !c.whole {
		return nil
	}
	c.tally.circle.drills.Add(1)
	_, _, err := c.promoteBy(clone, who, append([][]entry{c.primary.line}, others...)...)
	return err
}

// openView opens a view of a site at a point, and judges it.
func (c *circle) openView(s *circleSite, at replication.Point, test bool) error {
	c.names++
	name := fmt.Sprintf("view-%d", c.names)
	v, err := s.group().CreateView(c.ctx, replication.ViewSpec{Name: name, Point: at, Writable: test, Test: test})
	if errors.Is(err, core.ErrPrecondition) || errors.Is(err, replication.ErrNotFound) {
		c.h.note("no view at %s: %v", s.name, err)
		return nil // the point has gone, or a sync runs
	}
	if err != nil {
		return c.h.violation("no view can be opened at %s: %v", s.name, err)
	}
	o := &openView{name: name, ordinal: v.Status().Ordinal}
	if at.Ordinal != 0 && o.ordinal != at.Ordinal {
		return c.h.violation("the view of ordinal %d is of %d", at.Ordinal, o.ordinal)
	}
	if o.ordinal > uint64(len(c.primary.line)) {
		return c.h.violation("the view at %s is of ordinal %d, only %d were written", s.name, o.ordinal, len(c.primary.line))
	}
	o.shows = c.h.lineContent(c.primary.line, o.ordinal)
	for _, device := range v.Volumes() {
		o.volumes = append(o.volumes, device.VolumeID)
	}
	for _, number := range leaving(c.primary.line, o.ordinal) {
		if !o.has(c.h.models()[number]) {
			o.shows[number].absent = true
		}
	}
	s.views = append(s.views, o)
	c.h.note("view %s of ordinal %d opened at %s", name, o.ordinal, s.name)
	c.tally.circle.views.Add(1)
	return c.judgeView(s, o)
}

// judgeView demands that a view shows what it has to.
func (c *circle) judgeView(s *circleSite, o *openView) error {
	who := fmt.Sprintf("view %s of ordinal %d at %s", o.name, o.ordinal, s.name)
	v, err := s.group().View(o.name)
	if err != nil {
		return c.h.violation("%s: %v", who, err)
	}
	if st := v.Status(); st.Failed != nil {
		for number, now := range c.h.lineContent(c.primary.line, uint64(len(c.primary.line))) {
			if now.absent && o.has(c.h.models()[number]) {
				return c.deleteView(s, o) // it has ended with a volume that left the group
			}
		}
		return c.h.violation("%s: %v", who, st.Failed)
	}
	shown := make(content, len(o.shows))
	for i := range shown {
		shown[i] = shownVolume{absent: true, perBlock: 1}
	}
	models := c.h.models()
	for _, device := range v.Volumes() {
		number := slices.IndexFunc(models, func(m *volumeModel) bool { return m.id == device.VolumeID })
		if number >= len(shown) {
			return c.h.violation("%s shows volume %s, which came later", who, device.VolumeID)
		}
		if shown[number], err = c.h.read(c.p.seed, number, device, true); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
	}
	return c.h.checkImage(who, shown, o.shows)
}

// view opens a view at a random point of a random site.
func (c *circle) view() error {
	s := pick(c.rng, c.primary, c.secondary)
	points, err := s.group().Points()
	if errors.Is(err, core.ErrPrecondition) {
		return nil // a sync runs
	}
	if err != nil {
		return c.h.violation("the recovery points of %s are not known: %v", s.name, err)
	}
	at := replication.Point{}
	if from, to := points.Oldest.Ordinal, points.Newest.Ordinal; c.rng.IntN(2) == 0 && to > 0 && from <= to {
		at.Ordinal = max(1, from+c.rng.Uint64N(to-from+1))
	}
	return c.openView(s, at, false)
}

// judgeViews judges all views again, and deletes some of them.
func (c *circle) judgeViews() error {
	for _, s := range []*circleSite{c.primary, c.secondary} {
		for _, o := range slices.Clone(s.views) {
			if err := c.judgeView(s, o); err != nil {
				return err
			}
			c.tally.circle.viewsLater.Add(1)
			if slices.Contains(s.views, o) && c.rng.IntN(2) == 0 {
				if err := c.deleteView(s, o); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *circle) deleteView(s *circleSite, o *openView) error {
	if err := s.group().DeleteView(o.name); err != nil {
		return c.h.violation("view %s cannot be deleted at %s: %v", o.name, s.name, err)
	}
	s.views = slices.DeleteFunc(s.views, func(v *openView) bool { return v == o })
	return nil
}

// has reports whether a view shows a volume. It may show one that joined a little later than its ordinal (see
// checkImage).
func (o *openView) has(m *volumeModel) bool { return slices.Contains(o.volumes, m.id) }

// closeViews deletes the views of a site that show a volume: they keep it in the group.
func (c *circle) closeViews(s *circleSite, number int) error {
	for _, o := range slices.Clone(s.views) {
		if !o.has(c.h.models()[number]) {
			continue
		}
		if err := c.deleteView(s, o); err != nil {
			return err
		}
	}
	return nil
}

// testFailover opens the secondary's volumes as writable views, writes to them, and throws them away. The copy is none
// the worse for it, and nothing is copied again.
func (c *circle) testFailover() error {
	if err := c.settle("catching up for a test failover"); err != nil {
		return err
	}
	s := c.secondary
	before := len(s.views)
	if err := c.openView(s, replication.Point{}, true); err != nil {
		return err
	}
	if len(s.views) == before {
		return nil
	}
	o := s.views[before]
	v, err := s.group().View(o.name)
	if err != nil {
		return err
	}
	devices := v.Volumes()
	for range 1 + c.rng.IntN(10) {
		device := devices[c.rng.IntN(len(devices))]
		n := min(device.Size(), blockBytes*(1+c.rng.Int64N(8)))
		if _, err := device.WriteAt(make([]byte, n), 0); err != nil {
			return c.h.violation("view %s takes no writes: %v", o.name, err)
		}
	}
	if err := c.write(c.primary, c.rng.IntN(20)); err != nil {
		return err
	}
	if c.rng.IntN(2) == 0 {
		if err := c.deleteView(s, o); err != nil {
			return err
		}
	}
	if err := c.settle("a test failover"); err != nil {
		return err
	}
	if total := c.primary.group().Status().SyncTotalBytes; orZero(total) != 0 {
		return c.h.violation("%d bytes are copied after a test failover", *total)
	}
	c.tally.circle.testFailovers.Add(1)
	if slices.Contains(s.views, o) {
		return c.deleteView(s, o)
	}
	return nil
}

// judgeTails demands that every tail is there, and holds exactly what its site had.
func (c *circle) judgeTails() error {
	for _, s := range []*circleSite{c.primary, c.secondary} {
		list, err := s.site.Tails(groupName)
		if err != nil {
			return err
		}
		if len(list) != len(s.tails) {
			return c.h.violation("%s has %d tails, it gave way %d times with writes of its own", s.name, len(list),
				len(s.tails))
		}
		models := c.h.models()
		for i, want := range s.tails {
			// The newest comes first.
			have := list[len(list)-1-i]
			who := fmt.Sprintf("tail %s at %s", have.ID, s.name)
			shown := make(content, len(want.holds))
			for i := range shown {
				shown[i] = shownVolume{absent: true, perBlock: 1}
			}
			for _, snap := range have.Snapshots {
				number := slices.IndexFunc(models, func(m *volumeModel) bool { return m.id == snap.SourceVolumeID })
				image, err := openSnapshot(s.memSite, snap.ID)
				if err != nil {
					return c.h.violation("%s: %v", who, err)
				}
				shown[number], err = c.h.read(c.p.seed, number, image, true)
				image.Close()
				if err != nil {
					return fmt.Errorf("%s: %w", who, err)
				}
			}
			if have.Cut.Ordinal != want.head {
				return c.h.violation("%s is of ordinal %d, the site had %d", who, have.Cut.Ordinal, want.head)
			}
			if err := c.h.checkImage(who, shown, want.holds); err != nil {
				return err
			}
			c.tally.circle.tails.Add(1)
		}
	}
	return nil
}
