package operator

import (
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
)

// SiteReconciler writes the status of RemoteSites, from the statuses of the groups that name them.
type SiteReconciler struct {
	client.Client
}

// Reconcile implements reconcile.Reconciler.
func (r *SiteReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	site := &v1alpha1.RemoteSite{}
	if err := r.Get(ctx, request.NamespacedName, site); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	groups := &v1alpha1.ConsistencyGroupList{}
	if err := r.List(ctx, groups); err != nil {
		return ctrl.Result{}, err
	}
	next := SiteStatus(site, groups.Items, time.Now())
	now := *site.Status.DeepCopy()
	now.Conditions = ownConditions(now.Conditions)
	if equality.Semantic.DeepEqual(now, next) {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, client.IgnoreNotFound(kube.ApplyStatus(ctx, r.Client, "RemoteSite", site, &next))
}

// SiteStatus returns the status that follows from the groups of the cluster.
func SiteStatus(site *v1alpha1.RemoteSite, groups []v1alpha1.ConsistencyGroup,
	now time.Time) v1alpha1.RemoteSiteStatus {
	s := v1alpha1.RemoteSiteStatus{ObservedGeneration: site.Generation, Conditions: ownConditions(site.Status.Conditions)}
	var unreachable, unknown []string
	connected := 0
	lagKnown := true
	for i := range groups {
		g := &groups[i]
		if g.Spec.RemoteSite != site.Name {
			continue
		}
		s.Groups++
		c := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionPeerReachable)
		switch {
		case c == nil || len(g.Status.EngineGroups) == 0:
		case c.Status == metav1.ConditionFalse:
			unreachable = append(unreachable, g.Namespace+"/"+g.Name)
		case c.Status == metav1.ConditionUnknown:
			unknown = append(unknown, g.Namespace+"/"+g.Name)
		case c.Status == metav1.ConditionTrue:
			connected++
		}
		if len(g.Status.EngineGroups) == 0 {
			continue
		}
		if g.Status.Lag == nil || g.Status.Lag.Time == nil {
			lagKnown = false
		} else if s.MaxLag == nil || s.MaxLag.Duration < g.Status.Lag.Time.Duration {
			s.MaxLag = g.Status.Lag.Time.DeepCopy()
		}
	}
	if !lagKnown {
		s.MaxLag = nil
	}
	c := kube.Condition(v1alpha1.ConditionReachable, metav1.ConditionTrue, "Connected",
		"all groups are connected to the site")
	switch {
	case s.Groups == 0:
		c = kube.Condition(v1alpha1.ConditionReachable, metav1.ConditionUnknown, "NoGroups",
			"no group of this cluster names the site")
	case len(unreachable) > 0:
		c = kube.Condition(v1alpha1.ConditionReachable, metav1.ConditionFalse, "NotConnected", "not connected: %s",
			kube.Some(unreachable))
	case len(unknown) > 0:
		c = kube.Condition(v1alpha1.ConditionReachable, metav1.ConditionUnknown, "NodeSilent",
			"not known of these, whose nodes do not tell: %s; their condition PeerReachable has the reason",
			kube.Some(unknown))
	case connected == 0:
		c = kube.Condition(v1alpha1.ConditionReachable, metav1.ConditionUnknown, "NoMembers",
			"no group that names the site has claims that replicate yet")
	}
	c.ObservedGeneration, c.LastTransitionTime = site.Generation, metav1.NewTime(now.Truncate(time.Second))
	meta.SetStatusCondition(&s.Conditions, c)
	return s
}

// ownConditions are those that this reconciler writes; package backup writes the others.
func ownConditions(all []metav1.Condition) []metav1.Condition {
	return slices.DeleteFunc(slices.Clone(all), func(c metav1.Condition) bool {
		return c.Type != v1alpha1.ConditionReachable
	})
}
