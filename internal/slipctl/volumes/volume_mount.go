package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

func (c *cli) volumeMount() *cobra.Command {
	var readonly bool
	cmd := frame.Local(onNode, &cobra.Command{
		Use:   "mount VOLUME PATH",
		Short: "Mount a volume, or show a raw block volume as a device",
		Long: "VOLUME is a name or an id. PATH is made if it does not exist: a directory, or for a raw block volume a " +
			"file.\nThe first mount makes the file system. After a reboot of the node the command is repeated.",
		Example: "  slipctl volume mount orders /mnt/orders",
		Args:    frame.Args(cobra.ExactArgs(2)),
		ValidArgsFunction: func(cmd *cobra.Command, given []string, begun string) ([]string, cobra.ShellCompDirective) {
			if len(given) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return frame.OneOf(c.EveryVolume)(cmd, given, begun)
		},
	})
	cmd.Flags().BoolVar(&readonly, "read-only", false, "mount read-only")
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		path, err := filepath.Abs(given[1])
		if err != nil {
			return err
		}
		record, err := c.Volume(given[0])
		if err != nil {
			return err
		}
		before, err := c.mountsOf(record)
		if err != nil {
			return err
		}
		if err := usable(path, before); err != nil {
			return err
		}
		if len(before) > 0 && !slices.Contains(before, path) {
			return status.Errorf(codes.FailedPrecondition, "volume %s is on %s: unmount it there first: `slipctl volume "+
				"unmount %[1]s`", record.Name, strings.Join(before, ", "))
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return c.WithDriver(cmd.Context(), func(ctx context.Context, conn *grpc.ClientConn) error {
			node := csi.NewNodeClient(conn)
			staged := c.stagingPath(record.ID)
			if record.Stage != nil && len(before) > 0 {
				staged = record.Stage.StagingPath
			} else if err := c.stage(ctx, node, record); err != nil {
				return err
			}
			_, err := node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: record.ID, TargetPath: path,
				StagingTargetPath: staged, VolumeCapability: capabilityOf(record), Readonly: readonly})
			if err != nil {
				return err
			}
			there := slices.Contains(before, path)
			result := frame.Fields{"volume": record.ID, "name": record.Name, "path": path, "changed": !there}
			if there {
				return c.Say(result, "volume %s is on %s already; nothing changed", record.Name, path)
			}
			return c.Say(result, "volume %s is on %s", record.Name, path)
		})
	}
	return cmd
}

// usable refuses a path that has something else on it, which a mount would hide.
func usable(path string, own []string) error {
	if slices.Contains(own, path) {
		return nil
	}
	if mounted, err := mountinfo.Mounted(path); err == nil && mounted {
		return fmt.Errorf("%s has something else mounted on it: unmount that first, or choose another path", path)
	}
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("directory %s is not empty: choose an empty one, or one that does not exist", path)
	}
	return nil
}

func (c *cli) volumeUnmount() *cobra.Command {
	var all bool
	cmd := frame.Local(onNode, &cobra.Command{
		Use:   "unmount VOLUME",
		Short: "Unmount a volume everywhere on this node, and detach it",
		Long: "VOLUME is a name or an id. The paths that `slipctl volume mount` made are removed. A group can be " +
			"demoted when\nnone of its volumes is mounted.",
		Example:           "  slipctl volume unmount orders\n  slipctl volume unmount --all",
		ValidArgsFunction: frame.OneOf(c.EveryVolume),
	})
	cmd.Flags().BoolVar(&all, "all", false, "unmount all volumes of this node")
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if all {
			return frame.Args(cobra.NoArgs)(cmd, given)
		}
		return frame.Args(cobra.ExactArgs(1))(cmd, given)
	}
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		if all {
			return c.unmountAll(cmd.Context())
		}
		record, err := c.Volume(given[0])
		if err != nil {
			return err
		}
		if record.Stage == nil {
			return status.Errorf(codes.NotFound, "volume %s is not mounted: nothing was unmounted; `slipctl volume "+
				"list` shows what is", record.Name)
		}
		return c.unmount(cmd.Context(), record)
	}
	return cmd
}

// unmountAll unmounts what it can, and reports what it cannot.
func (c *cli) unmountAll(ctx context.Context) error {
	records, err := c.PoolRecords()
	errs := []error{err}
	if !slices.ContainsFunc(records, func(r *blockdev.VolumeRecord) bool { return r.Stage != nil }) && err == nil {
		fmt.Fprintln(c.Err, "No volume of this node is mounted; nothing changed.")
	}
	for _, r := range records {
		if r.Stage != nil {
			if err := c.unmount(ctx, r); err != nil {
				errs = append(errs, errors.New(status.Convert(err).Message()))
			}
		}
	}
	return errors.Join(errs...)
}

func (c *cli) unmount(ctx context.Context, record *blockdev.VolumeRecord) error {
	return c.WithDriver(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		node := csi.NewNodeClient(conn)
		paths, err := c.mountsOf(record)
		if err != nil {
			return err
		}
		for _, path := range paths {
			_, err := node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: record.ID, TargetPath: path})
			if err != nil {
				return err
			}
		}
		if err := c.unstage(ctx, node, record.ID, record.Stage.StagingPath); err != nil {
			return err
		}
		return c.Say(frame.Fields{"volume": record.ID, "name": record.Name, "paths": append([]string{}, paths...),
			"changed": true}, "volume %s is unmounted", record.Name)
	})
}

// stage attaches a volume, makes its file system at the first time, and mounts it on the staging path.
func (c *cli) stage(ctx context.Context, node csi.NodeClient, r *blockdev.VolumeRecord) error {
	path := c.stagingPath(r.ID)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	_, err := node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: r.ID, StagingTargetPath: path,
		VolumeCapability: capabilityOf(r)})
	return err
}

func (c *cli) unstage(ctx context.Context, node csi.NodeClient, id, path string) error {
	_, err := node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: path})
	if err != nil {
		return err
	}
	if path == c.stagingPath(id) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// mountsOf returns the paths that a volume is published on: the other mounts of the device that is on its staging path,
// or, of a raw block volume, the mounts of the device's node.
func (c *cli) mountsOf(r *blockdev.VolumeRecord) ([]string, error) {
	if r.Stage == nil {
		return nil, nil
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("the mounts of this node: %w", err)
	}
	var device string
	for _, m := range mounts {
		if m.Mountpoint == r.Stage.StagingPath {
			device = fmt.Sprintf("%d:%d", m.Major, m.Minor)
		}
	}
	var paths []string
	for _, m := range mounts {
		node := r.Stage.Block && strings.HasSuffix(m.FSType, "tmpfs") && r.Stage.Device != "" &&
			m.Root == "/"+filepath.Base(r.Stage.Device)
		same := device == fmt.Sprintf("%d:%d", m.Major, m.Minor) && m.Mountpoint != r.Stage.StagingPath
		if node || same {
			paths = append(paths, m.Mountpoint)
		}
	}
	return paths, nil
}
