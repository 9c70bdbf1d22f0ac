package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testsite"
)

const (
	// analyticsSlower bounds the p99 of the lag while the copy is read, as a multiple of the one without.
	analyticsSlower = 1.25
	// analyticsPoll is how often the secondary's driver is asked whether a snapshot or a volume is complete.
	analyticsPoll = 200 * time.Millisecond
)

// measureAnalytics compares the lag of the copy under pgbench in windows of two kinds, in turn. In one kind nothing
// else happens. In the other a group snapshot of the copy is taken at the secondary, both volumes are restored from it,
// mounted and read, and everything is deleted.
func (e *env) measureAnalytics(ctx context.Context, p *piece) error {
	small := *e
	small.databaseBytes, small.scale = 640<<20, 10
	e.say("analytics, %d times %v without and with a snapshot of the copy that is restored and read", e.rounds,
		e.lagDuration)
	return small.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
		return small.withDatabases(ctx, pair, []variant{replicated}, false, func(beds []*bed) error {
			a := &analytics{env: e, pair: pair, bed: beds[0]}
			for round := range e.rounds {
				for i := range 2 {
					if err := a.window(ctx, round, (i+round)%2 == 1); err != nil {
						return err
					}
				}
			}
			p.Rows = append(p.Rows, a.rows()...)
			return nil
		})
	})
}

// analytics are the windows of measureAnalytics, by round.
type analytics struct {
	*env
	pair *testsite.Pair
	bed  *bed

	// without and with are the p99 of the lag, in milliseconds. took is how long a snapshot was there, in seconds.
	without, with, took map[int]float64
	readBytes           int64
}

// window measures the lag under one run of pgbench.
func (a *analytics) window(ctx context.Context, round int, reading bool) error {
	load := pgLoad{clients: 8, servers: 1}
	if err := errors.Join(load.prepare(ctx, a.bed), a.bed.settle(ctx)); err != nil {
		return err
	}
	stop, err := watchLag(ctx, a.pair.A, a.bed.group)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	var took time.Duration
	var readErr error
	if reading {
		running.Go(func() {
			began := time.Now()
			readErr = a.readCopy(ctx, fmt.Sprintf("analytics-%d", round))
			took = time.Since(began)
		})
	}
	s, err := load.run(ctx, a.bed, a.lagDuration, round)
	points := stop()
	running.Wait()
	if err := errors.Join(err, readErr); err != nil {
		return err
	}
	lags := make([]float64, 0, len(points))
	for _, point := range points {
		lags = append(lags, point.Y)
	}
	p99, into := quantile(lags, 0.99), &a.without
	if reading {
		into = &a.with
		put(&a.took, round, took.Seconds())
	}
	put(into, round, p99)
	a.detail("analytics, round %d, reading %v (%v): lag p50 %.1f ms, p99 %.1f ms, max %.1f ms of %d samples, %.0f tps",
		round+1, reading, took.Round(time.Millisecond), median(lags), p99, quantile(lags, 1), len(lags), s.value)
	return a.bed.settle(ctx)
}

func put(values *map[int]float64, round int, v float64) {
	if *values == nil {
		*values = map[int]float64{}
	}
	(*values)[round] = v
}

// readCopy takes a group snapshot of the copy, reads all files in volumes that are restored from it, and deletes all.
func (a *analytics) readCopy(ctx context.Context, name string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	site := a.pair.B
	snapshot, err := site.GroupSnapshot(ctx, name, a.bed.volumes, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.DeleteGroupSnapshot(ctx, snapshot.GetGroupSnapshotId())) }()
	for !snapshot.GetReadyToUse() {
		if err := pause(ctx, analyticsPoll); err != nil {
			return fmt.Errorf("group snapshot %s is not ready: %w", name, err)
		}
		if snapshot, err = site.GetGroupSnapshot(ctx, snapshot.GetGroupSnapshotId()); err != nil {
			return err
		}
	}
	a.readBytes = 0
	for _, member := range snapshot.GetSnapshots() {
		if err := a.readMember(ctx, member); err != nil {
			return err
		}
	}
	return nil
}

func (a *analytics) readMember(ctx context.Context, member *csi.Snapshot) (err error) {
	site := a.pair.B
	o := testsite.VolumeOptions{Name: "from-" + member.GetSnapshotId(), SizeBytes: a.bed.sizeBytes, FSType: "ext4",
		SnapshotID: member.GetSnapshotId()}
	v, err := site.CreateVolume(ctx, o)
	for status.Code(err) == codes.Aborted { // it is being copied
		if err := pause(ctx, analyticsPoll); err != nil {
			return fmt.Errorf("volume %s is not restored: %w", o.Name, err)
		}
		v, err = site.CreateVolume(ctx, o)
	}
	if err != nil {
		return err
	}
	path, err := site.Mount(ctx, v)
	if err != nil {
		return err
	}
	bytes, err := readTree(path)
	a.readBytes += bytes
	return errors.Join(err, site.Unmount(ctx, v), site.DeleteVolume(ctx, v))
}

// readTree reads all files below a directory, and returns how many bytes they have.
func readTree(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, f)
		bytes += n
		return errors.Join(err, f.Close())
	})
	return bytes, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *analytics) rows() []row {
	quotients := ratios(a.with, a.without)
	ratio, target := median(quotients), analyticsSlower
	r := row{Name: "RPO under pgbench, 8 clients, while a snapshot of the copy is restored and read: 99th percentile",
		Variant: string(replicated), Against: "the same without a snapshot", Ratio: &ratio, Target: &target, AtMost: true,
		Value: median(mapValues(a.with)), Baseline: median(mapValues(a.without)), Unit: "ms", Rounds: len(quotients),
		Note: fmt.Sprintf("one snapshot of two volumes in each %v; %d MiB were read", a.lagDuration, a.readBytes>>20)}
	r.Spread[0], r.Spread[1] = spread(quotients)
	return []row{r.judge(), measured("snapshot of the copy under pgbench: from its call until all of it is deleted",
		mapValues(a.took), "s", 0, "")}
}
