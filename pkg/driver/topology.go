package driver

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{plugin.TopologyKey: d.opts.NodeID}}
}

// isHere reports whether this node is in a topology. Segments of other drivers do not matter.
func (d *Driver) isHere(t *csi.Topology) bool {
	node, ok := t.GetSegments()[plugin.TopologyKey]
	return !ok || node == d.opts.NodeID
}

func (d *Driver) accessible(r *csi.TopologyRequirement) bool {
	return len(r.GetRequisite()) == 0 || slices.ContainsFunc(r.GetRequisite(), d.isHere)
}
