// Package demo shows what Slipstream is for, on one machine in a few minutes: a shop with two databases on two volumes
// loses its site, and the other site opens both databases as of one instant; then the same with the two volumes in
// separate groups, one of them over a slow line, where they do not fit together any more.
//
// What is shown is measured, not staged: the processes are the built ones, killed with SIGKILL at a moment that a
// printed seed decides, and the databases are checked against the log of what the application was told. Baseline and
// replication run in turn, because the machine's speed changes from one second to the next.
//
// Run is called once per process; it runs for minutes and cleans up after itself, also when its context ends.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/slipstream-storage/slipstream/internal/report"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/internal/workload"
)

// Options configure Run.
type Options struct {
	// BinDir has csi-driver and replicator.
	BinDir string
	// Executable is the program that runs the workload as `Executable workload ...`: slipctl.
	Executable string
	Kind       workload.Kind
	// Clients place orders at the same time; 0 for the kind's default.
	Clients int
	// Phase is how long one round of load takes, and about how long load runs before a failure.
	Phase time.Duration
	// Rounds is how often the plain and the replicated volumes take their turn.
	Rounds int
	Seed   uint64
	// TempDir is where images and journals are; empty for the system's.
	TempDir string
	// Progress takes lines for a person.
	Progress io.Writer
}

// Names of groups and of the delay on one line of the second variant.
const (
	jointGroup  = "shop"
	stockGroup  = "stock"
	salesGroup  = "sales"
	extraDelay  = 300 * time.Millisecond
	volumeBytes = 1 << 30
)

// Timeouts of steps that wait for other processes. They are for a machine that is busy with other things; none of
// them is normally reached.
const (
	syncTimeout   = 90 * time.Second
	startTimeout  = 60 * time.Second
	exactTimeout  = 15 * time.Second
	deathTimeout  = 30 * time.Second
	minimumBefore = 2 * time.Second // of load before a failure
)

// demo is the state of one run.
type demo struct {
	Options
	began time.Time
	rng   *rand.Rand
}

// Run runs the demo and returns what it measured. On an error, which says what was being done, the results are
// incomplete. What a copy looks like is no error: Results.Err judges that.
func Run(ctx context.Context, o Options) (*Results, error) {
	if o.Clients == 0 {
		o.Clients = o.Kind.DefaultClients()
	}
	d := &demo{Options: o, began: time.Now(), rng: rand.New(rand.NewPCG(o.Seed, 0))}
	results := &Results{Workload: o.Kind, Clients: o.Clients, Seed: o.Seed, Began: d.began, Machine: report.Machine()}
	d.say("seed %d, workload %s with %s, on %s", o.Seed, o.Kind, words.Count(o.Clients, "client"), results.Machine)
	if err := d.jointVariant(ctx, results); err != nil {
		return results, fmt.Errorf("with one consistency group: %w", err)
	}
	if err := d.separateVariant(ctx, results); err != nil {
		return results, fmt.Errorf("with separate groups: %w", err)
	}
	results.Took = time.Since(d.began)
	return results, nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.Progress, "[%6.1fs] %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// withSites runs a variant on two fresh sites and takes them away again.
func (d *demo) withSites(ctx context.Context, run func(context.Context, *testsite.Pair) error) (err error) {
	pair, err := testsite.New(testsite.Options{BinDir: d.BinDir, Parent: d.TempDir})
	if err != nil {
		return err
	}
	defer func() {
		d.say("cleaning up")
		err = errors.Join(err, pair.Close())
	}()
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := pair.Start(startCtx); err != nil {
		return err
	}
	return run(ctx, pair)
}

// shop is the two volumes of one shop, and where they are mounted.
type shop struct {
	stock, sales *testsite.Volume
	dirs         workload.Dirs
	// acks are all orders that were ever acknowledged on it.
	acks []workload.Ack
	// underWay is how many orders behind the last acknowledged one a failure may have left in the databases.
	underWay int64
}

// createShop provisions two volumes at site A. They are not mounted yet.
func (d *demo) createShop(ctx context.Context, s *testsite.Site, name string,
	parameters map[string]string) (*shop, error) {
	var volumes []*testsite.Volume
	for _, part := range []string{"stock", "sales"} {
		v, err := s.CreateVolume(ctx, testsite.VolumeOptions{
			Name: name + "-" + part, SizeBytes: volumeBytes, FSType: "ext4", Parameters: parameters,
		})
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, v)
	}
	return &shop{stock: volumes[0], sales: volumes[1]}, nil
}

// mount mounts the shop at a site and makes a directory for its sockets, which is not replicated.
func (sh *shop) mount(ctx context.Context, s *testsite.Site) (err error) {
	if sh.dirs.Stock, err = s.Mount(ctx, sh.stock); err != nil {
		return err
	}
	if sh.dirs.Sales, err = s.Mount(ctx, sh.sales); err != nil {
		return err
	}
	if sh.dirs.Run, err = os.MkdirTemp(s.Config.Dir, "db"); err != nil {
		return err
	}
	return os.Chmod(sh.dirs.Run, 0o755)
}

// lastAcknowledged is the highest number of an acknowledged order.
func (sh *shop) lastAcknowledged() (last int64) {
	for _, a := range sh.acks {
		last = max(last, a.ID)
	}
	return last
}

// startLoad starts the workload on a shop and waits for its first order.
func (d *demo) startLoad(ctx context.Context, sh *shop) (*workload.Process, error) {
	p, err := workload.StartProcess(d.Executable, workload.ProcessOptions{
		Kind: d.Kind, Dirs: sh.dirs, Clients: d.Clients, Seed: d.rng.Uint64(),
		// Runs that ended in order acknowledged whatever they committed.
		FirstID: sh.lastAcknowledged() + sh.underWay + 1,
	})
	if err != nil {
		return nil, err
	}
	firstCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := p.WaitFirst(firstCtx); err != nil {
		return nil, errors.Join(err, endLoad(p))
	}
	return p, nil
}

// endLoad ends a workload whose orders do not matter any more.
func endLoad(p *workload.Process) error {
	if err := p.Kill(); err != nil {
		return err
	}
	_, err := p.Wait(deathTimeout)
	return err
}

// loadFor lets a workload run for a time. It is an error when it ends before.
func loadFor(ctx context.Context, p *workload.Process, duration time.Duration) error {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.Ended():
		_, err := p.Stop()
		return errors.Join(errors.New("the workload ended before its time"), err)
	case <-ctx.Done():
		return errors.Join(ctx.Err(), endLoad(p))
	}
}
