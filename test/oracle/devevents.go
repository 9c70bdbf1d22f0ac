package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// event draws what is done next.
func (c *deviceCircle) event() error {
	if err := c.write(c.primary, c.rng.IntN(20)); err != nil {
		return err
	}
	events := []struct {
		name string
		do   func() error
	}{
		{"fork", func() error { return c.fork(c.rng.IntN(3) == 0) }}, {"relocation", c.relocate}, {"outage", c.resync},
		{"view", c.view}, {"comparison", c.verify}, {"change of members", c.members},
		{"test failover", c.testFailover}, {"bookmark", c.bookmark}, {"suspension", c.suspend},
	}
	e := events[c.rng.IntN(len(events))]
	c.h.note("%s, %s is primary", e.name, c.primary.Config.Name)
	return e.do()
}

// fork promotes the secondary, most of the time while the lines are cut, has both sites write, and lets one of them
// give way: the old primary, or the promoted site.
func (c *deviceCircle) fork(promotedYields bool) error {
	old, now := c.primary, c.secondary
	if c.rng.IntN(3) > 0 { // else the old primary may hear of it before it writes past it
		c.sites.cut()
	}
	if err := c.write(old, 1+c.rng.IntN(20)); err != nil {
		return err
	}
	if err := c.promote(now, old.line); err != nil {
		return err
	}
	at := len(now.line)
	c.h.note("%s was promoted after %d of %d entries of %s", now.Config.Name, at, len(old.line), old.Config.Name)
	fork := slices.Clone(now.line)
	c.killed = false
	err := c.harass(func() error {
		for range 3 {
			if err := c.write(now, 1+c.rng.IntN(10)); err != nil {
				return err
			}
			if err := c.write(old, 1+c.rng.IntN(10)); err != nil {
				return err
			}
		}
		return nil
	})
	c.sites.heal()
	if err != nil {
		return err
	}
	if err := c.lossIsExact(old, now, len(fork)); err != nil {
		return err
	}
	c.tally.forks.Add(1)
	loser, winner := old, now
	if promotedYields {
		loser, winner = now, old
		c.tally.loserPromoted.Add(1)
	}
	return c.yield(loser, winner)
}

// promote promotes a copy by force, opens its volumes, and demands that it is what a line was after some of its
// entries.
func (c *deviceCircle) promote(s *deviceSite, line []entry) error {
	who := "the promoted copy at " + s.Config.Name
	err := c.persist("the promotion at "+s.Config.Name, func() error {
		_, err := s.Sidecar.Promote(c.ctx, &sidecarpb.PromoteRequest{Group: c.group, Force: true})
		return err
	})
	if err != nil {
		return err
	}
	var g *sidecarpb.GroupStatus
	err = c.eventually("the status of "+who, func() (bool, string) {
		g, err = s.Group(c.ctx, c.group)
		return err == nil && g.GetRole() == sidecarpb.Role_ROLE_PRIMARY, fmt.Sprint(g, err)
	})
	if err != nil {
		return err
	}
	for _, member := range g.GetVolumes() {
		number := c.number(member.GetVolumeId())
		if number < 0 {
			return c.h.violation("%s has volume %s, which was never made", who, member.GetVolumeId())
		}
		if err := c.open(s, number); err != nil {
			return err
		}
	}
	shown, err := c.read(s)
	if err != nil {
		return err
	}
	n, err := c.prefix(who, shown, line, c.floor)
	if err != nil {
		return err
	}
	c.tally.drills.Add(1)
	s.line = slices.Clone(line[:n])
	// Volumes come and go at a copy a little before the record that says so.
	for number, v := range c.h.lineContent(s.line, n) {
		switch {
		case v.absent && !shown[number].absent:
			s.line = append(s.line, entry{member: &memberChange{volume: number, blocks: len(shown[number].units)}})
		case !v.absent && shown[number].absent:
			s.line = append(s.line, entry{member: &memberChange{volume: number, gone: true}})
		case !v.absent && len(v.units) < len(shown[number].units):
			s.line = append(s.line, entry{member: &memberChange{volume: number, blocks: len(shown[number].units)}})
		}
	}
	return nil
}

// yield has a site give way, and judges its tail and both copies.
func (c *deviceCircle) yield(loser, winner *deviceSite) error {
	had := c.h.lineContent(loser.line, uint64(len(loser.line)))
	if err := c.unmount(loser); err != nil {
		return err
	}
	c.primary, c.secondary = winner, loser
	err := c.harass(func() error {
		return c.persist("giving way at "+loser.Config.Name, func() error {
			_, err := loser.Sidecar.Yield(c.ctx, &sidecarpb.YieldRequest{Group: c.group})
			return err
		})
	})
	if err != nil {
		return err
	}
	c.h.note("%s has given way", loser.Config.Name)
	loser.tails = append(loser.tails, had)
	err = c.harass(func() error {
		if err := c.write(winner, 1+c.rng.IntN(20)); err != nil {
			return err
		}
		return c.settle()
	})
	if err != nil {
		return err
	}
	return c.judgeTails()
}

// relocate moves the group as planned.
func (c *deviceCircle) relocate() error {
	if err := c.settle(); err != nil {
		return err
	}
	p, s := c.primary, c.secondary
	numbers := p.numbers()
	if err := c.unmount(p); err != nil {
		return err
	}
	err := c.harass(func() error {
		return c.persist("moving from "+p.Config.Name, func() error {
			_, err := p.Sidecar.Relocate(c.ctx, &sidecarpb.RelocateRequest{Group: c.group, TimeoutMillis: 2000})
			return err
		})
	})
	if err != nil {
		return err
	}
	c.h.note("moved from %s to %s", p.Config.Name, s.Config.Name)
	c.primary, c.secondary = s, p
	c.tally.relocations.Add(1)
	for _, number := range numbers {
		if err := c.open(s, number); err != nil {
			return err
		}
	}
	return c.harass(func() error {
		if err := c.write(s, c.rng.IntN(20)); err != nil {
			return err
		}
		return c.settle()
	})
}

// resync cuts the lines for longer than the journal lasts.
func (c *deviceCircle) resync() error {
	c.sites.cut()
	for written, from := 0, len(c.primary.line); written < deviceJournalBytes*5/4; from = len(c.primary.line) {
		if err := c.write(c.primary, 32); err != nil {
			return err
		}
		for _, e := range c.primary.line[from:] {
			written += e.op.n * blockBytes
		}
	}
	c.sites.heal()
	c.tally.resyncs.Add(1)
	return c.harass(func() error {
		if err := c.write(c.primary, c.rng.IntN(20)); err != nil {
			return err
		}
		return c.settle()
	})
}

// suspend stops the stream for a while, in which both sites keep that they are suspended, and the copy what it had.
func (c *deviceCircle) suspend() error {
	if err := c.settle(); err != nil {
		return err
	}
	p, s := c.primary, c.secondary
	err := c.persist("suspending at "+p.Config.Name, func() error {
		_, err := p.Sidecar.Suspend(c.ctx, &sidecarpb.SuspendRequest{Group: c.group})
		return err
	})
	if err != nil {
		return err
	}
	before, err := s.Group(c.ctx, c.group)
	if err != nil {
		return err
	}
	c.h.note("suspended at ordinal %d", before.GetHeadOrdinal())
	err = c.harass(func() error { return c.write(p, 1+c.rng.IntN(20)) })
	if err != nil {
		return err
	}
	c.pause(time.Duration(c.rng.IntN(200)) * time.Millisecond) // a stream that is open would send what was written
	a, errA := p.Group(c.ctx, c.group)
	b, errB := s.Group(c.ctx, c.group)
	switch {
	case errA != nil || errB != nil:
		return errors.Join(errA, errB)
	case a.SuspendedUnixNanos == nil:
		return c.h.violation("%s does not know any more that the group is suspended: %v", p.Config.Name, a)
	case b.GetHeadOrdinal() != before.GetHeadOrdinal() || a.GetHeadOrdinal() == before.GetHeadOrdinal():
		return c.h.violation("%s has ordinal %d and %s has %d, the group was suspended at %d", p.Config.Name,
			a.GetHeadOrdinal(), s.Config.Name, b.GetHeadOrdinal(), before.GetHeadOrdinal())
	case !b.GetPromotable():
		return c.h.violation("the copy at %s cannot be promoted while the group is suspended: %v", s.Config.Name, b)
	}
	err = c.persist("resuming at "+p.Config.Name, func() error {
		_, err := p.Sidecar.Resume(c.ctx, &sidecarpb.ResumeRequest{Group: c.group})
		return err
	})
	if err != nil {
		return err
	}
	c.tally.suspensions.Add(1)
	return c.harass(c.settle)
}

// members adds a volume, removes one or grows one, and goes on under kills.
func (c *deviceCircle) members() error {
	p := c.primary
	const most = 4
	numbers := p.numbers()
	number := numbers[c.rng.IntN(len(numbers))]
	v := c.volumes[number]
	switch draw := c.rng.IntN(3); {
	case draw == 0 && len(numbers) < most:
		if err := c.add(); err != nil {
			return err
		}
	case draw == 1 && len(numbers) > 1:
		_, err := p.Sidecar.RemoveVolume(c.ctx, &sidecarpb.RemoveVolumeRequest{Group: c.group, VolumeId: v.ID})
		if err != nil {
			return c.h.violation("volume %s cannot be removed: %v", v.ID, err)
		}
		d := p.devices[number]
		delete(p.devices, number)
		if err := d.f.Close(); err != nil {
			return err
		}
		if err := p.Unmount(c.ctx, v); err != nil {
			return err
		}
		p.line = append(p.line, entry{member: &memberChange{volume: number, gone: true}})
		c.h.note("volume %d removed at %s", number, p.Config.Name)
		c.tally.removed.Add(1)
	default:
		d := p.devices[number]
		size := d.size + int64(1+c.rng.IntN(16))<<16
		if err := p.Expand(c.ctx, v, size, 0); err != nil {
			return c.h.violation("volume %s cannot be grown: %v", v.ID, err)
		}
		end, err := d.f.Seek(0, io.SeekEnd)
		if err != nil || end != size {
			return c.h.violation("volume %s was grown to %d bytes and has %d: %v", v.ID, size, end, err)
		}
		d.size = size
		p.line = append(p.line, entry{member: &memberChange{volume: number, blocks: int(size / blockBytes)}})
		c.h.note("volume %d grown to %d bytes at %s", number, size, p.Config.Name)
		c.tally.grown.Add(1)
	}
	return c.harass(func() error {
		if err := c.write(p, 1+c.rng.IntN(20)); err != nil {
			return err
		}
		return c.settle()
	})
}
