package kubeplugin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// explanations say what a condition means that is not True, and what to do. docs/guides/kubernetes.md has a short form.
var explanations = map[string]string{
	v1alpha1.ConditionReady: `
Not True: one of the other conditions, except WriteOrder, is not True. Its message names the condition. Run
kubectl slipstream explain with that one.
`,
	v1alpha1.ConditionAllowed: `
False: the group may not replicate, and the engine is not called for it.
- RemoteSiteMissing: spec.remoteSite names a RemoteSite that does not exist. An administrator makes it.
- NamespaceNotAdmitted: the RemoteSite does not admit the namespace. An administrator labels the namespace
  (slipstream.dev/replicate-to) or extends spec.namespaces of the RemoteSite.
- ForeignEngineGroup: spec.engineGroups names a group with volumes of another namespace. Take it out.
- UnknownEngineGroup: spec.engineGroups names a group that is not known to be of this namespace, because it has
  no volumes, or because its RemoteSite or its PersistentVolumes are missing. The message says what to make.
GroupActions on the group fail until then. Actions on a copy, Commit and Rollback do not need the first two.
`,
	v1alpha1.ConditionMembersReady: `
False: a claim that belongs to the group is not replicated. status.members has the reason of each.
- Pending: the claim is not bound, or the group is not primary at this site.
- NeedsRestage: the volume was made without slipstream.dev/replicable. Make a claim with a class that has it,
  stop the pods, copy the data, and use the new claim.
- NodeSilent: the driver of the node does not answer. See its pod.
- Failed: the engine refused. The reason says why; the operator tries again.
`,
	v1alpha1.ConditionRemoteAsDeclared: `
False: spec.remoteSite was changed, and the engine still replicates to the first site. The change copies
everything anew and leaves the first copy behind. Change the spec back, or confirm it:
kubectl -n NAMESPACE annotate cg GROUP slipstream.dev/confirm-remote=SITE
`,
	v1alpha1.ConditionWriteOrder: `
- Node: members are on several nodes with a separate order each. A failover takes the claims of each node to an
  instant of their own. To have one order, set spec.writeOrder to Group at the primary site.
- NodeUnable: a node cannot have a shard of the group: its replicator is too old, does not reach the others or
  does not answer, or the link is down. The message says which.
- Joining: a shard was made and is not in the epochs yet. Wait.
- ShardAway: a shard is on no node that answers, or the replicators do not reach each other. The copy of the
  whole group stays at the last complete epoch until they do.
- ShardConflict: the nodes have shards of two groups, or two with one number. See slipctl group list there.
- NodeSilent: a node of the group does not answer the operator.
`,
	v1alpha1.ConditionConverged: `
False: both sites took writes after a common point. Nothing is shipped, and neither site overwrites the other.
Decide which site continues. At the other one stop the pods, and run:
kubectl slipstream yield GROUP -n NAMESPACE
Its writes since then are kept as snapshots (docs/guides/tails.md).
`,
	v1alpha1.ConditionPeerReachable: `
False: a group at the engine is not connected to the other site. Writes go on here. See the link, the gateway
of the other site, and the certificates: slipctl group status on the node has the reason.
Unknown: the node does not answer.
`,
	v1alpha1.ConditionPromotable: `
False: the copy is not one instant of its primary, because a sync runs. Wait for its end.
Unknown: this site is primary and does not hear the other one. Ask there.
`,
	v1alpha1.ConditionWithinRPO: `
False: the copy lags more than the target, or its lag is not known. See the link and its bandwidth, a limit of
the rate (settings.shipRate), or raise the target (settings.rpoTarget).
`,
	v1alpha1.ConditionClaimsPresent: `
Of a RemoteSite. False: a claim of the other site does not wait here. The reason and the message say which one and why;
docs/guides/waiting-claims.md has them all.
`,
	v1alpha1.ConditionOnTime: `
Of a GroupActionSchedule. False: the last success is older than spec.overdueAfter, or than two periods of the
schedule; or the schedule cannot be read. See the records of its actions:
kubectl get ga -l slipstream.dev/schedule=NAME, and kubectl slipstream report.
`,
	v1alpha1.ConditionReachable: `
Of a RemoteSite. False: a group that replicates to the site is not connected to it. The message names the
groups.
`,
}

func (c *cli) explainCommand() *cobra.Command {
	names := slices.Sorted(maps.Keys(explanations))
	return &cobra.Command{
		Use:   "explain [CONDITION]",
		Short: "Say what a condition means that is not True, and what to do",
		Long: "Say what a condition means that is not True, and what to do. Without a name it lists the conditions: " +
			strings.Join(names, ", ") + ".",
		Example:   "  kubectl slipstream explain WriteOrder",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: names,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				_, err := fmt.Fprintln(c.out, strings.Join(names, "\n"))
				return err
			}
			for name, text := range explanations {
				if strings.EqualFold(name, args[0]) {
					_, err := fmt.Fprintf(c.out, "%s\n%s", name, text)
					return err
				}
			}
			return fmt.Errorf("there is no condition %s: it can be %s", args[0], strings.Join(names, ", "))
		},
	}
}
