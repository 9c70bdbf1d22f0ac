package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// targetOff is the share of the baseline's throughput that a replicable volume without replication should reach.
const targetOff = 0.97

// stages are the comparisons of the mode in both settings, next to each other.
func (e *env) stages() []*stage {
	one, two := *e, *e
	one.setting, two.setting = oneMachine, twoHosts
	var all []*stage
	both := func(make func(*env) *stage) {
		for _, e := range []*env{&one, &two} {
			s := make(e)
			s.setting = e.setting
			all = append(all, s)
		}
	}
	both((*env).postgresStage)
	both((*env).fioStage)
	both((*env).manyStage)
	if e.short {
		return all
	}
	both((*env).filesStage)
	both((*env).mariadbStage)
	both((*env).separateStage)
	for _, size := range [][2]int{{1, 1}, {8, 1}, {64, 1}, {8, 8}, {64, 64}} {
		both(func(e *env) *stage { return e.growthStage(size[0], size[1]) })
	}
	return all
}

// target chooses the one of the setting.
func (e *env) target(one, two float64) float64 {
	if e.setting == twoHosts {
		return two
	}
	return one
}

// share is the part of the budget that is used up when a stage ends.
func (e *env) share(one, two float64) float64 { return e.target(one, two) }

// slowest is the bound of the p99 of a durable write, as a multiple of the baseline's.
func (e *env) slowest() float64 { return e.target(1.5, 1.2) }

// writes are the variants of a load that writes.
func (e *env) writes(target float64) map[variant]float64 {
	all := map[variant]float64{replicated: target, off: targetOff, flushed: 0, peerAlone: 0, peer: 0, peerSync: 0}
	if e.short {
		delete(all, flushed)
		delete(all, off)
	}
	return all
}

// reads are those of a load that only reads.
func (e *env) reads(target float64) map[variant]float64 {
	all := e.writes(target)
	delete(all, peerSync)
	return all
}

const kib4, kib256 = 4 << 10, 256 << 10

// sequentialFlush is how many writes of 256 KiB are between two flushes: 64 MiB. Without any, a plain loop device
// writes to memory only for as long as the bench runs.
const sequentialFlush = 256

// fioStage are the fio loads on one raw device.
func (e *env) fioStage() *stage {
	random := func(depth, flushEvery int) fioLoad {
		return fioLoad{pattern: "randwrite", blockSize: kib4, depth: depth, jobs: flushEvery > 0, flushEvery: flushEvery}
	}
	offToo := func(targets map[variant]float64) map[variant]float64 {
		targets[off] = targetOff
		return targets
	}
	s := &stage{name: "fio", share: e.share(0.68, 0.84), comparisons: []*comparison{
		{name: "fio 4 KiB random write, fsync each, depth 1", load: random(1, 1), slowest: e.slowest(),
			cpu: [2]float64{70, 25}, targets: offToo(e.writes(e.target(1, 1.05)))},
		{name: "fio 4 KiB random write, fsync each, depth 8", load: random(8, 1), slowest: e.slowest(),
			cpu: [2]float64{35, 25}, targets: offToo(e.writes(1.1))},
		{name: "fio 4 KiB random write, no flush, depth 1", load: random(1, 0), targets: e.writes(e.target(0.7, 0.8))},
		{name: "fio 4 KiB random write, no flush, depth 16", load: random(16, 0), targets: e.writes(e.target(0.7, 0.8))},
	}}
	if !e.short {
		s.comparisons = append(s.comparisons,
			&comparison{name: "fio 256 KiB sequential write, journal on the images' disk",
				load:    fioLoad{pattern: "write", blockSize: kib256, depth: 4, flushEvery: sequentialFlush},
				targets: e.writes(0.45), note: "a flush every 64 MiB"},
			&comparison{name: "fio 4 KiB random read, depth 1",
				load: fioLoad{pattern: "randread", blockSize: kib4, depth: 1}, targets: e.reads(0.9)})
	}
	if !e.short || e.setting == oneMachine {
		s.comparisons = append(s.comparisons, &comparison{name: "fio 4 KiB random read, depth 16",
			load: fioLoad{pattern: "randread", blockSize: kib4, depth: 16}, targets: e.reads(0.9)})
	}
	s.variants, s.volumes, s.sizeBytes = []variant{plain, driverPlain, replicated, off}, 1, e.deviceBytes
	if !e.short {
		s.variants = append(s.variants, flushed)
	}
	s.peers = e.peers && e.setting == oneMachine
	s.with = func(ctx context.Context, measure func(context.Context, []*bed) error) error {
		return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) (err error) {
			o := bedOptions{name: "fio", volumes: s.volumes, sizeBytes: s.sizeBytes}
			beds, err := e.beds(ctx, pair, o, s.variants...)
			if err != nil {
				return err
			}
			if s.peers {
				stop, peers, peersErr := e.peerBeds(ctx, pair, o)
				defer func() { err = errors.Join(err, stop()) }()
				if err := peersErr; err != nil {
					return err
				}
				beds = append(beds, peers...)
			}
			return measure(ctx, beds)
		})
	}
	return s
}

// fsyncEach writes 4 KiB and flushes, one request at a time on each device.
var fsyncEach = fioLoad{pattern: "randwrite", blockSize: kib4, depth: 1, jobs: true, flushEvery: 1}

// manyStage are writers on eight volumes of one group.
func (e *env) manyStage() *stage {
	s := &stage{name: "eight volumes", share: e.share(0.92, 1), comparisons: []*comparison{{
		name: "8 volumes in one group, 4 KiB random write with fsync each on all of them, total", load: fsyncEach,
		cpu: [2]float64{45, 25}, targets: e.writes(e.target(0.85, 1)),
	}}}
	s.variants, s.volumes, s.sizeBytes = []variant{plain, driverPlain, replicated}, 8, e.deviceBytes/4
	if !e.short {
		s.variants = append(s.variants, off, flushed)
	}
	s.with = func(ctx context.Context, measure func(context.Context, []*bed) error) error {
		return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
			beds, err := e.beds(ctx, pair, bedOptions{name: "many", volumes: s.volumes, sizeBytes: s.sizeBytes},
				s.variants...)
			if err != nil {
				return err
			}
			return measure(ctx, beds)
		})
	}
	return s
}

// memoryGroups and memoryVolumes bound the resident memory of a replicator, in MiB, with 64 groups and with 8 volumes.
const memoryGroups, memoryVolumes = 300, 96

// growthStage are the same writers on more volumes, in one group or spread over several.
func (e *env) growthStage(volumes, groups int) *stage {
	targets := map[[2]int]float64{{64, 1}: e.target(0.6, 0.8), {64, 64}: e.target(0.5, 0.6)}
	name := fmt.Sprintf("growth: %d volumes in %d groups", volumes, groups)
	s := &stage{name: name, comparisons: []*comparison{{
		name: name + ", 4 KiB random write with fsync each on all of them, total", load: fsyncEach,
		targets: map[variant]float64{replicated: targets[[2]int{volumes, groups}], off: targetOff},
	}}}
	s.variants, s.volumes, s.sizeBytes = []variant{plain, driverPlain, replicated, off}, volumes, 16<<20
	s.with = func(ctx context.Context, measure func(context.Context, []*bed) error) error {
		return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
			// Journals of 64 groups have to fit on the disk, twice.
			smaller := *e
			smaller.journalBytes = max(e.journalBytes/int64(groups), 64<<20)
			beds, err := smaller.beds(ctx, pair, bedOptions{
				name: "growth", volumes: volumes, groups: groups, sizeBytes: s.sizeBytes,
			}, s.variants...)
			if err != nil {
				return err
			}
			if err := measure(ctx, beds); err != nil {
				return err
			}
			for i, where := range []string{"primary", "secondary"} {
				_, peak, err := residentBytes([]int{pair.A.Replicator().Pid(), pair.B.Replicator().Pid()}[i])
				if err != nil {
					return err
				}
				atMost := 0.0
				if groups == 64 {
					atMost = memoryGroups
				}
				s.comparisons[0].more = append(s.comparisons[0].more, measured(name+", resident memory of the "+where+
					"'s replicator, peak", []float64{peak / (1 << 20)}, "MiB", atMost, ""))
			}
			return nil
		})
	}
	return s
}

// separateStage is the sequential write with images and journals on file systems of their own. Both are loop-backed,
// since a machine with a second disk is not to be assumed: what is separate is the file system, not the disk.
func (e *env) separateStage() *stage {
	s := &stage{name: "separate file systems", comparisons: []*comparison{{
		name:    "fio 256 KiB sequential write, images and journal on separate file systems",
		load:    fioLoad{pattern: "write", blockSize: kib256, depth: 4, flushEvery: sequentialFlush},
		targets: map[variant]float64{replicated: 0.8},
		note:    "two ext4 in files of one disk, which the secondary uses too: file systems are separate, the disk is not",
	}}}
	s.variants, s.volumes, s.sizeBytes = []variant{plain, driverPlain, replicated}, 1, e.deviceBytes
	s.with = func(ctx context.Context, measure func(context.Context, []*bed) error) (err error) {
		dir, err := os.MkdirTemp(e.tempDir, "slipstream-separate-")
		if err != nil {
			return err
		}
		images, journal := filepath.Join(dir, "images"), filepath.Join(dir, "journal")
		defer func() { err = errors.Join(err, releaseFileSystems(dir, images, journal)) }()
		for _, name := range []string{images, journal} {
			if err := makeFileSystem(ctx, name, 6*e.deviceBytes+e.journalBytes*3); err != nil {
				return err
			}
		}
		return e.withPairIn(ctx, images, nil, func(ctx context.Context, pair *testsite.Pair) error {
			// The pool has no groups yet, so they can be put elsewhere.
			if err := pair.A.Kill(); err != nil {
				return err
			}
			pair.A.Config.JournalDir = journal
			if err := pair.A.Start(ctx); err != nil {
				return err
			}
			beds, err := e.beds(ctx, pair, bedOptions{name: "separate", volumes: 1, sizeBytes: s.sizeBytes}, s.variants...)
			if err != nil {
				return err
			}
			return measure(ctx, beds)
		})
	}
	return s
}

// makeFileSystem makes ext4 in the file <name>.image and mounts it on name.
func makeFileSystem(ctx context.Context, name string, sizeBytes int64) error {
	image := name + ".image"
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	// Allocated, so that the outer file system does not allocate while something is measured.
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, sizeBytes), f.Close()); err != nil {
		return fmt.Errorf("allocating %s: %w", image, err)
	}
	device, err := blockdev.AttachLoop(blockdev.LoopConfig{BackingPath: image, DirectIO: true})
	if err != nil {
		return err
	}
	if _, err := run(ctx, "mkfs.ext4", "-q", "-m0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
		device); err != nil {
		return err
	}
	if err := os.MkdirAll(name, 0o755); err != nil {
		return err
	}
	return unix.Mount(device, name, "ext4", 0, "")
}

// releaseFileSystems takes away what makeFileSystem made, or as much of it as there is.
func releaseFileSystems(dir string, names ...string) error {
	var errs []error
	for _, name := range names {
		if err := unix.Unmount(name, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", name, err))
			continue
		}
		devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		errs = append(errs, err)
		for _, file := range devices {
			backing, err := os.ReadFile(file)
			if err != nil || string(backing) != name+".image\n" {
				continue // detached meanwhile, or another's
			}
			errs = append(errs, blockdev.DetachLoop("/dev/"+filepath.Base(filepath.Dir(filepath.Dir(file)))))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s stays: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// postgresStage is pgbench on ext4.
func (e *env) postgresStage() *stage {
	s := &stage{name: "PostgreSQL", share: e.share(0.23, 0.46), comparisons: []*comparison{
		{name: "pgbench, 1 client", load: pgLoad{clients: 1, servers: 1}, targets: e.writes(1)},
		{name: "pgbench, 8 clients", load: pgLoad{clients: 8, servers: 1}, targets: e.writes(e.target(0.85, 0.95))},
		{name: "two PostgreSQL servers on two volumes of one group, pgbench with 4 clients each",
			load: pgLoad{clients: 4, servers: 2}, targets: e.writes(e.target(0.85, 0.95))},
	}}
	s.variants, s.volumes, s.sizeBytes = []variant{plain, driverPlain, replicated}, 2, e.databaseBytes
	if !e.short {
		s.variants = append(s.variants, off, flushed)
	}
	s.peers = e.peers && e.setting == oneMachine
	s.with = func(ctx context.Context, measure func(context.Context, []*bed) error) error {
		return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
			return e.withDatabases(ctx, pair, s.variants, s.peers, func(beds []*bed) error { return measure(ctx, beds) })
		})
	}
	return s
}

// withDatabases makes beds of two volumes with a PostgreSQL server on each, all of them copies of one database.
func (e *env) withDatabases(ctx context.Context, pair *testsite.Pair, variants []variant, peers bool,
	use func([]*bed) error) (err error) {
	pg, err := findPostgres()
	if err != nil {
		return err
	}
	// Sockets are not on the volumes.
	runDir := filepath.Join(pair.Dir, "pg")
	template := filepath.Join(runDir, "template")
	if err := pg.makeDir(runDir); err != nil {
		return err
	}
	if err := pg.template(ctx, template, e.scale); err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	copyTemplate := func(mount string, _ int) error {
		_, err := run(ctx, "cp", "-a", filepath.Join(template, "data"), filepath.Join(mount, "data"))
		return err
	}
	o := bedOptions{name: "pg", volumes: 2, sizeBytes: e.databaseBytes, filesystem: true, dataset: copyTemplate}
	beds, err := e.beds(ctx, pair, o, variants...)
	if err != nil {
		return err
	}
	if peers {
		stop, more, peersErr := e.peerBeds(ctx, pair, o)
		defer func() { err = errors.Join(err, stop()) }()
		if err := peersErr; err != nil {
			return err
		}
		beds = append(beds, more...)
	}
	defer func() {
		for _, b := range beds {
			for _, s := range b.servers {
				err = errors.Join(err, s.stop())
			}
		}
	}()
	for i, b := range beds {
		for j, mount := range b.mounts {
			server, err := pg.start(ctx, filepath.Join(mount, "data"), filepath.Join(runDir, fmt.Sprintf("%d-%d", i, j)))
			if err != nil {
				return err
			}
			b.servers = append(b.servers, server)
		}
	}
	return use(beds)
}
