package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// What databases on two nodes of a site are members of.
const (
	oneGroup  variant = "shards of one group"
	twoGroups variant = "separate groups"
)

// targetNodes is the share of the throughput of separate groups that the shards of one group should reach.
const targetNodes = 0.97

// nodesName names the stage, and nodesLoad is what each of its rows begins with.
const (
	nodesName = "groups over nodes"
	nodesLoad = "two PostgreSQL servers on two nodes, pgbench with 4 clients each"
)

// benchNodes are two nodes of each of two sites, all on this machine. Node i of site A replicates to node i of site B.
type benchNodes struct {
	pairs []*testsite.Pair
	// metrics are the addresses of the primaries' metrics.
	metrics []string
}

// measureNodes compares databases on two nodes in shards of one group with the same in a group for each node, in turn,
// and reads how long answers were held for epochs meanwhile.
func (e *env) measureNodes(ctx context.Context, p *piece) (err error) {
	e.say("%s: setting up", nodesName)
	nodes, err := e.startNodes(ctx)
	defer func() { err = errors.Join(err, nodes.close()) }()
	if err != nil {
		return err
	}
	pg, err := findPostgres()
	if err != nil {
		return err
	}
	runDir := filepath.Join(nodes.pairs[0].Dir, "pg")
	if err := pg.makeDir(runDir); err != nil {
		return err
	}
	template := filepath.Join(runDir, "template")
	if err := pg.template(ctx, template, e.scale); err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	beds := map[variant]*bed{}
	defer func() {
		for _, b := range beds {
			for _, s := range b.servers {
				err = errors.Join(err, s.stop())
			}
		}
	}()
	for _, v := range []variant{oneGroup, twoGroups} {
		beds[v] = &bed{variant: v}
		if err := e.fillNodes(ctx, nodes, beds[v], pg, template); err != nil {
			return fmt.Errorf("preparing %s: %w", v, err)
		}
	}

	samples := map[variant]map[int]float64{oneGroup: {}, twoGroups: {}}
	hold := histogram{}
	for round := range e.rounds {
		order := []variant{oneGroup, twoGroups}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, v := range order {
			before, err := nodes.holds(ctx)
			if err != nil {
				return err
			}
			s, err := e.measure(ctx, pgLoad{clients: 4, servers: len(nodes.pairs)}, beds[v], round)
			if err != nil {
				return fmt.Errorf("on %s: %w", v, err)
			}
			after, err := nodes.holds(ctx)
			if err != nil {
				return err
			}
			if v == oneGroup {
				hold.add(after.minus(before))
			}
			samples[v][round] = s.value
			e.detail("%s, round %d: %.4g tps, settled in %v", v, round+1, s.value, s.settle.Round(time.Millisecond))
		}
	}
	p.Samples = samples
	p.Rows = append(p.Rows, nodesRow(samples))
	for _, q := range []float64{0.5, 0.99} {
		r := measured(fmt.Sprintf("%s: hold of answers for an epoch, p%.0f", nodesLoad, q*100),
			[]float64{hold.quantile(q) * 1000}, "ms", 0,
			fmt.Sprintf("%.0f holds of slipstream_epoch_hold_seconds, linear within a bucket", hold.count()))
		p.Rows = append(p.Rows, r)
	}
	return nil
}

// nodesRow compares the two variants.
func nodesRow(samples map[variant]map[int]float64) row {
	quotients := ratios(samples[oneGroup], samples[twoGroups])
	ratio, target := median(quotients), targetNodes
	r := row{Name: nodesLoad + ", total, against " + string(twoGroups), Variant: string(oneGroup),
		Against: string(twoGroups), Ratio: &ratio, Target: &target, Unit: "tps", Rounds: len(quotients),
		Value: median(mapValues(samples[oneGroup])), Baseline: median(mapValues(samples[twoGroups])),
		Note: "all four nodes on one machine; epochs go on while the separate groups are measured"}
	r.Spread[0], r.Spread[1] = spread(quotients)
	return r.judge()
}

func (e *env) startNodes(ctx context.Context) (*benchNodes, error) {
	n := &benchNodes{}
	options := testsite.Options{BinDir: e.binDir, Parent: e.tempDir}
	if e.applyInterval > 0 {
		options.ReplicatorArgs = append(options.ReplicatorArgs, "--apply-interval", e.applyInterval.String())
	}
	var err error
	if n.pairs, err = testsite.NewNodes(options, 2, nil); err != nil {
		return n, err
	}
	if n.metrics, err = testsite.FreeAddresses(len(n.pairs)); err != nil {
		return n, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for i, pair := range n.pairs {
		pair.A.Config.ReplicatorMetrics = n.metrics[i]
		if err := pair.Start(ctx); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n *benchNodes) close() error {
	var errs []error
	for _, pair := range n.pairs {
		errs = append(errs, pair.Close())
	}
	return errors.Join(errs...)
}

// fillNodes makes a volume on each node, a group for it, and puts a database on it. The database goes through the
// journal.
func (e *env) fillNodes(ctx context.Context, nodes *benchNodes, b *bed, pg *postgres, template string) error {
	name := strings.ReplaceAll(string(b.variant), " ", "-")
	group := func(node int) string { return fmt.Sprintf("%s-%d", name, node) }
	b.finish = func(ctx context.Context) error { return nodes.caughtUp(ctx, group) }
	for i, pair := range nodes.pairs {
		volume, err := pair.A.CreateVolume(ctx, testsite.VolumeOptions{Name: group(i), SizeBytes: e.databaseBytes,
			FSType: "ext4", Parameters: testsite.Replicable()})
		if err != nil {
			return err
		}
		mount, err := pair.A.Mount(ctx, volume)
		if err != nil {
			return err
		}
		b.mounts = append(b.mounts, mount)
		b.here, b.there = append(b.here, pair.A.Replicator().Pid()), append(b.there, pair.B.Replicator().Pid())
		if err := fillFS(mount); err != nil {
			return err
		}
		settings := &sidecarpb.GroupSettings{Remote: new(pair.B.Config.Name), JournalSizeBytes: &e.journalBytes}
		if b.variant == oneGroup {
			settings.ShardOf, settings.Shard = &name, new(uint32(i))
		}
		if _, err := pair.A.Sidecar.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{Name: group(i),
			Settings: settings}); err != nil {
			return err
		}
		if _, err := pair.A.Sidecar.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: group(i),
			VolumeId: volume.ID}); err != nil {
			return err
		}
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	for i, mount := range b.mounts {
		data := filepath.Join(mount, "data")
		if _, err := run(ctx, "cp", "-a", filepath.Join(template, "data"), data); err != nil {
			return err
		}
		server, err := pg.start(ctx, data, filepath.Join(filepath.Dir(template), group(i)))
		if err != nil {
			return err
		}
		b.servers = append(b.servers, server)
	}
	return b.settle(ctx)
}

// caughtUp waits until what a group on each node has now is durable and applied at both sites. A shard never ends: the
// marks of epochs go on.
func (n *benchNodes) caughtUp(ctx context.Context, group func(node int) string) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for i, pair := range n.pairs {
		now, err := pair.A.Group(ctx, group(i))
		if err != nil {
			return err
		}
		head := now.GetHeadOrdinal()
		if _, err := pair.A.WaitGroup(ctx, group(i), "caught up", func(g *sidecarpb.GroupStatus) bool {
			return testsite.Streaming(g) && g.GetChangeMapBytes() == 0 && g.GetAcknowledgedOrdinal() >= head &&
				g.GetAppliedOrdinal() >= head
		}); err != nil {
			return err
		}
		if _, err := pair.B.WaitGroup(ctx, group(i), "applied", func(g *sidecarpb.GroupStatus) bool {
			return g.GetAppliedOrdinal() >= head
		}); err != nil {
			return err
		}
	}
	return nil
}

// holds reads how long the shards of all nodes have held answers.
func (n *benchNodes) holds(ctx context.Context) (histogram, error) {
	all := histogram{}
	for _, address := range n.metrics {
		one, err := scrapeHistogram(ctx, address, "slipstream_epoch_hold_seconds")
		if err != nil {
			return nil, err
		}
		all.add(one)
	}
	return all, nil
}

// histogram has the observations of at most an upper bound, as Prometheus' does; the last bound is infinite.
type histogram map[float64]float64

func (h histogram) add(other histogram) {
	for bound, count := range other {
		h[bound] += count
	}
}

func (h histogram) minus(other histogram) histogram {
	rest := maps.Clone(h)
	for bound, count := range other {
		rest[bound] -= count
	}
	return rest
}

func (h histogram) count() float64 { return h[math.Inf(1)] }

// quantile is linear within a bucket. What is above the last finite bound is that bound; NaN of nothing.
func (h histogram) quantile(q float64) float64 {
	if h.count() == 0 {
		return math.NaN()
	}
	rank := q * h.count()
	below, lower := 0.0, 0.0
	for _, bound := range slices.Sorted(maps.Keys(h)) {
		if count := h[bound]; count >= rank && !math.IsInf(bound, 1) {
			return lower + (bound-lower)*(rank-below)/(count-below)
		} else if !math.IsInf(bound, 1) {
			below, lower = count, bound
		}
	}
	return lower
}

// scrapeHistogram is the sum of a histogram over its labels; empty if there is none yet.
func scrapeHistogram(ctx context.Context, address, name string) (histogram, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	h := histogram{}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if err := h.parse(lines.Text(), name); err != nil {
			return nil, err
		}
	}
	return h, lines.Err()
}

// parse takes a line of metrics in, if it is a bucket of that name.
func (h histogram) parse(line, name string) error {
	rest, ok := strings.CutPrefix(line, name+"_bucket{")
	if !ok {
		return nil
	}
	_, le, _ := strings.Cut(rest, `le="`)
	le, value, _ := strings.Cut(le, `"`)
	bound, err := strconv.ParseFloat(le, 64)
	if err != nil {
		return fmt.Errorf("metric %s: %w", line, err)
	}
	count, err := strconv.ParseFloat(value[strings.LastIndexByte(value, ' ')+1:], 64)
	if err != nil {
		return fmt.Errorf("metric %s: %w", line, err)
	}
	h[bound] += count
	return nil
}
