package attach

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// statsTimeout is how long a file system gets to say what is used of it.
const statsTimeout = 10 * time.Second

// Usage asks a mounted file system, one question at a time for each volume, and returns when ctx ends or after
// statsTimeout: the question itself cannot be taken back.
func (d *Attacher) Usage(ctx context.Context, id, path string) (host.Usage, error) {
	done, err := d.guards.Enter("usage of "+id, "NodeGetVolumeStats")
	if err != nil {
		return host.Usage{}, err
	}
	type answer struct {
		usage host.Usage
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		usage, err := d.Filesystems.Usage(path)
		done() // before the answer, after which the caller may ask again
		answered <- answer{usage, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	select {
	case a := <-answered:
		if a.err != nil {
			err = status.Errorf(codes.Internal, "volume %s: %v", id, a.err)
		}
		return a.usage, err
	case <-ctx.Done():
		return host.Usage{}, status.FromContextError(fmt.Errorf("volume %s: the file system on %s does not answer; see "+
			"whether its device does (dmesg, the replicator): %w",
			id, path, ctx.Err())).Err()
	}
}
