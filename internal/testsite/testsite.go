// Package testsite runs two sites on one machine: for each the built keeper, csi-driver and replicator as processes of
// their own, with mutual TLS between them, in one temporary directory. What runs against them are the real sockets,
// loop devices, FUSE mounts and file systems, so that it can be killed for real. The demo, the benchmarks and the tests
// that cross packages stand on it.
//
// It does not depend on package testing; it is no simulation and has no clock of its own. It needs root.
//
// Close takes everything away again, whatever state it is in: it ends only processes it started, unmounts only below
// its directory, aborts only the FUSE connections and detaches only the loop devices found there, each with a deadline,
// because any of them may wait in the kernel for a process that is dead.
//
// Concurrency: methods of different Sites may run concurrently; those of one Site too, unless they concern the same
// process or volume.
package testsite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/site"
)

// Programs are what runs at a site; LogPath says where each logs.
var Programs = []string{"keeper", "csi-driver", "replicator"}

// Options configure New.
type Options struct {
	// BinDir has the Programs.
	BinDir string
	// Parent is where the directory is made; empty for the system's temporary directory. Its file system takes the
	// images and journals of both sites, and its path has to be short.
	Parent string
	// Compression is the link's; empty for the replicator's default.
	Compression string
	// ReplicatorArgs are further arguments for both replicators.
	ReplicatorArgs []string

	// authority has the certificates' authority, if it is not the pair's own, and suffix ends the names of its nodes.
	authority, suffix string
}

// Pair is two sites, A and B, each the other's peer.
type Pair struct {
	// Dir holds everything.
	Dir  string
	A, B *Site

	closeOnce sync.Once
	closeErr  error
}

// New makes the directory, the certificates and the configuration of two sites. Nothing runs yet. The caller calls
// Close in the end, also after an error of any method.
func New(o Options) (_ *Pair, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("two sites need root: they mount file systems and attach loop devices")
	}
	binDir, err := filepath.Abs(o.BinDir)
	if err != nil {
		return nil, err
	}
	for _, program := range Programs {
		if _, err := os.Stat(filepath.Join(binDir, program)); err != nil {
			return nil, fmt.Errorf("%w: run make build", err)
		}
	}
	dir, err := os.MkdirTemp(o.Parent, "slipstream-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // as the mount table will name it
		return nil, err
	}
	p := &Pair{Dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	// Database servers run as another user and have to reach their volumes.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	addrs, err := FreeAddresses(2)
	if err != nil {
		return nil, err
	}
	authority := o.authority
	if authority == "" {
		authority = filepath.Join(dir, "authority")
	}
	names := []string{"site-a", "site-b"}
	sites := make([]*Site, 2)
	for i, name := range names {
		config := site.Config{
			Dir: filepath.Join(dir, name), Name: name, NodeID: name + "-node" + o.suffix, Listen: addrs[i],
			Peers: []site.Peer{{Name: names[1-i], Addr: addrs[1-i]}}, Compression: o.Compression,
		}
		options := site.InitOptions{AuthorityDir: authority, Hosts: []string{"127.0.0.1", "localhost"}}
		if err := site.Init(config, options); err != nil {
			return nil, err
		}
		if sites[i], err = newSite(config, binDir, o.ReplicatorArgs); err != nil {
			return nil, err
		}
	}
	p.A, p.B = sites[0], sites[1]
	return p, nil
}

// NewNodes is New for two sites with several nodes: each pair is one node of both, and replicates on its own. way, if
// not nil, returns the address by which the other nodes of a site reach one of its nodes. The caller closes all pairs,
// also after an error.
func NewNodes(o Options, nodes int, way func(s *Site) (string, error)) (pairs []*Pair, err error) {
	for i := range nodes {
		o.suffix = fmt.Sprintf("-%d", i)
		p, err := New(o)
		if err != nil {
			return pairs, err
		}
		pairs = append(pairs, p)
		o.authority = filepath.Join(pairs[0].Dir, "authority")
	}
	for _, siteOf := range []func(*Pair) *Site{func(p *Pair) *Site { return p.A }, func(p *Pair) *Site { return p.B }} {
		for _, p := range pairs {
			s := siteOf(p)
			address := s.Config.Listen
			if way != nil {
				if address, err = way(s); err != nil {
					return pairs, err
				}
			}
			for _, other := range pairs {
				if o := siteOf(other); o != s {
					o.replicatorArgs = append(slices.Clone(o.replicatorArgs), "--site-node", address)
				}
			}
			s.replicatorArgs = append(slices.Clone(s.replicatorArgs), "--node", s.Config.NodeID)
		}
	}
	return pairs, nil
}

// Start starts the processes of both sites and waits until they are ready.
func (p *Pair) Start(ctx context.Context) error {
	return errors.Join(p.A.Start(ctx), p.B.Start(ctx))
}

// closeTimeout bounds the orderly part of Close for each site.
const closeTimeout = 20 * time.Second

// Close ends what runs and takes everything away. It can be repeated and returns the same error then. An error says
// what is still there.
func (p *Pair) Close() error {
	p.closeOnce.Do(func() {
		for _, s := range []*Site{p.A, p.B} {
			if s == nil {
				continue
			}
			// A site that is whole is left in order: a file system whose device is taken away fills the kernel's log.
			// What cannot be done in order is done below.
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			s.unmountAll(ctx)
			cancel()
		}
		var errs []error
		for _, s := range []*Site{p.A, p.B} {
			if s != nil {
				errs = append(errs, s.stop())
			}
		}
		errs = append(errs, Sweep(p.Dir))
		p.closeErr = errors.Join(errs...)
	})
	return p.closeErr
}

// FreeAddresses returns addresses that were free a moment ago. Another process could take one; then what is to listen
// there does not start and says so.
func FreeAddresses(n int) ([]string, error) {
	var addrs []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		// Closed at the end, so that the next one is another.
		defer listener.Close()
		addrs = append(addrs, listener.Addr().String())
	}
	return addrs, nil
}
