package router

import (
	"context"
	"errors"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/slipstream-storage/slipstream/internal/sidecarclient"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// Replicators are the replicators of all nodes of a cluster, for the operator. It reaches them through the drivers of
// the nodes, which pass on the calls about groups. Make it with NewReplicators, and close it. It is safe for concurrent
// use.
type Replicators struct {
	source nodes.Source
	tls    *tlsfiles.Source
	nodes  *nodeSet
	meter  *meter
}

// Replicator is that of one node.
type Replicator struct {
	Node string
	// Retired: the node is gone for good; that it does not answer means that it holds nothing.
	Retired bool
	// Client is nil for a node whose driver has no address. Errors name the node. Unavailable: it does not answer.
	// FailedPrecondition: among other things, the driver runs without a replicator, or is of an earlier version.
	Client sidecarpb.SidecarClient
}

// NewReplicators reads the certificate, which is for tlsfiles.ControllerName. Nodes are looked for by Follow.
func NewReplicators(source nodes.Source, retired []string, tlsDir string) (*Replicators, error) {
	if source == nil || tlsDir == "" {
		return nil, errors.New("the way to the nodes needs --node-service or --nodes, and --tls-dir with certificates")
	}
	certificates, err := tlsfiles.OpenDir(tlsDir)
	if err != nil {
		return nil, err
	}
	r := &Replicators{source: source, tls: certificates, meter: newMeter(certificates)}
	r.nodes = newNodeSet(certificates, retired, r.meter)
	r.meter.registry.MustRegister(r.nodes)
	return r, nil
}

// Follow keeps the nodes as the source says until ctx is done.
func (r *Replicators) Follow(ctx context.Context) error { return r.source.Follow(ctx, r.nodes.update) }

// All returns the replicators by node, or Unavailable as long as the nodes are not known.
func (r *Replicators) All() ([]Replicator, error) {
	known, err := r.nodes.all()
	if err != nil {
		return nil, err
	}
	all := make([]Replicator, 0, len(known))
	for _, n := range known {
		one := Replicator{Node: n.name, Retired: n.retired}
		if n.conn != nil {
			one.Client = sidecarpb.NewSidecarClient(sidecarclient.Cleaned(n.conn))
		}
		all = append(all, one)
	}
	return slices.Clip(all), nil
}

// Metrics are those of the connections.
func (r *Replicators) Metrics() prometheus.Collector { return r.meter.registry }

// Close ends the connections.
func (r *Replicators) Close() error { return errors.Join(r.nodes.Close(), r.tls.Close()) }
