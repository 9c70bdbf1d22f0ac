package kubeplugin

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
)

// table prints rows of cells. An empty cell is a dash.
func (c *cli) table(rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 8, 3, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = cmp.Or(cell, "-")
		}
		if _, err := fmt.Fprintln(w, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (c *cli) json(v any) error {
	encoder := json.NewEncoder(c.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

func (c *cli) checkOutput() error {
	if c.output != "table" && c.output != "json" {
		return fmt.Errorf("--output is %q: it can be table or json", c.output)
	}
	return nil
}

func (c *cli) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status [GROUP]",
		Short:   "Show groups: role, state, lag, members, and what to do next",
		Example: "  kubectl slipstream status -A\n  kubectl slipstream status shop -n shop",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkOutput(); err != nil {
				return err
			}
			api, namespace, err := c.cluster()
			if err != nil {
				return err
			}
			groups := &v1alpha1.ConsistencyGroupList{}
			if err := api.List(cmd.Context(), groups, client.InNamespace(namespace)); err != nil {
				return err
			}
			if len(args) == 1 {
				var named []v1alpha1.ConsistencyGroup
				for _, g := range groups.Items {
					if g.Name == args[0] {
						named = append(named, g)
					}
				}
				if groups.Items = named; len(named) == 0 {
					return fmt.Errorf("there is no ConsistencyGroup %s in %s", args[0], where(namespace))
				}
			}
			if c.output == "json" {
				return c.json(groups.Items)
			}
			if len(groups.Items) == 0 {
				_, err := fmt.Fprintf(c.out, "There is no ConsistencyGroup in %s.\n", where(namespace))
				return err
			}
			return c.printGroups(groups.Items, len(args) == 1)
		},
		ValidArgsFunction: c.completeGroups,
	}
	c.addAll(cmd)
	return cmd
}

// where names the namespaces that a command has looked at, and how to look at more.
func where(namespace string) string {
	if namespace == "" {
		return "any namespace"
	}
	return fmt.Sprintf("namespace %s (-n names another one, -A is all)", namespace)
}

func (c *cli) printGroups(groups []v1alpha1.ConsistencyGroup, members bool) error {
	rows := [][]string{{"NAMESPACE", "GROUP", "ROLE", "STATE", "READY", "LAG", "MEMBERS", "REMOTE"}}
	for i := range groups {
		g := &groups[i]
		lag, ready := "unknown", ""
		if g.Status.Lag != nil && g.Status.Lag.Time != nil {
			lag = g.Status.Lag.Time.Duration.String()
		}
		if cond := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionReady); cond != nil {
			ready = string(cond.Status)
		}
		rows = append(rows, []string{g.Namespace, g.Name, string(g.Status.Role), g.Status.State, ready, lag,
			g.Status.MembersReady, g.Spec.RemoteSite})
	}
	if err := c.table(rows); err != nil {
		return err
	}
	for i := range groups {
		g := &groups[i]
		if members {
			rows := [][]string{{"CLAIM", "STATE", "NODE", "VOLUME", "REASON"}}
			for _, m := range g.Status.Members {
				rows = append(rows, []string{m.Claim, string(m.State), m.Node, m.Volume, m.Reason})
			}
			for _, e := range g.Status.Excluded {
				rows = append(rows, []string{e.Claim, "Excluded", "", "", e.Reason + ": " + e.Message})
			}
			fmt.Fprintln(c.out)
			if err := c.table(rows); err != nil {
				return err
			}
		}
		if g.Status.NextStep != "" {
			fmt.Fprintf(c.out, "\n%s/%s: next step: %s\n", g.Namespace, g.Name, g.Status.NextStep)
		}
	}
	return nil
}

func (c *cli) coverageCommand() *cobra.Command {
	strict, everything := false, false
	cmd := &cobra.Command{
		Use:   "coverage",
		Short: "Show which claims are not protected, and why",
		Long: `Show which claims are not protected, and why.

Exit status: 0 if all claims are protected or are left out on purpose; 2 if some are not protected; 1 for a failure.
Left out on purpose are claims with the label slipstream.dev/replicate: "false", temporary claims, claims that were made
from a snapshot, and claims of other drivers. With --strict these count, too.`,
		Example: "  kubectl slipstream coverage -A",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.checkOutput(); err != nil {
				return err
			}
			api, namespace, err := c.cluster()
			if err != nil {
				return err
			}
			claims, err := membership.CoverageOf(cmd.Context(), api, namespace)
			if err != nil {
				return err
			}
			protected, deliberate, open := 0, 0, 0
			rows := [][]string{{"NAMESPACE", "CLAIM", "GROUP", "REASON", "MESSAGE"}}
			for i := range claims {
				claim := &claims[i]
				switch {
				case claim.Reason == "":
					protected++
				case claim.Deliberate() && !strict:
					deliberate++
				default:
					open++
				}
				if claim.Reason != "" || everything {
					rows = append(rows, []string{claim.Namespace, claim.Name, claim.Group,
						cmp.Or(claim.Reason, "Protected"), claim.Message})
				}
			}
			if c.output == "json" {
				err = c.json(claims)
			} else {
				if len(rows) > 1 {
					err = c.table(rows)
					fmt.Fprintln(c.out)
				}
				if len(claims) == 0 {
					_, err := fmt.Fprintf(c.out, "There is no claim in %s.\n", where(namespace))
					return err
				}
				fmt.Fprintf(c.out, "%s: %d protected, %d left out on purpose, %d not protected\n",
					words.Count(len(claims), "claim"), protected, deliberate, open)
			}
			if err == nil && open > 0 {
				err = errUnprotected
			}
			return err
		},
	}
	c.addAll(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "claims that are left out on purpose count as not protected")
	cmd.Flags().BoolVar(&everything, "show-protected", false, "list the claims that are protected, too")
	return cmd
}
