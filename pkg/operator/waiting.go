package operator

import (
	"time"

	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/backup"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
)

// waiting makes the claims of other sites wait here, and tells the engine of this cluster's claims.
func waiting(mgr manager.Manager, namespace string, watcher *engine.Watcher) *backup.Runner {
	return &backup.Runner{
		Teller: &backup.Teller{Client: mgr.GetClient(), Replicator: func(node string) sidecarpb.SidecarClient {
			if n := watcher.View().Nodes[node]; n != nil {
				return n.Client
			}
			return nil
		}},
		Waiter: &backup.Waiter{Client: mgr.GetClient(), Live: mgr.GetAPIReader(),
			Events: mgr.GetEventRecorder(v1alpha1.ManagedByOperator), Namespace: namespace, Now: time.Now},
		View: func() (backup.View, bool) { return forWaiting(watcher.View()) },
	}
}

// forWaiting is the view as package backup needs it; false until every node was asked. A silent node's groups are those
// of its last answer.
func forWaiting(v *engine.View) (w backup.View, ok bool) {
	w.Complete, w.Untold = len(v.Silent()) == 0, map[string]bool{}
	for name, node := range v.Nodes {
		w.Untold[name] = node.Untold()
		for _, g := range node.Groups {
			w.Groups = append(w.Groups, backup.Group{Node: name, Status: g})
		}
	}
	return w, v.Known
}
