package groups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// The replicator serves the volumes of a view as files. It must not use them itself: a process that serves a FUSE file
// and waits for it cannot be killed. So slipctl puts the loop devices over them.

// viewNamed fetches one view, and fails with NOT_FOUND if it does not exist.
func viewNamed(ctx context.Context, sidecar sidecarpb.SidecarClient, group, name string) (*sidecarpb.View, error) {
	response, err := sidecar.ListViews(ctx, &sidecarpb.ListViewsRequest{Group: group})
	if err != nil {
		return nil, err
	}
	for _, v := range response.GetViews() {
		if v.GetName() == name {
			return v, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "group %s has no view %q; see `slipctl view list`", group, name)
}

// viewDevices are the loop devices over the files of a view, by volume.
func viewDevices(view *sidecarpb.View) (map[string]string, error) {
	byPath := map[string]string{}
	for _, v := range view.GetVolumes() {
		if v.GetPath() != "" {
			byPath[v.GetPath()] = v.GetVolumeId()
		}
	}
	loops, err := blockdev.FindLoops(func(path string) bool { return byPath[path] != "" })
	if err != nil {
		return nil, err
	}
	devices := map[string]string{}
	for _, l := range loops {
		devices[byPath[l.BackingPath]] = l.Device
	}
	return devices, nil
}

// attachView attaches the volumes of a view that are not, and returns the devices of all. After an error none that it
// attached stays.
func attachView(view *sidecarpb.View) (map[string]string, error) {
	devices, err := viewDevices(view)
	if err != nil {
		return nil, err
	}
	var made []string
	for _, v := range view.GetVolumes() {
		if devices[v.GetVolumeId()] != "" {
			continue
		}
		device, err := blockdev.AttachLoop(blockdev.LoopConfig{BackingPath: v.GetPath(), SizeLimitBytes: v.GetSizeBytes(),
			BlockSizeBytes: int64(v.GetBlockSizeBytes()), ReadOnly: !view.GetWritable()})
		if err != nil {
			err = fmt.Errorf("volume %s: %w", v.GetVolumeId(), err)
			for _, device := range made {
				err = errors.Join(err, blockdev.DetachLoop(device))
			}
			return nil, err
		}
		made = append(made, device)
		devices[v.GetVolumeId()] = device
	}
	return devices, nil
}

// detachView detaches all devices of a view.
func detachView(view *sidecarpb.View) error {
	devices, err := viewDevices(view)
	if err != nil {
		return err
	}
	for volume, device := range devices {
		err := blockdev.DetachLoop(device)
		if errors.Is(err, unix.EBUSY) {
			return status.Errorf(codes.FailedPrecondition, "view %s: %s, volume %s, is in use: unmount it "+
				"(`slipctl view unmount %s %[1]s`), or end the program that has it open", view.GetName(), device, volume,
				view.GetGroup())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) viewMount() *cobra.Command {
	return frame.Local("the devices of this node", &cobra.Command{
		Use:   "mount GROUP VIEW DIR",
		Short: "Mount the file systems of a view below a directory",
		Long: "Mount the file systems of a view's volumes at DIR/VOLUME. A read-only view is mounted without a recovery of " +
			"its\nfile systems: files that were being changed may be wrong. A writable view is recovered as after a power loss.",
		Example: "  slipctl view mount shop monday /mnt/monday",
		Args:    frame.Args(cobra.ExactArgs(3)), ValidArgsFunction: frame.OneOf(c.GroupNames, c.viewNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				view, err := viewNamed(ctx, sidecar, given[0], given[1])
				if err != nil {
					return err
				}
				dir, err := filepath.Abs(given[2])
				if err != nil {
					return err
				}
				mounted, err := mountView(ctx, view, dir)
				if err != nil {
					return err
				}
				result := frame.Fields{"group": view.GetGroup(), "view": view.GetName(), "mounts": append([]string{}, mounted...),
					"changed": len(mounted) > 0}
				if len(mounted) == 0 {
					return c.Say(result, "view %s is mounted below %s already; nothing changed", view.GetName(), dir)
				}
				return c.Say(result, "%s", strings.Join(mounted, "\n"))
			})
		},
	})
}

// mountView mounts all file systems of a view, or none.
func mountView(ctx context.Context, view *sidecarpb.View, dir string) (mounted []string, err error) {
	devices, err := viewDevices(view)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, target := range mounted {
			if err != nil {
				err = errors.Join(err, unix.Unmount(target, 0))
			}
		}
	}()
	for _, v := range view.GetVolumes() {
		if v.GetFsType() == "" {
			continue // a raw block device
		}
		device := devices[v.GetVolumeId()]
		if device == "" {
			return mounted, status.Errorf(codes.FailedPrecondition, "volume %s of the view has no device; attach it "+
				"(`slipctl view attach %s %s`)", v.GetVolumeId(), view.GetGroup(), view.GetName())
		}
		target := filepath.Join(dir, v.GetVolumeId())
		if there, err := mountedOn(device, target); err != nil || there {
			if err != nil {
				return mounted, err
			}
			continue // of an earlier call
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return mounted, err
		}
		if err := blockdev.ValidateFSType(v.GetFsType()); err != nil {
			return mounted, err
		}
		options := mountOptions(v.GetFsType(), view.GetWritable())
		arguments := []string{"-i", "-t", v.GetFsType(), "-o", options, device, target}
		if out, err := exec.CommandContext(ctx, "mount", arguments...).CombinedOutput(); err != nil {
			return mounted, fmt.Errorf("mount %s at %s: %w: %s", device, target, err, strings.TrimSpace(string(out)))
		}
		mounted = append(mounted, target)
	}
	if len(mounted) == 0 && !slices.ContainsFunc(view.GetVolumes(), func(v *sidecarpb.ViewVolume) bool {
		return v.GetFsType() != ""
	}) {
		return nil, status.Errorf(codes.FailedPrecondition, "view %s has no file systems that Slipstream knows of; mount "+
			"its devices by hand", view.GetName())
	}
	return mounted, nil
}

// mountedOn reports whether a path has a device mounted on it. Another device there is an error.
func mountedOn(device, path string) (bool, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil || len(mounts) == 0 {
		return false, err
	}
	if on := mounts[len(mounts)-1].Source; on != device {
		return false, fmt.Errorf("%s has something else mounted on it (%s): unmount that first, or choose another directory",
			path, on)
	}
	return true, nil
}

// mountOptions: a read-only device cannot be recovered. XFS refuses a second file system with the same identifier.
func mountOptions(fsType string, writable bool) string {
	var options []string
	if fsType == "xfs" {
		options = append(options, "nouuid")
	}
	switch {
	case writable:
		options = append(options, "rw")
	case fsType == "xfs":
		options = append(options, "ro", "norecovery")
	default:
		options = append(options, "ro", "noload")
	}
	return strings.Join(options, ",")
}

func (c *cli) viewUnmount() *cobra.Command {
	return frame.Local("the devices of this node", &cobra.Command{
		Use:     "unmount GROUP VIEW",
		Short:   "Unmount the file systems of a view, wherever they are mounted on this node",
		Example: "  slipctl view unmount shop monday",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.GroupNames, c.viewNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				view, err := viewNamed(ctx, sidecar, given[0], given[1])
				if err != nil {
					return err
				}
				gone, err := unmountView(view)
				if err != nil {
					return err
				}
				if len(gone) == 0 {
					return status.Errorf(codes.NotFound, "view %s of group %s is mounted nowhere on this node: nothing was "+
						"unmounted", view.GetName(), view.GetGroup())
				}
				return c.Say(frame.Fields{"group": view.GetGroup(), "view": view.GetName(), "unmounted": gone},
					"%s of view %s unmounted", words.Count(len(gone), "file system"), view.GetName())
			})
		},
	})
}

// unmountView unmounts the devices of a view in this mount namespace.
func unmountView(view *sidecarpb.View) (gone []string, err error) {
	devices, err := viewDevices(view)
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, device := range devices {
		ours[device] = true
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !ours[m.Source], false })
	if err != nil {
		return nil, err
	}
	gone = []string{}
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, 0); err != nil {
			return gone, fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
		gone = append(gone, m.Mountpoint)
	}
	return gone, nil
}
