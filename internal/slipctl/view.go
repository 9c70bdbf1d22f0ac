package slipctl

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func (c *cli) viewCommand() *cobra.Command {
	return parent("view", "Open groups as they were at one point, as block devices",
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
		return usagef("--at %q: it is an ordinal (1234), a time (2026-11-28T14:30:00Z), a duration before now (-10m) or the "+
			"label of a bookmark", at)
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
			"A view takes space in the pool for what the group overwrites and for what is written to the view. When its\n" +
			"limit is reached, the view fails; the group does not notice.",
		Example: "  slipctl view create shop --name monday\n" +
			"  slipctl view create shop --at 2026-11-28T14:30:00Z --writable --space 10Gi",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			request.Group = given[0]
			if err := setPoint(&request, at, time.Now()); err != nil {
				return err
			}
			if space != "" {
				limit, err := parseBytes(space)
				if err != nil {
					return usagef("--space: %v", err)
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
	return c.withSidecar(ctx, longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		view, err := sidecar.CreateView(ctx, request)
		if err != nil {
			return err
		}
		if forPods || c.kube.set() {
			return c.printHandles(view)
		}
		devices, err := attachView(view)
		if err != nil {
			if gone := c.closeView(ctx, sidecar, view); gone != nil {
				err = fmt.Errorf("%w\nThe view stays, without all of its devices: %w", err, gone)
			}
			return err
		}
		return c.printView(view, devices)
	})
}

// printHandles prints a view with what its volumes are called in CSI.
func (c *cli) printHandles(view *sidecarpb.View) error {
	return c.showValue(viewFields(view, nil), func() error {
		c.printViewHead(view)
		t := newTable("volume", "handle", "size", "format")
		for _, v := range view.GetVolumes() {
			t.AppendRow(table.Row{v.GetVolumeId(), v.GetCsiVolumeId(), formatBytes(uint64(v.GetSizeBytes())),
				orDash(v.GetFsType())})
		}
		return printTable(c.out, t)
	})
}

func (c *cli) printViewHead(view *sidecarpb.View) {
	kind := "read-only"
	if view.GetWritable() {
		kind = "writable"
	}
	fmt.Fprintf(c.out, "view %s of group %s: ordinal %d, %s, %s\n", view.GetName(), view.GetGroup(), view.GetOrdinal(),
		pointTime(view.PointUnixNanos), kind)
}

// printView prints a view with its devices.
func (c *cli) printView(view *sidecarpb.View, devices map[string]string) error {
	return c.showValue(viewFields(view, devices), func() error {
		c.printViewHead(view)
		t := newTable("volume", "device", "size", "format")
		for _, v := range view.GetVolumes() {
			t.AppendRow(table.Row{v.GetVolumeId(), orDash(devices[v.GetVolumeId()]), formatBytes(uint64(v.GetSizeBytes())),
				orDash(v.GetFsType())})
		}
		return printTable(c.out, t)
	})
}

// viewFields is a view for a program.
func viewFields(view *sidecarpb.View, devices map[string]string) fields {
	volumes := []fields{}
	for _, v := range view.GetVolumes() {
		volumes = append(volumes, fields{"volumeId": v.GetVolumeId(), "device": devices[v.GetVolumeId()],
			"path": v.GetPath(), "sizeBytes": v.GetSizeBytes(), "fsType": v.GetFsType(),
			"csiVolumeId": v.GetCsiVolumeId()})
	}
	return fields{"group": view.GetGroup(), "name": view.GetName(), "id": view.GetId(), "timeline": view.GetTimeline(),
		"ordinal": view.GetOrdinal(), "pointUnixNanos": view.PointUnixNanos, "createdUnixNanos": view.GetCreatedUnixNanos(),
		"writable": view.GetWritable(), "test": view.GetTest(), "usedBytes": view.GetUsedBytes(),
		"limitBytes": view.GetLimitBytes(), "failed": view.GetFailed(), "volumes": volumes}
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
		Args:    args(cobra.MaximumNArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			request := &sidecarpb.ListViewsRequest{}
			if len(given) > 0 {
				request.Group = given[0]
			}
			return c.withSidecar(cmd.Context(), callTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
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
	list := []fields{}
	t := newTable("group", "view", "ordinal", "point", "kind", "space", "limit", "state", "devices")
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
			formatBytes(uint64(v.GetUsedBytes())), formatBytes(uint64(v.GetLimitBytes())), state,
			fmt.Sprintf("%d of %d", len(devices), len(v.GetVolumes()))})
	}
	return c.showValue(fields{"views": list}, func() error {
		if len(list) == 0 {
			_, err := fmt.Fprintln(c.err, "There are no views.")
			return err
		}
		return printTable(c.out, t)
	})
}

func (c *cli) viewAttach() *cobra.Command {
	return local("the devices of this node", &cobra.Command{
		Use:     "attach GROUP VIEW",
		Short:   "Attach the devices of a view again, after a reboot",
		Example: "  slipctl view attach shop monday",
		Args:    args(cobra.ExactArgs(2)), ValidArgsFunction: oneOf(c.groupNames, c.viewNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				view, err := sidecar.AttachView(ctx, &sidecarpb.AttachViewRequest{Group: given[0], Name: given[1]})
				if err != nil {
					return err
				}
				devices, err := attachView(view)
				if err != nil {
					return err
				}
				return c.printView(view, devices)
			})
		},
	})
}

func (c *cli) viewDelete() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete GROUP VIEW",
		Short:   "Throw a view away, with what was written to it",
		Example: "  slipctl view delete shop monday --yes",
		Args:    args(cobra.ExactArgs(2)), ValidArgsFunction: oneOf(c.groupNames, c.viewNames),
	}
	given := addYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			view, err := viewNamed(ctx, sidecar, words[0], words[1])
			if err != nil {
				return err
			}
			if view.GetWritable() {
				err := c.confirm(given, fmt.Sprintf("What was written to view %s is lost. The group does not change.",
					view.GetName()), "Delete view "+view.GetName()+"?")
				if err != nil {
					return err
				}
			}
			if err := c.closeView(ctx, sidecar, view); err != nil {
				return err
			}
			return c.say(fields{"group": view.GetGroup(), "view": view.GetName(), "changed": true},
				"view %s of group %s deleted", view.GetName(), view.GetGroup())
		})
	}
	return cmd
}

// closeView detaches the devices of a view and deletes it.
func (c *cli) closeView(ctx context.Context, sidecar sidecarpb.SidecarClient, view *sidecarpb.View) error {
	if !c.kube.set() {
		if err := detachView(view); err != nil {
			return err
		}
	}
	_, err := sidecar.DeleteView(ctx, &sidecarpb.DeleteViewRequest{Group: view.GetGroup(), Name: view.GetName()})
	return err
}

// viewNames offers the views of the group that is the first argument.
func (c *cli) viewNames(cmd *cobra.Command, given []string) (names []string) {
	_ = c.withSidecar(cmd.Context(), completionTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		response, err := sidecar.ListViews(ctx, &sidecarpb.ListViewsRequest{Group: given[0]})
		for _, v := range response.GetViews() {
			names = append(names, v.GetName())
		}
		return err
	})
	return names
}
