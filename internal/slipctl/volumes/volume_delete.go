package volumes

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

func (c *cli) volumeDelete() *cobra.Command {
	cmd := frame.Local(onNode, &cobra.Command{
		Use:   "delete VOLUME",
		Short: "Delete a volume and its data",
		Long: "VOLUME is a name or an id. The volume must not be mounted. A member of a group leaves the group " +
			"first.\n" +
			"A copy of another site's volume is deleted when that site takes the volume out of the group.",
		Example: "  slipctl volume delete orders\n  slipctl volume delete vol-1234 --yes",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.EveryVolume),
	})
	consent := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		record, err := c.Volume(given[0])
		if err != nil {
			return err
		}
		if record.Stage != nil {
			return mounted(record, "delete")
		}
		g := c.groupOf(cmd.Context(), record)
		if err := c.Confirm(consent, deletionText(record, g), "Delete volume "+record.Name+"?"); err != nil {
			return err
		}
		return c.WithDriver(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := csi.NewControllerClient(conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: record.ID})
			if err != nil {
				return err
			}
			text, kept := fmt.Sprintf("volume %s deleted, id %s", record.Name, record.ID), false
			if now, err := c.Volume(record.ID); err == nil && now.Unwanted {
				text, kept = fmt.Sprintf("volume %s, id %s, is not deleted yet: %s", record.Name, record.ID,
					deletedLater(now, g)), true
			}
			return c.Say(frame.Fields{"volume": record.ID, "name": record.Name, "deleted": !kept,
				"changed": !kept || !record.Unwanted}, "%s", text)
		})
	}
	return cmd
}

// groupOf asks the replicator for the group that a volume is in. It is nil without a group, and for a copy, whose
// record says all that is needed. If no replicator answers it is nil too: the driver does not delete a member without
// one, and says so.
func (c *cli) groupOf(ctx context.Context, record *blockdev.VolumeRecord) (found *sidecarpb.GroupStatus) {
	if record.Group == "" || record.Secondary {
		return nil
	}
	_ = c.WithSidecar(ctx, frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		response, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{Name: record.Group})
		for _, g := range response.GetGroups() {
			if g.GetName() == record.Group {
				found = g
			}
		}
		return err
	})
	return found
}

// mounted refuses what needs a volume that is not in use.
func mounted(record *blockdev.VolumeRecord, verb string) error {
	return status.Errorf(codes.FailedPrecondition, "volume %s is mounted here: end what uses it, then `slipctl volume "+
		"unmount %[1]s`, and %s it again", record.Name, verb)
}

// isDemoted reports whether a group was demoted here for its peer to take over.
func isDemoted(g *sidecarpb.GroupStatus) bool {
	return g.GetState() == sidecarpb.GroupState_GROUP_STATE_DEMOTED
}

// deletionText says what the deletion of a volume destroys, or who has to act before anything is deleted.
func deletionText(record *blockdev.VolumeRecord, g *sidecarpb.GroupStatus) string {
	volume := fmt.Sprintf("volume %s (%s, %s)", record.Name, record.ID, frame.FormatBytes(uint64(record.SizeBytes)))
	switch {
	case record.Group != "" && record.Secondary:
		return fmt.Sprintf("V%s is a copy of %s's volume in group %s. It is not deleted now: %s", volume[1:],
			record.Remote, record.Group, deletedLater(record, g))
	case isDemoted(g):
		return fmt.Sprintf("V%s is in group %s, which was demoted here for %s to take over. It is not deleted now: "+
			"%s\nTo delete it here and now, take the group back first: `slipctl group promote %s` at this site.",
			volume[1:], record.Group, g.GetPeer(), deletedLater(record, g), record.Group)
	case record.Group != "":
		return fmt.Sprintf("The deletion of %s destroys its data at this site. It leaves group %s.", volume,
			record.Group)
	}
	return fmt.Sprintf("The deletion of %s destroys its data at this site.", volume)
}

// deletedLater says which site has to act for a copy to be deleted, and with which commands.
func deletedLater(record *blockdev.VolumeRecord, g *sidecarpb.GroupStatus) string {
	peer, promote := record.Remote, ""
	if isDemoted(g) {
		peer, promote = g.GetPeer(), fmt.Sprintf("`slipctl group promote %s` and ", record.Group)
	}
	return fmt.Sprintf("it stays until %s takes the volume out of the group, %s`slipctl group remove %s %s` at %[1]s.",
		peer, promote, record.Group, record.ID)
}
