package link

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// LocateAs is Locate at another site, which no honest client does.
func (c *Client) LocateAs(ctx context.Context, site string, node Node) error {
	_, err := c.locate(ctx, target{site, node.Address}, node, &linkpb.LocateRequest{})
	return err
}

// DialAs is DialNode at another site.
func (c *Client) DialAs(ctx context.Context, site string, node Node, peer string) (Stream, error) {
	return c.dial(ctx, target{site, node.Address}, nodeMetadata, node.Name, peerMetadata, peer)
}
