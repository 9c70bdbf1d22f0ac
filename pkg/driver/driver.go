// Package driver is the CSI driver csi.slipstream.dev for one node: the Identity, Controller and Node services of CSI
// 1.13 over a pool of image files.
//
// A volume is an image in the pool, attached as a loop device; formatted once, by the driver; mounted on the staging
// path, bound from there to target paths. A replicable volume's loop device is over a file that the replicator serves
// instead (package shim). Everything that is known about a volume is in its record (package blockdev) or in the
// kernel's mount and loop tables; the driver keeps nothing in memory that it could not find again, and may be killed
// between any two steps.
//
// It is not the replicator: groups, journals and peers are asked of it through pkg/api/sidecarpb, by volumes that want
// them. Without a replicator the driver is complete for plain volumes. It is not a router either: in a cluster one of
// it runs per node, and knows of no other. For the router (package router) it serves the controller's calls over TCP
// too, and beside them Locate (pkg/api/locatepb).
//
// It writes volume records through package blockdev, and <pool>/publications/<volume id>.json (see publications).
//
// # Concurrency
//
// All services may be called concurrently. Calls for one volume exclude each other: the second one gets Aborted (see
// inflight). No call waits for another volume's.
//
// # Errors
//
// Codes are chosen for what the CO does with them: NotFound and InvalidArgument are final, FailedPrecondition says what
// a person or another call has to do first, Unavailable and Aborted mean the same call again, ResourceExhausted sends a
// claim to another node. Messages name the volume and the next step.
package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/metricsserver"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/csiaddons"
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/groups"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/lease"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
	"github.com/slipstream-storage/slipstream/pkg/driver/snapshots"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/driver/views"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// Options configure a Driver.
type Options struct {
	// Endpoint is where the CSI services listen: unix:///path or a path.
	Endpoint string
	// NodeID is the node's name, and the value of its topology key; see ValidateNodeID.
	NodeID string
	// PoolDir is the pool. It is created when it is missing.
	PoolDir string
	// JournalDir is where groups and journals are; empty: in the pool. The replicator has to be told the same.
	JournalDir string
	// StateDir is where the driver and the replicator remember, outside of the pool, that there is one: see
	// blockdev.WithStateDir. Empty: nowhere, and a pool whose disk is not mounted is made anew.
	StateDir string
	// SidecarEndpoint is the replicator: unix:///path. Empty: replicable volumes are refused.
	SidecarEndpoint string
	// ShimDir is where the replicator serves volumes; empty: <pool>/shim.
	ShimDir string
	// KeeperSocket is the keeper, which starts the writeback of staged volumes; empty: <pool>/keeper.sock.
	KeeperSocket string
	// HostRoot, in a container, is a path to the node's root directory in the node's own mount namespace, as /proc/1/root
	// in a pod with hostPID. Volumes are attached through it, so that their loop devices can be told apart after the
	// container is gone. The pool has to have the same path there. Empty: the driver's own root.
	HostRoot string
	// Capacity says how much of the pool may be promised.
	Capacity space.CapacityOptions
	// TCPAddress is host:port where the cluster's controller (package router) reaches this node over mutual TLS; empty:
	// nowhere.
	TCPAddress string
	// TLSDir has ca.crt, tls.crt and tls.key for TCPAddress. The certificate is for tlsfiles.NodeName, the caller's for
	// tlsfiles.ControllerName.
	TLSDir string
	// Metrics is where Prometheus metrics are served, and to whom.
	Metrics metricsserver.Options
	// Version of the program.
	Version string
}

// Driver serves the CSI services of one node. Make it with New, and close it.
type Driver struct {
	opts    Options
	sys     host.System
	sidecar *replicator.Client // nil for none
	guards  *work.Guards
	tasks   *work.Table
	names   *lease.Table
	closers []func() error

	store       *store.Store
	space       *space.Accounts
	attachments *attach.Attacher
	snapshots   *snapshots.Manager
	groups      *groups.Manager
	views       *views.Manager
	health      *health.Checker
	addons      csiaddons.Node
}

// New opens the pool and brings the machine in line with its records (see reconcile). The pool stays locked against
// another driver until Close.
func New(ctx context.Context, opts Options) (*Driver, error) {
	if opts.KeeperSocket == "" {
		opts.KeeperSocket = filepath.Join(opts.PoolDir, "keeper.sock")
	}
	writeback := keeper.NewWatcher(opts.KeeperSocket)
	d, err := newDriver(opts, host.Linux(opts.HostRoot, writeback))
	if err != nil {
		return nil, errors.Join(err, writeback.Close())
	}
	d.closers = append(d.closers, writeback.Close)
	if err := d.reconcile(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// newDriver is New without reconcile, over any system.
func newDriver(opts Options, sys host.System) (*Driver, error) {
	if err := plugin.ValidateNodeID(opts.NodeID); err != nil {
		return nil, err
	}
	if opts.PoolDir == "" {
		return nil, errors.New("pool directory is missing")
	}
	if opts.TCPAddress != "" && opts.TLSDir == "" {
		return nil, errors.New("a TCP address needs a directory with certificates: without them any caller that reaches " +
			"the port could delete volumes")
	}
	if err := opts.Capacity.Check(); err != nil {
		return nil, err
	}
	d := &Driver{opts: opts, sys: sys, guards: work.NewGuards(), tasks: work.NewTable(), names: lease.NewTable(time.Now)}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Driver) open() error {
	known := blockdev.WithStateDir(d.opts.StateDir, d.opts.PoolDir)
	if err := blockdev.CheckKnownPool(d.sys.FS, d.opts.StateDir, d.opts.PoolDir); err != nil {
		return err
	}
	if err := d.sys.FS.MkdirAll(d.opts.PoolDir); err != nil {
		return fmt.Errorf("create pool: %w", err)
	}
	// Paths are compared with those in the kernel's tables.
	d.opts.PoolDir = host.CanonicalDir(d.opts.PoolDir)
	if d.opts.ShimDir == "" {
		d.opts.ShimDir = filepath.Join(d.opts.PoolDir, "shim")
	}
	d.opts.ShimDir = host.CanonicalDir(d.opts.ShimDir)

	pool, err := blockdev.OpenPool(d.sys.FS, d.opts.PoolDir, blockdev.WhoDriver,
		blockdev.WithJournalDir(d.opts.JournalDir), known)
	if err != nil {
		return err
	}
	d.closers = append(d.closers, pool.Close)
	if d.opts.SidecarEndpoint != "" {
		if d.sidecar, err = replicator.Dial(d.opts.SidecarEndpoint); err != nil {
			return err
		}
		d.closers = append(d.closers, d.sidecar.Close)
	}
	d.closers = append(d.closers, d.tasks.Close)
	d.store = store.New(pool, d.sys.FS, d.opts.PoolDir)
	d.closers = append(d.closers, d.store.Close)
	d.space = space.New(d.store, d.sys.FS, space.Options{NodeID: d.opts.NodeID, PoolDir: d.opts.PoolDir,
		Capacity: d.opts.Capacity})
	opts := attach.Options{NodeID: d.opts.NodeID, PoolDir: d.opts.PoolDir, ShimDir: d.opts.ShimDir}
	if d.attachments, err = attach.New(d.store, d.space, d.sys, opts, d.sidecar, d.guards, d.tasks); err != nil {
		return err
	}
	d.snapshots = snapshots.New(d.store, d.space, d.attachments, d.sys.FS, d.opts.NodeID, d.sidecar, d.guards, d.tasks)
	d.views = views.New(d.store)
	d.groups = groups.New(d.store, d.sidecar)
	d.addons = csiaddons.Node{Driver: addonsDriver{d}}
	d.health = health.New(d.store, d.space, d.attachments, d.sys.FS, opts, d.sidecar)
	return nil
}

// Close releases the pool. Volumes stay attached and mounted; copies are interrupted.
func (d *Driver) Close() error {
	if busy := d.guards.Busy(); len(busy) > 0 {
		klog.InfoS("Stopping while calls are running", "calls", busy)
	}
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}
