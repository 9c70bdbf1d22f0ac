package action

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/drill"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
)

// removeTest removes what a test failover has made, for an action that is deleted in the middle of it.
func (a *run) removeTest(ctx context.Context) (ctrl.Result, error) {
	namespace, err := drill.Namespace(a.action)
	if err == nil {
		err = a.remove(ctx, namespace)
	}
	if err == nil {
		err = a.finalizer(ctx, false)
	}
	if err != nil {
		klog.InfoS("A test failover is being removed", "action", klog.KObj(a.action), "waitsFor", err.Error())
	}
	if err != nil {
		return ctrl.Result{RequeueAfter: retryInterval}, nil
	}
	return ctrl.Result{}, nil
}

// finalizer puts the finalizer of a test on the action, or takes it away. The action is read again, since each record
// gives it another version, and finalizers are changed for one version only.
func (a *run) finalizer(ctx context.Context, present bool) error {
	if err := a.r.Live.Get(ctx, client.ObjectKeyFromObject(a.action), a.action); err != nil {
		return client.IgnoreNotFound(err)
	}
	return kube.PatchFinalizer(ctx, a.r.Client, a.action, v1alpha1.FinalizerTest, present)
}

// remove removes the namespace with the pods, then the volumes, then the views, whose devices nothing uses then. Errors
// are waits: a test that cannot be removed yet is removed later. Views are looked for on all nodes that answer; a node
// that is silent is waited for, unless it is gone for good.
func (a *run) remove(ctx context.Context, namespace string) error {
	there := &corev1.Namespace{}
	switch err := a.r.Live.Get(ctx, client.ObjectKey{Name: namespace}, there); {
	case err == nil && a.mine(there):
		if there.DeletionTimestamp.IsZero() {
			uid := there.UID
			if err := a.r.Delete(ctx, there, client.Preconditions{UID: &uid}); client.IgnoreNotFound(err) != nil {
				return errWait{err}
			}
		}
		return waitFor("namespace %s is being deleted", namespace)
	case err != nil && !apierrors.IsNotFound(err):
		return errWait{err}
	}
	volumes := &corev1.PersistentVolumeList{}
	if err := a.r.Live.List(ctx, volumes,
		client.MatchingLabels{v1alpha1.LabelTestAction: string(a.action.UID)}); err != nil {
		return errWait{err}
	}
	for i := range volumes.Items {
		volume := &volumes.Items[i]
		if !volume.DeletionTimestamp.IsZero() {
			continue
		}
		if err := a.r.Delete(ctx, volume, client.Preconditions{UID: &volume.UID}); client.IgnoreNotFound(err) != nil {
			return errWait{err}
		}
	}
	if len(volumes.Items) > 0 {
		return waitFor("the test still has %s, being deleted", words.Count(len(volumes.Items), "volume"))
	}
	return a.closeViews(ctx)
}

func (a *run) closeViews(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, engine.CallTimeout)
	defer cancel()
	name := testView(a.action.UID)
	view := a.r.Watcher.View()
	for node, n := range view.Nodes {
		switch {
		case n.Without || n.Retired && n.Err != nil:
			continue
		case n.Silent() || n.Client == nil:
			return waitFor("node %s does not answer, and may have a view of the test", node)
		}
		list, err := n.Client.ListViews(ctx, &sidecarpb.ListViewsRequest{})
		if err != nil {
			return errWait{fmt.Errorf("node %s: %w", node, err)}
		}
		for _, v := range list.GetViews() {
			if v.GetName() != name {
				continue
			}
			_, err := n.Client.DeleteView(ctx, &sidecarpb.DeleteViewRequest{Group: v.GetGroup(), Name: name})
			if err != nil && status.Code(err) != codes.NotFound {
				return errWait{fmt.Errorf("node %s: %w", node, err)}
			}
		}
	}
	return nil
}
