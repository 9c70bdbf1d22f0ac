package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

// loopSites are two sites of real processes, kept from round to round: each round has a group and volumes of its own.
type loopSites struct {
	pair  *testsite.Pair
	proxy *linktest.Proxy // site A's line to site B
}

func startLoopSites(ctx context.Context, binDir string) (_ *loopSites, err error) {
	pair, err := testsite.New(testsite.Options{BinDir: binDir})
	if err != nil {
		return nil, err
	}
	s := &loopSites{pair: pair}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.proxy, err = linktest.NewProxy("127.0.0.1:0", pair.B.Config.Listen); err != nil {
		return nil, err
	}
	return s, pair.Start(ctx)
}

func (s *loopSites) close() error {
	var errs []error
	if s.proxy != nil {
		errs = append(errs, s.proxy.Close())
	}
	return errors.Join(append(errs, s.pair.Close())...)
}

// loopSearch runs rounds on loop devices, one after the other, until all are done or until enough says so.
func loopSearch(ctx context.Context, binDir string, first uint64, rounds int, t *tally, enough func() bool) error {
	s, err := startLoopSites(ctx, binDir)
	if err != nil {
		return err
	}
	err = search(ctx, first, rounds, 1, t, enough, s.round)
	return errors.Join(err, s.close())
}

// loopRound is one round on loop devices.
type loopRound struct {
	ctx     context.Context
	rng     *rand.Rand
	seed    uint64
	sites   *loopSites
	tally   *tally
	group   string
	order   happensBefore
	h       *history
	volumes []*testsite.Volume
	devices []*device
	writers int

	wg     sync.WaitGroup
	stop   chan struct{}
	ending atomic.Bool // the primary's site ends: operations fail
	mu     sync.Mutex
	broken error

	ackedClock uint64
	samples    []ackSample

	snapshots     []loopSnapshot // not judged yet
	snapshotsMade int
}

// Bounds of a round on loop devices.
const (
	loopRoundTimeout = 2 * time.Minute
	loopStep         = 120 * time.Millisecond
	loopMaxBlocks    = 16
)

func (s *loopSites) round(ctx context.Context, seed uint64, t *tally) (err error) {
	ctx, cancel := context.WithTimeout(ctx, loopRoundTimeout)
	defer cancel()
	r := &loopRound{
		ctx: ctx, rng: rand.New(rand.NewPCG(seed, 0)), seed: seed, sites: s, tally: t, group: fmt.Sprintf("oracle-%d", seed),
		h: &history{}, stop: make(chan struct{}),
	}
	defer func() {
		r.halt()
		err = errors.Join(err, r.closeDevices())
		if err == nil {
			err = r.clear()
		}
	}()
	if err := r.create(); err != nil {
		return err
	}
	for number := range r.writers {
		rng := rand.New(rand.NewPCG(seed, uint64(number)+1))
		r.wg.Go(func() { r.write(number, rng) })
	}
	if r.rng.IntN(4) != 0 {
		if _, err := s.pair.A.WaitGroup(ctx, r.group, "streaming", testsite.Streaming); err != nil {
			return err
		}
	}
	for range 1 + r.rng.IntN(4) {
		if err := r.event(); err != nil {
			return err
		}
	}
	if err := r.judgeSnapshots(); err != nil {
		return err
	}
	if r.rng.IntN(4) == 0 {
		return r.relocate()
	}
	return r.disaster()
}

// create provisions raw block volumes through CSI, makes the group and opens the devices.
func (r *loopRound) create() error {
	parameters := testsite.Replicable()
	parameters["slipstream.dev/order"] = "flush"
	r.order = afterFlush
	if r.rng.IntN(3) == 0 {
		parameters["slipstream.dev/order"] = "ack"
		r.order = afterAck
	}
	r.writers = 1 + r.rng.IntN(3)
	journal := int64(4+r.rng.IntN(13)) << 20
	r.h.note("order %s, %d writers, journal %d bytes", parameters["slipstream.dev/order"], r.writers, journal)
	a := r.sites.pair.A
	_, err := a.Sidecar.CreateGroup(r.ctx, &sidecarpb.CreateGroupRequest{
		Name: r.group,
		Settings: &sidecarpb.GroupSettings{Remote: new(r.sites.pair.B.Config.Name),
			RemoteAddress: new(r.sites.proxy.Addr()), JournalSizeBytes: &journal},
	})
	if err != nil {
		return err
	}
	for i := range 1 + r.rng.IntN(2) {
		size := int64(1+r.rng.IntN(6)) << 20
		v, err := a.CreateVolume(r.ctx, testsite.VolumeOptions{
			Name: fmt.Sprintf("%s-%d", r.group, i), SizeBytes: size, Block: true, Parameters: parameters,
		})
		if err != nil {
			return err
		}
		r.volumes = append(r.volumes, v)
		if _, err := a.Sidecar.AddVolume(r.ctx, &sidecarpb.AddVolumeRequest{Group: r.group, VolumeId: v.ID}); err != nil {
			return err
		}
	}
	return r.open(a)
}

// open mounts the round's volumes at a site and opens their devices.
func (r *loopRound) open(at *testsite.Site) error {
	first := len(r.h.models()) == 0
	for _, v := range r.volumes {
		path, err := at.Mount(r.ctx, v)
		if err != nil {
			return err
		}
		d, err := openDevice(path)
		if err != nil {
			return err
		}
		r.devices = append(r.devices, d)
		if first {
			r.h.addVolume(v.ID, int(d.size/blockBytes))
		}
	}
	return nil
}

func (r *loopRound) closeDevices() error {
	var errs []error
	for _, d := range r.devices {
		errs = append(errs, d.f.Close())
	}
	r.devices = nil
	return errors.Join(errs...)
}

// halt ends the writers.
func (r *loopRound) halt() {
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	r.wg.Wait()
}

func (r *loopRound) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken == nil && !r.ending.Load() {
		r.broken = r.h.violation("an I/O error at the primary: %v", err)
	}
}

func (r *loopRound) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.broken
}

// write is one writer. It does not overwrite what it has not flushed: the kernel may be copying that page to the shim
// just then, and half of each would be no valid sector.
func (r *loopRound) write(number int, rng *rand.Rand) {
	buf := alignedBuffer(loopMaxBlocks * blockBytes)
	flushEvery := pick(rng, 1, 4, 16)
	dirty := map[[2]int]bool{}
	pause := time.NewTicker(time.Duration(1+rng.IntN(4)) * time.Millisecond)
	defer pause.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-pause.C:
		}
		volume := rng.IntN(len(r.devices))
		d := r.devices[volume]
		chunks := int(d.size/blockBytes) / chunkBlocks / r.writers
		within := min(chunks, pick(rng, 1, 4, chunks))
		n := 1 + rng.IntN(loopMaxBlocks)
		block := (rng.IntN(within)*r.writers+number)*chunkBlocks + rng.IntN(chunkBlocks-n+1)
		free := true
		for b := block; b < block+n; b++ {
			free = free && !dirty[[2]int{volume, b}]
		}
		if free {
			o := r.h.issue(opWrite, number, volume, block, n)
			stamp(buf[:n*blockBytes], r.seed, o)
			if _, err := d.f.WriteAt(buf[:n*blockBytes], int64(block)*blockBytes); err != nil {
				r.fail(err)
				return
			}
			r.h.returned(o)
			for b := block; b < block+n && r.order == afterFlush; b++ {
				dirty[[2]int{volume, b}] = true
			}
		}
		if free && rng.IntN(flushEvery) != 0 {
			continue
		}
		// A flush of one volume flushes the group's journal, but only that volume's part of the kernel's cache.
		started, covers := r.h.beginFlush()
		for _, d := range r.devices {
			if err := d.f.Sync(); err != nil {
				r.fail(err)
				return
			}
		}
		r.h.endFlush(started, covers)
		clear(dirty)
	}
}

// observe is world.observe for processes that may not answer just now.
func (r *loopRound) observe() {
	ctx, cancel := context.WithTimeout(r.ctx, time.Second)
	defer cancel()
	// In order flush, what has ordinals is what a flush covers.
	_, clock := r.h.flushed()
	if r.order == afterAck {
		_, clock = r.h.acknowledged()
	}
	g, err := r.sites.pair.A.Group(ctx, r.group)
	if err != nil {
		return
	}
	r.samples = append(r.samples, ackSample{clock, g.GetHeadOrdinal()})
	// In the middle of a sync a promotion gives what was there before. A sync may begin in the middle of a status.
	again, err := r.sites.pair.A.Group(ctx, r.group)
	if err != nil || g.GetState() != sidecarpb.GroupState_GROUP_STATE_STREAMING || again.GetState() != g.GetState() {
		return
	}
	for _, s := range r.samples {
		if s.head <= g.GetAcknowledgedOrdinal() {
			r.ackedClock = max(r.ackedClock, s.clock)
		}
	}
}

func (r *loopRound) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.ctx.Done():
		return r.ctx.Err()
	case <-timer.C:
		return r.failed()
	}
}

func (r *loopRound) event() error {
	if err := r.pause(loopStep/2 + time.Duration(r.rng.Int64N(int64(loopStep)))); err != nil {
		return err
	}
	r.observe()
	pair := r.sites.pair
	switch r.rng.IntN(9) {
	case 6, 7, 8:
		return r.snapshot()
	case 0:
		r.h.note("the link is cut")
		r.sites.proxy.Cut()
	case 1:
		r.h.note("the link hangs")
		r.sites.proxy.Stall()
	case 2:
		r.h.note("the link is whole")
		r.sites.proxy.Heal()
	case 3, 4:
		r.h.note("the primary's replicator is killed")
		return r.restart(pair.A)
	default:
		r.h.note("the secondary's replicator is killed")
		return r.restart(pair.B)
	}
	return nil
}

// restart kills a site's replicator and starts it again. The driver keeps the volumes meanwhile.
func (r *loopRound) restart(s *testsite.Site) error {
	if err := s.Replicator().Kill(); err != nil {
		return err
	}
	if err := s.LaunchReplicator(); err != nil {
		return err
	}
	r.tally.crashes.Add(1)
	return s.WaitReady(r.ctx)
}

func (r *loopRound) read(site string) (content, error) {
	c := make(content, len(r.devices))
	for i, d := range r.devices {
		var err error
		if c[i], err = r.h.read(r.seed, i, d, false); err != nil {
			return nil, fmt.Errorf("%s: %w", site, err)
		}
	}
	return c, nil
}

// device is a block device, read and written past the page cache.
type device struct {
	f    *os.File
	size int64
}

func openDevice(path string) (*device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	const seekEnd = 2
	size, err := f.Seek(0, seekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &device{f, size}, nil
}

func (d *device) Size() int64 { return d.size }

func (d *device) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

// alignedBuffer is a buffer for direct I/O.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+blockBytes)
	skip := -uintptr(unsafe.Pointer(&b[0])) & (blockBytes - 1)
	return b[skip : int(skip)+n : int(skip)+n]
}
