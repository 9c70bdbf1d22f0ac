package operator

import (
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/operator/action"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

func TestMain(m *testing.M) { operatortest.Main(m) }

// site is a cluster with the reconcilers of namespaces and actions.
type site struct {
	*operatortest.Site
	r *NamespaceReconciler
}

func newSite(t *testing.T, nodes ...string) *site {
	t.Helper()
	s := &site{}
	s.Site = operatortest.New(t, func(of *operatortest.Site) {
		s.r = &NamespaceReconciler{Client: of.Client, Live: of.Client, Watcher: of.Watcher, Events: of.Events,
			Now: of.Now}
		of.Namespaces = s.r
		of.Actions = &action.Reconciler{Client: of.Client, Live: of.Client, Watcher: of.Watcher, Events: of.Events,
			Now: of.Now}
	}, nodes...)
	return s
}
