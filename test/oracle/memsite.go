package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	siteA     = "site-a"
	siteB     = "site-b"
	groupName = "shop"
)

// pace is how quickly a site does its background work.
type pace struct{ commit, apply, heartbeat time.Duration }

// memSite is a site in memory. Its methods belong to the round's driving goroutine.
type memSite struct {
	name string
	pace pace
	fs   *vfs.MemFS
	// slow is how long the group's own small files take to become durable: the file system in memory takes no time, in
	// which no event can come between two of them.
	slow time.Duration
	net  *link.Network // nil for a drill: it makes and takes no calls
	pool *blockdev.Pool
	site *replication.Site // nil while it is down
}

// open starts the site on its file system.
func (s *memSite) open() (err error) {
	var fsys vfs.FS = s.fs
	if s.slow > 0 {
		fsys = vfs.NewErrFS(s.fs, s.delay)
	}
	if s.pool, err = blockdev.OpenPool(fsys, "/pool", blockdev.WhoReplicator); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	cfg := replication.Config{
		FS: fsys, Pool: s.pool, Site: s.name, PeerAddress: func(string) string { return "memory" },
		CommitInterval: s.pace.commit, ApplyInterval: s.pace.apply, HeartbeatInterval: s.pace.heartbeat,
		RedialInterval: time.Millisecond,
		MemoryBytes:    256 << 10, // as little as it can be, so that cursors go to and fro between memory and files
	}
	if s.net != nil {
		cfg.Dialer = s.net.Dialer(s.name)
	}
	if s.site, err = replication.Open(cfg); err != nil {
		s.pool.Close()
		return fmt.Errorf("%s: %w", s.name, err)
	}
	for dir, reason := range s.site.Broken() {
		s.kill()
		return fmt.Errorf("%s: a group cannot be opened: %s: %w", s.name, dir, reason)
	}
	if s.net != nil {
		s.net.Attach(s.name, s.site)
	}
	return nil
}

// delay makes a disk of the file system where it matters who comes between: at the files that say what is where.
func (s *memSite) delay(op vfs.Op, name string) error {
	if op == vfs.OpDatasync && !strings.HasSuffix(name, ".seg") && !strings.Contains(name, "/volumes/") {
		<-time.After(s.slow)
	}
	return nil
}

// kill ends the site as SIGKILL does; its file system, which stands for disk and page cache, stays.
func (s *memSite) kill() {
	if s.site == nil {
		return
	}
	if s.net != nil {
		s.net.Detach(s.name)
	}
	s.site.Kill()
	s.pool.Close()
	s.site = nil
}

// clone is the site, not yet open, on what a power loss at this instant leaves.
func (s *memSite) clone(unsyncedPercent int, rng *rand.Rand) *memSite {
	return &memSite{name: s.name, pace: s.pace,
		fs: s.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: unsyncedPercent, RNG: rng})}
}

// group is the round's group, nil where the site has not heard of it.
func (s *memSite) group() *replication.Group {
	g, err := s.site.Group(groupName)
	if err != nil {
		return nil
	}
	return g
}
