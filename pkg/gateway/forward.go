package gateway

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// Replicate implements link.Handler: it passes a peer's stream on to the node that has the group.
func (g *Gateway) Replicate(stream link.PeerStream) error {
	hello, err := link.ReceiveHello(stream)
	if err != nil {
		return err
	}
	first := &linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: hello}}
	node, err := g.node(stream.Context(), stream.Peer(), hello)
	if refused := (*refusal)(nil); errors.As(err, &refused) {
		g.log.Error(err, "Primary refused", "peer", stream.Peer(), "group", hello.GetGroupName(), "groupID",
			hello.GetGroupId())
		g.metrics.refusals.WithLabelValues(stream.Peer(), refused.reason.String()).Inc()
		answer := &linkpb.Refusal{Reason: refused.reason, Message: refused.text}
		if refused.foreign {
			answer = link.RefuseForeign(g.opts.Site, stream.Peer(), hello)
		}
		return stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Refusal{Refusal: answer}})
	}
	// The stream's own context, so that a node is not dialed for a primary that has gone.
	onward, err := g.opts.Nodes.DialNode(stream.Context(), node, stream.Peer())
	if err != nil {
		klog.ErrorS(err, "A node does not take a stream", "node", node.Name, "peer", stream.Peer(), "group",
			hello.GetGroupName())
		return status.Errorf(codes.Unavailable, "site %s: %v", g.opts.Site, err)
	}
	klog.InfoS("Stream", "peer", stream.Peer(), "group", hello.GetGroupName(), "groupID", hello.GetGroupId(), "node",
		node.Name)
	streams := g.metrics.streams.WithLabelValues(stream.Peer(), node.Name)
	streams.Inc()
	defer streams.Dec()
	err = g.exchange(stream, onward, first, func() { g.took(hello.GetGroupId(), node.Name) })
	klog.InfoS("Stream ended", "peer", stream.Peer(), "group", hello.GetGroupName(), "node", node.Name, "err", err)
	return err
}

// took remembers which node has a group. That it once took the group's stream bounds the memory: peers cannot make
// groups up.
func (g *Gateway) took(groupID, node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last[groupID] = node
}

// exchange passes messages in both directions until one side ends, and returns what the node ended with. Neither
// direction waits for the other; a receiver that is slow makes its sender wait, as it would without a gateway.
func (g *Gateway) exchange(stream link.PeerStream, onward link.Stream, first *linkpb.ToSecondary,
	welcomed func()) error {
	// Ends when the peer does, or with this function, whose return ends the peer's stream. It cannot be waited for
	// here: what it waits for ends after this function has.
	go func() {
		// Close is orderly: what the peer has sent before its own end still arrives. It also ends the Recv below.
		defer onward.Close()
		for message := first; ; {
			if err := onward.Send(message); err != nil {
				return // Recv below says why
			}
			var err error
			if message, err = stream.Recv(); err != nil {
				return
			}
		}
	}()
	defer onward.Close()
	// A peer that is cut off is noticed also while a node takes nothing.
	defer context.AfterFunc(stream.Context(), func() { onward.Close() })()
	for {
		message, err := onward.Recv()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, link.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		if message.GetWelcome() != nil {
			welcomed()
		}
		if err := stream.Send(message); err != nil {
			return err
		}
	}
}
