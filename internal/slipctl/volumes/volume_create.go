package volumes

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// onNode is what the volume commands work on.
const onNode = "the volumes of a node"

// fsBlock is the word for a volume without a file system.
const fsBlock = "block"

func (c *cli) volumeCreate() *cobra.Command {
	var size, fs, order, group, remote, from string
	var plain, thick bool
	cmd := frame.Local(onNode, &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create a volume, which can be replicated",
		Example: "  slipctl volume create orders --size 10Gi\n" +
			"  slipctl volume create orders --size 10Gi --fs xfs --group shop --remote site-b\n" +
			"  slipctl volume create before --size 10Gi --plain --from tail-0a1b2c3d4e5f6071-0",
		Args: frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: cobra.NoFileCompletions,
	})
	flags := cmd.Flags()
	flags.StringVar(&size, "size", "", "size, as 10Gi (required)")
	frame.AddEnum(cmd, flags, &fs, "fs", "", "file system that the first mount makes, or a raw block device", "ext4",
		"xfs",
		fsBlock)
	frame.AddEnum(cmd, flags, &order, "order", "", "what is kept in order: acknowledged writes, or flushed writes", "ack",
		"flush")
	flags.StringVar(&group, "group", "", "consistency group that the volume joins; the first volume creates the group")
	flags.StringVar(&remote, "remote", "", "site that the group replicates to")
	flags.BoolVar(&plain, "plain", false, "a volume that cannot be replicated; it needs no replicator")
	flags.StringVar(&from, "from", "", "snapshot whose content the volume begins with, as of a tail (slipctl group tails)")
	flags.BoolVar(&thick, "thick", false, "reserve the space now")
	_ = cmd.RegisterFlagCompletionFunc("group", frame.OneOf(c.GroupNames))
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		fs = fileSystem(fs, flags.Changed("fs"), from)
		bytes, err := frame.ParseBytes(size)
		if err != nil || bytes == 0 {
			return frame.Usagef("--size is %q: it is written as 10Gi, 64Mi, or as a number of bytes", size)
		}
		if plain && (group != "" || remote != "" || flags.Changed("order")) {
			return frame.Usagef("--plain is for a volume without replication: leave out --group, --remote and --order")
		}
		request := &csi.CreateVolumeRequest{
			Name: given[0], CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, Parameters: map[string]string{},
			VolumeCapabilities: []*csi.VolumeCapability{capability(fs, fs == fsBlock)},
		}
		if !plain {
			request.Parameters["slipstream.dev/replicable"] = "true"
			request.Parameters["slipstream.dev/order"] = order
		}
		if from != "" {
			request.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
				Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: from}}}
		}
		if thick {
			request.Parameters["slipstream.dev/provisioning"] = "thick"
		}
		for key, value := range map[string]string{"consistency-group": group, "remote": remote} {
			if value != "" {
				request.Parameters["slipstream.dev/"+key] = value
			}
		}
		before, err := c.Volume(given[0])
		if err != nil && status.Code(err) != codes.NotFound {
			return err
		}
		return c.WithDriver(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
			response, err := csi.NewControllerClient(conn).CreateVolume(ctx, request)
			if err != nil {
				return err
			}
			made := response.GetVolume()
			there := before != nil && before.ID == made.GetVolumeId()
			result := frame.Fields{"volume": made.GetVolumeId(), "name": given[0], "sizeBytes": made.GetCapacityBytes(),
				"changed": !there}
			if there {
				return c.Say(result, "volume %s is there already, id %s; nothing changed", given[0], made.GetVolumeId())
			}
			return c.Say(result, "volume %s created, id %s, %s", given[0], made.GetVolumeId(),
				frame.FormatBytes(uint64(made.GetCapacityBytes())))
		})
	}
	return cmd
}

// fileSystem is the one to ask the driver for: of a volume that is made from a snapshot that of the snapshot, unless
// another one was given.
func fileSystem(fs string, given bool, from string) string {
	if from != "" && !given {
		return ""
	}
	return fs
}

func (c *cli) volumeGrow() *cobra.Command {
	return frame.Local(onNode, &cobra.Command{
		Use:   "grow VOLUME SIZE",
		Short: "Grow a volume and its file system, mounted or not",
		Long: "VOLUME is a name or an id. SIZE is the new size. A replicated volume grows at both sites. A volume that is " +
			"not\nmounted is attached for the time of the command.",
		Example: "  slipctl volume grow orders 20Gi",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.EveryVolume),
		RunE: func(cmd *cobra.Command, given []string) error {
			bytes, err := frame.ParseBytes(given[1])
			if err != nil || bytes == 0 {
				return frame.Usagef("SIZE is %q: it is written as 10Gi, 64Mi, or as a number of bytes", given[1])
			}
			record, err := c.Volume(given[0])
			if err != nil {
				return err
			}
			if bytes < record.SizeBytes {
				return frame.Usagef("volume %s has %s: volumes only grow", record.Name, frame.FormatBytes(uint64(record.SizeBytes)))
			}
			return c.WithDriver(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
				size, err := c.grow(ctx, csi.NewNodeClient(conn), record, bytes)
				if err != nil {
					return err
				}
				result := frame.Fields{"volume": record.ID, "name": record.Name, "sizeBytes": size,
					"changed": size != record.SizeBytes}
				if size == record.SizeBytes {
					return c.Say(result, "volume %s has %s already; nothing changed", record.Name, frame.FormatBytes(uint64(size)))
				}
				return c.Say(result, "volume %s has %s now", record.Name, frame.FormatBytes(uint64(size)))
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
