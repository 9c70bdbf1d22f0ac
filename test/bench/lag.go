package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/report"
	"github.com/slipstream-storage/slipstream/internal/site"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

// lagInterval is how often a group is asked how far its copy is behind.
const lagInterval = 20 * time.Millisecond

// watchLag collects a group's lag, in milliseconds over seconds, until stop, which returns it.
func watchLag(ctx context.Context, s *testsite.Site, group string) (stop func() []report.Point, err error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := s.Sidecar.WatchGroup(ctx, &sidecarpb.WatchGroupRequest{Name: group,
		IntervalMillis: lagInterval.Milliseconds()})
	if err != nil {
		cancel()
		return nil, err
	}
	var points []report.Point
	var running sync.WaitGroup
	began := time.Now()
	running.Go(func() {
		for {
			g, err := stream.Recv()
			if err != nil {
				return // stopped; a group that failed is seen when it is settled
			}
			if g.LagSeconds == nil {
				continue // not known yet
			}
			points = append(points, report.Point{X: time.Since(began).Seconds(), Y: g.GetLagSeconds() * 1000})
		}
	})
	return func() []report.Point {
		cancel()
		running.Wait()
		return points
	}, nil
}

// line is a way between the sites.
type line struct {
	name string
	open func(ctx context.Context, target string) (*openLine, error)
	// median and p99 are bounds of the lag, in milliseconds; 0 is none.
	median, p99 float64
}

// openLine is as fast as the machine until it is narrowed, because the volumes are set up across it.
type openLine struct {
	// address is dialled instead of the target.
	address string
	narrow  func(context.Context) error
	remove  func() error
}

const (
	lineDelay = 20 * time.Millisecond
	// lineBandwidth is 100 Mbit/s.
	lineBandwidth = 100_000_000 / 8
)

// lines are those that the lag is measured on.
func lines() []line {
	return []line{
		{"the link on loopback", func(_ context.Context, target string) (*openLine, error) {
			return &openLine{target, func(context.Context) error { return nil }, func() error { return nil }}, nil
		}, 20, 60},
		delayed(fmt.Sprintf("%v of delay for a round trip", lineDelay), lineDelay/2),
		delayed(fmt.Sprintf("%v of delay each way", lineDelay), lineDelay),
		{"100 Mbit/s", openVeth, 0, 0}, // pgbench writes more than it carries
	}
}

// delayed is a line through a proxy, because the kernel's netem is not everywhere. Whether a delay is meant of one way
// or of a round trip is a matter of taste, so both are measured.
func delayed(name string, oneWay time.Duration) line {
	return line{name, func(_ context.Context, target string) (*openLine, error) {
		proxy, err := linktest.NewProxy("127.0.0.1:0", target)
		if err != nil {
			return nil, err
		}
		return &openLine{proxy.Addr(), func(context.Context) error { proxy.SetDelay(oneWay); return nil }, proxy.Close}, nil
	}, float64((2 * oneWay).Milliseconds()) + 25, 0}
}

// openVeth leads through a pair of virtual Ethernet devices, one end of which is in a network namespace, where a proxy
// listens that dials the target outside. It is narrowed by the kernel's token bucket on both ends.
func openVeth(ctx context.Context, target string) (_ *openLine, err error) {
	// Short names: the kernel's have 15 bytes. The process id keeps two benches apart.
	id := unix.Getpid() % 100000
	namespace, outer, inner := fmt.Sprintf("slipbench%d", id), fmt.Sprintf("sbo%d", id), fmt.Sprintf("sbi%d", id)
	subnet := fmt.Sprintf("10.213.%d", id%256)
	if _, err := run(ctx, "ip", "netns", "add", namespace); err != nil {
		return nil, err
	}
	var proxy *linktest.Proxy
	l := &openLine{remove: func() error {
		var errs []error
		if proxy != nil {
			errs = append(errs, proxy.Close())
		}
		// Takes the device in it along, and with one end of a pair the other. The context may have ended.
		_, err := run(context.Background(), "ip", "netns", "delete", namespace)
		return errors.Join(append(errs, err)...)
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.remove())
		}
	}()
	runAll := func(ctx context.Context, commands ...[]string) error {
		for _, args := range commands {
			if _, err := run(ctx, args[0], args[1:]...); err != nil {
				return err
			}
		}
		return nil
	}
	if err := runAll(ctx,
		[]string{"ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace},
		[]string{"ip", "address", "add", subnet + ".1/24", "dev", outer},
		[]string{"ip", "link", "set", outer, "up"},
		[]string{"ip", "-n", namespace, "address", "add", subnet + ".2/24", "dev", inner},
		[]string{"ip", "-n", namespace, "link", "set", inner, "up"},
	); err != nil {
		return nil, err
	}
	if err := inNamespace(filepath.Join("/run/netns", namespace), func() (err error) {
		proxy, err = linktest.NewProxy(subnet+".2:0", target)
		return err
	}); err != nil {
		return nil, err
	}
	l.address = proxy.Addr()
	l.narrow = func(ctx context.Context) error {
		// The queue of 50 ms is that of an ordinary router: a deeper one would add its own delay.
		bucket := []string{"root", "tbf", "rate", "100mbit", "burst", "128kb", "latency", "50ms"}
		return runAll(ctx,
			append([]string{"tc", "qdisc", "add", "dev", outer}, bucket...),
			append([]string{"tc", "-n", namespace, "qdisc", "add", "dev", inner}, bucket...))
	}
	return l, nil
}

// inNamespace calls f in a network namespace. Sockets that f makes stay there; what other goroutines make does not.
func inNamespace(path string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine and takes the namespace along.
		runtime.LockOSThread()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err != nil {
			result <- fmt.Errorf("entering network namespace %s: %w", path, err)
			return
		}
		result <- f()
	}()
	return <-result
}

// measureLag measures the lag of the copy under pgbench on a line, and how much of a narrow one is used.
func (e *env) measureLag(ctx context.Context, l line, p *piece) error {
	// Enough for the load and the backlog, and quick to set up.
	small := *e
	small.databaseBytes, small.scale = 640<<20, 10
	e.say("lag, %s", l.name)
	points, err := small.lagOn(ctx, l, p)
	if err != nil {
		return err
	}
	p.Figures = append(p.Figures, report.Figure{
		Plot: report.Plot{Title: "Lag of the copy under pgbench, 8 clients", X: "time (s)", Y: "lag (ms)", LogY: true,
			Series: []report.Series{{Name: l.name, Style: report.Dots, Points: points}}},
		Caption: fmt.Sprintf("What a failure would have lost, asked for every %v.", lagInterval),
	})
	return nil
}

func (e *env) lagOn(ctx context.Context, l line, p *piece) (points []report.Point, err error) {
	free, err := testsite.FreeAddresses(1)
	if err != nil {
		return nil, err
	}
	metrics := free[0]
	var open *openLine
	var lineErr error
	configure := func(pair *testsite.Pair) {
		if open, lineErr = l.open(ctx, pair.B.Config.Listen); lineErr == nil {
			pair.A.Config.Peers = []site.Peer{{Name: pair.B.Config.Name, Addr: open.address}}
			pair.A.Config.ReplicatorMetrics = metrics
		}
	}
	defer func() {
		if open != nil {
			err = errors.Join(err, open.remove())
		}
	}()
	err = e.withPairIn(ctx, e.tempDir, configure, func(ctx context.Context, pair *testsite.Pair) error {
		if lineErr != nil {
			return lineErr
		}
		return e.withDatabases(ctx, pair, []variant{replicated}, false, func(beds []*bed) (err error) {
			b := beds[0]
			load := pgLoad{clients: 8, servers: 1}
			if err := open.narrow(ctx); err != nil {
				return err
			}
			if err := errors.Join(load.prepare(ctx, b), b.settle(ctx)); err != nil {
				return err
			}
			stop, err := watchLag(ctx, pair.A, b.group)
			if err != nil {
				return err
			}
			began := time.Now()
			s, err := load.run(ctx, b, e.lagDuration, 0)
			points = stop()
			if err != nil {
				return err
			}
			values := make([]float64, 0, len(points))
			for _, point := range points {
				values = append(values, point.Y)
			}
			note := fmt.Sprintf("%.0f transactions per second for %v, %d samples; spread is of the samples", s.value,
				time.Since(began).Round(time.Second), len(values))
			for _, q := range []struct {
				name   string
				q      float64
				target float64
			}{{"median", 0.5, l.median}, {"99th percentile", 0.99, l.p99}} {
				row := measured("RPO under pgbench, 8 clients, "+l.name+": "+q.name, values, "ms", q.target, note)
				row.Value, row.Rounds = quantile(values, q.q), 1
				p.Rows = append(p.Rows, row.judge())
			}
			if err := b.settle(ctx); err != nil {
				return err
			}
			return e.backlog(ctx, pair, b, l, metrics, p)
		})
	})
	return points, err
}

// backlogBytes take a narrow line some ten seconds.
const backlogBytes = 128 << 20

// backlog writes more than the line can take at once, and measures how fast it is shipped.
func (e *env) backlog(ctx context.Context, pair *testsite.Pair, b *bed, l line, metrics string, p *piece) error {
	before, err := scrape(ctx, metrics, "slipstream_group_wire_bytes_total")
	if err != nil {
		return err
	}
	began := time.Now()
	f, err := os.Create(filepath.Join(b.mounts[1], "backlog"))
	if err != nil {
		return err
	}
	_, err = writeNoise(f, backlogBytes)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing a backlog: %w", err)
	}
	if err := syncFS(b.mounts[1]); err != nil {
		return err
	}
	waitCtx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	if _, err := pair.A.WaitGroup(waitCtx, b.group, "acknowledged", func(g *sidecarpb.GroupStatus) bool {
		return g.GetAcknowledgedOrdinal() >= g.GetHeadOrdinal()
	}); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := scrape(ctx, metrics, "slipstream_group_wire_bytes_total")
	if err != nil {
		return err
	}
	rate := (after - before) / took.Seconds()
	note := fmt.Sprintf("%.0f MiB of noise, from the first write until everything is acknowledged", (after-before)/(1<<20))
	row := measured("shipping a backlog, "+l.name, []float64{rate / (1 << 20)}, "MiB/s", 0, note)
	if l.name == "100 Mbit/s" {
		target, ratio := 0.9, rate/lineBandwidth
		row.Name, row.Target, row.Ratio, row.Spread = "share of a line of 100 Mbit/s that a backlog uses", &target,
			&ratio, [2]float64{ratio, ratio}
	}
	p.Rows = append(p.Rows, row.judge())
	return nil
}
