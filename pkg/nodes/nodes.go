// Package nodes says which nodes a cluster has and where a port of theirs is reached: from Kubernetes, or from a list.
// The controller (package router) and the gateway of the link (package gateway) go by it, for both of which a node that
// is there and silent is another thing than one that is not there.
//
// # Concurrency
//
// A Source may be followed by several goroutines.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// Source says which nodes there are.
type Source interface {
	// Follow calls update with all nodes, at first as soon as they are known and then whenever they change, until ctx is
	// done. Nodes are addresses by name; a node without an address is there but cannot be reached.
	Follow(ctx context.Context, update func(nodes map[string]string)) error
	// Contact returns an error if the API server, which the source asks, does not answer now.
	Contact(ctx context.Context) error
}

// Static are nodes that do not change.
type Static map[string]string

// ParseStatic reads name=host:port,...
func ParseStatic(s string) (Static, error) {
	nodes := Static{}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, address, _ := strings.Cut(part, "=")
		if name == "" || address == "" {
			return nil, fmt.Errorf("node %q: it is written as name=host:port", part)
		}
		if err := plugin.ValidateNodeID(name); err != nil {
			return nil, err
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
		if _, twice := nodes[name]; twice {
			return nil, fmt.Errorf("node %s is there twice", name)
		}
		nodes[name] = address
	}
	if len(nodes) == 0 {
		return nil, errors.New("no nodes: a list of name=host:port is wanted")
	}
	return nodes, nil
}

// Follow implements Source.
func (s Static) Follow(ctx context.Context, update func(map[string]string)) error {
	update(s)
	<-ctx.Done()
	return nil
}

// Contact implements Source.
func (s Static) Contact(context.Context) error { return nil }
