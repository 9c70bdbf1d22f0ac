package frame

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// DefaultPool is where a site has its pool unless it is told otherwise.
const DefaultPool = "/var/lib/slipstream/pool"

// Here is the site on this node as the volume commands see it: the driver's socket and the pool.
type Here struct{ Driver, Pool string }

// DriverEndpoint is what --driver says, or csi.sock beside the replicator's socket, as `slipctl site init` has it.
func (c *CLI) DriverEndpoint() string {
	if c.Here.Driver != "" {
		return c.Here.Driver
	}
	return "unix://" + filepath.Join(filepath.Dir(strings.TrimPrefix(c.Sidecar, "unix://")), "csi.sock")
}

// PoolDir is what --pool or SLIPSTREAM_POOL says, or the pool of the directory of `slipctl site init` that has the
// replicator's socket, or the default.
func (c *CLI) PoolDir() string {
	if pool := cmp.Or(c.Here.Pool, os.Getenv("SLIPSTREAM_POOL")); pool != "" {
		return pool
	}
	run := filepath.Dir(strings.TrimPrefix(c.Sidecar, "unix://"))
	if pool := filepath.Join(filepath.Dir(run), "pool"); filepath.Base(run) == "run" {
		if info, err := os.Stat(pool); err == nil && info.IsDir() {
			return pool
		}
	}
	return DefaultPool
}

// PoolRecords reads the records of the pool. Those that can be read are returned beside an error about the others.
func (c *CLI) PoolRecords() ([]*blockdev.VolumeRecord, error) {
	p, err := blockdev.OpenPool(vfs.OS, c.PoolDir(), blockdev.WhoReader)
	if err != nil {
		return nil, fmt.Errorf("%w\n--pool names the directory that the driver and the replicator were given", err)
	}
	records, err := p.List()
	if closing := p.Close(); err == nil {
		err = closing
	}
	return records, err
}

// Volume finds a volume of the pool by its id, or else by its name.
func (c *CLI) Volume(word string) (*blockdev.VolumeRecord, error) {
	records, err := c.PoolRecords()
	var named *blockdev.VolumeRecord
	for _, r := range records {
		if r.ID == word {
			return r, nil
		}
		if r.Name == word {
			named = r
		}
	}
	if named != nil {
		return named, nil
	}
	if err != nil {
		return nil, err
	}
	return nil, status.Errorf(codes.NotFound, "there is no volume %q in %s", word, c.PoolDir())
}

// VolumeID is the id of a volume of this node's pool that has the name, or the word itself: the pool may be on another
// node.
func (c *CLI) VolumeID(word string) string {
	if c.Kube.Set() {
		return word
	}
	if record, err := c.Volume(word); err == nil {
		return record.ID
	}
	return word
}

// poolVolumes offers the names of the node's volumes, where this program may read the pool.
func (c *CLI) poolVolumes(accept func(*blockdev.VolumeRecord) bool) []string {
	records, _ := c.PoolRecords()
	var words []string
	for _, r := range records {
		if accept(r) {
			words = append(words, r.Name, r.ID)
		}
	}
	return words
}

const (
	// driverPatience bounds a command that asks the driver: mkfs of a large volume, a check of its file system.
	driverPatience = 10 * time.Minute
	// driverPause is the time between calls that were answered with "still at it".
	driverPause = 500 * time.Millisecond
)

// WithDriver connects to the CSI driver of this node. A call that the driver answers with Aborted is one that goes on
// there: it is repeated until its result is known.
func (c *CLI) WithDriver(ctx context.Context, f func(context.Context, *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(ctx, driverPatience)
	defer cancel()
	endpoint := c.DriverEndpoint()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return Usagef("--driver %q: %v (it is written as unix:///srv/slipstream/run/csi.sock)", endpoint, err)
	}
	defer conn.Close()
	for {
		err := f(ctx, conn)
		if status.Code(err) != codes.Aborted {
			return answered(conn, err, "no CSI driver answers at "+endpoint,
				"Is it running? Its --endpoint is what --driver has to name here.")
		}
		fmt.Fprintf(c.Err, "waiting: %s\n", status.Convert(err).Message())
		if !pause.For(ctx, driverPause) {
			return err
		}
	}
}
