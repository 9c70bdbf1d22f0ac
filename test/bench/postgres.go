package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgres is the installed PostgreSQL and who runs it.
type postgres struct {
	bin        string
	credential *syscall.Credential // of the system's user postgres: PostgreSQL refuses to run as root
	options    []string
}

func findPostgres() (*postgres, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("no pgbench in /usr/lib/postgresql/*/bin: run hack/deps.sh bench-quick")
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("the user that runs database servers: %w: run hack/deps.sh bench-quick", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &postgres{
		bin:        filepath.Dir(found[len(found)-1]),
		credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		// The defaults of PostgreSQL, but for what would happen at moments of its own choosing: vacuums and timed
		// checkpoints. The bench asks for a checkpoint before each measurement instead, so that all of them begin alike.
		options: []string{
			"-c", "listen_addresses=", "-c", "max_connections=32", "-c", "shared_buffers=128MB", "-c", "autovacuum=off",
			"-c", "checkpoint_timeout=1h", "-c", "min_wal_size=80MB", "-c", "max_wal_size=128MB",
		},
	}, nil
}

// makeDir makes a directory that belongs to the database's user.
func (p *postgres) makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chown(dir, int(p.credential.Uid), int(p.credential.Gid))
}

// pgServer is a running server, reachable through a Unix socket only.
type pgServer struct {
	*postgres
	runDir string
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process was waited for
}

// template makes a data directory with pgbench's tables, to be copied: then all databases begin as the same bytes.
func (p *postgres) template(ctx context.Context, dir string, scale int) (err error) {
	data, runDir := filepath.Join(dir, "data"), filepath.Join(dir, "run")
	if err := p.makeDir(dir); err != nil {
		return err
	}
	if _, err := runAs(ctx, p.credential, filepath.Join(p.bin, "initdb"), "--pgdata", data, "--username=postgres",
		"--auth=trust",
		"--encoding=UTF8", "--locale=C", "--no-sync"); err != nil {
		return err
	}
	server, err := p.start(ctx, data, runDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	_, err = runAs(ctx, p.credential, filepath.Join(p.bin, "pgbench"), "--host="+runDir, "--username=postgres",
		"--initialize", "--quiet",
		"--scale="+strconv.Itoa(scale), "postgres")
	return err
}

// start starts a server and waits until it takes connections.
func (p *postgres) start(ctx context.Context, data, runDir string) (_ *pgServer, err error) {
	if err := p.makeDir(runDir); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(runDir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s := &pgServer{postgres: p, runDir: runDir, ended: make(chan struct{})}
	// Not CommandContext: a server is ended by stop, in order.
	s.cmd = exec.Command(filepath.Join(p.bin, "postgres"), append([]string{"-D", data, "-k", runDir}, p.options...)...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = "/", log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: p.credential}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = s.cmd.Wait() // how it ended stands in its log
		close(s.ended)
	}()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := s.execute(ctx, "SELECT 1")
		if err == nil {
			return s, nil
		}
		select {
		case <-s.ended:
			text, _ := os.ReadFile(filepath.Join(runDir, "log"))
			return nil, fmt.Errorf("the PostgreSQL server in %s ended while it started:\n%s", data, text)
		case <-ctx.Done():
			return nil, fmt.Errorf("the PostgreSQL server in %s takes no connections: %w", data, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *pgServer) execute(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, "user=postgres dbname=postgres sslmode=disable host="+s.runDir)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// stop shuts the server down in order, or by force when that takes too long. It can be repeated.
func (s *pgServer) stop() error {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		if err := s.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-s.ended:
			return nil
		case <-time.After(30 * time.Second):
		}
	}
	return fmt.Errorf("the PostgreSQL server of %s, pid %d, does not end: it waits in the kernel", s.runDir,
		s.cmd.Process.Pid)
}

// pgLoad is pgbench's TPC-B-like load.
type pgLoad struct {
	// clients of each server.
	clients int
	// servers of the bed that are loaded at the same time.
	servers int
}

func (pgLoad) unit() string { return "tps" }

var pgbenchTPS = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)`)
var pgbenchDone = regexp.MustCompile(`(?m)^number of transactions actually processed: ([0-9]+)`)

// prepare ends with a checkpoint: the first change of a page after one writes the whole page, so all measurements have
// the same share of those.
func (l pgLoad) prepare(ctx context.Context, b *bed) error {
	for _, s := range b.servers[:l.servers] {
		if err := s.execute(ctx, "CHECKPOINT"); err != nil {
			return err
		}
	}
	return nil
}

func (l pgLoad) run(ctx context.Context, b *bed, d time.Duration, round int) (sample, error) {
	type result struct {
		sample
		err error
	}
	results := make(chan result, l.servers)
	for _, s := range b.servers[:l.servers] {
		go func() {
			var r result
			r.sample, r.err = s.pgbench(ctx, l.clients, d, round)
			results <- r
		}()
	}
	var total sample
	var errs []error
	for range l.servers {
		r := <-results
		errs = append(errs, r.err)
		total.value += r.value
		total.operations += r.operations
	}
	return total, errors.Join(errs...)
}

func (s *pgServer) pgbench(ctx context.Context, clients int, d time.Duration, round int) (sample, error) {
	out, err := runAs(ctx, s.credential, filepath.Join(s.bin, "pgbench"), "--host="+s.runDir, "--username=postgres",
		"--no-vacuum",
		// pgbench counts in whole seconds.
		"--time="+strconv.Itoa(max(1, int(d.Round(time.Second).Seconds()))), "--client="+strconv.Itoa(clients),
		"--random-seed="+strconv.Itoa(round+1), "postgres")
	if err != nil {
		return sample{}, err
	}
	return parsePgbench(out)
}

func parsePgbench(out []byte) (sample, error) {
	tps, done := pgbenchTPS.FindSubmatch(out), pgbenchDone.FindSubmatch(out)
	if tps == nil || done == nil {
		return sample{}, fmt.Errorf("pgbench printed no result: %s", out)
	}
	var s sample
	var err error
	if s.value, err = strconv.ParseFloat(string(tps[1]), 64); err != nil {
		return sample{}, err
	}
	s.operations, err = strconv.ParseFloat(string(done[1]), 64)
	return s, err
}
