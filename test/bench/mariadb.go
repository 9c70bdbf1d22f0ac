package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// mariadbStage is MariaDB with its defaults, which flush at each commit, under sysbench's write-only load.
func (e *env) mariadbStage() *stage {
	target := e.target(0.9, 0.95)
	s := &stage{name: "MariaDB", comparisons: []*comparison{
		{name: "MariaDB, sysbench oltp_write_only, 1 client", load: sysbenchLoad{1}, targets: e.ownVariants(target)},
		{name: "MariaDB, sysbench oltp_write_only, 8 clients", load: sysbenchLoad{8}, targets: e.ownVariants(target)},
	}}
	s.variants, s.volumes, s.sizeBytes = []variant{plain, driverPlain, replicated, off}, 1, e.databaseBytes
	s.with = func(ctx context.Context, measure func(context.Context, []*bed) error) error {
		return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) (err error) {
			o := bedOptions{name: "my", volumes: s.volumes, sizeBytes: s.sizeBytes, filesystem: true}
			beds, err := e.beds(ctx, pair, o, s.variants...)
			if err != nil {
				return err
			}
			defer func() {
				for _, b := range beds {
					if b.mariadb != nil {
						err = errors.Join(err, b.mariadb.stop())
					}
				}
			}()
			for i, b := range beds {
				b.mariadb, err = startMariaDB(ctx, filepath.Join(b.mounts[0], "mysql"),
					filepath.Join(pair.Dir, fmt.Sprintf("my%d", i)))
				if err == nil {
					err = errors.Join(b.mariadb.sysbench(ctx, "prepare"), b.settle(ctx))
				}
				if err != nil {
					return err
				}
			}
			return measure(ctx, beds)
		})
	}
	return s
}

// mariadb is a running server, reachable through a Unix socket only.
type mariadb struct {
	socket string
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process was waited for
}

// startMariaDB makes a data directory, starts a server on it and waits until it takes connections.
func startMariaDB(ctx context.Context, data, runDir string) (_ *mariadb, err error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	if _, err := run(ctx, "mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db"); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(runDir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	m := &mariadb{socket: filepath.Join(runDir, "socket"), ended: make(chan struct{})}
	// Not CommandContext: a server is ended by stop, in order.
	m.cmd = exec.Command("mariadbd", "--no-defaults", "--user=root", "--datadir="+data, "--socket="+m.socket,
		"--skip-networking", "--pid-file="+filepath.Join(runDir, "pid"))
	m.cmd.Dir, m.cmd.Stdout, m.cmd.Stderr = "/", log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = m.cmd.Wait() // how it ended stands in its log
		close(m.ended)
	}()
	defer func() {
		if err != nil {
			err = errors.Join(err, m.stop())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := run(ctx, "mariadb", "--no-defaults", "--user=root", "--socket="+m.socket,
			"--execute=CREATE DATABASE IF NOT EXISTS sbtest")
		if err == nil {
			return m, nil
		}
		select {
		case <-m.ended:
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("the MariaDB server in %s ended while it started:\n%s", data, text)
		case <-ctx.Done():
			return nil, fmt.Errorf("the MariaDB server in %s takes no connections: %w", data, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop shuts the server down in order, or by force when that takes too long.
func (m *mariadb) stop() error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := m.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-m.ended:
			return nil
		case <-time.After(time.Minute):
		}
	}
	return fmt.Errorf("the MariaDB server, pid %d, does not end: it waits in the kernel", m.cmd.Process.Pid)
}

// arguments of sysbench. Four tables of 25 000 rows are 25 MiB.
func (m *mariadb) arguments(more ...string) []string {
	return append([]string{"oltp_write_only", "--db-driver=mysql", "--mysql-user=root", "--mysql-db=sbtest",
		"--mysql-socket=" + m.socket, "--tables=4", "--table-size=25000"}, more...)
}

func (m *mariadb) sysbench(ctx context.Context, command string) error {
	_, err := run(ctx, "sysbench", m.arguments(command)...)
	return err
}

// sysbenchLoad is transactions of four writes each.
type sysbenchLoad struct{ clients int }

func (sysbenchLoad) unit() string { return "tps" }

// prepare has nothing to do: a checkpoint of InnoDB is fuzzy, and runs at all times.
func (sysbenchLoad) prepare(context.Context, *bed) error { return nil }

var (
	sysbenchTPS = regexp.MustCompile(`transactions: +([0-9]+) +\(([0-9.]+) per sec`)
	sysbenchP99 = regexp.MustCompile(`99th percentile: +([0-9.]+)`)
)

func (l sysbenchLoad) run(ctx context.Context, b *bed, d time.Duration, round int) (sample, error) {
	out, err := run(ctx, "sysbench", b.mariadb.arguments("--threads="+strconv.Itoa(l.clients), "--percentile=99",
		"--time="+strconv.Itoa(max(1, int(d.Round(time.Second).Seconds()))), "--rand-seed="+strconv.Itoa(round+1), "run")...)
	if err != nil {
		return sample{}, err
	}
	return parseSysbench(out)
}

func parseSysbench(out []byte) (s sample, err error) {
	transactions, p99 := sysbenchTPS.FindSubmatch(out), sysbenchP99.FindSubmatch(out)
	if transactions == nil || p99 == nil {
		return s, fmt.Errorf("sysbench printed no result: %s", out)
	}
	millis := 0.0
	for _, field := range []struct {
		text []byte
		to   *float64
	}{{transactions[1], &s.operations}, {transactions[2], &s.value}, {p99[1], &millis}} {
		if *field.to, err = strconv.ParseFloat(string(field.text), 64); err != nil {
			return s, err
		}
	}
	s.p99 = time.Duration(millis * float64(time.Millisecond))
	return s, nil
}
