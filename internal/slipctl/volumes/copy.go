package volumes

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) copyCommand() *cobra.Command {
	return frame.Parent("copy", "Show and delete copies that belong to no group", c.copyList(), c.copyDelete())
}

func (c *cli) copyList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Example: "  slipctl copy list\n  slipctl copy list -o json",
		Short:   "List copies of other sites' volumes that belong to no group here",
		Long: "A copy belongs to no group after its primary has taken the volume out of the group, or after the\n" +
			"group was deleted here. A copy whose volume was deleted here while it was in a group is listed too.\n" +
			"It is deleted when its primary takes the volume out of the group.",
		Args: frame.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.ListCopies(ctx, &sidecarpb.ListCopiesRequest{})
				if err != nil {
					return err
				}
				return c.printCopies(response)
			})
		},
	}
}

func (c *cli) printCopies(response *sidecarpb.ListCopiesResponse) error {
	if len(response.GetCopies()) == 0 && !c.Structured() {
		fmt.Fprintln(c.Err, "There are no copies without a group at this site.")
		return nil
	}
	t := frame.NewTable("volume", "size", "on disk", "peer", "group", "left", "claim")
	for _, copied := range response.GetCopies() {
		t.AppendRow(table.Row{copied.GetVolumeId(), frame.FormatBytes(uint64(max(copied.GetSizeBytes(), 0))),
			frame.FormatBytes(uint64(max(copied.GetAllocatedBytes(), 0))), frame.OrDash(copied.GetPeer()),
			frame.OrDash(copied.GetGroup()),
			leftText(copied), claimText(copied)})
	}
	return c.Show(response, func() error { return frame.PrintTable(c.Out, t) })
}

// leftText says since when a copy is in no group.
func leftText(copied *sidecarpb.Copy) string {
	switch {
	case copied.GetMember():
		return "goes with its primary"
	case copied.LeftUnixNanos == nil:
		return frame.Unknown
	}
	return time.Unix(0, copied.GetLeftUnixNanos()).Format(time.DateTime)
}

func claimText(copied *sidecarpb.Copy) string {
	return frame.OrDash(strings.Trim(copied.GetClaimNamespace()+"/"+copied.GetClaimName(), "/"))
}

func (c *cli) copyDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "delete VOLUME",
		Short: "Delete a copy that belongs to no group",
		Long: "VOLUME is an id, or the name of a volume of this node. The command asks first, because the copy may be\n" +
			"the last one. It refuses a volume that is in a group, in use, or not a copy of another site's volume.",
		Example: "  slipctl copy delete vol-1",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.copyNames),
	}
	given := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		words[0] = c.VolumeID(words[0])
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			found, err := copyOf(ctx, sidecar, words[0])
			if err != nil {
				return err
			}
			if found != nil { // else the call says why it is none
				what := fmt.Sprintf("Copy %s: %s of a volume of %s, group %s, left %s.\nIt may be the last copy of that volume.",
					words[0], frame.FormatBytes(uint64(max(found.GetSizeBytes(), 0))), frame.OrDash(found.GetPeer()),
					frame.OrDash(found.GetGroup()),
					leftText(found))
				if err := c.Confirm(given, what, "Delete copy "+words[0]+"?"); err != nil {
					return err
				}
			}
			if _, err := sidecar.DeleteCopy(ctx, &sidecarpb.DeleteCopyRequest{VolumeId: words[0]}); err != nil {
				return err
			}
			return c.Say(frame.Fields{"volume": words[0], "changed": true}, "copy %s deleted", words[0])
		})
	}
	return cmd
}

// copyNames are the copies that can be deleted, for completion.
func (c *cli) copyNames(cmd *cobra.Command, _ []string) (ids []string) {
	_ = c.WithSidecar(cmd.Context(), frame.Brief, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		response, err := sidecar.ListCopies(ctx, &sidecarpb.ListCopiesRequest{})
		for _, found := range response.GetCopies() {
			ids = append(ids, found.GetVolumeId())
		}
		return err
	})
	return ids
}

// copyOf returns a copy from the list; nil if it is not there.
func copyOf(ctx context.Context, sidecar sidecarpb.SidecarClient, volumeID string) (*sidecarpb.Copy, error) {
	response, err := sidecar.ListCopies(ctx, &sidecarpb.ListCopiesRequest{})
	if err != nil {
		return nil, err
	}
	for _, found := range response.GetCopies() {
		if found.GetVolumeId() == volumeID {
			return found, nil
		}
	}
	return nil, nil
}
