package sites

import (
	"context"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) peerCommand() *cobra.Command {
	return frame.Parent("peer", "Show peers of this site, and forget one that is gone for good", c.peerList(),
		c.peerForget())
}

func (c *cli) peerList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Example: "  slipctl peer list",
		Short:   "List the sites that groups and copies of this site are of",
		Args:    frame.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.ListPeers(ctx, &sidecarpb.ListPeersRequest{})
				if err != nil {
					return err
				}
				if len(response.GetPeers()) == 0 && !c.Structured() {
					fmt.Fprintln(c.Err, "No group and no copy at this site is of another site.")
					return nil
				}
				t := frame.NewTable("peer", "primary here", "secondary here", "cannot be opened", "connected",
					"copies without a group")
				for _, p := range response.GetPeers() {
					t.AppendRow(table.Row{p.GetPeer(), listText(p.GetPrimary()), listText(p.GetSecondary()), listText(p.GetBroken()),
						listText(p.GetConnected()), len(p.GetCopies())})
				}
				return c.Show(response, func() error { return frame.PrintTable(c.Out, t) })
			})
		},
	}
}

func listText(names []string) string { return frame.OrDash(strings.Join(names, ", ")) }

func (c *cli) peerForget() *cobra.Command {
	var request sidecarpb.ForgetPeerRequest
	cmd := &cobra.Command{
		Use:   "forget SITE",
		Short: "Keep or delete everything here of a site that is gone for good",
		Long: "Groups that replicate with the site become primary here, without a peer. Of a group that is\n" +
			"secondary here, the writes that have not arrived are lost. With --delete-copies such groups are\n" +
			"deleted with their copies instead, and so are the site's copies that belong to no group. The\n" +
			"command refuses a site that is connected.",
		Example: "  slipctl peer forget site-a\n  slipctl peer forget site-a --delete-copies --yes",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.peerNames),
	}
	cmd.Flags().BoolVar(&request.DeleteCopies, "delete-copies", false, "delete the groups that are secondary here, with "+
		"their copies, and the site's copies without a group")
	given := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		request.Peer = words[0]
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			use, err := peerUse(ctx, sidecar, request.Peer)
			if err != nil {
				return err
			}
			err = c.Confirm(given, forgetText(use, request.GetDeleteCopies()), "Forget site "+request.Peer+"?")
			if err != nil {
				return err
			}
			response, err := sidecar.ForgetPeer(ctx, &request)
			if err != nil {
				return err
			}
			return c.Say(frame.Fields{"peer": request.Peer, "kept": append([]string{}, response.GetKept()...), "changed": true},
				"site %s is forgotten; groups kept as primary without a peer: %s", request.Peer, listText(response.GetKept()))
		})
	}
	return cmd
}

// peerNames are the sites that can be forgotten, for completion.
func (c *cli) peerNames(cmd *cobra.Command, _ []string) (names []string) {
	_ = c.WithSidecar(cmd.Context(), frame.Brief, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		response, err := sidecar.ListPeers(ctx, &sidecarpb.ListPeersRequest{})
		for _, p := range response.GetPeers() {
			names = append(names, p.GetPeer())
		}
		return err
	})
	return names
}

func peerUse(ctx context.Context, sidecar sidecarpb.SidecarClient, peer string) (*sidecarpb.PeerUse, error) {
	response, err := sidecar.ListPeers(ctx, &sidecarpb.ListPeersRequest{})
	if err != nil {
		return nil, err
	}
	for _, p := range response.GetPeers() {
		if p.GetPeer() == peer {
			return p, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "no group and no copy at this site is of a site %q; `slipctl peer list` "+
		"shows the peers", peer)
}

// forgetText says what forgetting a site will do.
func forgetText(use *sidecarpb.PeerUse, deleteCopies bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Forgetting site %s:\n", use.GetPeer())
	if names := use.GetPrimary(); len(names) > 0 {
		fmt.Fprintf(&b, "  groups %s stay primary here, without a peer;\n", listText(names))
	}
	if names := use.GetSecondary(); len(names) > 0 && deleteCopies {
		fmt.Fprintf(&b, "  groups %s are deleted with all of their volumes;\n", listText(names))
	} else if len(names) > 0 {
		fmt.Fprintf(&b, "  groups %s become primary here with the writes that have arrived;\n", listText(names))
	}
	if n := len(use.GetCopies()); n > 0 && deleteCopies {
		fmt.Fprintf(&b, "  %s without a group are deleted: %s;\n", words.Count(n, "copy"), listText(use.GetCopies()))
	}
	fmt.Fprintf(&b, "  if %s comes back, its groups of the same names count as diverged.", use.GetPeer())
	return b.String()
}
