package operator

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
	"github.com/slipstream-storage/slipstream/pkg/operator/plan"
)

const (
	// figuresInterval is how often lag and progress in a status are renewed while they change.
	figuresInterval = 30 * time.Second
	// secondLook is the time between the two looks before a volume leaves its group because its claim is missing.
	secondLook = 30 * time.Second
	// retryInterval is when a call that failed is made again.
	retryInterval = 10 * time.Second
)

// NamespaceReconciler keeps the groups of one namespace after the other. Fields are set before the first use.
type NamespaceReconciler struct {
	client.Client
	// Live reads from the API server, not from the cache.
	Live    client.Reader
	Watcher *engine.Watcher
	Events  events.EventRecorder
	// Now is the clock; nil for time.Now.
	Now func() time.Time

	mu       sync.Mutex
	failures map[string]map[string]error // by namespace and volume
	missing  map[string]time.Time        // first look, by PersistentVolume
	empty    map[string]time.Time        // first look at an empty shard, by its group at the engine
	figures  map[types.UID]time.Time     // when lag and progress were last written
}

func (r *NamespaceReconciler) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

// Reconcile implements reconcile.Reconciler; the request's name is the namespace's.
func (r *NamespaceReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	if !r.Watcher.View().Known {
		return ctrl.Result{RequeueAfter: engine.LookInterval}, nil
	}
	in, err := r.read(ctx, request.Name)
	if err != nil {
		return ctrl.Result{}, err
	}
	if changed, err := r.ensure(ctx, in); err != nil || changed {
		// The objects that were made come back through the cache.
		return ctrl.Result{}, err
	}
	if len(in.Groups) == 0 {
		r.forget(request.Name)
		return ctrl.Result{}, nil
	}
	failed := false
	p := plan.Make(in)
	for _, gp := range p.Groups {
		if err := r.finalizer(ctx, gp); err != nil {
			return ctrl.Result{}, err
		}
		recorded, err := r.recordShards(ctx, in, gp)
		if err != nil {
			return ctrl.Result{}, err
		}
		failed = failed || !recorded
	}
	if failed {
		p = plan.Make(in)
	}
	acted := false
	for _, gp := range p.Groups {
		did, ok := r.carryOut(ctx, in, gp)
		acted, failed = acted || did, failed || !ok
	}
	if acted {
		in.View, in.Failures = r.Watcher.View(), r.failuresOf(request.Name)
		p = plan.Make(in)
	}
	for _, gp := range p.Groups {
		if err := r.finalizer(ctx, gp); err != nil {
			return ctrl.Result{}, err
		}
		if gp.Gone {
			continue
		}
		if err := r.writeStatus(ctx, in, p, gp); err != nil {
			return ctrl.Result{}, err
		}
	}
	if failed {
		return ctrl.Result{RequeueAfter: retryInterval}, nil
	}
	return ctrl.Result{RequeueAfter: figuresInterval}, nil
}

// read collects what the cache has of a namespace.
func (r *NamespaceReconciler) read(ctx context.Context, name string) (*plan.Input, error) {
	in, err := plan.Read(ctx, r.Client, name)
	if err != nil {
		return nil, err
	}
	in.View, in.Failures = r.Watcher.View(), r.failuresOf(name)
	return in, nil
}

// ensure makes the groups that labels ask for, and deletes those that it made and nothing asks for anymore.
func (r *NamespaceReconciler) ensure(ctx context.Context, in *plan.Input) (changed bool, err error) {
	if in.Namespace == nil || !in.Namespace.DeletionTimestamp.IsZero() {
		return false, nil // Kubernetes deletes what is in it
	}
	site, wanted := in.Wanted()
	for _, name := range wanted {
		i := slices.IndexFunc(in.Groups, func(g *v1alpha1.ConsistencyGroup) bool { return g.Name == name })
		if i >= 0 && (!membership.Managed(in.Groups[i]) || in.Groups[i].Spec.RemoteSite == site ||
			!in.Groups[i].DeletionTimestamp.IsZero()) {
			continue
		}
		klog.InfoS("Writing the group that a label asks for", "namespace", in.Namespace.Name, "group", name, "site", site)
		if err := kube.ApplyGroup(ctx, r.Client, in.Namespace.Name, name, site); err != nil {
			return changed, err
		}
		changed = true
	}
	for _, g := range in.Groups {
		if !membership.Managed(g) || slices.Contains(wanted, g.Name) || !g.DeletionTimestamp.IsZero() {
			continue
		}
		// The label of the namespace is a statement; that no claim names a group is not, as long as it has volumes.
		if site != "" && len(g.Status.EngineGroups) > 0 {
			places, _ := in.Places(g)
			if len(in.Unseen(g, places)) > 0 ||
				slices.ContainsFunc(places, func(at engine.Place) bool { return !engine.Empty(at.Group) }) {
				continue
			}
		}
		klog.InfoS("Deleting the group that no label asks for anymore", "namespace", g.Namespace, "group", g.Name)
		if err := r.Delete(ctx, g, client.Preconditions{UID: &g.UID}); client.IgnoreNotFound(err) != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// finalizer keeps the finalizer on a group for as long as it has something at the engine that ends with it.
func (r *NamespaceReconciler) finalizer(ctx context.Context, gp *plan.Group) error {
	g := gp.Group
	has := controllerutil.ContainsFinalizer(g, v1alpha1.FinalizerGroup)
	switch {
	case g.DeletionTimestamp.IsZero() && !has && gp.Holds():
	case gp.Gone && has:
	default:
		return nil
	}
	return kube.PatchFinalizer(ctx, r.Client, g, v1alpha1.FinalizerGroup, !has)
}

// carryOut makes the calls of a plan. It reports whether it made one, and whether all that it made succeeded.
func (r *NamespaceReconciler) carryOut(ctx context.Context, in *plan.Input, gp *plan.Group) (acted, ok bool) {
	ok = true
	failed := map[string]bool{} // groups at the engine that a call failed for
	touched := map[string]bool{}
	for _, op := range gp.Ops {
		if failed[op.Group] && op.Kind != plan.OpAddVolume {
			continue
		}
		if op.Missing != "" && !r.missingTwice(ctx, op.Missing, in) {
			continue
		}
		if op.Settle && !r.settled(op.Group) {
			ok = false // looked at again soon
			continue
		}
		client := in.View.Nodes[op.Node].Client
		err := call(ctx, client, op)
		acted, touched[op.Node] = true, true
		r.note(gp.Group.Namespace, op, err)
		if err != nil {
			ok, failed[op.Group] = false, true
			klog.ErrorS(err, "A call of the engine failed", "group", klog.KObj(gp.Group), "call", op.Kind, "node", op.Node,
				"engineGroup", op.Group, "volume", op.Volume)
			continue
		}
		klog.InfoS("Engine", "group", klog.KObj(gp.Group), "call", op.Kind, "node", op.Node, "engineGroup", op.Group,
			"volume", op.Volume)
		r.event(gp.Group, corev1.EventTypeNormal, string(op.Kind), fmt.Sprintf("%s of group %s at the engine of node %s%s",
			op.Kind, op.Group, op.Node, volumeText(op.Volume)))
	}
	for node := range touched {
		if _, err := r.Watcher.Refresh(ctx, node); err != nil {
			klog.ErrorS(err, "The node does not say what it has now", "node", node)
		}
	}
	return acted, ok
}

func volumeText(volume string) string {
	if volume == "" {
		return ""
	}
	return ": volume " + volume
}

// call makes one call. What is done already is a success.
func call(ctx context.Context, client sidecarpb.SidecarClient, op plan.Op) error {
	ctx, cancel := context.WithTimeout(ctx, engine.CallTimeout)
	defer cancel()
	var err error
	switch op.Kind {
	case plan.OpCreateGroup:
		_, err = client.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{Name: op.Group, Settings: op.Settings})
	case plan.OpModifyGroup:
		_, err = client.ModifyGroup(ctx, &sidecarpb.ModifyGroupRequest{Name: op.Group, Settings: op.Settings})
	case plan.OpAddVolume:
		_, err = client.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: op.Group, VolumeId: op.Volume, Move: op.Move})
	case plan.OpRemoveVolume:
		_, err = client.RemoveVolume(ctx, &sidecarpb.RemoveVolumeRequest{Group: op.Group, VolumeId: op.Volume})
	case plan.OpDeleteGroup:
		_, err = client.DeleteGroup(ctx, &sidecarpb.DeleteGroupRequest{Name: op.Group, Force: op.Force})
	}
	if status.Code(err) == codes.NotFound && (op.Kind == plan.OpRemoveVolume || op.Kind == plan.OpDeleteGroup) {
		return nil
	}
	return err
}

// missingTwice reports that the claim of a volume is missing for the second time, and asks the API server itself then.
func (r *NamespaceReconciler) missingTwice(ctx context.Context, name string, in *plan.Input) bool {
	now := r.now()
	r.mu.Lock()
	first, seen := r.missing[name]
	if !seen {
		if r.missing == nil {
			r.missing = map[string]time.Time{}
		}
		r.missing[name] = now
	}
	r.mu.Unlock()
	if !seen || now.Sub(first) < secondLook {
		return false
	}
	volume := &corev1.PersistentVolume{}
	if err := r.Live.Get(ctx, client.ObjectKey{Name: name}, volume); err != nil || volume.Spec.ClaimRef == nil ||
		volume.UID != in.Volumes[name].UID {
		return false
	}
	claim := &corev1.PersistentVolumeClaim{}
	err := r.Live.Get(ctx, client.ObjectKey{Namespace: volume.Spec.ClaimRef.Namespace, Name: volume.Spec.ClaimRef.Name},
		claim)
	gone := apierrors.IsNotFound(err) || err == nil && claim.UID != volume.Spec.ClaimRef.UID
	if !gone {
		r.mu.Lock()
		delete(r.missing, name)
		r.mu.Unlock()
	}
	return gone
}

func (r *NamespaceReconciler) failuresOf(namespace string) map[string]error {
	r.mu.Lock()
	defer r.mu.Unlock()
	copied := map[string]error{}
	for volume, err := range r.failures[namespace] {
		copied[volume] = err
	}
	return copied
}

func (r *NamespaceReconciler) note(namespace string, op plan.Op, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	volume := op.Volume
	if op.Kind == plan.OpAddVolume {
		delete(r.empty, op.Group)
	}
	if r.failures == nil {
		r.failures = map[string]map[string]error{}
	}
	if r.failures[namespace] == nil {
		r.failures[namespace] = map[string]error{}
	}
	if err == nil {
		delete(r.failures[namespace], volume)
	} else if volume != "" {
		r.failures[namespace][volume] = err
	}
}

func (r *NamespaceReconciler) forget(namespace string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.failures, namespace)
}

// writeStatus writes the status if something differs. Figures alone count twice a minute.
func (r *NamespaceReconciler) writeStatus(ctx context.Context, in *plan.Input, p *plan.Plan, gp *plan.Group) error {
	g, now := gp.Group, r.now()
	next := plan.Status(in, p, gp, now)
	r.mu.Lock()
	if r.figures == nil {
		r.figures = map[types.UID]time.Time{}
	}
	due := now.Sub(r.figures[g.UID]) >= figuresInterval
	r.mu.Unlock()
	if !due && next.Lag != nil && g.Status.Lag != nil {
		next.Lag = g.Status.Lag
	}
	if equality.Semantic.DeepEqual(g.Status, next) {
		return nil
	}
	if err := kube.ApplyStatus(ctx, r.Client, "ConsistencyGroup", g, &next); err != nil {
		return client.IgnoreNotFound(err)
	}
	r.mu.Lock()
	r.figures[g.UID] = now
	r.mu.Unlock()
	r.transitions(g, next)
	return nil
}

// transitions makes an event of each condition that changed, and of a change of role.
func (r *NamespaceReconciler) transitions(g *v1alpha1.ConsistencyGroup, next v1alpha1.ConsistencyGroupStatus) {
	before := map[string]metav1.ConditionStatus{}
	for _, c := range g.Status.Conditions {
		before[c.Type] = c.Status
	}
	for _, c := range next.Conditions {
		if c.Status == before[c.Type] || before[c.Type] == "" && c.Status != metav1.ConditionFalse {
			continue
		}
		kind := corev1.EventTypeNormal
		if c.Status == metav1.ConditionFalse {
			kind = corev1.EventTypeWarning
		}
		r.event(g, kind, c.Type+string(c.Status), c.Message)
	}
	if g.Status.Role != "" && g.Status.Role != next.Role {
		r.event(g, corev1.EventTypeNormal, "RoleChanged", fmt.Sprintf("the role here was %s and is %s", g.Status.Role,
			next.Role))
	}
}

func (r *NamespaceReconciler) event(g *v1alpha1.ConsistencyGroup, kind, reason, message string) {
	r.Events.Eventf(g, nil, kind, reason, "Reconcile", "%s", kube.Cut(message))
}
