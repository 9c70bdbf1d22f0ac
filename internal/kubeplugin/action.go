package kubeplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// pollInterval is how often a running action is looked at.
const pollInterval = 500 * time.Millisecond

// action is a command that makes a GroupAction.
type action struct {
	kind  v1alpha1.ActionType
	short string
	// risk is what --yes agrees to; empty for none.
	risk string
}

var actions = []action{
	{v1alpha1.ActionFailover, "Make this site primary for a group", ""},
	{v1alpha1.ActionDemote, "Stop being primary for a group, for a planned move",
		"claims of the group cannot be used here until it is failed over, or back"},
	{v1alpha1.ActionSuspend, "Stop shipping a group's writes", "the copy falls behind until the group is resumed"},
	{v1alpha1.ActionResume, "Ship a suspended group's writes again", ""},
	{v1alpha1.ActionRelocate, "Make the other site primary, and follow it, without a loss",
		"claims of the group can be used at the other site only"},
	{v1alpha1.ActionYield, "Give way to the other site, after both took writes",
		"the writes of this site since then are kept as snapshots, and undone"},
	{v1alpha1.ActionCommit, "Stay at the recovery point that a group was failed over to", ""},
	{v1alpha1.ActionRollback, "Go back from the recovery point that a group was failed over to",
		"what was written since the failover is lost"},
	{v1alpha1.ActionReprotect, "Wait until the other site has a whole copy again, after a failover", ""},
	{v1alpha1.ActionVerify, "Compare both sites at one ordinal; fails if they differ", ""},
	{v1alpha1.ActionBookmark, "Give the present point of a group a name, at both sites", ""},
}

const forceRisk = "writes that did not reach this site are lost; if the other site still works, both sites can take " +
	"writes " +
	"that nothing joins again"

func (c *cli) actionCommands() (commands []*cobra.Command) {
	for _, a := range actions {
		var force, yes, wait bool
		var at string
		var timeout time.Duration
		verb := strings.ToLower(string(a.kind))
		use, example, arguments := verb+" GROUP", "  kubectl slipstream "+verb+" shop -n shop", 1
		if a.kind == v1alpha1.ActionBookmark {
			use, example, arguments = verb+" GROUP LABEL", "  kubectl slipstream "+verb+" shop before-upgrade -n shop", 2
		}
		cmd := &cobra.Command{
			Use:   use,
			Short: a.short,
			Long: a.short + ".\n\nIt makes a GroupAction, which stays as the record, and waits for its end. Run it against " +
				"the cluster that is meant.",
			Example: example,
			Args:    cobra.ExactArgs(arguments),
			RunE: func(cmd *cobra.Command, args []string) error {
				api, namespace, err := c.cluster()
				if err != nil {
					return err
				}
				g := &v1alpha1.ConsistencyGroup{}
				if err := api.Get(cmd.Context(), client.ObjectKey{Namespace: namespace, Name: args[0]}, g); err != nil {
					return err
				}
				risk := a.risk
				if force {
					risk = forceRisk
				}
				if risk != "" && !yes {
					return fmt.Errorf("group %s/%s is %s here: %s; repeat the command with --yes if that is meant", g.Namespace,
						g.Name, strings.ToLower(string(g.Status.Role)), risk)
				}
				made := &v1alpha1.GroupAction{
					ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace,
						GenerateName: fmt.Sprintf("%.50s-%s-", g.Name, verb)},
					Spec: v1alpha1.GroupActionSpec{Group: g.Name, Type: a.kind, Force: force},
				}
				if force {
					made.Spec.Confirm = g.Status.Confirm
				}
				made.Spec.RecoveryPoint = recoveryPoint(at, time.Now())
				if a.kind == v1alpha1.ActionBookmark {
					made.Spec.Bookmark = args[1]
				}
				return c.act(cmd.Context(), api, made, wait, timeout)
			},
			ValidArgsFunction: c.completeGroups,
		}
		if a.kind == v1alpha1.ActionFailover {
			cmd.Flags().BoolVar(&force, "force", false, "although the other site may have writes that are not here")
			cmd.Flags().StringVar(&at, "at", "", "`point` to open, undecided until commit or rollback: an ordinal, a time, a "+
				"duration before now (-10m), or a bookmark")
		}
		cmd.Flags().BoolVar(&yes, "yes", false, "do it although something can be lost; the message without it says what")
		cmd.Flags().BoolVar(&wait, "wait", true, "wait for the end of the action")
		cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait; the action goes on")
		commands = append(commands, cmd)
	}
	return commands
}

// act makes an action, says its name, and follows it if that is asked for.
func (c *cli) act(ctx context.Context, api client.Client, made *v1alpha1.GroupAction, wait bool,
	timeout time.Duration) error {
	if err := api.Create(ctx, made); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "groupaction %s/%s\n", made.Namespace, made.Name)
	if !wait {
		return nil
	}
	return c.follow(ctx, api, made, timeout)
}

// follow prints the steps of an action as they end, and what came of it.
func (c *cli) follow(ctx context.Context, api client.Client, made *v1alpha1.GroupAction, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	printed, message := 0, ""
	for {
		now := &v1alpha1.GroupAction{}
		if err := api.Get(ctx, client.ObjectKeyFromObject(made), now); err != nil && ctx.Err() == nil {
			return err
		}
		for _, step := range now.Status.Steps[min(printed, len(now.Status.Steps)):] {
			if step.EndTime == nil {
				break
			}
			printed++
			fmt.Fprintf(c.out, "  %s: %s (%v)\n", step.Name, step.Message,
				step.EndTime.Sub(step.StartTime.Time).Round(time.Millisecond))
		}
		switch now.Status.Phase {
		case v1alpha1.ActionSucceeded:
			fmt.Fprintf(c.out, "succeeded: %s\n", now.Status.Message)
			return nil
		case v1alpha1.ActionFailed:
			return fmt.Errorf("%s of %s failed: %s", now.Spec.Type, now.Spec.Group, now.Status.Message)
		}
		if steps := now.Status.Steps; len(steps) > 0 && now.Annotations[v1alpha1.AnnotationEndTest] == "" &&
			steps[len(steps)-1].Name == v1alpha1.StepKeep && now.Status.Message != "" {
			fmt.Fprintf(c.out, "kept: %s\n", now.Status.Message)
			return nil
		}
		if now.Status.Message != message {
			message = now.Status.Message
			fmt.Fprintf(c.out, "  waiting: %s\n", message)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("the action has not ended after %v; it goes on: kubectl -n %s get ga %s", timeout, made.Namespace,
					made.Name)
			}
			return ctx.Err()
		}
	}
}
