package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// view opens a view of everything at one of the sites, goes on writing, and demands that the view stays what it was.
func (c *deviceCircle) view() error {
	if err := c.settle(); err != nil {
		return err
	}
	s := pick(c.rng, c.primary, c.secondary)
	c.names++
	name := fmt.Sprintf("view-%d", c.names)
	_, err := s.Sidecar.CreateView(c.ctx, &sidecarpb.CreateViewRequest{Group: c.group, Name: name})
	if err != nil {
		return c.h.violation("no view can be opened at %s: %v", s.Config.Name, err)
	}
	want := c.h.lineContent(c.primary.line, uint64(len(c.primary.line)))
	for range 2 {
		if err := c.judgeView(s, name, want); err != nil {
			return err
		}
		err := c.harass(func() error { return c.write(c.primary, 1+c.rng.IntN(20)) })
		if err != nil {
			return err
		}
		c.tally.views.Add(1)
	}
	if err := c.deleteView(s, name); err != nil {
		return err
	}
	return c.settle()
}

func (c *deviceCircle) deleteView(s *deviceSite, name string) error {
	return c.persist("deleting "+name+" at "+s.Config.Name, func() error {
		_, err := s.Sidecar.DeleteView(c.ctx, &sidecarpb.DeleteViewRequest{Group: c.group, Name: name})
		return err
	})
}

// testFailover opens the secondary's volumes as writable views, writes to them, and throws them away. The view shows
// the copy and its own writes only, and the copy is none the worse for it: nothing is copied again.
func (c *deviceCircle) testFailover() error {
	if err := c.settle(); err != nil {
		return err
	}
	s := c.secondary
	c.names++
	name := fmt.Sprintf("test-%d", c.names)
	_, err := s.Sidecar.CreateView(c.ctx, &sidecarpb.CreateViewRequest{Group: c.group, Name: name, Writable: true,
		Test: true})
	if err != nil {
		return c.h.violation("no test failover at %s: %v", s.Config.Name, err)
	}
	line := slices.Clone(c.primary.line)
	for range 2 {
		if line, err = c.writeToView(s, name, line); err != nil {
			return err
		}
		if err := c.harass(func() error { return c.write(c.primary, 1+c.rng.IntN(20)) }); err != nil {
			return err
		}
		if err := c.judgeView(s, name, c.h.lineContent(line, uint64(len(line)))); err != nil {
			return err
		}
	}
	if err := c.deleteView(s, name); err != nil {
		return err
	}
	if err := c.settle(); err != nil {
		return err
	}
	g, err := c.primary.Group(c.ctx, c.group)
	if err != nil {
		return err
	}
	if n := g.GetSyncTotalBytes(); n != 0 {
		return c.h.violation("%d bytes are copied after a test failover", n)
	}
	c.tally.testFailovers.Add(1)
	return nil
}

// writeToView writes to the volumes of a view, durably, and returns what it shows then.
func (c *deviceCircle) writeToView(s *deviceSite, name string, line []entry) ([]entry, error) {
	v, err := c.attachView(s, name)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, deviceMaxBlocks*blockBytes)
	for _, volume := range v.GetVolumes() {
		f, err := os.OpenFile(volume.GetPath(), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("%s at %s: %w", name, s.Config.Name, err)
		}
		for range 1 + c.rng.IntN(5) {
			n := 1 + c.rng.IntN(deviceMaxBlocks)
			o := c.h.draft(c.number(volume.GetVolumeId()), c.rng.IntN(int(volume.GetSizeBytes()/blockBytes)-n+1), n)
			p := buf[:n*blockBytes]
			stamp(p, c.seed, o)
			if _, err = f.WriteAt(p, int64(o.block)*blockBytes); err != nil {
				break
			}
			line = append(line, entry{op: o})
		}
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return nil, c.h.violation("a write to %s at %s: %v", name, s.Config.Name, err)
		}
	}
	return line, nil
}

// bookmark names the state that the primary is in, goes on, and demands that a view of the bookmark at the secondary,
// which keeps history meanwhile, is that state.
func (c *deviceCircle) bookmark() error {
	if err := c.keepHistory(time.Hour); err != nil {
		return err
	}
	if err := c.write(c.primary, c.rng.IntN(10)); err != nil {
		return err
	}
	c.names++
	label := fmt.Sprintf("mark-%d", c.names)
	want := c.h.lineContent(c.primary.line, uint64(len(c.primary.line)))
	err := c.harass(func() error {
		return c.persist("setting bookmark "+label, func() error {
			_, err := c.primary.Sidecar.BookmarkGroup(c.ctx, &sidecarpb.BookmarkGroupRequest{Group: c.group, Label: label})
			if status.Code(err) == codes.AlreadyExists { // the answer was lost
				err = nil
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	if err := c.harass(func() error { return c.write(c.primary, 1+c.rng.IntN(10)) }); err != nil {
		return err
	}
	var ordinals [2]uint64
	for i, s := range []*deviceSite{c.primary, c.secondary} {
		err := c.eventually("bookmark "+label+" at "+s.Config.Name, func() (bool, string) {
			points, err := s.Sidecar.GroupPoints(c.ctx, &sidecarpb.GroupPointsRequest{Group: c.group})
			for _, b := range points.GetBookmarks() {
				if b.GetLabel() == label {
					ordinals[i] = b.GetPoint().GetOrdinal()
				}
			}
			return ordinals[i] != 0, fmt.Sprint(points, err)
		})
		if err != nil {
			return err
		}
	}
	if ordinals[0] != ordinals[1] {
		return c.h.violation("bookmark %s is at ordinal %d at %s, and at %d at %s", label, ordinals[0],
			c.primary.Config.Name, ordinals[1], c.secondary.Config.Name)
	}
	var v *sidecarpb.View
	err = c.persist("a view of bookmark "+label, func() (err error) {
		v, err = c.secondary.Sidecar.CreateView(c.ctx, &sidecarpb.CreateViewRequest{Group: c.group, Name: label,
			Point: &sidecarpb.CreateViewRequest_Bookmark{Bookmark: label}})
		return err
	})
	if err != nil {
		return err
	}
	if v.GetOrdinal() != ordinals[1] {
		return c.h.violation("the view of bookmark %s is of ordinal %d, not of %d", label, v.GetOrdinal(), ordinals[1])
	}
	if err := c.judgeView(c.secondary, label, want); err != nil {
		return err
	}
	if err := c.deleteView(c.secondary, label); err != nil {
		return err
	}
	c.tally.bookmarks.Add(1)
	if err := c.keepHistory(0); err != nil {
		return err
	}
	return c.settle()
}

// keepHistory has the secondary keep history, or no longer, and waits until it knows.
func (c *deviceCircle) keepHistory(history time.Duration) error {
	err := c.persist("setting the history", func() error {
		_, err := c.primary.Sidecar.ModifyGroup(c.ctx, &sidecarpb.ModifyGroupRequest{Name: c.group,
			Settings: &sidecarpb.GroupSettings{HistoryMillis: new(history.Milliseconds())}})
		return err
	})
	if err != nil {
		return err
	}
	return c.eventually("the history at "+c.secondary.Config.Name, func() (bool, string) {
		g, err := c.secondary.Group(c.ctx, c.group)
		return g.GetHistoryTargetSeconds() == history.Seconds(), fmt.Sprint(g, err)
	})
}

func (c *deviceCircle) judgeView(s *deviceSite, name string, want content) error {
	v, err := c.attachView(s, name)
	if err != nil {
		return err
	}
	who := fmt.Sprintf("%s at %s", name, s.Config.Name)
	shown := make(content, len(want))
	for i := range shown {
		shown[i] = shownVolume{absent: true, perBlock: 1}
	}
	for _, volume := range v.GetVolumes() {
		f, err := os.Open(volume.GetPath())
		if err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		number := c.number(volume.GetVolumeId())
		shown[number], err = c.h.read(c.seed, number, &device{f, volume.GetSizeBytes()}, true)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
	}
	return c.h.checkImage(who, shown, want)
}

// attachView returns a view whose volumes can be read.
func (c *deviceCircle) attachView(s *deviceSite, name string) (v *sidecarpb.View, err error) {
	err = c.persist("attaching view "+name, func() (err error) {
		v, err = s.Sidecar.AttachView(c.ctx, &sidecarpb.AttachViewRequest{Group: c.group, Name: name})
		return err
	})
	if err == nil && v.GetFailed() != "" {
		err = c.h.violation("%s at %s: %s", name, s.Config.Name, v.GetFailed())
	}
	return v, err
}
