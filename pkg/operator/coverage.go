package operator

import (
	"cmp"
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// ReasonGroupNotReady is the reason of a claim that is a member of a group whose condition Ready is not True.
const ReasonGroupNotReady = "GroupNotReady"

// Claim says of one claim whether it is protected, or why not.
type Claim struct {
	Namespace string `json:"namespace"`
	Name      string `json:"claim"`
	// Group is the ConsistencyGroup of the claim; empty for none.
	Group string `json:"group,omitempty"`
	// Reason is empty for a claim that is protected.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// deliberate are reasons that a person chose, or that need no protection.
var deliberate = []string{ReasonOptedOut, ReasonOtherDriver, ReasonEphemeral, ReasonTemporary, ReasonRestore}

// Deliberate reports that a claim is not protected on purpose: by its label, or because it is temporary or of another
// driver.
func (c *Claim) Deliberate() bool { return slices.Contains(deliberate, c.Reason) }

// Coverage goes over all claims of a namespace. It goes by the objects alone, the status of groups included, so that
// everybody who may read them gets the same answer as the operator.
func Coverage(in *Input) []Claim {
	var all []Claim
	for _, claim := range in.Claims {
		c := Claim{Namespace: claim.Namespace, Name: claim.Name}
		var group *v1alpha1.ConsistencyGroup
		var member *v1alpha1.Member
		for _, g := range in.Groups {
			for i := range g.Status.Members {
				if m := &g.Status.Members[i]; m.Claim == claim.Name && (member == nil || m.State == v1alpha1.MemberIn) {
					group, member = g, m
				}
			}
		}
		v := in.judge(claim, member != nil && member.State == v1alpha1.MemberIn)
		switch {
		case v.group == nil:
			c.Reason, c.Message = v.reason, v.message
		case member == nil || group != v.group:
			c.Group, c.Reason = v.group.Name, string(v1alpha1.MemberJoining)
			c.Message = "the operator has not put it into the group yet"
		case member.State != v1alpha1.MemberIn:
			c.Group, c.Reason, c.Message = group.Name, string(member.State), member.Reason
		default:
			c.Group = group.Name
			if ready := meta.FindStatusCondition(group.Status.Conditions, v1alpha1.ConditionReady); ready == nil ||
				ready.Status != "True" {
				c.Reason, c.Message = ReasonGroupNotReady, "the status of the group has no condition Ready yet"
				if ready != nil {
					c.Message = ready.Message
				}
			}
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Claim) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// CoverageOf goes over all claims of the namespaces; none: of the cluster. The client needs the index
// IndexVolumesByNamespace.
func CoverageOf(ctx context.Context, c client.Reader, namespaces ...string) ([]Claim, error) {
	if len(namespaces) == 0 {
		list := &corev1.NamespaceList{}
		if err := c.List(ctx, list); err != nil {
			return nil, err
		}
		for _, n := range list.Items {
			namespaces = append(namespaces, n.Name)
		}
		slices.Sort(namespaces)
	}
	var all []Claim
	for _, name := range namespaces {
		in, err := ReadInput(ctx, c, name)
		if err != nil {
			return nil, err
		}
		all = append(all, Coverage(in)...)
	}
	return all, nil
}
