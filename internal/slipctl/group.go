package slipctl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) groupCommand() *cobra.Command {
	return parent("group", "Create, change, show and fail over consistency groups",
		c.groupCreate(), c.groupSet(), c.groupAdd(), c.groupRemove(), c.groupDelete(), c.groupList(), c.groupStatus(),
		c.groupPromote(), c.groupDemote(),
		c.groupPVs())
}

func (c *cli) groupCreate() *cobra.Command {
	var flags groupFlags
	cmd := &cobra.Command{
		Use:   "create NAME --remote SITE",
		Short: "Create a group that is primary here",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			settings, err := flags.settings(func(string) bool { return true })
			if err != nil {
				return err
			}
			if settings.GetRemoteAddress() != "" && settings.GetRemote() == "" {
				return usagef("--remote-address is an address of the peer: name the peer with --remote")
			}
			request := &sidecarpb.CreateGroupRequest{Name: given[0], Settings: settings}
			return c.withSidecar(cmd.Context(), callTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.CreateGroup(ctx, request)
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printProto(c.out, response)
				}
				fmt.Fprintf(c.out, "group %s created, id %s\n", request.Name, response.GetGroupId())
				return nil
			})
		},
	}
	flags.add(cmd.Flags())
	return cmd
}

func (c *cli) groupAdd() *cobra.Command {
	var request sidecarpb.AddVolumeRequest
	cmd := &cobra.Command{
		Use:   "add GROUP VOLUME",
		Short: "Add a volume to a group, mounted or not",
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, given []string) error {
			request.Group, request.VolumeId = given[0], given[1]
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.AddVolume(ctx, &request)
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printProto(c.out, response)
				}
				fmt.Fprintf(c.out, "volume %s is in group %s; its copy begins now\n", given[1], given[0])
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&request.Move, "move", false, "move the volume out of its current group; its copy begins anew")
	return cmd
}

func (c *cli) groupRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove GROUP VOLUME",
		Short: "Take a volume out of a group, mounted or not; the volume and its copy stay",
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.RemoveVolume(ctx, &sidecarpb.RemoveVolumeRequest{Group: given[0], VolumeId: given[1]})
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printProto(c.out, response)
				}
				fmt.Fprintf(c.out, "volume %s is not in group %s any more\n", given[1], given[0])
				return nil
			})
		},
	}
}

func (c *cli) groupDelete() *cobra.Command {
	var request sidecarpb.DeleteGroupRequest
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a group and its journal; its volumes stay",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			request.Name = given[0]
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.DeleteGroup(ctx, &request)
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printProto(c.out, response)
				}
				fmt.Fprintf(c.out, "group %s deleted\n", request.Name)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&request.Force, "force", false, "delete the group even if it has volumes")
	return cmd
}

func (c *cli) groupList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the groups of this site",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withSidecar(cmd.Context(), callTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
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
	response, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{Name: name})
	if err != nil {
		return nil, err
	}
	for _, g := range response.GetGroups() {
		if g.GetName() == name {
			return g, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "there is no group %q at this site", name)
}
