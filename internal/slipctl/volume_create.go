package slipctl

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// onNode is what the volume commands work on.
const onNode = "the volumes of a node"

// fsBlock is the word for a volume without a file system.
const fsBlock = "block"

func (c *cli) volumeCreate() *cobra.Command {
	var size, fs, order, group, remote string
	var plain, thick bool
	cmd := local(onNode, &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create a volume, which can be replicated",
		Example: "  slipctl volume create orders --size 10Gi\n" +
			"  slipctl volume create orders --size 10Gi --fs xfs --group shop --remote site-b",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
	})
	flags := cmd.Flags()
	flags.StringVar(&size, "size", "", "size, as 10Gi (required)")
	addEnum(cmd, flags, &fs, "fs", "", "file system that the first mount makes, or a raw block device", "ext4", "xfs",
		fsBlock)
	addEnum(cmd, flags, &order, "order", "", "what is kept in order: acknowledged writes, or flushed writes", "ack",
		"flush")
	flags.StringVar(&group, "group", "", "consistency group that the volume joins; the first volume creates the group")
	flags.StringVar(&remote, "remote", "", "site that the group replicates to")
	flags.BoolVar(&plain, "plain", false, "a volume that cannot be replicated; it needs no replicator")
	flags.BoolVar(&thick, "thick", false, "reserve the space now")
	_ = cmd.RegisterFlagCompletionFunc("group", oneOf(c.groupNames))
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		bytes, err := parseBytes(size)
		if err != nil || bytes == 0 {
			return usagef("--size is %q: it is written as 10Gi, 64Mi, or as a number of bytes", size)
		}
		if plain && (group != "" || remote != "" || flags.Changed("order")) {
			return usagef("--plain is for a volume without replication: leave out --group, --remote and --order")
		}
		request := &csi.CreateVolumeRequest{
			Name: given[0], CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, Parameters: map[string]string{},
			VolumeCapabilities: []*csi.VolumeCapability{capability(fs, fs == fsBlock)},
		}
		if !plain {
			request.Parameters["slipstream.dev/replicable"] = "true"
			request.Parameters["slipstream.dev/order"] = order
		}
		if thick {
			request.Parameters["slipstream.dev/provisioning"] = "thick"
		}
		for key, value := range map[string]string{"consistency-group": group, "remote": remote} {
			if value != "" {
				request.Parameters["slipstream.dev/"+key] = value
			}
		}
		before, err := c.volume(given[0])
		if err != nil && status.Code(err) != codes.NotFound {
			return err
		}
		return c.withDriver(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
			response, err := csi.NewControllerClient(conn).CreateVolume(ctx, request)
			if err != nil {
				return err
			}
			made := response.GetVolume()
			there := before != nil && before.ID == made.GetVolumeId()
			result := fields{"volume": made.GetVolumeId(), "name": given[0], "sizeBytes": made.GetCapacityBytes(),
				"changed": !there}
			if there {
				return c.say(result, "volume %s is there already, id %s; nothing changed", given[0], made.GetVolumeId())
			}
			return c.say(result, "volume %s created, id %s, %s", given[0], made.GetVolumeId(),
				formatBytes(uint64(made.GetCapacityBytes())))
		})
	}
	return cmd
}

func (c *cli) volumeDelete() *cobra.Command {
	cmd := local(onNode, &cobra.Command{
		Use:     "delete VOLUME",
		Short:   "Delete a volume and its data",
		Long:    "VOLUME is a name or an id. The volume must not be mounted. A member of a group leaves the group first.",
		Example: "  slipctl volume delete orders\n  slipctl volume delete vol-1234 --yes",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.everyVolume),
	})
	consent := addYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		record, err := c.volume(given[0])
		if err != nil {
			return err
		}
		what := fmt.Sprintf("The deletion of volume %s (%s, %s) destroys its data at this site.", record.Name, record.ID,
			formatBytes(uint64(record.SizeBytes)))
		if record.Group != "" && record.Secondary {
			what = fmt.Sprintf("Volume %s (%s, %s) is a copy of %s's volume in group %s. It stays until %[4]s takes the volume "+
				"out of the group, and is deleted then.", record.Name, record.ID, formatBytes(uint64(record.SizeBytes)),
				record.Remote, record.Group)
		} else if record.Group != "" {
			what += fmt.Sprintf(" It leaves group %s.", record.Group)
		}
		if err := c.confirm(consent, what, "Delete volume "+record.Name+"?"); err != nil {
			return err
		}
		return c.withDriver(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := csi.NewControllerClient(conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: record.ID})
			if err != nil {
				return err
			}
			text := "volume %s deleted, id %s"
			if kept, err := c.volume(record.ID); err == nil && kept.Unwanted {
				text = "volume %s, id %s, is not deleted yet: it goes with its primary (slipctl copy list)"
			}
			return c.say(fields{"volume": record.ID, "name": record.Name, "changed": true}, text, record.Name, record.ID)
		})
	}
	return cmd
}

func (c *cli) volumeGrow() *cobra.Command {
	return local(onNode, &cobra.Command{
		Use:   "grow VOLUME SIZE",
		Short: "Grow a volume and its file system, mounted or not",
		Long: "VOLUME is a name or an id. SIZE is the new size. A replicated volume grows at both sites. A volume that is " +
			"not\nmounted is attached for the time of the command.",
		Example: "  slipctl volume grow orders 20Gi",
		Args:    args(cobra.ExactArgs(2)), ValidArgsFunction: oneOf(c.everyVolume),
		RunE: func(cmd *cobra.Command, given []string) error {
			bytes, err := parseBytes(given[1])
			if err != nil || bytes == 0 {
				return usagef("SIZE is %q: it is written as 10Gi, 64Mi, or as a number of bytes", given[1])
			}
			record, err := c.volume(given[0])
			if err != nil {
				return err
			}
			if bytes < record.SizeBytes {
				return usagef("volume %s has %s: volumes only grow", record.Name, formatBytes(uint64(record.SizeBytes)))
			}
			return c.withDriver(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				size, err := c.grow(ctx, csi.NewNodeClient(conn), record, bytes)
				if err != nil {
					return err
				}
				result := fields{"volume": record.ID, "name": record.Name, "sizeBytes": size, "changed": size != record.SizeBytes}
				if size == record.SizeBytes {
					return c.say(result, "volume %s has %s already; nothing changed", record.Name, formatBytes(uint64(size)))
				}
				return c.say(result, "volume %s has %s now", record.Name, formatBytes(uint64(size)))
			})
		},
	})
}

// grow expands a volume where it is staged. One that is not staged is staged for the time of the call.
func (c *cli) grow(ctx context.Context, node csi.NodeClient, r *blockdev.VolumeRecord, bytes int64) (int64, error) {
	path, staged := c.stagingPath(r.ID), r.Stage != nil
	if staged {
		path = r.Stage.StagingPath
	} else if err := c.stage(ctx, node, r); err != nil {
		return 0, err
	}
	response, err := node.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: r.ID, VolumePath: path, StagingTargetPath: path, VolumeCapability: capabilityOf(r),
		CapacityRange: &csi.CapacityRange{RequiredBytes: bytes},
	})
	if err != nil {
		return 0, err
	}
	if !staged {
		if err := c.unstage(ctx, node, r.ID, path); err != nil {
			return 0, err
		}
	}
	return response.GetCapacityBytes(), nil
}
