package main

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	stream, err := s.Sidecar.WatchGroup(ctx, &sidecarpb.WatchGroupRequest{Name: group, IntervalMillis: lagInterval.Milliseconds()})
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
			points = append(points, report.Point{X: time.Since(began).Seconds(), Y: g.GetLagSeconds() * 1000})
		}
	})
	return func() []report.Point {
		cancel()
		running.Wait()
		return points
	}, nil
}

// line is a way between the sites. make returns the address to dial instead of the target, and how to take it away.
type line struct {
	name string
	make func(ctx context.Context, target string) (address string, remove func() error, err error)
}

const (
	lineDelay = 20 * time.Millisecond
	// lineBandwidth is 100 Mbit/s.
	lineBandwidth = 100_000_000 / 8
)

// lines are those that the lag is measured on.
func lines() []line {
	return []line{
		{"the link on loopback", func(_ context.Context, target string) (string, func() error, error) {
			return target, func() error { return nil }, nil
		}},
		{fmt.Sprintf("%v of delay each way", lineDelay), func(_ context.Context, target string) (string, func() error, error) {
			proxy, err := linktest.NewProxy("127.0.0.1:0", target)
			if err != nil {
				return "", nil, err
			}
			proxy.SetDelay(lineDelay)
			return proxy.Addr(), proxy.Close, nil
		}},
		{"100 Mbit/s", narrowLine},
	}
}

// narrowLine puts a token bucket of the kernel on a pair of virtual Ethernet devices, one end of which is in a network
// namespace. There a proxy listens that dials the target outside.
func narrowLine(ctx context.Context, target string) (address string, remove func() error, err error) {
	// Short names: the kernel's have 15 bytes. The process id keeps two benches apart.
	id := unix.Getpid() % 100000
	namespace, outer, inner := fmt.Sprintf("slipbench%d", id), fmt.Sprintf("sbo%d", id), fmt.Sprintf("sbi%d", id)
	subnet := fmt.Sprintf("10.213.%d", id%256)
	var proxy *linktest.Proxy
	remove = func() error {
		var errs []error
		if proxy != nil {
			errs = append(errs, proxy.Close())
		}
		// Takes the devices in it along, and with one end of a pair the other. The context may have ended.
		_, err := run(context.Background(), "ip", "netns", "delete", namespace)
		return errors.Join(append(errs, err)...)
	}
	if _, err := run(ctx, "ip", "netns", "add", namespace); err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	for _, args := range [][]string{
		{"ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace},
		{"ip", "address", "add", subnet + ".1/24", "dev", outer},
		{"ip", "link", "set", outer, "up"},
		{"ip", "-n", namespace, "address", "add", subnet + ".2/24", "dev", inner},
		{"ip", "-n", namespace, "link", "set", inner, "up"},
		// The queue of 50 ms is that of an ordinary router: a deeper one would add its own delay.
		{"tc", "qdisc", "add", "dev", outer, "root", "tbf", "rate", "100mbit", "burst", "128kb", "latency", "50ms"},
		{"tc", "-n", namespace, "qdisc", "add", "dev", inner, "root", "tbf", "rate", "100mbit", "burst", "128kb", "latency", "50ms"},
	} {
		if _, err := run(ctx, args[0], args[1:]...); err != nil {
			return "", nil, err
		}
	}
	err = inNamespace(filepath.Join("/run/netns", namespace), func() (err error) {
		proxy, err = linktest.NewProxy(subnet+".2:0", target)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	return proxy.Addr(), remove, nil
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

// measureLag measures the lag of the copy under pgbench on each line, and how much of a narrow line is used.
func (e *env) measureLag(ctx context.Context, r *results) error {
	figure := report.Plot{Title: "Lag of the copy under pgbench, 8 clients", X: "time (s)", Y: "lag (ms)", LogY: true}
	for _, l := range lines() {
		e.say("lag, %s", l.name)
		points, err := e.lagOn(ctx, l, r)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		figure.Series = append(figure.Series, report.Series{Name: l.name, Style: report.Dots, Points: points})
	}
	r.figures = append(r.figures, report.Figure{Plot: figure, Caption: fmt.Sprintf("What a failure would have lost, asked for every %v.", lagInterval)})
	return nil
}

func (e *env) lagOn(ctx context.Context, l line, r *results) (points []report.Point, err error) {
	var address string
	remove := func() error { return nil }
	defer func() { err = errors.Join(err, remove()) }()
	var lineErr error
	metrics, err := freeAddress()
	if err != nil {
		return nil, err
	}
	configure := func(pair *testsite.Pair) {
		var undo func() error
		if address, undo, lineErr = l.make(ctx, pair.B.Config.Listen); lineErr == nil {
			remove = undo
			pair.A.Config.Peers = []site.Peer{{Name: pair.B.Config.Name, Addr: address}}
			pair.A.Config.ReplicatorMetrics = metrics
		}
	}
	err = e.withPairIn(ctx, e.tempDir, configure, func(ctx context.Context, pair *testsite.Pair) error {
		if lineErr != nil {
			return lineErr
		}
		return e.withDatabases(ctx, pair, []variant{replicated}, func(beds []*bed) (err error) {
			b := beds[0]
			load := pgLoad{clients: 8, servers: 1}
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
			for _, p := range points {
				values = append(values, p.Y)
			}
			note := fmt.Sprintf("%.0f transactions per second for %v, %d samples; spread is of the samples", s.value, time.Since(began).Round(time.Second), len(values))
			for _, q := range []struct {
				name   string
				q      float64
				target float64
			}{{"median", 0.5, 50}, {"99th percentile", 0.99, 200}} {
				row := measured("RPO under pgbench, 8 clients, "+l.name+": "+q.name, values, "ms", q.target, note)
				row.Value, row.Rounds = quantile(values, q.q), 1
				r.Rows = append(r.Rows, row.judge())
			}
			if err := b.settle(ctx); err != nil {
				return err
			}
			return e.backlog(ctx, pair, b, l, metrics, r)
		})
	})
	return points, err
}

// backlog writes more than the line can take at once, and measures how fast it is shipped.
func (e *env) backlog(ctx context.Context, pair *testsite.Pair, b *bed, l line, metrics string, r *results) error {
	before, err := scrape(ctx, metrics, "slipstream_group_wire_bytes_total")
	if err != nil {
		return err
	}
	began := time.Now()
	if err := fillFS(b.mounts[1]); err != nil {
		return err
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := scrape(ctx, metrics, "slipstream_group_wire_bytes_total")
	if err != nil {
		return err
	}
	rate := (after - before) / took.Seconds()
	note := fmt.Sprintf("%.0f MiB of noise, from the first write until everything is acknowledged and applied", (after-before)/(1<<20))
	row := measured("shipping a backlog, "+l.name, []float64{rate / (1 << 20)}, "MiB/s", 0, note)
	if l.name == "100 Mbit/s" {
		target, ratio := 0.9, rate/lineBandwidth
		row.Name, row.Target, row.Ratio, row.Spread = "share of a line of 100 Mbit/s that a backlog uses", &target, &ratio, [2]float64{ratio, ratio}
	}
	r.Rows = append(r.Rows, row.judge())
	return nil
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}
