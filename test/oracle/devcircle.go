package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// A circle on devices is a circle (circle.go) on real processes, FUSE mounts and loop devices: the group forks and one
// of its sites gives way, it moves, falls behind, is shown in views and compared, and volumes come and go, while the
// replicators of both sites are killed with SIGKILL at random moments.
//
// The driving goroutine is the only writer, and a write to the device returns when it is durable. So a copy has to be
// what the line of a site was after some of its entries, and no kill takes any of them away.

// deviceSite is a site with what it wrote, oldest first.
type deviceSite struct {
	*testsite.Site
	line []entry
	// devices are open while the site is primary, by the volumes' numbers.
	devices map[int]*device
	tails   []content
}

// deviceCircle is one round.
type deviceCircle struct {
	ctx                context.Context
	rng                *rand.Rand
	seed               uint64
	sites              *deviceSites
	h                  *history
	tally              *circleTally
	group              string
	volumes            []*testsite.Volume
	primary, secondary *deviceSite
	// floor is how much of the primary's line the secondary has at least.
	floor uint64
	// killed: a write may have taken two ordinals, because the kernel sent it again.
	killed bool
	names  int
}

// Bounds of a circle on devices.
const (
	deviceRoundTimeout = 6 * time.Minute
	deviceMaxBlocks    = 8 // one record
	deviceJournalBytes = 4 << 20
	deviceEvents       = 3
)

// circle is one round of drawn events.
func (s *deviceSites) circle(ctx context.Context, seed uint64, t *tally) error {
	return s.run(ctx, seed, t, func(c *deviceCircle) error {
		for range deviceEvents {
			if err := c.event(); err != nil {
				return err
			}
		}
		return nil
	})
}

// forks is one round of so many forks, in both directions.
func (s *deviceSites) forks(ctx context.Context, seed uint64, t *tally, n int) error {
	return s.run(ctx, seed, t, func(c *deviceCircle) error {
		for i := range n {
			if err := c.fork(i%3 == 2); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *deviceSites) run(ctx context.Context, seed uint64, t *tally, do func(*deviceCircle) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, deviceRoundTimeout)
	defer cancel()
	c := &deviceCircle{
		ctx: ctx, rng: rand.New(rand.NewPCG(seed, 2)), seed: seed, sites: s, tally: &t.circle, h: &history{exact: true},
		group: fmt.Sprintf("circle-%d", seed),
	}
	a, b := &deviceSite{Site: s.pair.A}, &deviceSite{Site: s.pair.B}
	c.primary, c.secondary = a, b
	if c.rng.IntN(2) == 0 {
		c.primary, c.secondary = b, a
	}
	defer func() {
		err = errors.Join(err, a.close(), b.close())
		if err == nil {
			err = c.clear()
		}
	}()
	for _, step := range []func() error{c.begin, func() error { return do(c) }, c.settle, c.judgeTails} {
		if err := step(); err != nil {
			return err
		}
	}
	c.tally.circles.Add(1)
	return nil
}

func (c *deviceCircle) begin() error {
	journal := int64(deviceJournalBytes)
	_, err := c.primary.Sidecar.CreateGroup(c.ctx, &sidecarpb.CreateGroupRequest{Name: c.group,
		Settings: &sidecarpb.GroupSettings{Remote: &c.secondary.Config.Name, JournalSizeBytes: &journal}})
	if err != nil {
		return err
	}
	for range 1 + c.rng.IntN(2) {
		if err := c.add(); err != nil {
			return err
		}
	}
	return c.settle()
}

// add makes a volume in the group, and opens it at the primary.
func (c *deviceCircle) add() error {
	parameters := testsite.Replicable()
	parameters["slipstream.dev/order"] = "ack"
	number, p := len(c.volumes), c.primary
	v, err := p.CreateVolume(c.ctx, testsite.VolumeOptions{Name: fmt.Sprintf("%s-%d", c.group, number),
		SizeBytes: int64(1+c.rng.IntN(2)) << 20, Block: true, Parameters: parameters})
	if err != nil {
		return err
	}
	c.volumes = append(c.volumes, v)
	if _, err := p.Sidecar.AddVolume(c.ctx, &sidecarpb.AddVolumeRequest{Group: c.group, VolumeId: v.ID}); err != nil {
		return c.h.violation("volume %s cannot be added: %v", v.ID, err)
	}
	if err := c.open(p, number); err != nil {
		return err
	}
	blocks := int(p.devices[number].size / blockBytes)
	c.h.addVolume(v.ID, blocks)
	p.line = append(p.line, entry{member: &memberChange{volume: number, blocks: blocks}})
	c.h.note("volume %d of %d blocks added at %s", number, blocks, p.Config.Name)
	c.tally.added.Add(1)
	return nil
}

// open mounts a volume at a site and opens its device.
func (c *deviceCircle) open(s *deviceSite, number int) error {
	return c.persist("mounting", func() error {
		path, err := s.Mount(c.ctx, c.volumes[number])
		if err != nil {
			return err
		}
		d, err := openDevice(path)
		if err != nil {
			return err
		}
		if s.devices == nil {
			s.devices = map[int]*device{}
		}
		s.devices[number] = d
		return nil
	})
}

func (s *deviceSite) close() (err error) {
	for _, d := range s.devices {
		err = errors.Join(err, d.f.Close())
	}
	s.devices = nil
	return err
}

// unmount closes what is open at a site, and unmounts it.
func (c *deviceCircle) unmount(s *deviceSite) error {
	numbers := s.numbers()
	if err := s.close(); err != nil {
		return err
	}
	for _, number := range numbers {
		err := c.persist("unmounting", func() error { return s.Unmount(c.ctx, c.volumes[number]) })
		if err != nil {
			return err
		}
	}
	return nil
}

// numbers are the volumes that are open.
func (s *deviceSite) numbers() (list []int) {
	for number := range s.devices {
		list = append(list, number)
	}
	slices.Sort(list)
	return list
}

// write does some writes at a site, each of which is durable when it returns.
func (c *deviceCircle) write(s *deviceSite, n int) error {
	buf := alignedBuffer(deviceMaxBlocks * blockBytes)
	numbers := s.numbers()
	for range n {
		number := numbers[c.rng.IntN(len(numbers))]
		d := s.devices[number]
		n := 1 + c.rng.IntN(deviceMaxBlocks)
		o := c.h.draft(number, c.rng.IntN(int(d.size/blockBytes)-n+1), n)
		p := buf[:n*blockBytes]
		stamp(p, c.seed, o)
		if _, err := d.f.WriteAt(p, int64(o.block)*blockBytes); err != nil {
			return c.h.violation("a write at %s: %v", s.Config.Name, err)
		}
		s.line = append(s.line, entry{op: o})
	}
	return nil
}

func (c *deviceCircle) number(volumeID string) int {
	for i, v := range c.volumes {
		if v.ID == volumeID {
			return i
		}
	}
	return -1
}

// clear takes everything of the round away at both sites; at the primary first, which would call the other.
func (c *deviceCircle) clear() error {
	both := []*deviceSite{c.primary, c.secondary}
	for range 2 { // again, in case that a last call made the group anew
		for _, s := range both {
			for _, v := range c.volumes {
				if err := s.Unmount(c.ctx, v); err != nil && status.Code(unwrapped(err)) != codes.NotFound {
					return err
				}
			}
			_, err := s.Sidecar.DeleteGroup(c.ctx, &sidecarpb.DeleteGroupRequest{Name: c.group, Force: true})
			if err != nil {
				return err
			}
		}
	}
	for _, s := range both {
		tails, err := s.Sidecar.ListTails(c.ctx, &sidecarpb.ListTailsRequest{Group: c.group})
		if err != nil {
			return err
		}
		for _, tail := range tails.GetTails() {
			if _, err := s.Sidecar.DeleteTail(c.ctx, &sidecarpb.DeleteTailRequest{Id: tail.GetId()}); err != nil {
				return err
			}
		}
		for _, v := range c.volumes {
			if err := s.DeleteVolume(c.ctx, v); err != nil {
				return err
			}
		}
	}
	return nil
}
