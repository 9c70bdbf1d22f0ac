package kubeplugin

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// Objective compares what was declared with what was measured. Times are in seconds; one that is absent is unknown or
// not declared, which is not zero.
type Objective struct {
	TargetSeconds   *float64 `json:"targetSeconds,omitempty"`
	MeasuredSeconds *float64 `json:"measuredSeconds,omitempty"`
	// Met is absent if one of the two is.
	Met *bool `json:"met,omitempty"`
}

// Report is what an action did and measured, as evidence of a drill or a failover.
type Report struct {
	Namespace   string                   `json:"namespace"`
	Action      string                   `json:"action"`
	UID         string                   `json:"uid"`
	Group       string                   `json:"group"`
	Type        v1alpha1.ActionType      `json:"type"`
	Phase       v1alpha1.ActionPhase     `json:"phase"`
	Message     string                   `json:"message"`
	MadeBy      string                   `json:"madeBy,omitempty"`
	Created     metav1.Time              `json:"created"`
	Started     *metav1.MicroTime        `json:"started,omitempty"`
	Ended       *metav1.MicroTime        `json:"ended,omitempty"`
	RTO         Objective                `json:"rto"`
	RPO         Objective                `json:"rpo"`
	Loss        *v1alpha1.Loss           `json:"loss,omitempty"`
	Points      []v1alpha1.ActionPoint   `json:"points,omitempty"`
	Differences *int64                   `json:"differences,omitempty"`
	Steps       []v1alpha1.ActionStep    `json:"steps"`
	Spec        v1alpha1.GroupActionSpec `json:"spec"`
}

func objective(target, measured *metav1.Duration) (o Objective) {
	seconds := func(d *metav1.Duration) *float64 {
		if d == nil {
			return nil
		}
		return new(d.Seconds())
	}
	o.MeasuredSeconds = seconds(measured)
	if target != nil && target.Duration > 0 {
		o.TargetSeconds = seconds(target)
	}
	if o.TargetSeconds != nil && o.MeasuredSeconds != nil {
		o.Met = new(*o.MeasuredSeconds <= *o.TargetSeconds)
	}
	return o
}

func reportOf(a *v1alpha1.GroupAction) Report {
	r := Report{Namespace: a.Namespace, Action: a.Name, UID: string(a.UID), Group: a.Spec.Group, Type: a.Spec.Type,
		Phase: a.Status.Phase, Message: a.Status.Message, Created: a.CreationTimestamp, Started: a.Status.StartTime,
		Ended: a.Status.CompletionTime, Steps: a.Status.Steps, Spec: a.Spec}
	// The API server records which program made an object, not which person.
	first := func(m metav1.ManagedFieldsEntry) bool { return m.Subresource == "" }
	if i := slices.IndexFunc(a.ManagedFields, first); i >= 0 {
		r.MadeBy = a.ManagedFields[i].Manager
	}
	if result := a.Status.Result; result != nil {
		r.RTO, r.RPO = objective(result.RTOTarget, result.RTO), objective(result.RPOTarget, result.RPO)
		r.Loss, r.Points, r.Differences = result.Loss, result.Points, result.Differences
	}
	return r
}

func (c *cli) reportCommand() *cobra.Command {
	var group, output string
	cmd := &cobra.Command{
		Use:   "report [ACTION]",
		Short: "Write the report of an action: steps, declared and measured RTO and RPO",
		Long: `Write the report of an action: what was done, and the declared and measured recovery time (RTO) and recovery
point (RPO).

Without a name it is the newest action of --group that has ended: of failovers and test failovers, or of the others if
there is none of these.`,
		Example: "  kubectl slipstream report shop-test-x7k2p -n shop\n" +
			"  kubectl slipstream report --group shop -n shop -o json",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "markdown" && output != "json" {
				return fmt.Errorf("--output is %q: it can be markdown or json", output)
			}
			api, namespace, err := c.cluster()
			if err != nil {
				return err
			}
			actions := &v1alpha1.GroupActionList{}
			if err := api.List(cmd.Context(), actions, client.InNamespace(namespace)); err != nil {
				return err
			}
			a, err := chooseAction(actions.Items, args, group, namespace)
			if err != nil {
				return err
			}
			r := reportOf(a)
			if output == "json" {
				return c.json(r)
			}
			_, err = fmt.Fprint(c.out, r.markdown())
			return err
		},
		ValidArgsFunction: c.completeActions,
	}
	cmd.Flags().StringVarP(&output, "output", "o", "markdown", "`format`: markdown or json")
	cmd.Flags().StringVar(&group, "group", "", "the newest ended action of this `group`")
	return cmd
}

func chooseAction(actions []v1alpha1.GroupAction, args []string, group,
	namespace string) (*v1alpha1.GroupAction, error) {
	if (len(args) == 1) == (group != "") {
		return nil, fmt.Errorf("name an action, or a group by --group")
	}
	var best *v1alpha1.GroupAction
	for i := range actions {
		a := &actions[i]
		switch {
		case len(args) == 1 && a.Name == args[0]:
			return a, nil
		case len(args) == 1 || a.Spec.Group != group || a.Status.CompletionTime == nil:
			continue
		case best == nil, rank(a) > rank(best),
			rank(a) == rank(best) && a.Status.CompletionTime.After(best.Status.CompletionTime.Time):
			best = a
		}
	}
	switch {
	case best != nil:
		return best, nil
	case group != "":
		return nil, fmt.Errorf("no action of group %s in namespace %s has ended", group, namespace)
	}
	return nil, fmt.Errorf("there is no action %s in namespace %s", args[0], namespace)
}

// rank is higher for actions that measure how the group is recovered.
func rank(a *v1alpha1.GroupAction) int {
	switch a.Spec.Type {
	case v1alpha1.ActionTestFailover, v1alpha1.ActionFailover:
		return 1
	}
	return 0
}

func (o Objective) row(name string) string {
	text := func(seconds *float64, absent string) string {
		if seconds == nil {
			return absent
		}
		return (time.Duration(*seconds * float64(time.Second))).Round(time.Millisecond).String()
	}
	met := "unknown"
	if o.Met != nil {
		met = map[bool]string{true: "yes", false: "**no**"}[*o.Met]
	}
	return fmt.Sprintf("| %s | %s | %s | %s |\n", name, text(o.TargetSeconds, "not declared"),
		text(o.MeasuredSeconds, "not measured"), met)
}

// cell is text that does not end a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;").Replace(text)
}

func (r *Report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s of group %s/%s\n\n", r.Type, r.Namespace, r.Group)
	fmt.Fprintf(&b, "Action `%s` (uid `%s`), made %s", r.Action, r.UID, r.Created.UTC().Format(time.RFC3339))
	if r.MadeBy != "" {
		fmt.Fprintf(&b, " by the program `%s`", cell(r.MadeBy))
	}
	fmt.Fprintf(&b, ".\n\n**%s**: %s\n\n", cmp.Or(string(r.Phase), "Not begun"), cell(r.Message))
	b.WriteString("| objective | declared | measured | met |\n|---|---|---|---|\n")
	b.WriteString(r.RTO.row("RTO") + r.RPO.row("RPO"))
	if r.Loss != nil {
		fmt.Fprintf(&b, "\nLoss: %s\n", cell(r.Loss.Text))
	}
	if r.Differences != nil {
		fmt.Fprintf(&b, "\nExtents that differ between the sites: %d\n", *r.Differences)
	}
	if len(r.Points) > 0 {
		b.WriteString("\n| group at the engine | ordinal | time of the ordinal |\n|---|---|---|\n")
		for _, p := range r.Points {
			at := "unknown"
			if p.Time != nil {
				at = p.Time.UTC().Format(time.RFC3339Nano)
			}
			fmt.Fprintf(&b, "| %s | %d | %s |\n", p.Group, p.Ordinal, at)
		}
	}
	b.WriteString("\n| step | result | start | took | message |\n|---|---|---|---|---|\n")
	for _, s := range r.Steps {
		result, took := "ok", "not ended"
		switch {
		case s.Failed:
			result = "**failed**"
		case s.EndTime == nil:
			result = "runs"
		}
		if s.EndTime != nil {
			took = s.EndTime.Sub(s.StartTime.Time).Round(time.Millisecond).String()
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", cell(s.Name), result, s.StartTime.UTC().Format(time.RFC3339), took,
			cell(s.Message))
	}
	return b.String()
}
