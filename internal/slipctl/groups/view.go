package groups

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func (c *cli) viewCommand() *cobra.Command {
	return frame.Parent("view", "Open groups as they were at one point, as block devices",
		c.viewCreate(), c.viewList(), c.viewAttach(), c.viewMount(), c.viewUnmount(), c.viewDelete())
}

// pointHelp says what --at takes.
const pointHelp = "point to open: an ordinal, a time such as 2026-11-28T14:30:00Z by the clock of the primary, a " +
	"duration before now such as -10m, or the label of a bookmark; the newest point by default"

// setPoint reads the value of --at.
func setPoint(r *sidecarpb.CreateViewRequest, at string, now time.Time) error {
	if at == "" {
		return nil
	}
	if n, err := strconv.ParseUint(at, 10, 64); err == nil && n > 0 {
		r.Point = &sidecarpb.CreateViewRequest_Ordinal{Ordinal: n}
		return nil
	}
	if d, err := time.ParseDuration(at); err == nil && d < 0 {
		r.Point = &sidecarpb.CreateViewRequest_AtUnixNanos{AtUnixNanos: now.Add(d).UnixNano()}
		return nil
	}
	if core.CheckLabel(at) == nil {
		r.Point = &sidecarpb.CreateViewRequest_Bookmark{Bookmark: at}
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return frame.Usagef("--at %q: it is an ordinal (1234), a time (2026-11-28T14:30:00Z), a duration before now "+
			"(-10m) or the label of a bookmark", at)
	}
	r.Point = &sidecarpb.CreateViewRequest_AtUnixNanos{AtUnixNanos: t.UnixNano()}
	return nil
}

func (c *cli) viewCreate() *cobra.Command {
	var request sidecarpb.CreateViewRequest
	var at, space string
	var forPods bool
	cmd := &cobra.Command{
		Use:   "create GROUP",
		Short: "Open all volumes of a group at one point, as block devices",
		Long: "Open all volumes of a group as they were at one point, at the primary or at the secondary. Nothing is\n" +
			"copied; writes, replication and apply go on. Each volume becomes a loop device of this node. With --for-pods, " +
			"and in\na cluster, it does not: its id is the volumeHandle of a PersistentVolume, or the snapshotHandle of a " +
			"snapshot to make\na claim from.\n\n" +
			"Without --at, a shard of a group over several nodes is opened together with all others, at one epoch. Deleting\n" +
			"the view deletes it at all of them. With an ordinal or a time in --at, this shard is opened alone.\n\n" +
			"A view takes space in the pool for what the group overwrites and for what is written to the view. When its\n" +
			"limit is reached, the view fails; the group does not notice.",
		Example: "  slipctl view create shop --name monday\n" +
			"  slipctl view create shop --at 2026-11-28T14:30:00Z --writable --space 10Gi",
		Args: frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			request.Group = given[0]
			if err := setPoint(&request, at, time.Now()); err != nil {
				return err
			}
			if space != "" {
				limit, err := frame.ParseBytes(space)
				if err != nil {
					return frame.Usagef("--space: %v", err)
				}
				request.LimitBytes = limit
			}
			return c.openView(cmd.Context(), &request, forPods)
		},
	}
	cmd.Flags().BoolVar(&forPods, "for-pods", false, forPodsHelp)
	cmd.Flags().StringVar(&request.Name, "name", "", "name of the view; one is made by default")
	cmd.Flags().StringVar(&at, "at", "", pointHelp)
	cmd.Flags().BoolVar(&request.Writable, "writable", false, "allow writes, which only the view sees")
	cmd.Flags().StringVar(&space, "space", "", "most space that the view may take in the pool; by default half of what "+
		"is free, or all that the volumes can take if that is less")
	return cmd
}

// forPodsHelp says what --for-pods does.
const forPodsHelp = "attach no devices here: pods use the volumes of the view by their ids in CSI; always so in a " +
	"cluster"

// openView makes a view and, unless it is for pods, attaches its devices. Without these the view is deleted again.
func (c *cli) openView(ctx context.Context, request *sidecarpb.CreateViewRequest, forPods bool) error {
	return c.WithSidecar(ctx, frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		view, err := sidecar.CreateView(ctx, request)
		if err != nil {
			return err
		}
		return c.showOpen(view, forPods, true, func() error { return c.closeView(ctx, sidecar, view) })
	})
}

// showOpen attaches the devices of a view, and prints it. undo closes a view whose devices cannot be attached.
func (c *cli) showOpen(view *sidecarpb.View, forPods, changed bool, undo func() error) error {
	if forPods || c.Kube.Set() {
		return c.printHandles(view, changed)
	}
	devices, err := attachView(view)
	if err != nil {
		if gone := undo(); gone != nil {
			err = fmt.Errorf("%w\nThe view stays, without all of its devices: %w", err, gone)
		}
		return err
	}
	return c.printView(view, devices, changed)
}

// printHandles prints a view with what its volumes are called in CSI.
func (c *cli) printHandles(view *sidecarpb.View, changed bool) error {
	fields := viewFields(view, nil)
	fields["changed"] = changed
	return c.ShowValue(fields, func() error {
		c.printViewHead(view)
		t := frame.NewTable("volume", "handle", "size", "format")
		for _, v := range view.GetVolumes() {
			t.AppendRow(table.Row{v.GetVolumeId(), v.GetCsiVolumeId(), frame.FormatBytes(uint64(v.GetSizeBytes())),
				frame.OrDash(v.GetFsType())})
		}
		return frame.PrintTable(c.Out, t)
	})
}

func (c *cli) printViewHead(view *sidecarpb.View) {
	kind := "read-only"
	if view.GetWritable() {
		kind = "writable"
	}
	fmt.Fprintf(c.Out, "view %s of group %s: ordinal %d, %s, %s\n", view.GetName(), view.GetGroup(), view.GetOrdinal(),
		pointTime(view.PointUnixNanos), kind)
	if view.Epoch != nil {
		fmt.Fprintf(c.Out, "epoch %d of shards %s; for the devices of another node: slipctl view attach there\n",
			view.GetEpoch(), numbers(view.GetShards()))
	}
}

func numbers(list []uint32) string {
	var text []string
	for _, n := range list {
		text = append(text, fmt.Sprint(n))
	}
	return strings.Join(text, ", ")
}

// printView prints a view with its devices.
func (c *cli) printView(view *sidecarpb.View, devices map[string]string, changed bool) error {
	fields := viewFields(view, devices)
	fields["changed"] = changed
	return c.ShowValue(fields, func() error {
		c.printViewHead(view)
		t := frame.NewTable("volume", "device", "size", "format")
		for _, v := range view.GetVolumes() {
			t.AppendRow(table.Row{v.GetVolumeId(), frame.OrDash(devices[v.GetVolumeId()]),
				frame.FormatBytes(uint64(v.GetSizeBytes())),
				frame.OrDash(v.GetFsType())})
		}
		return frame.PrintTable(c.Out, t)
	})
}

// viewFields is a view for a program.
func viewFields(view *sidecarpb.View, devices map[string]string) frame.Fields {
	volumes := []frame.Fields{}
	for _, v := range view.GetVolumes() {
		volumes = append(volumes, frame.Fields{"volumeId": v.GetVolumeId(), "device": devices[v.GetVolumeId()],
			"path": v.GetPath(), "sizeBytes": v.GetSizeBytes(), "fsType": v.GetFsType(),
			"csiVolumeId": v.GetCsiVolumeId()})
	}
	return frame.Fields{"group": view.GetGroup(), "name": view.GetName(), "id": view.GetId(),
		"timeline": view.GetTimeline(),
		"ordinal":  view.GetOrdinal(), "pointUnixNanos": view.PointUnixNanos, "createdUnixNanos": view.GetCreatedUnixNanos(),
		"writable": view.GetWritable(), "test": view.GetTest(), "usedBytes": view.GetUsedBytes(),
		"limitBytes": view.GetLimitBytes(), "failed": view.GetFailed(), "volumes": volumes, "epoch": view.Epoch,
		"shards": view.GetShards()}
}

func pointTime(nanos *int64) string {
	if nanos == nil {
		return "of unknown time"
	}
	return time.Unix(0, *nanos).UTC().Format(time.RFC3339Nano)
}

func (c *cli) viewList() *cobra.Command {
	return &cobra.Command{
		Use:     "list [GROUP]",
		Short:   "List the views of this site, with their devices on this node",
		Example: "  slipctl view list\n  slipctl view list shop -o json",
		Args:    frame.Args(cobra.MaximumNArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			request := &sidecarpb.ListViewsRequest{}
			if len(given) > 0 {
				request.Group = given[0]
			}
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.ListViews(ctx, request)
				if err != nil {
					return err
				}
				return c.printViews(response.GetViews())
			})
		},
	}
}

func (c *cli) printViews(views []*sidecarpb.View) error {
	list := []frame.Fields{}
	t := frame.NewTable("group", "view", "ordinal", "point", "kind", "space", "limit", "state", "devices")
	for _, v := range views {
		devices, err := viewDevices(v)
		if err != nil {
			return err
		}
		list = append(list, viewFields(v, devices))
		state, kind := "open", "read-only"
		if v.GetFailed() != "" {
			state = "failed: " + v.GetFailed()
		}
		switch {
		case v.GetTest():
			kind = "test failover"
		case v.GetWritable():
			kind = "writable"
		}
		t.AppendRow(table.Row{v.GetGroup(), v.GetName(), v.GetOrdinal(), pointTime(v.PointUnixNanos), kind,
			frame.FormatBytes(uint64(v.GetUsedBytes())), frame.FormatBytes(uint64(v.GetLimitBytes())), state,
			fmt.Sprintf("%d of %d", len(devices), len(v.GetVolumes()))})
	}
	return c.ShowValue(frame.Fields{"views": list}, func() error {
		if len(list) == 0 {
			_, err := fmt.Fprintln(c.Err, "There are no views.")
			return err
		}
		return frame.PrintTable(c.Out, t)
	})
}

func (c *cli) viewAttach() *cobra.Command {
	return frame.Local("the devices of this node", &cobra.Command{
		Use:     "attach GROUP VIEW",
		Short:   "Attach the devices of a view again, after a reboot",
		Example: "  slipctl view attach shop monday",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.GroupNames, c.viewNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				view, err := sidecar.AttachView(ctx, &sidecarpb.AttachViewRequest{Group: given[0], Name: given[1]})
				if err != nil {
					return err
				}
				before, err := viewDevices(view)
				if err != nil {
					return err
				}
				devices, err := attachView(view)
				if err != nil {
					return err
				}
				return c.printView(view, devices, len(devices) > len(before))
			})
		},
	})
}

func (c *cli) viewDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete GROUP VIEW",
		Short:   "Throw a view away, with what was written to it",
		Example: "  slipctl view delete shop monday --yes",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.GroupNames, c.viewNames),
	}
	given := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			view, err := viewNamed(ctx, sidecar, words[0], words[1])
			if err != nil {
				return err
			}
			if view.GetWritable() {
				err := c.Confirm(given, fmt.Sprintf("What was written to view %s is lost. The group does not change.",
					view.GetName()), "Delete view "+view.GetName()+"?")
				if err != nil {
					return err
				}
			}
			if err := c.closeView(ctx, sidecar, view); err != nil {
				return err
			}
			return c.Say(frame.Fields{"group": view.GetGroup(), "view": view.GetName(), "changed": true},
				"view %s of group %s deleted", view.GetName(), view.GetGroup())
		})
	}
	return cmd
}

// closeView detaches the devices of a view and deletes it.
func (c *cli) closeView(ctx context.Context, sidecar sidecarpb.SidecarClient, view *sidecarpb.View) error {
	if !c.Kube.Set() {
		if err := detachView(view); err != nil {
			return err
		}
	}
	_, err := sidecar.DeleteView(ctx, &sidecarpb.DeleteViewRequest{Group: view.GetGroup(), Name: view.GetName()})
	return err
}

// viewNames offers the views of the group that is the first argument.
func (c *cli) viewNames(cmd *cobra.Command, given []string) (names []string) {
	_ = c.WithSidecar(cmd.Context(), frame.Brief, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		response, err := sidecar.ListViews(ctx, &sidecarpb.ListViewsRequest{Group: given[0]})
		for _, v := range response.GetViews() {
			names = append(names, v.GetName())
		}
		return err
	})
	return names
}
