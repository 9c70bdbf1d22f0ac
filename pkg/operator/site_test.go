package operator

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

func TestSiteStatus(t *testing.T) {
	s := newSite(t, "a", "b")
	s.Shop("a", "b")
	s.Follow()
	site := operatortest.Remote("site-b")
	status := SiteStatus(site, []v1alpha1.ConsistencyGroup{*s.Group("shop", "shop")}, s.Clock)
	if status.Groups != 1 || status.Conditions[0].Status != metav1.ConditionFalse ||
		!strings.Contains(status.Conditions[0].Message, "shop/shop") || status.MaxLag == nil {
		t.Errorf("status: %+v", status)
	}
	// What a group without anything at the engine says of the site is nothing.
	s.Create(operatortest.Labelled("empty"))
	s.Settle("empty")
	empty := *s.Group("empty", "empty")
	status = SiteStatus(site, []v1alpha1.ConsistencyGroup{empty}, s.Clock)
	if c := status.Conditions[0]; c.Status != metav1.ConditionUnknown || c.Reason != "NoMembers" {
		t.Errorf("condition: %+v", c)
	}
	s.Change(func(g *sidecarpb.GroupStatus) { g.Connected = true })
	s.Settle("shop")
	status = SiteStatus(site, []v1alpha1.ConsistencyGroup{empty, *s.Group("shop", "shop")}, s.Clock)
	if c := status.Conditions[0]; c.Status != metav1.ConditionTrue || c.Reason != "Connected" {
		t.Errorf("condition: %+v", c)
	}
	// Conditions of others are left to them.
	site.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionClaimsPresent}}
	if status = SiteStatus(site, nil, s.Clock); len(status.Conditions) != 1 {
		t.Errorf("conditions: %+v", status.Conditions)
	}
	if status = SiteStatus(site, nil, s.Clock); status.Groups != 0 ||
		status.Conditions[0].Status != metav1.ConditionUnknown {
		t.Errorf("status: %+v", status)
	}
}
