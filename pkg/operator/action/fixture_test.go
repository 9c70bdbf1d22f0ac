package action_test

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator"
	"github.com/slipstream-storage/slipstream/pkg/operator/action"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

func TestMain(m *testing.M) { operatortest.Main(m) }

type site struct{ *operatortest.Site }

// newSite is a cluster with the reconcilers that an action needs: that of its group, and that of actions.
func newSite(t *testing.T, nodes ...string) *site {
	t.Helper()
	return &site{operatortest.New(t, func(s *operatortest.Site) {
		s.Namespaces = &operator.NamespaceReconciler{Client: s.Client, Live: s.Client, Watcher: s.Watcher,
			Events: s.Events,
			Now:    s.Now}
		s.Actions = &action.Reconciler{Client: s.Client, Live: s.Client, Watcher: s.Watcher, Events: s.Events,
			Now: s.Now}
	}, nodes...)}
}

// primary is a site with two groups at the engine, on two nodes.
func primary(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "a", "b")
	s.Shop("a", "b")
	return s
}

// secondary is a site with copies of two groups at the engine, on two nodes.
func secondary(t *testing.T) *site {
	t.Helper()
	s := primary(t)
	s.Follow()
	return s
}

// oneCopy is a site with the copy of one group.
func oneCopy(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "a")
	s.Shop("a")
	s.Follow()
	return s
}

func (s *site) promotions() (calls []string) {
	for _, n := range s.Nodes {
		for _, call := range n.Took() {
			if strings.HasPrefix(call, "Promote") {
				calls = append(calls, call)
			}
		}
	}
	return calls
}

func force(s *site) v1alpha1.GroupActionSpec {
	return v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionFailover, Force: true,
		Confirm: s.Group("shop", "shop").Status.Confirm}
}

func wantAction(t *testing.T, a *v1alpha1.GroupAction, phase v1alpha1.ActionPhase, texts ...string) {
	t.Helper()
	if a.Status.Phase != phase {
		t.Errorf("%s is %q (%s), want %q", a.Name, a.Status.Phase, a.Status.Message, phase)
	}
	for _, text := range texts {
		if !strings.Contains(a.Status.Message, text) {
			t.Errorf("%s: message %q lacks %q", a.Name, a.Status.Message, text)
		}
	}
}
