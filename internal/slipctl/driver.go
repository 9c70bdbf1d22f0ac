package slipctl

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// DefaultPool is where a site has its pool unless it is told otherwise.
const DefaultPool = "/var/lib/slipstream/pool"

// here is the site on this node as the volume commands see it: the driver's socket and the pool.
type here struct{ driver, pool string }

// driverEndpoint is what --driver says, or csi.sock beside the replicator's socket, as `slipctl site init` has it.
func (c *cli) driverEndpoint() string {
	if c.here.driver != "" {
		return c.here.driver
	}
	return "unix://" + filepath.Join(filepath.Dir(strings.TrimPrefix(c.sidecar, "unix://")), "csi.sock")
}

// poolDir is what --pool or SLIPSTREAM_POOL says, or the pool of the directory of `slipctl site init` that has the
// replicator's socket, or the default.
func (c *cli) poolDir() string {
	if pool := cmp.Or(c.here.pool, os.Getenv("SLIPSTREAM_POOL")); pool != "" {
		return pool
	}
	run := filepath.Dir(strings.TrimPrefix(c.sidecar, "unix://"))
	if pool := filepath.Join(filepath.Dir(run), "pool"); filepath.Base(run) == "run" {
		if info, err := os.Stat(pool); err == nil && info.IsDir() {
			return pool
		}
	}
	return DefaultPool
}

// poolRecords reads the records of the pool. Those that can be read are returned beside an error about the others.
func (c *cli) poolRecords() ([]*blockdev.VolumeRecord, error) {
	p, err := blockdev.OpenPool(vfs.OS, c.poolDir(), blockdev.WhoReader)
	if err != nil {
		return nil, fmt.Errorf("%w\n--pool names the directory that the driver and the replicator were given", err)
	}
	records, err := p.List()
	if closing := p.Close(); err == nil {
		err = closing
	}
	return records, err
}

// volume finds a volume of the pool by its id, or else by its name.
func (c *cli) volume(word string) (*blockdev.VolumeRecord, error) {
	records, err := c.poolRecords()
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
	return nil, status.Errorf(codes.NotFound, "there is no volume %q in %s", word, c.poolDir())
}

// volumeID is the id of a volume of this node's pool that has the name, or the word itself: the pool may be on another
// node.
func (c *cli) volumeID(word string) string {
	if c.kube.set() {
		return word
	}
	if record, err := c.volume(word); err == nil {
		return record.ID
	}
	return word
}

// poolVolumes offers the names of the node's volumes, where this program may read the pool.
func (c *cli) poolVolumes(accept func(*blockdev.VolumeRecord) bool) []string {
	records, _ := c.poolRecords()
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

// withDriver connects to the CSI driver of this node. A call that the driver answers with Aborted is one that goes on
// there: it is repeated until its result is known.
func (c *cli) withDriver(ctx context.Context, f func(context.Context, *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(ctx, driverPatience)
	defer cancel()
	endpoint := c.driverEndpoint()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return usagef("--driver %q: %v (it is written as unix:///srv/slipstream/run/csi.sock)", endpoint, err)
	}
	defer conn.Close()
	for {
		err := f(ctx, conn)
		switch status.Code(err) {
		case codes.Unavailable:
			return fmt.Errorf("no CSI driver answers at %s: %s\nIs it running? Its --endpoint is what --driver has to name here",
				endpoint, status.Convert(err).Message())
		case codes.Aborted:
		default:
			return err
		}
		fmt.Fprintf(c.err, "waiting: %s\n", status.Convert(err).Message())
		select {
		case <-ctx.Done():
			return err
		case <-time.After(driverPause):
		}
	}
}

// stagingPath is where a volume is staged that this program mounts.
func (c *cli) stagingPath(id string) string {
	run := filepath.Dir(strings.TrimPrefix(c.driverEndpoint(), "unix://"))
	return filepath.Join(run, "staged", id)
}

// capabilityOf is how a volume is used: as its record says it was made.
func capabilityOf(r *blockdev.VolumeRecord) *csi.VolumeCapability {
	return capability(r.FSType, r.FSType == "" && r.Format == nil)
}

func capability(fsType string, block bool) *csi.VolumeCapability {
	result := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	if block {
		result.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		result.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}}
	}
	return result
}
