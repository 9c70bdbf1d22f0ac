package shards

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// Remotes are the other nodes of a site, by the addresses of their links. Its methods are safe for concurrent use.
type Remotes struct {
	client *link.Client
	// Addresses are host:port. A name with several addresses is as many nodes.
	addresses []string
	// lookup resolves a name; that of net.
	lookup func(ctx context.Context, host string) ([]string, error)

	mu    sync.Mutex
	known map[string]*remote
}

// remote is one of them.
type remote struct {
	shardpb.ShardsClient
	address string
	conn    *link.NodeConn
}

// NewRemotes returns the nodes at the addresses, to which client is the way.
func NewRemotes(client *link.Client, addresses []string) *Remotes {
	return &Remotes{client: client, addresses: addresses, lookup: net.DefaultResolver.LookupHost,
		known: map[string]*remote{}}
}

// List returns the nodes; see Options.Neighbours. A name that cannot be resolved is an error beside the others.
func (r *Remotes) List(ctx context.Context) ([]Neighbour, error) {
	var errs []error
	wanted := map[string]bool{}
	for _, address := range r.addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", address, err))
			continue
		}
		ips, err := r.lookup(ctx, host)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", address, err))
			continue
		}
		for _, ip := range ips {
			wanted[net.JoinHostPort(ip, port)] = true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for address, old := range r.known {
		if !wanted[address] && len(errs) == 0 {
			old.conn.Close()
			delete(r.known, address)
		}
	}
	var list []Neighbour
	for address := range wanted {
		if r.known[address] == nil {
			conn := r.client.NodeConn(address)
			r.known[address] = &remote{shardpb.NewShardsClient(conn), address, conn}
		}
	}
	for _, known := range r.known {
		list = append(list, neighbour{known})
	}
	slices.SortFunc(list, func(a, b Neighbour) int { return strings.Compare(a.Address(), b.Address()) })
	return list, errors.Join(errs...)
}

// Close ends all connections.
func (r *Remotes) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for address, old := range r.known {
		old.conn.Close()
		delete(r.known, address)
	}
}

// neighbour is a remote without options for its calls.
type neighbour struct{ *remote }

func (n neighbour) Address() string { return n.address }

func (n neighbour) ListShards(ctx context.Context, r *shardpb.ListShardsRequest) (*shardpb.ListShardsResponse, error) {
	return n.ShardsClient.ListShards(ctx, r)
}

func (n neighbour) Deliver(ctx context.Context, r *shardpb.DeliverRequest) (*shardpb.DeliverResponse, error) {
	return n.ShardsClient.Deliver(ctx, r)
}

func (n neighbour) FixEpoch(ctx context.Context, r *shardpb.FixEpochRequest) (*shardpb.FixEpochResponse, error) {
	return n.ShardsClient.FixEpoch(ctx, r)
}

func (n neighbour) ReleaseEpoch(ctx context.Context,
	r *shardpb.ReleaseEpochRequest) (*shardpb.ReleaseEpochResponse, error) {
	return n.ShardsClient.ReleaseEpoch(ctx, r)
}

func (n neighbour) Do(ctx context.Context, r *shardpb.DoRequest) (*shardpb.DoResponse, error) {
	return n.ShardsClient.Do(ctx, r)
}
