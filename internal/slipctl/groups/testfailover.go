package groups

import (
	"context"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// testView is the name of the view of a test failover. A group has one at most.
const testView = "test-failover"

func (c *cli) groupTest() *cobra.Command {
	return frame.Parent("test", "Try a failover: open a copy without promoting it", c.groupTestStart(), c.groupTestStop())
}

func (c *cli) groupTestStart() *cobra.Command {
	request := sidecarpb.CreateViewRequest{Name: testView, Writable: true, Test: true}
	var at string
	var forPods bool
	cmd := &cobra.Command{
		Use:   "start NAME",
		Short: "Open all volumes of a secondary, writable, for a test",
		Long: "Open all volumes of a secondary at one point as writable block devices of this node. Replication goes on.\n" +
			"The copy does not change, and nothing is copied again after the test.",
		Example: "  slipctl group test start shop\n  slipctl group test start shop --at -10m",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			request.Group = given[0]
			if err := setPoint(&request, at, time.Now()); err != nil {
				return err
			}
			err := c.openView(cmd.Context(), &request, forPods)
			if status.Code(err) == codes.AlreadyExists {
				return c.testRuns(cmd.Context(), request.Group, at != "", forPods)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&forPods, "for-pods", false, forPodsHelp)
	cmd.Flags().StringVar(&at, "at", "", pointHelp)
	return cmd
}

// testRuns answers for a test that runs already: it is shown, unless a point was asked for.
func (c *cli) testRuns(ctx context.Context, name string, pointAsked, forPods bool) error {
	return c.WithSidecar(ctx, frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		view, err := viewNamed(ctx, sidecar, name, testView)
		if err != nil {
			return err
		}
		if pointAsked || view.GetFailed() != "" {
			return status.Errorf(codes.FailedPrecondition, "a test failover of group %s runs here, at ordinal %d; end it first "+
				"(`slipctl group test stop %[1]s`)", name, view.GetOrdinal())
		}
		fmt.Fprintf(c.Err, "A test failover of group %s runs here already; nothing changed.\n", name)
		return c.showOpen(view, forPods, false, func() error { return nil })
	})
}

func (c *cli) groupTestStop() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "stop NAME",
		Short:   "End a test failover, and throw away what it wrote",
		Example: "  slipctl group test stop shop --yes",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
	}
	given := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			view, err := viewNamed(ctx, sidecar, words[0], testView)
			if status.Code(err) == codes.NotFound {
				return status.Errorf(codes.NotFound, "no test failover of group %s runs here: nothing was stopped", words[0])
			}
			if err != nil {
				return err
			}
			err = c.Confirm(given, fmt.Sprintf("What the test of group %s wrote is lost. The copy does not change.", words[0]),
				"Stop the test of "+words[0]+"?")
			if err != nil {
				return err
			}
			if err := c.closeView(ctx, sidecar, view); err != nil {
				return err
			}
			return c.Say(frame.Fields{"group": words[0], "changed": true}, "test failover of group %s stopped", words[0])
		})
	}
	return cmd
}

func (c *cli) groupPoints() *cobra.Command {
	return &cobra.Command{
		Use:     "points NAME",
		Short:   "Show the points that a view of a group can be opened at here",
		Example: "  slipctl group points shop",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.GroupPoints(ctx, &sidecarpb.GroupPointsRequest{Group: given[0]})
				if err != nil {
					return err
				}
				return c.Show(response, func() error {
					t := frame.NewTable("point", "ordinal", "time")
					t.AppendRow(table.Row{"oldest", response.GetOldest().GetOrdinal(), pointTime(response.GetOldest().UnixNanos)})
					t.AppendRow(table.Row{"newest", response.GetNewest().GetOrdinal(), pointTime(response.GetNewest().UnixNanos)})
					for _, b := range response.GetBookmarks() {
						name := b.GetLabel()
						if !b.GetAvailable() {
							name += " (not here)"
						}
						t.AppendRow(table.Row{name, b.GetPoint().GetOrdinal(), pointTime(b.GetPoint().UnixNanos)})
					}
					return frame.PrintTable(c.Out, t)
				})
			})
		},
	}
}

func (c *cli) groupBookmark() *cobra.Command {
	return &cobra.Command{
		Use:   "bookmark NAME LABEL",
		Short: "Name the present point of a group, at its primary",
		Long: "Name the present point of a group. Everything that was written before is in it. The label goes to the copy\n" +
			"in the group's order, and can be given to `slipctl view create` there. A group remembers 64 bookmarks.",
		Example: "  slipctl group bookmark shop before-upgrade",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			request := &sidecarpb.BookmarkGroupRequest{Group: given[0], Label: given[1]}
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				b, err := sidecar.BookmarkGroup(ctx, request)
				if err != nil {
					return err
				}
				return c.ShowChange(b, true, func() error {
					_, err := fmt.Fprintf(c.Out, "bookmark %s of group %s: ordinal %d, %s\n", b.GetLabel(), request.Group,
						b.GetPoint().GetOrdinal(), pointTime(b.GetPoint().UnixNanos))
					return err
				})
			})
		},
	}
}
