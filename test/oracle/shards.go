package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

// A group over several nodes in mode loop: a writer on each node, which is told by a message of another node's writer
// when to write. So each write is caused by the one before it, on another node. Several such chains run at once. Writes
// are durable when they are answered. After the loss of the first site, a copy that shows a write has to show all
// writes of its chain before it, wherever they are.

// shardSites are two sites of several nodes each. Pair i is node i of both.
type shardSites struct {
	pairs []*testsite.Pair
	// ways are how the other nodes of a site reach one of its nodes, links how node i of site A reaches that of site B.
	ways, links []*linktest.Proxy
}

func startShardSites(ctx context.Context, binDir string, nodes int) (_ *shardSites, err error) {
	s := &shardSites{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	s.pairs, err = testsite.NewNodes(testsite.Options{BinDir: binDir}, nodes, func(at *testsite.Site) (string, error) {
		p, err := linktest.NewProxy(shardProxies, at.Config.Listen)
		if err != nil {
			return "", err
		}
		s.ways = append(s.ways, p)
		return p.Addr(), nil
	})
	if err != nil {
		return nil, err
	}
	for _, p := range s.pairs {
		link, err := linktest.NewProxy(shardProxies, p.B.Config.Listen)
		if err != nil {
			return nil, err
		}
		s.links = append(s.links, link)
		if err := p.Start(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *shardSites) close() error {
	var errs []error
	for _, p := range append(s.ways, s.links...) {
		errs = append(errs, p.Close())
	}
	for _, p := range s.pairs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// shardProxies is where the proxies listen: not on the address of the replicators, whose ports are free until they
// start.
const shardProxies = "127.0.0.2:0"

// shardRound is one round.
type shardRound struct {
	ctx   context.Context
	rng   *rand.Rand
	seed  uint64
	sites *shardSites
	group string
	// volumes and devices are those of node i of site A.
	volumes []*testsite.Volume
	devices []*device

	// messages carry the number of the next write of a chain to a node's writer, by node and chain.
	messages [][]chan uint64
	stop     chan struct{}
	wg       sync.WaitGroup
	mu       sync.Mutex
	answered uint64
	broken   error
	ending   bool
}

// Bounds of a round.
const (
	shardRoundTimeout = 2 * time.Minute
	shardVolumeBytes  = 32 << 20
	// shardChains is how many writes are under way. An epoch ends at an instant, so one chain alone seldom has one of its
	// writes there, least of all on a slow machine.
	shardChains = 4
	shardWrites = shardVolumeBytes / blockBytes / shardChains
)

// shardDelays are those of the ways between the nodes, in milliseconds. The longest is longer than a write takes on a
// busy machine, and two of it are shorter than writers are held for an epoch.
var shardDelays = []int{0, 1, 3, 10}

func (r *shardRound) delay() time.Duration {
	return time.Duration(shardDelays[r.rng.IntN(len(shardDelays))]) * time.Millisecond
}

// shardResult is what a round found out.
type shardResult struct {
	answered, recovered uint64
}

// round runs one round, and returns what site B had of the writes that were answered.
func (s *shardSites) round(ctx context.Context, seed uint64) (result shardResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, shardRoundTimeout)
	defer cancel()
	r := &shardRound{ctx: ctx, rng: rand.New(rand.NewPCG(seed, 0)), seed: seed, sites: s,
		group: fmt.Sprintf("shop-%d", seed), stop: make(chan struct{})}
	defer func() {
		r.halt()
		for _, d := range r.devices {
			_ = d.f.Close() // of a site that is gone
		}
	}()
	if err := r.create(); err != nil {
		return result, err
	}
	for i := range s.pairs {
		var messages []chan uint64
		for chain := range shardChains {
			messages = append(messages, make(chan uint64, 1))
			rng := rand.New(rand.NewPCG(seed, uint64(1+i*shardChains+chain)))
			r.wg.Go(func() { r.write(i, chain, rng) })
		}
		r.messages = append(r.messages, messages)
	}
	for chain := range shardChains {
		r.messages[r.rng.IntN(len(s.pairs))][chain] <- 1
	}
	for range 2 + r.rng.IntN(4) {
		if err := r.event(); err != nil {
			return result, err
		}
	}
	return r.disaster()
}

// name is the group of a node.
func (r *shardRound) name(node int) string { return fmt.Sprintf("%s-%d", r.group, node) }

func (r *shardRound) create() error {
	parameters := testsite.Replicable()
	parameters["slipstream.dev/order"] = "ack"
	for _, way := range r.sites.ways {
		way.SetDelay(r.delay())
	}
	for i, p := range r.sites.pairs {
		r.sites.links[i].Heal()
		if _, err := p.A.Sidecar.CreateGroup(r.ctx, &sidecarpb.CreateGroupRequest{Name: r.name(i),
			Settings: &sidecarpb.GroupSettings{Remote: new(p.B.Config.Name), RemoteAddress: new(r.sites.links[i].Addr()),
				JournalSizeBytes: new(int64(64 << 20)), ShardOf: &r.group, Shard: new(uint32(i)),
				EpochMillis: new(int64(100))}}); err != nil {
			return err
		}
		v, err := p.A.CreateVolume(r.ctx, testsite.VolumeOptions{Name: r.name(i), SizeBytes: shardVolumeBytes, Block: true,
			Parameters: parameters})
		if err != nil {
			return err
		}
		r.volumes = append(r.volumes, v)
		if _, err := p.A.Sidecar.AddVolume(r.ctx, &sidecarpb.AddVolumeRequest{Group: r.name(i), VolumeId: v.ID}); err != nil {
			return err
		}
		path, err := p.A.Mount(r.ctx, v)
		if err != nil {
			return err
		}
		d, err := openDevice(path)
		if err != nil {
			return err
		}
		r.devices = append(r.devices, d)
	}
	for i, p := range r.sites.pairs {
		if _, err := p.B.WaitGroup(r.ctx, r.name(i), "a copy at an epoch of all shards", func(g *sidecarpb.GroupStatus) bool {
			for _, s := range g.GetShard().GetShards() {
				if s.ShownEpoch == nil {
					return false
				}
			}
			return len(g.GetShard().GetShards()) == len(r.sites.pairs)
		}); err != nil {
			return err
		}
	}
	return nil
}

// write is the writer of a node for a chain. Write k goes to block k of the chain's part of its volume, and then any
// other node's writer is told.
func (r *shardRound) write(node, chain int, rng *rand.Rand) {
	buf := alignedBuffer(blockBytes)
	for {
		var k uint64
		select {
		case k = <-r.messages[node][chain]:
		case <-r.stop:
			return
		}
		if k >= shardWrites {
			return
		}
		binary.LittleEndian.PutUint64(buf, r.seed)
		binary.LittleEndian.PutUint64(buf[8:], k)
		if _, err := r.devices[node].f.WriteAt(buf, (int64(chain)*shardWrites+int64(k))*blockBytes); err != nil {
			r.mu.Lock()
			if r.broken == nil && !r.ending {
				r.broken = fmt.Errorf("seed %d: an I/O error at node %d of the primary: %w", r.seed, node, err)
			}
			r.mu.Unlock()
			return
		}
		r.mu.Lock()
		r.answered++
		r.mu.Unlock()
		if rng.IntN(2) == 0 {
			select {
			case <-time.After(time.Millisecond):
			case <-r.stop:
				return
			}
		}
		r.messages[(node+1+rng.IntN(len(r.messages)-1))%len(r.messages)][chain] <- k + 1
	}
}

// event disturbs the sites while the writers go on.
func (r *shardRound) event() error {
	if err := r.pause(100 + r.rng.IntN(300)); err != nil {
		return err
	}
	node := r.rng.IntN(len(r.sites.pairs))
	pair := r.sites.pairs[node]
	switch r.rng.IntN(6) {
	case 0:
		r.sites.links[node].Cut()
	case 1:
		for _, l := range r.sites.links {
			l.Heal()
		}
	case 2:
		return r.restart(pair.A)
	case 3:
		return r.restart(pair.B)
	default:
		r.sites.ways[r.rng.IntN(len(r.sites.ways))].SetDelay(r.delay())
	}
	return nil
}

func (r *shardRound) pause(millis int) error {
	select {
	case <-time.After(time.Duration(millis) * time.Millisecond):
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.broken
}

// restart kills a replicator and starts it again. The driver keeps the volumes meanwhile.
func (r *shardRound) restart(s *testsite.Site) error {
	if err := s.Replicator().Kill(); err != nil {
		return err
	}
	if err := s.LaunchReplicator(); err != nil {
		return err
	}
	return s.WaitReady(r.ctx)
}

func (r *shardRound) halt() {
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	r.wg.Wait()
}

// disaster ends site A, promotes site B, and looks which writes it has.
func (r *shardRound) disaster() (result shardResult, err error) {
	r.mu.Lock()
	r.ending = true
	r.mu.Unlock()
	for _, p := range r.sites.pairs {
		if err := p.A.Kill(); err != nil {
			return result, err
		}
	}
	r.halt()
	for _, l := range r.sites.links {
		l.Heal()
	}
	by := r.rng.IntN(len(r.sites.pairs))
	if r.rng.IntN(3) == 0 {
		if err := r.restart(r.sites.pairs[r.rng.IntN(len(r.sites.pairs))].B); err != nil {
			return result, err
		}
	}
	if _, err := r.sites.pairs[by].B.Sidecar.Promote(r.ctx, &sidecarpb.PromoteRequest{Group: r.name(by),
		Force: true}); err != nil {
		return result, fmt.Errorf("seed %d: the promotion: %w", r.seed, err)
	}
	result.answered = r.answered
	if result.recovered, err = r.judge(); err != nil {
		return result, err
	}
	for i, p := range r.sites.pairs {
		if err := p.B.Unmount(r.ctx, r.volumes[i]); err != nil {
			return result, err
		}
		if err := p.A.PowerCycle(); err != nil {
			return result, err
		}
		if err := p.A.Start(r.ctx); err != nil {
			return result, err
		}
	}
	return result, r.clear()
}

// judge reads the copies, and returns how many writes they have: all of a chain up to one, or it is a violation.
func (r *shardRound) judge() (total uint64, err error) {
	var have [shardChains]map[uint64]bool
	for chain := range have {
		have[chain] = map[uint64]bool{}
	}
	for i, p := range r.sites.pairs {
		path, err := p.B.Mount(r.ctx, r.volumes[i])
		if err != nil {
			return 0, err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		for off := 0; off+blockBytes <= len(content); off += blockBytes {
			if binary.LittleEndian.Uint64(content[off:]) == r.seed {
				have[off/blockBytes/shardWrites][binary.LittleEndian.Uint64(content[off+8:])] = true
			}
		}
	}
	for chain, have := range have {
		var last uint64
		for k := range have {
			last = max(last, k)
		}
		for k := uint64(1); k <= last; k++ {
			if !have[k] {
				return 0, fmt.Errorf("%w: seed %d, chain %d: the copies show write %d, and not write %d that caused it",
					errViolation, r.seed, chain, last, k)
			}
		}
		total += last
	}
	return total, nil
}

// errViolation: the order of writes is broken.
var errViolation = errors.New("violation")

func (r *shardRound) clear() error {
	for i, p := range r.sites.pairs {
		for _, s := range []*testsite.Site{p.A, p.B} {
			if _, err := s.Sidecar.DeleteGroup(r.ctx, &sidecarpb.DeleteGroupRequest{Name: r.name(i), Force: true}); err != nil {
				return err
			}
			if err := s.DeleteVolume(r.ctx, r.volumes[i]); err != nil {
				return err
			}
		}
	}
	return nil
}
