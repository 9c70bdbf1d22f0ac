package groups

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) groupCommand() *cobra.Command {
	return frame.Parent("group", "Create, change, show and fail over consistency groups",
		c.groupCreate(), c.groupSet(), c.groupAdd(), c.groupRemove(), c.groupDelete(), c.groupList(), c.groupStatus(),
		c.groupWait(), c.groupPromote(), c.groupDemote(), c.groupSuspend(), c.groupResume(), c.groupTest(),
		c.groupPoints(), c.groupBookmark(), c.groupVerify(), c.groupRepair(),
		c.groupCommit(), c.groupRollBack(), c.groupRelocate(), c.groupYield(), c.groupTails(), c.groupDeleteTail(),
		c.groupPVs(), c.groupDropShard())
}

func (c *cli) groupCreate() *cobra.Command {
	var flags groupFlags
	cmd := &cobra.Command{
		Use:   "create NAME --remote SITE",
		Short: "Create a group that is primary here",
		Example: "  slipctl group create shop --remote site-b\n" +
			"  slipctl group create shop --remote site-b --journal-size 4Gi --rpo-target 5s --ship-rate 20Mi",
		Args: frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, given []string) error {
			settings, err := flags.settings(func(string) bool { return true })
			if err != nil {
				return err
			}
			if settings.GetRemoteAddress() != "" && settings.GetRemote() == "" {
				return frame.Usagef("--remote-address is an address of the peer: name the peer with --remote")
			}
			request := &sidecarpb.CreateGroupRequest{Name: given[0], Settings: settings}
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				before, err := groupIfThere(ctx, sidecar, request.Name)
				if err != nil {
					return err
				}
				response, err := sidecar.CreateGroup(ctx, request)
				if err != nil {
					return err
				}
				result := frame.Fields{"group": request.Name, "groupId": response.GetGroupId(), "changed": before == nil}
				if before != nil {
					return c.Say(result, "group %s is there already with these settings; nothing changed", request.Name)
				}
				return c.Say(result, "group %s created, id %s", request.Name, response.GetGroupId())
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func (c *cli) groupAdd() *cobra.Command {
	var request sidecarpb.AddVolumeRequest
	cmd := &cobra.Command{
		Use:     "add GROUP VOLUME",
		Short:   "Add a volume to a group, mounted or not",
		Example: "  slipctl group add shop orders\n  slipctl group add shop vol-1234 --move --yes",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.GroupNames, c.Addable),
	}
	move := cmd.Flags().Bool("move", false, "move the volume out of its current group; its copy begins anew")
	given := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		request.Group, request.VolumeId, request.Move = words[0], c.VolumeID(words[1]), *move
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			before, err := group(ctx, sidecar, request.Group)
			if err != nil {
				return err
			}
			already := isMember(before, request.VolumeId)
			if request.Move && !already {
				what := fmt.Sprintf("The copy of volume %s begins anew in group %s. Until it is whole, a promotion "+
					"of that group opens its copy without the volume.", request.VolumeId, request.Group)
				err := c.Confirm(given, what, "Move "+request.VolumeId+"?")
				if err != nil {
					return err
				}
			}
			if _, err := sidecar.AddVolume(ctx, &request); err != nil {
				return err
			}
			result := frame.Fields{"group": request.Group, "volume": request.VolumeId, "changed": !already}
			switch {
			case already:
				return c.Say(result, "volume %s is in group %s already; nothing changed", request.VolumeId, request.Group)
			case before.GetPeer() == "":
				return c.Say(result, "volume %s is in group %s; the group has no peer, so there is no copy", request.VolumeId,
					request.Group)
			}
			return c.Say(result, "volume %s is in group %s; its copy begins now", request.VolumeId, request.Group)
		})
	}
	return cmd
}

func (c *cli) groupRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove GROUP VOLUME",
		Short:   "Take a volume out of a group, mounted or not; the volume and its copy stay",
		Example: "  slipctl group remove shop vol-1234",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.GroupNames, c.MemberNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				name, id := given[0], c.VolumeID(given[1])
				before, err := group(ctx, sidecar, name)
				if err != nil {
					return err
				}
				// The call is made in any case: it also completes a removal that was interrupted.
				_, err = sidecar.RemoveVolume(ctx, &sidecarpb.RemoveVolumeRequest{Group: name, VolumeId: id})
				if err != nil {
					return err
				}
				if !isMember(before, id) {
					return status.Errorf(codes.NotFound, "volume %s is not in group %s: nothing was removed", id, name)
				}
				return c.Say(frame.Fields{"group": name, "volume": id, "changed": true}, "volume %s is not in group %s any more",
					id,
					name)
			})
		},
	}
}

func (c *cli) groupDelete() *cobra.Command {
	var request sidecarpb.DeleteGroupRequest
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a group and its journal; its volumes stay",
		Example: "  slipctl group delete shop\n  slipctl group delete shop --force --yes",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
	}
	cmd.Flags().BoolVar(&request.Force, "force", false, "delete the group even if it has volumes")
	given := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		request.Name = words[0]
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			before, err := groupIfThere(ctx, sidecar, request.Name)
			if err != nil {
				return err
			}
			if request.Force && len(before.GetVolumes()) > 0 {
				if err := c.Confirm(given, deletionText(before), "Delete group "+request.Name+"?"); err != nil {
					return err
				}
			}
			// The call is made in any case: it also completes a deletion that was interrupted.
			_, err = sidecar.DeleteGroup(ctx, &request)
			if err != nil && (before != nil || status.Code(err) != codes.NotFound) {
				return err
			}
			if before == nil {
				return status.Errorf(codes.NotFound, "there is no group %q at this site: nothing was deleted", request.Name)
			}
			return c.Say(frame.Fields{"group": request.Name, "changed": true}, "group %s deleted", request.Name)
		})
	}
	return cmd
}

// deletionText says what is lost with a group that has volumes.
func deletionText(g *sidecarpb.GroupStatus) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The deletion of group %s:\n", g.GetName())
	fmt.Fprintf(&b, "  ends the replication of its %s; they stay here, without a group;\n",
		words.Count(len(g.GetVolumes()), "volume"))
	if g.GetRole() == sidecarpb.Role_ROLE_SECONDARY {
		fmt.Fprintf(&b, "  gives up the copy of what %s wrote: the volumes here cannot be promoted any more;\n",
			frame.OrDash(g.GetPeer()))
	} else if g.GetPeer() != "" {
		fmt.Fprintf(&b, "  leaves the copy at %s as it is, which lacks: %s;\n", g.GetPeer(), lagText(g))
	}
	fmt.Fprintf(&b, "  deletes the journal, %s.", frame.FormatBytes(uint64(max(g.GetJournalUsedBytes(), 0))))
	return b.String()
}

func (c *cli) groupList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the groups of this site",
		Example: "  slipctl group list\n  slipctl group list -o json | jq -r '.groups[] | select(.lagging) | .name'",
		Args:    frame.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
				if err != nil {
					return err
				}
				return c.printGroups(response)
			})
		},
	}
}

// group fetches the status of one group, and fails with NOT_FOUND if it does not exist.
func group(ctx context.Context, sidecar sidecarpb.SidecarClient, name string) (*sidecarpb.GroupStatus, error) {
	g, err := groupIfThere(ctx, sidecar, name)
	if err == nil && g == nil {
		err = status.Errorf(codes.NotFound, "there is no group %q at this site", name)
	}
	return g, err
}

// groupIfThere fetches the status of one group. It is nil if the group does not exist.
func groupIfThere(ctx context.Context, sidecar sidecarpb.SidecarClient, name string) (*sidecarpb.GroupStatus, error) {
	response, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{Name: name})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, g := range response.GetGroups() {
		if g.GetName() == name {
			return g, nil
		}
	}
	return nil, nil
}

// isMember reports whether a volume is in a group.
func isMember(g *sidecarpb.GroupStatus, volume string) bool {
	for _, v := range g.GetVolumes() {
		if v.GetVolumeId() == volume {
			return true
		}
	}
	return false
}
