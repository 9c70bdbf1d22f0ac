package demo

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/internal/workload"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

// jointVariant measures the load on plain and on replicated volumes in turn, then fails the site over, with both
// volumes in one consistency group.
func (d *demo) jointVariant(ctx context.Context, results *Results) error {
	d.say("one consistency group: starting two sites")
	return d.withSites(ctx, func(ctx context.Context, pair *testsite.Pair) error {
		plain, err := d.createShop(ctx, pair.A, "plain", nil)
		if err != nil {
			return err
		}
		replicated, err := d.createShop(ctx, pair.A, "shop", testsite.Replicable())
		if err != nil {
			return err
		}
		if err := d.replicate(ctx, pair,
			map[string][]*testsite.Volume{jointGroup: {replicated.stock, replicated.sales}}, nil,
			historyKept); err != nil {
			return err
		}
		for _, sh := range []*shop{plain, replicated} {
			if err := sh.mount(ctx, pair.A); err != nil {
				return err
			}
		}
		if err := d.waitStreaming(ctx, pair, jointGroup); err != nil {
			return err
		}
		lag, err := watchLag(ctx, pair.A, jointGroup)
		if err != nil {
			return err
		}
		defer lag.stop()
		if err := d.rounds(ctx, plain, replicated, results); err != nil {
			return err
		}
		v, err := d.failOver(ctx, pair, replicated, []string{jointGroup}, nil, lookBack+minimumBefore)
		if err != nil {
			return err
		}
		v.Lag = map[string][]LagSample{jointGroup: lag.stop()}
		results.Joint = v
		results.RPO = summarizeLag(v.Lag[jointGroup], results.loaded())
		results.Comeback, err = d.comeBack(ctx, pair, replicated, v)
		return err
	})
}

// separateVariant fails a site over whose two volumes are in groups of their own, the stock's over a slow line.
func (d *demo) separateVariant(ctx context.Context, results *Results) error {
	d.say("separate groups: starting two fresh sites")
	return d.withSites(ctx, func(ctx context.Context, pair *testsite.Pair) error {
		// It is the stock that lags, so that orders arrive whose movements have not.
		slow, err := linktest.NewProxy("127.0.0.1:0", pair.B.Config.Listen)
		if err != nil {
			return err
		}
		defer slow.Close()
		sh, err := d.createShop(ctx, pair.A, "shop", testsite.Replicable())
		if err != nil {
			return err
		}
		groups := map[string][]*testsite.Volume{stockGroup: {sh.stock}, salesGroup: {sh.sales}}
		if err := d.replicate(ctx, pair, groups, map[string]string{stockGroup: slow.Addr()}, 0); err != nil {
			return err
		}
		if err := sh.mount(ctx, pair.A); err != nil {
			return err
		}
		var lags []*lagWatch
		for _, name := range []string{stockGroup, salesGroup} {
			if err := d.waitStreaming(ctx, pair, name); err != nil {
				return err
			}
			lag, err := watchLag(ctx, pair.A, name)
			if err != nil {
				return err
			}
			defer lag.stop()
			lags = append(lags, lag)
		}
		slow.SetDelay(extraDelay)
		d.say("the stock's line is now %v slower each way", extraDelay)
		v, err := d.failOver(ctx, pair, sh, []string{stockGroup, salesGroup}, slow, minimumBefore)
		if err != nil {
			return err
		}
		v.Lag = map[string][]LagSample{}
		for _, lag := range lags {
			v.Lag[lag.group] = lag.stop()
		}
		results.Separate = v
		return nil
	})
}

// replicate creates groups at site A and puts volumes into them.
func (d *demo) replicate(ctx context.Context, pair *testsite.Pair, groups map[string][]*testsite.Volume,
	addresses map[string]string, history time.Duration) error {
	for name, volumes := range groups {
		_, err := pair.A.Sidecar.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{
			Name: name,
			Settings: &sidecarpb.GroupSettings{Remote: new(pair.B.Config.Name), RemoteAddress: new(addresses[name]),
				JournalSizeBytes: new(int64(1 << 30)), HistoryMillis: new(history.Milliseconds())},
		})
		if err != nil {
			return fmt.Errorf("creating group %s: %w", name, err)
		}
		for _, v := range volumes {
			if _, err := pair.A.Sidecar.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: name, VolumeId: v.ID}); err != nil {
				return fmt.Errorf("adding volume %s to group %s: %w", v.ID, name, err)
			}
		}
	}
	return nil
}

func (d *demo) waitStreaming(ctx context.Context, pair *testsite.Pair, name string) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if _, err := pair.A.WaitGroup(ctx, name, "streaming", testsite.Streaming); err != nil {
		return err
	}
	_, err := pair.B.WaitGroup(ctx, name, "promotable", func(g *sidecarpb.GroupStatus) bool { return g.GetPromotable() })
	if err == nil {
		d.say("group %s has its first copy and streams", name)
	}
	return err
}

// rounds runs the load on the plain and the replicated volumes in turn. Every other round begins with the other, so
// that neither always has the warmer caches.
func (d *demo) rounds(ctx context.Context, plain, replicated *shop, results *Results) error {
	for i := range d.Rounds {
		order := []bool{false, true}
		if i%2 == 1 {
			order = []bool{true, false}
		}
		for _, isReplicated := range order {
			sh, name := plain, "plain"
			if isReplicated {
				sh, name = replicated, "replicated"
			}
			p, err := d.startLoad(ctx, sh)
			if err != nil {
				return err
			}
			if err := loadFor(ctx, p, d.Phase); err != nil {
				return err
			}
			acks, err := p.Stop()
			if err != nil {
				return err
			}
			sh.acks = append(sh.acks, acks...)
			round := Round{Replicated: isReplicated, Acks: acks, Stats: workload.Summarize(warm(acks))}
			results.Rounds = append(results.Rounds, round)
			d.say("round %d of %d, %-10s  %6.0f orders/s  median %s", i+1, d.Rounds, name, round.Stats.OrdersPerSecond,
				milliseconds(round.Stats.P50))
		}
	}
	return nil
}

// warm leaves out the first moments of a run, in which caches and database servers are cold.
func warm(acks []workload.Ack) []workload.Ack {
	const warmUp = 500 * time.Millisecond
	if len(acks) == 0 {
		return nil
	}
	workload.SortAcks(acks)
	begin := acks[0].Start.Add(warmUp)
	for i, a := range acks {
		if !a.Start.Before(begin) {
			return acks[i:]
		}
	}
	return acks
}

// failOver runs the load for a time at least, kills site A at a random moment, promotes the groups at site B and checks
// the databases. A group with history is opened as it was before as well.
func (d *demo) failOver(ctx context.Context, pair *testsite.Pair, sh *shop, groups []string,
	line *linktest.Proxy, least time.Duration) (*Variant, error) {
	v := &Variant{Groups: groups}
	p, err := d.startLoad(ctx, sh)
	if err != nil {
		return nil, err
	}
	wait := least + time.Duration(d.rng.Int64N(int64(d.Phase)))
	d.say("load runs; site A dies in %v", wait.Round(time.Millisecond))
	if err := loadFor(ctx, p, wait); err != nil {
		return nil, err
	}
	if err := d.kill(pair, p, line, v); err != nil {
		return nil, err
	}
	acks, err := p.Wait(deathTimeout)
	if err != nil {
		return nil, err
	}
	v.Acks, sh.underWay = acks, int64(d.Clients)
	sh.acks = append(sh.acks, acks...)
	d.say("every process of site A is dead: workload, databases, replicator, driver")

	if least > lookBack {
		if err := d.openEarlier(ctx, pair, v); err != nil {
			return nil, err
		}
	}
	promoteBegin := time.Now()
	losses := map[string]*sidecarpb.LossReport{}
	for _, name := range groups {
		response, err := pair.B.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: name, Force: true})
		if err != nil {
			return nil, fmt.Errorf("promoting group %s: %w", name, err)
		}
		losses[name] = response.GetLoss()
	}
	v.Promotion = time.Since(promoteBegin)
	if err := sh.mount(ctx, pair.B); err != nil {
		return nil, err
	}
	v.Served = time.Now()
	v.Mounted = v.Served.Sub(promoteBegin)
	if v.Result, err = workload.Check(ctx, d.Kind, sh.dirs, sh.acks, v.Killed); err != nil {
		return nil, err
	}
	v.Opened = time.Since(promoteBegin)
	d.say(
		"site B: promoted after %s, mounted after %s, databases checked after %s: %s, %d without stock, %s "+
			"lost",
		milliseconds(v.Promotion), milliseconds(v.Mounted), milliseconds(v.Opened),
		words.Count(v.Result.Orders, "order"), v.Result.OrdersWithoutStock,
		words.Count(v.Result.LostOrders, "acknowledged order"))
	d.exactLoss(ctx, pair, losses, line)
	for _, name := range groups {
		v.addLoss(losses[name])
	}
	return v, nil
}

// kill ends the site's processes as nearly at one instant as signals can: first the replicator, after which nothing
// leaves the site, and with it what is under way on the slow line.
func (d *demo) kill(pair *testsite.Pair, p *workload.Process, line *linktest.Proxy, v *Variant) error {
	v.Killed = time.Now()
	errs := []error{pair.A.Replicator().Signal(syscall.SIGKILL)}
	if line != nil {
		line.Cut()
	}
	errs = append(errs, p.Kill())
	// The workload waits in the kernel for a device whose server is dead until the last holder of the descriptor is.
	return errors.Join(append(errs, pair.A.Kill())...)
}

// exactLoss brings site A back, as after a power cycle, so that it tells site B what exactly was lost. Where it does
// not within a while the reports keep their bounds, and say so.
func (d *demo) exactLoss(ctx context.Context, pair *testsite.Pair, losses map[string]*sidecarpb.LossReport,
	line *linktest.Proxy) {
	ctx, cancel := context.WithTimeout(ctx, exactTimeout)
	defer cancel()
	err := pair.A.PowerCycle()
	if line != nil {
		line.SetDelay(0)
		line.Heal()
	}
	if err == nil {
		err = pair.A.Start(ctx)
	}
	for name := range losses {
		if err != nil {
			break
		}
		var g *sidecarpb.GroupStatus
		g, err = pair.B.WaitGroup(ctx, name, "sure of its loss", func(g *sidecarpb.GroupStatus) bool {
			return g.GetLoss().GetExact()
		})
		if err == nil {
			losses[name] = g.GetLoss()
		}
	}
	if err != nil {
		d.say("site A has not told what was lost, so it is known as a bound only: %v", err)
		return
	}
	for name, loss := range losses {
		d.say("site A is back and says what was lost in group %s: %s, %s", name,
			words.Count(loss.GetLostWrites(), "write"), words.Count(loss.GetLostBytes(), "byte"))
	}
}
