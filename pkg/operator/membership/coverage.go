package membership

import (
	"cmp"
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
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
func Coverage(in *Objects) []Claim {
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
		has := ""
		if member != nil && member.State == v1alpha1.MemberIn {
			has = group.Name
		}
		v := in.Judge(claim, has)
		switch {
		case v.Group == nil:
			c.Reason, c.Message = v.Reason, v.Message
		case member == nil || group != v.Group:
			c.Group, c.Reason = v.Group.Name, string(v1alpha1.MemberJoining)
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

// CoverageOf goes over all claims of a namespace; with an empty name, of the cluster.
func CoverageOf(ctx context.Context, c client.Reader, namespace string) ([]Claim, error) {
	namespaces, groups, claims := &corev1.NamespaceList{}, &v1alpha1.ConsistencyGroupList{},
		&corev1.PersistentVolumeClaimList{}
	sites, volumes, classes := &v1alpha1.RemoteSiteList{}, &corev1.PersistentVolumeList{}, &storagev1.StorageClassList{}
	if namespace == "" {
		if err := c.List(ctx, namespaces); err != nil {
			return nil, err
		}
	} else {
		one := corev1.Namespace{}
		if err := c.Get(ctx, client.ObjectKey{Name: namespace}, &one); err != nil {
			return nil, err
		}
		namespaces.Items = append(namespaces.Items, one)
	}
	for _, list := range []client.ObjectList{groups, claims} {
		if err := c.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return nil, err
		}
	}
	for _, list := range []client.ObjectList{sites, volumes, classes} {
		if err := c.List(ctx, list); err != nil {
			return nil, err
		}
	}
	all := map[string]*Objects{}
	var names []string
	shared := newObjects(sites, classes)
	for i := range namespaces.Items {
		n := &namespaces.Items[i]
		names = append(names, n.Name)
		all[n.Name] = &Objects{Namespace: n, Sites: shared.Sites, Provisioners: shared.Provisioners,
			Volumes: map[string]*corev1.PersistentVolume{}}
	}
	for i := range groups.Items {
		if in := all[groups.Items[i].Namespace]; in != nil {
			in.Groups = append(in.Groups, &groups.Items[i])
		}
	}
	for i := range claims.Items {
		if in := all[claims.Items[i].Namespace]; in != nil {
			in.Claims = append(in.Claims, &claims.Items[i])
		}
	}
	for i := range volumes.Items {
		for _, name := range VolumeNamespace(&volumes.Items[i]) {
			if in := all[name]; in != nil {
				in.Volumes[volumes.Items[i].Name] = &volumes.Items[i]
			}
		}
	}
	slices.Sort(names)
	var covered []Claim
	for _, name := range names {
		covered = append(covered, Coverage(all[name])...)
	}
	return covered, nil
}
