package testsite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipstream-storage/slipstream/internal/site"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// Site is one site: its configuration and, while they run, its three processes.
type Site struct {
	Config site.Config
	// Sidecar is the replicator; calls fail with Unavailable while it does not run.
	Sidecar sidecarpb.SidecarClient

	binDir         string
	replicatorArgs []string
	sidecarConn    *grpc.ClientConn
	csiConn        *grpc.ClientConn

	mu         sync.Mutex
	keeper     *Process
	replicator *Process
	driver     *Process
	mounted    map[string]*Volume // published here, by id
}

func newSite(config site.Config, binDir string, replicatorArgs []string) (*Site, error) {
	s := &Site{Config: config, binDir: binDir, replicatorArgs: replicatorArgs, mounted: map[string]*Volume{}}
	dial := func(endpoint string) (*grpc.ClientConn, error) {
		return grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
			// Processes are killed and come back within a fraction of a second; the default backoff waits for minutes.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5,
					MaxDelay: 200 * time.Millisecond},
				MinConnectTimeout: time.Second,
			}))
	}
	var err error
	if s.sidecarConn, err = dial(config.SidecarEndpoint()); err != nil {
		return nil, err
	}
	if s.csiConn, err = dial(config.CSIEndpoint()); err != nil {
		return nil, errors.Join(err, s.sidecarConn.Close())
	}
	s.Sidecar = sidecarpb.NewSidecarClient(s.sidecarConn)
	return s, nil
}

// Start starts the processes that do not run, and waits until they are ready.
func (s *Site) Start(ctx context.Context) error {
	// All before the first wait: they look for each other. The order does not matter.
	for _, launch := range []func() error{s.LaunchDriver, s.LaunchReplicator, s.LaunchKeeper} {
		if err := launch(); err != nil {
			return err
		}
	}
	return s.WaitReady(ctx)
}

// LaunchKeeper starts the keeper without waiting for it.
func (s *Site) LaunchKeeper() error {
	return s.launch(&s.keeper, "keeper", s.Config.KeeperArgs())
}

// LaunchDriver starts the CSI driver without waiting for it.
func (s *Site) LaunchDriver() error {
	return s.launch(&s.driver, "csi-driver", s.Config.DriverArgs())
}

// LaunchReplicator starts the replicator without waiting for it.
func (s *Site) LaunchReplicator() error {
	return s.launch(&s.replicator, "replicator", append(s.Config.ReplicatorArgs(), s.replicatorArgs...))
}

func (s *Site) launch(slot **Process, program string, args []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *slot != nil {
		select {
		case <-(*slot).Ended():
		default:
			return nil
		}
	}
	name := s.Config.Name + "'s " + program
	p, err := startProcess(name, filepath.Join(s.binDir, program), args, s.LogPath(program))
	if err != nil {
		return err
	}
	*slot = p
	return nil
}

// LogPath is where a program of this site logs.
func (s *Site) LogPath(program string) string { return filepath.Join(s.Config.Dir, program+".log") }

// Keeper is the keeper's newest process, or nil.
func (s *Site) Keeper() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keeper
}

// Driver is the driver's newest process, or nil.
func (s *Site) Driver() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.driver
}

// Replicator is the replicator's newest process, or nil.
func (s *Site) Replicator() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replicator
}

// readyTimeout covers recovery of a journal.
const readyTimeout = 60 * time.Second

// WaitReady waits until replicator and driver answer that they are ready. A process that ends meanwhile is an error
// with the end of its log.
func (s *Site) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := s.waitFor(ctx, s.Replicator(), func(ctx context.Context) (bool, error) {
		response, err := s.Sidecar.Probe(ctx, &sidecarpb.ProbeRequest{})
		return response.GetReady(), err
	}); err != nil {
		return err
	}
	identity := csi.NewIdentityClient(s.csiConn)
	return s.waitFor(ctx, s.Driver(), func(ctx context.Context) (bool, error) {
		response, err := identity.Probe(ctx, &csi.ProbeRequest{})
		// Absent means ready in CSI.
		return err == nil && (response.GetReady() == nil || response.GetReady().GetValue()), err
	})
}

// pollInterval is how often a state is asked for that is not announced.
const pollInterval = 20 * time.Millisecond

func (s *Site) waitFor(ctx context.Context, p *Process, probe func(context.Context) (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		probeCtx, cancel := context.WithTimeout(ctx, time.Second)
		ready, err := probe(probeCtx)
		cancel()
		if ready {
			return nil
		}
		select {
		case <-p.Ended():
			return fmt.Errorf("%s ended; the end of its log %s:\n%s", p.name, p.log, p.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (last answer: %w); the end of its log %s:\n%s", p.name, ctx.Err(),
				err, p.log, p.logTail())
		case <-tick.C:
		}
	}
}

// Kill ends all processes with SIGKILL, as one instant as can be had, and waits for their end. Nothing is unmounted:
// it is what a power failure leaves, but for the kernel's memory.
//
// A killed process that waits in the kernel for the shim, as the keeper's writeback does, cannot end while no process
// serves the shim, and its descriptor keeps the connection alive. With all processes dead none will: then the
// connections are aborted. Kill some of them by their Process to see the others carry on.
func (s *Site) Kill() error {
	// The replicator first, so that nothing the others still do is shipped.
	processes := []*Process{s.Replicator(), s.Driver(), s.Keeper()}
	var errs []error
	for _, p := range processes {
		if p != nil {
			errs = append(errs, p.Signal(syscall.SIGKILL))
		}
	}
	for _, p := range processes {
		if p == nil || p.Wait(unaidedTimeout) == nil {
			continue
		}
		errs = append(errs, abortConnections(s.Config.Dir), p.Wait(killTimeout))
	}
	return errors.Join(errs...)
}

// unaidedTimeout is how long killed processes have before the connections they may wait for are aborted.
const unaidedTimeout = 300 * time.Millisecond

// PowerCycle takes away what the kernel still holds of a killed site: mounts, FUSE connections, loop devices. What was
// on its disk stays, so that Start brings the site back as after a reboot, but for the page cache, which a real power
// failure would have emptied.
func (s *Site) PowerCycle() error {
	s.mu.Lock()
	clear(s.mounted)
	s.mu.Unlock()
	return release(s.Config.Dir)
}

// stop ends the processes in order, so that each finds what it needs: the keeper's visits the replicator, which is
// last.
func (s *Site) stop() error {
	errs := []error{s.Driver().stop(s.Config.Dir), s.Keeper().stop(s.Config.Dir), s.Replicator().stop(s.Config.Dir)}
	return errors.Join(append(errs, s.csiConn.Close(), s.sidecarConn.Close())...)
}

// Group returns the status of a group, or an error if it does not exist.
func (s *Site) Group(ctx context.Context, name string) (*sidecarpb.GroupStatus, error) {
	response, err := s.Sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{Name: name})
	if err != nil {
		return nil, err
	}
	for _, g := range response.GetGroups() {
		if g.GetName() == name {
			return g, nil
		}
	}
	return nil, fmt.Errorf("%s has no group %s", s.Config.Name, name)
}

// WaitGroup polls a group's status until ok says yes, and returns that status. After a timeout of ctx the error has the
// last status and what was waited for.
func (s *Site) WaitGroup(ctx context.Context, name, what string,
	ok func(*sidecarpb.GroupStatus) bool) (*sidecarpb.GroupStatus, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		g, err := s.Group(ctx, name)
		if err == nil && ok(g) {
			return g, nil
		}
		select {
		case <-ctx.Done():
			return g, fmt.Errorf("group %s at %s: waiting until it is %s: %w (last: %v, error: %w)", name,
				s.Config.Name, what, ctx.Err(), g, err)
		case <-tick.C:
		}
	}
}

// WaitApplied waits until the images of both sites hold everything of a group that A is the primary of. Nothing may
// write meanwhile, and what is not flushed does not count.
func (p *Pair) WaitApplied(ctx context.Context, group string) error {
	a, err := p.A.WaitGroup(ctx, group, "applied and acknowledged", func(g *sidecarpb.GroupStatus) bool {
		return Streaming(g) && g.GetChangeMapBytes() == 0 && g.GetAppliedOrdinal() == g.GetHeadOrdinal() &&
			g.GetAcknowledgedOrdinal() == g.GetHeadOrdinal()
	})
	if err != nil {
		return err
	}
	_, err = p.B.WaitGroup(ctx, group, "applied", func(g *sidecarpb.GroupStatus) bool {
		return g.GetAppliedOrdinal() >= a.GetHeadOrdinal()
	})
	return err
}

// Streaming says that a group at the primary has a complete, live copy.
func Streaming(g *sidecarpb.GroupStatus) bool {
	return g.GetState() == sidecarpb.GroupState_GROUP_STATE_STREAMING && g.GetConnected() && g.GetSyncTotalBytes() == 0
}
