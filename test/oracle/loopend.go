package main

import (
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// disaster ends every process of the primary's site, promotes the secondary and judges its copy.
func (r *loopRound) disaster() error {
	if err := r.pause(loopStep); err != nil {
		return err
	}
	r.observe()
	a, b := r.sites.pair.A, r.sites.pair.B
	r.ending.Store(true)
	if err := a.Kill(); err != nil {
		return err
	}
	r.h.note("the primary's site is dead; its secondary had acknowledged everything from before %d", r.ackedClock)
	r.halt()
	// Its devices hold errors now; closing them is all that is left.
	_ = r.closeDevices()
	r.sites.proxy.Heal()
	if r.rng.IntN(3) == 0 {
		r.h.note("the secondary's replicator is killed")
		if err := r.restart(b); err != nil {
			return err
		}
	}
	if err := r.failOver(b); err != nil {
		return err
	}
	if err := a.PowerCycle(); err != nil {
		return err
	}
	return a.Start(r.ctx)
}

func (r *loopRound) failOver(b *testsite.Site) error {
	g, err := b.Group(r.ctx, r.group)
	if err != nil {
		if r.ackedClock > 0 {
			return r.h.violation("the secondary does not know the group: %v", err)
		}
		return nil
	}
	// What was under way when the primary died may still come in: its call, after which the promotion is to be repeated,
	// or the beginning of a sync, after which there is nothing to promote.
	var response *sidecarpb.PromoteResponse
	for response == nil {
		before := g.GetPromotable()
		response, err = b.Sidecar.Promote(r.ctx, &sidecarpb.PromoteRequest{Group: r.group, Force: true})
		if err != nil && status.Code(err) != codes.FailedPrecondition {
			return r.h.violation("the promotion of the secondary (promotable: %v): %v", before, err)
		}
		if err != nil && !before {
			r.h.note("the secondary cannot be promoted: %v", err)
			r.tally.unpromotable.Add(1)
			return nil
		}
		if g, err = b.Group(r.ctx, r.group); err != nil {
			return err
		}
	}
	r.tally.promotions.Add(1)
	r.tally.disasters.Add(1)
	r.h.note("the secondary was promoted at ordinal %d", response.GetLoss().GetRecoveredOrdinal())
	if len(g.GetVolumes()) < len(r.volumes) {
		if r.ackedClock > 0 {
			return r.h.violation("the secondary has %d of %d volumes", len(g.GetVolumes()), len(r.volumes))
		}
		return nil
	}
	if err := r.open(b); err != nil {
		return err
	}
	shown, err := r.read("site-b")
	if err != nil {
		return err
	}
	return r.h.checkOrder("the promoted secondary", shown, r.ackedClock, r.order)
}

// relocate changes the roles as planned: the copies have to be identical.
func (r *loopRound) relocate() error {
	r.sites.proxy.Heal()
	r.halt()
	if err := r.failed(); err != nil {
		return err
	}
	for _, d := range r.devices {
		if err := d.f.Sync(); err != nil {
			return err
		}
	}
	_, clock := r.h.acknowledged()
	before, err := r.read("site-a")
	if err != nil {
		return err
	}
	if err := r.h.checkOrder("the primary", before, clock, r.order); err != nil {
		return err
	}
	if err := r.closeDevices(); err != nil {
		return err
	}
	a, b := r.sites.pair.A, r.sites.pair.B
	for _, v := range r.volumes {
		if err := a.Unmount(r.ctx, v); err != nil {
			return err
		}
	}
	if _, err := a.WaitGroup(r.ctx, r.group, "streaming", testsite.Streaming); err != nil {
		return err
	}
	if _, err := a.Sidecar.Demote(r.ctx, &sidecarpb.DemoteRequest{Group: r.group}); err != nil {
		return err
	}
	r.h.note("the primary was demoted")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := b.Sidecar.Promote(r.ctx, &sidecarpb.PromoteRequest{Group: r.group})
		if err == nil {
			break
		}
		select {
		case <-r.ctx.Done():
			return r.h.violation("the planned promotion has not come: %v", err)
		case <-tick.C:
		}
	}
	r.h.note("the secondary was promoted as planned")
	if err := r.open(b); err != nil {
		return err
	}
	after, err := r.read("site-b")
	if err != nil {
		return err
	}
	r.tally.relocations.Add(1)
	return r.h.checkSame("after the planned promotion", before, after)
}

// clear takes the round's volumes and groups away at both sites; at the primary first, which would call the other.
func (r *loopRound) clear() error {
	r.sites.proxy.Heal()
	for _, s := range []*testsite.Site{r.sites.pair.A, r.sites.pair.B} {
		for _, v := range r.volumes {
			if err := s.Unmount(r.ctx, v); err != nil && status.Code(errors.Unwrap(err)) != codes.NotFound {
				return err
			}
		}
		if _, err := s.Sidecar.DeleteGroup(r.ctx, &sidecarpb.DeleteGroupRequest{Name: r.group, Force: true}); err != nil {
			return err
		}
	}
	for _, s := range []*testsite.Site{r.sites.pair.A, r.sites.pair.B} {
		// Again, in case that a last call made it anew.
		if _, err := s.Sidecar.DeleteGroup(r.ctx, &sidecarpb.DeleteGroupRequest{Name: r.group, Force: true}); err != nil {
			return err
		}
		for _, v := range r.volumes {
			if err := s.DeleteVolume(r.ctx, v); err != nil {
				return err
			}
		}
	}
	return nil
}
