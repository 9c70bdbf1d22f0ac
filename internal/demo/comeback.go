package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/internal/workload"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// wayTimeout bounds each step of the way back.
const wayTimeout = 90 * time.Second

// Comeback is the way back of site A.
type Comeback struct {
	// OrdersAtB were acknowledged at site B before site A took over again.
	OrdersAtB int
	// TailWrites and TailBytes are what site A had written and site B never had.
	TailWrites, TailBytes uint64
	// Copied is what came from site B until site A followed.
	Copied uint64
	// Followed is the time from the call to yield until site A had a whole copy.
	Followed time.Duration
	// Kept are lost orders that are in the kept tail.
	Kept int
	// Tail is the shop as it is in the tail.
	Tail workload.Result
	// Away is the time in which the group was primary nowhere.
	Away time.Duration
	// Back is the shop at site A in the end, compared with the orders that both sites had acknowledged, without the lost
	// ones.
	Back workload.Result
}

// comeBack runs load at site B, lets site A yield and follow, moves the group back to it, and compares the shop and the
// kept tail with what was acknowledged. Site A runs; the failover has brought it back.
func (d *demo) comeBack(ctx context.Context, pair *testsite.Pair, sh *shop, v *Variant) (*Comeback, error) {
	c := &Comeback{}
	p, err := d.startLoad(ctx, sh)
	if err != nil {
		return nil, err
	}
	d.say("the shop goes on at site B; site A gives way")
	begin := time.Now()
	wayCtx, cancel := context.WithTimeout(ctx, wayTimeout)
	defer cancel()
	answer, err := pair.A.Sidecar.Yield(wayCtx, &sidecarpb.YieldRequest{Group: jointGroup})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("yielding at site A: %w", err), endLoad(p))
	}
	c.TailWrites, c.TailBytes = answer.GetYield().GetWrites(), answer.GetYield().GetBytes()
	follows, err := pair.A.WaitGroup(wayCtx, jointGroup, "a whole copy", func(g *sidecarpb.GroupStatus) bool {
		return g.GetRole() == sidecarpb.Role_ROLE_SECONDARY && g.GetPromotable() && testsite.Streaming(g)
	})
	if err != nil {
		return nil, errors.Join(err, endLoad(p))
	}
	c.Followed, c.Copied = time.Since(begin), follows.GetYield().GetCopiedBytes()
	d.say("site A kept %s that site B never had, and follows after %s; copied: %s", words.Count(c.TailWrites, "write"),
		milliseconds(c.Followed), words.Count(c.Copied, "byte"))
	if v.Earlier != nil {
		if err := d.lookAtEarlier(ctx, pair.B, sh, v); err != nil {
			return nil, errors.Join(err, endLoad(p))
		}
	}
	if err := loadFor(ctx, p, d.Phase); err != nil {
		return nil, err
	}
	acks, err := p.Stop()
	if err != nil {
		return nil, err
	}
	c.OrdersAtB = len(acks)
	if err := d.takeOver(ctx, pair, sh, c); err != nil {
		return nil, err
	}
	return c, d.compareBack(ctx, pair, sh, v, acks, c)
}

// takeOver moves the group back to site A without loss.
func (d *demo) takeOver(ctx context.Context, pair *testsite.Pair, sh *shop, c *Comeback) error {
	for _, volume := range []*testsite.Volume{sh.stock, sh.sales} {
		if err := pair.B.Unmount(ctx, volume); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, wayTimeout)
	defer cancel()
	var moved *sidecarpb.RelocateResponse
	err := whileHeld(ctx, func() (err error) {
		moved, err = pair.B.Sidecar.Relocate(ctx, &sidecarpb.RelocateRequest{Group: jointGroup,
			TimeoutMillis: wayTimeout.Milliseconds()})
		return err
	})
	if err != nil {
		return fmt.Errorf("moving the group back to site A: %w", err)
	}
	c.Away = time.Duration(moved.GetTookMillis()) * time.Millisecond
	d.say("site A is primary again; the group was primary nowhere for %s", milliseconds(c.Away))
	return sh.mount(ctx, pair.A)
}

// compareBack checks the shop at site A, and the tail that it kept.
func (d *demo) compareBack(ctx context.Context, pair *testsite.Pair, sh *shop, v *Variant, atB []workload.Ack,
	c *Comeback) (err error) {
	lost := map[int64]bool{}
	for _, id := range v.Result.Lost {
		lost[id] = true
	}
	var expected []workload.Ack
	for _, a := range sh.acks {
		if !lost[a.ID] {
			expected = append(expected, a)
		}
	}
	if c.Back, err = workload.Check(ctx, d.Kind, sh.dirs, append(expected, atB...), time.Now()); err != nil {
		return err
	}
	d.say("at site A: %s, %d without stock, %d missing that either site had acknowledged",
		words.Count(c.Back.Orders, "order"), c.Back.OrdersWithoutStock, c.Back.LostOrders)
	if c.TailWrites == 0 {
		d.say("site B had everything, so site A had nothing to keep")
		return nil
	}
	tail, err := d.openTail(ctx, pair.A, sh)
	if err != nil {
		return err
	}
	if c.Tail, err = workload.Check(ctx, d.Kind, tail.dirs, sh.acks, v.Killed); err != nil {
		return err
	}
	for _, id := range c.Tail.IDs {
		if lost[id] {
			c.Kept++
		}
	}
	d.say("in the kept tail: %d of the %s", c.Kept, words.Count(len(lost), "lost order"))
	return nil
}

// openTail makes volumes from the snapshots of the tail at a site, and mounts them.
func (d *demo) openTail(ctx context.Context, s *testsite.Site, sh *shop) (*shop, error) {
	wayCtx, cancel := context.WithTimeout(ctx, wayTimeout)
	defer cancel()
	snapshots := map[string]string{} // by volume
	for ready := false; !ready; {
		tails, err := s.Sidecar.ListTails(wayCtx, &sidecarpb.ListTailsRequest{Group: jointGroup})
		if err != nil {
			return nil, err
		}
		if len(tails.GetTails()) != 1 {
			return nil, fmt.Errorf("site A keeps %s, want one", words.Count(len(tails.GetTails()), "tail"))
		}
		ready = true
		for _, snapshot := range tails.GetTails()[0].GetSnapshots() {
			snapshots[snapshot.GetVolumeId()] = snapshot.GetSnapshotId()
			ready = ready && snapshot.GetState() == "ready"
		}
		if !pause.For(wayCtx, 100*time.Millisecond) {
			return nil, fmt.Errorf("the snapshots of the tail are not ready: %w", wayCtx.Err())
		}
	}
	return openParts(wayCtx, s, sh, "tail", snapshots)
}

// openParts makes volumes from snapshots of a shop's volumes, or from their views, and mounts them. sources are by the
// volumes' ids.
func openParts(ctx context.Context, s *testsite.Site, sh *shop, name string, sources map[string]string) (*shop, error) {
	opened := &shop{}
	for _, part := range []struct {
		name   string
		source *testsite.Volume
		volume **testsite.Volume
	}{{"stock", sh.stock, &opened.stock}, {"sales", sh.sales, &opened.sales}} {
		volume, err := s.CreateVolume(ctx, testsite.VolumeOptions{Name: name + "-" + part.name, SizeBytes: volumeBytes,
			FSType: "ext4", SnapshotID: sources[part.source.ID]})
		if err != nil {
			return nil, err
		}
		*part.volume = volume
	}
	return opened, opened.mount(ctx, s)
}

// comebackErr is what must not be on the way back.
func (r *Results) comebackErr() error {
	var errs []error
	if c := r.Comeback; c != nil {
		if err := c.Back.OneInstant(r.Clients); err != nil {
			errs = append(errs, fmt.Errorf("the shop at site A is not of one instant: %w", err))
		}
		if c.Back.LostOrders > 0 {
			errs = append(errs, fmt.Errorf("lost on the way back: %s", words.Count(c.Back.LostOrders, "order")))
		}
		if err := c.Tail.OneInstant(r.Clients); err != nil && c.TailWrites > 0 {
			errs = append(errs, fmt.Errorf("the kept tail is not of one instant: %w", err))
		}
		if want := len(r.Joint.Result.Lost); c.Kept < want {
			errs = append(errs, fmt.Errorf("the kept tail has %d of %s", c.Kept, words.Count(want, "lost order")))
		}
	}
	return errors.Join(errs...)
}
