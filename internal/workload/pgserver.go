package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// pgServer is one PostgreSQL server with its data on a volume, reachable through a Unix socket only. It is run as the
// system's postgres user where this process is root, because PostgreSQL refuses root.
type pgServer struct {
	name    string // stock or sales; also the port's place in the socket name
	dataDir string
	runDir  string
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the server has ended
}

// ErrNoPostgres is returned where PostgreSQL's server programs are not installed.
var ErrNoPostgres = errors.New(
	"no PostgreSQL server programs found in /usr/lib/postgresql/*/bin or on the PATH: run hack/deps.sh demo-postgres")

// postgresBin returns the directory of the newest installed server programs.
func postgresBin() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	version := func(path string) int {
		v, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		if err != nil {
			return 0
		}
		return v
	}
	sort.Slice(dirs, func(i, j int) bool { return version(dirs[i]) > version(dirs[j]) })
	if len(dirs) == 0 {
		path, err := exec.LookPath("initdb")
		if err != nil {
			return "", ErrNoPostgres
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", err
		}
		dirs = []string{path}
	}
	bin := filepath.Dir(dirs[0])
	if _, err := os.Stat(filepath.Join(bin, "postgres")); err != nil {
		return "", fmt.Errorf("%w (%s has initdb but not postgres)", ErrNoPostgres, bin)
	}
	return bin, nil
}

// postgresUser returns the ids that servers run with, or nil where this process is not root and they are its own.
func postgresUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root, and there is no user to run it as: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user postgres: %w", err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user postgres: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// startPostgres starts a server on a volume, after creating its data directory if there is none. It returns when the
// server takes connections, that is after crash recovery.
func startPostgres(ctx context.Context, name, volume, runDir string) (_ *pgServer, err error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	cred, err := postgresUser()
	if err != nil {
		return nil, err
	}
	s := &pgServer{name: name, dataDir: filepath.Join(volume, "pgdata"), runDir: filepath.Join(runDir, name)}
	for _, dir := range []string{s.dataDir, s.runDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if cred != nil {
			if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
				return nil, err
			}
		}
	}
	attr := &syscall.SysProcAttr{Credential: cred}
	switch _, err := os.Stat(filepath.Join(s.dataDir, "PG_VERSION")); {
	case errors.Is(err, fs.ErrNotExist):
		// Data checksums, so that each page read after a failover is verified. A password is not needed on a socket
		// in a directory that only this user may enter.
		initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "--pgdata", s.dataDir, "--data-checksums",
			"--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
		initdb.Dir, initdb.SysProcAttr = "/", attr
		if out, err := initdb.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("initdb in %s: %w\n%s", s.dataDir, err, out)
		}
	case err != nil:
		return nil, err
	}
	// A server that was killed leaves its pid file, and in a new pid namespace, or on another machine, that number can
	// belong to any process, which would keep this server from starting. The caller vouches that there is no other.
	if err := os.Remove(filepath.Join(s.dataDir, "postmaster.pid")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(runDir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Not CommandContext: the server ends by stop, in order, and not by a context's SIGKILL.
	s.cmd = exec.Command(filepath.Join(bin, "postgres"), "-D", s.dataDir, "-k", s.runDir,
		"-c", "listen_addresses=", "-c", "max_connections=32", "-c", "shared_buffers=64MB",
		"-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "full_page_writes=on")
	s.cmd.Dir, s.cmd.SysProcAttr, s.cmd.Stdout, s.cmd.Stderr = "/", attr, log, log
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting PostgreSQL for %s: %w", name, err)
	}
	s.exited = make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // how it ended stands in its log
		close(s.exited)
	}()
	defer func() {
		if err != nil {
			_ = s.stop() // the error that matters is the one being returned
		}
	}()
	return s, s.waitReady(ctx)
}

// startTimeout covers crash recovery on a slow disk.
const startTimeout = 90 * time.Second

func (s *pgServer) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := s.connect(ctx)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-s.exited:
			return fmt.Errorf("the PostgreSQL server for %s ended while it started; the end of its log:\n%s", s.name,
				s.logTail())
		case <-ctx.Done():
			return fmt.Errorf("the PostgreSQL server for %s takes no connections: %w (last: %w); the end of its log:\n%s",
				s.name, ctx.Err(), err, s.logTail())
		case <-tick.C:
		}
	}
}

func (s *pgServer) logTail() string {
	text, err := os.ReadFile(s.runDir + ".log")
	if err != nil {
		return err.Error()
	}
	const tailBytes = 2000
	if len(text) > tailBytes {
		text = text[len(text)-tailBytes:]
	}
	return string(text)
}

func (s *pgServer) connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig("user=postgres dbname=postgres sslmode=disable host=" + s.runDir)
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, config)
}

// stopTimeout bounds a fast shutdown, whose checkpoint writes all of the server's dirty pages.
const stopTimeout = 60 * time.Second

// stop shuts the server down in order; after stopTimeout by force.
func (s *pgServer) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-s.exited:
		return nil
	case <-timer.C:
	}
	err := s.cmd.Process.Kill()
	<-s.exited
	return errors.Join(fmt.Errorf("the PostgreSQL server for %s did not end within %v and was killed", s.name,
		stopTimeout), err)
}
