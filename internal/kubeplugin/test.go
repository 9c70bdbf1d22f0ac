package kubeplugin

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

func (c *cli) testCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "test",
		Short: "Try a failover: open a copy in a namespace of its own, without promoting it"}
	cmd.AddCommand(c.testStart(), c.testStop())
	return cmd
}

func (c *cli) testStart() *cobra.Command {
	test := v1alpha1.TestFailover{}
	var file, in, at string
	var keep, timeout time.Duration
	open, wait := false, false
	cmd := &cobra.Command{
		Use:   "start GROUP",
		Short: "Open the copy of a group, check it, and remove what was opened",
		Long: `Open the copy of a group, check it, and remove what was opened.

Run it against the cluster that has the copy. It makes a GroupAction of the type TestFailover, which stays as the
record. Replication goes on, and nothing is copied. Without --keep everything is removed after the checks.

--file has the fields of spec.test of the action, for example the checks (kubectl explain groupaction.spec.test).`,
		Example: "  kubectl slipstream test start shop -n shop --file checks.yaml\n" +
			"  kubectl slipstream test start shop -n shop --in shop-drill --keep 2h",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file != "" {
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				if err := yaml.UnmarshalStrict(data, &test); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
			}
			test.Namespace = cmp.Or(in, test.Namespace)
			if keep > 0 {
				test.KeepFor = &metav1.Duration{Duration: keep}
			}
			if open {
				test.Network = v1alpha1.TestNetworkOpen
			}
			api, namespace, err := c.cluster()
			if err != nil {
				return err
			}
			made := &v1alpha1.GroupAction{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: fmt.Sprintf("%.50s-test-", args[0])},
				Spec: v1alpha1.GroupActionSpec{Group: args[0], Type: v1alpha1.ActionTestFailover, Test: &test,
					RecoveryPoint: recoveryPoint(at, time.Now())},
			}
			if err := api.Get(cmd.Context(), client.ObjectKey{Namespace: namespace, Name: args[0]},
				&v1alpha1.ConsistencyGroup{}); err != nil {
				return err
			}
			return c.act(cmd.Context(), api, made, wait, timeout)
		},
		ValidArgsFunction: c.completeGroups,
	}
	flags := cmd.Flags()
	flags.StringVarP(&file, "file", "f", "", "`file` with the fields of spec.test")
	flags.StringVar(&in, "in", "", "`namespace` that is made for the test (default: the group's namespace with -test)")
	flags.StringVar(&at, "at", "", "`point` to open: an ordinal, a time (RFC 3339), a duration before now (-10m), or a "+
		"bookmark (default: the newest)")
	flags.DurationVar(&keep, "keep", 0, "keep the namespace for so long after the checks")
	flags.BoolVar(&open, "open-network", false, "no NetworkPolicy that denies all traffic")
	flags.BoolVar(&wait, "wait", true, "wait for the end of the checks")
	flags.DurationVar(&timeout, "timeout", 30*time.Minute, "how long to wait; the action goes on")
	return cmd
}

// recoveryPoint reads a point as slipctl does; nil for none.
func recoveryPoint(text string, now time.Time) *v1alpha1.RecoveryPoint {
	if text == "" {
		return nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 {
		return &v1alpha1.RecoveryPoint{Ordinal: &n}
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		at := metav1.NewMicroTime(t)
		return &v1alpha1.RecoveryPoint{Time: &at}
	}
	if d, err := time.ParseDuration(text); err == nil {
		at := metav1.NewMicroTime(now.Add(-d.Abs()))
		return &v1alpha1.RecoveryPoint{Time: &at}
	}
	return &v1alpha1.RecoveryPoint{Bookmark: &text}
}

func (c *cli) testStop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop ACTION",
		Short: "End a test that is kept, and remove what it opened",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, namespace, err := c.cluster()
			if err != nil {
				return err
			}
			a := &v1alpha1.GroupAction{}
			if err := api.Get(cmd.Context(), client.ObjectKey{Namespace: namespace, Name: args[0]}, a); err != nil {
				return err
			}
			if a.Spec.Type != v1alpha1.ActionTestFailover {
				return fmt.Errorf("action %s/%s is a %s, and no TestFailover", namespace, a.Name, a.Spec.Type)
			}
			if a.Status.CompletionTime != nil {
				return errors.New("the test has ended already")
			}
			ended := a.DeepCopy()
			if ended.Annotations == nil {
				ended.Annotations = map[string]string{}
			}
			ended.Annotations[v1alpha1.AnnotationEndTest] = "true"
			if err := api.Patch(cmd.Context(), ended, client.MergeFrom(a)); err != nil {
				return err
			}
			return c.follow(cmd.Context(), api, a, 10*time.Minute)
		},
		ValidArgsFunction: c.completeActions,
	}
}

// completeActions completes the names of actions.
func (c *cli) completeActions(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, namespace, err := c.cluster()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	actions := &v1alpha1.GroupActionList{}
	if err := api.List(cmd.Context(), actions, client.InNamespace(namespace)); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, a := range actions.Items {
		names = append(names, a.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
