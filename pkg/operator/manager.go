package operator

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/slipstream-storage/slipstream/internal/kubewatch"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/action"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
	"github.com/slipstream-storage/slipstream/pkg/operator/schedule"
)

// leaseName is the Lease by which the leader is elected.
const leaseName = "slipstream-operator"

// reconcilers is how many namespaces are worked on at a time.
const reconcilers = 4

// actionsAtOnce is how many actions are carried out at a time.
const actionsAtOnce = 16

// Options configure a manager.
type Options struct {
	Config *rest.Config
	Engine engine.Replicators
	// LeaseNamespace is the namespace of the Lease; empty: this process is alone.
	LeaseNamespace string
	// HealthAddress serves /healthz and /readyz; empty: none.
	HealthAddress string
}

// NewManager wires the reconcilers. Start it.
func NewManager(opts Options) (manager.Manager, error) {
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	ctrl.SetLogger(klog.Background())
	mgr, err := ctrl.NewManager(opts.Config, ctrl.Options{
		Scheme: scheme, HealthProbeBindAddress: opts.HealthAddress,
		Metrics:        metricsserver.Options{BindAddress: "0"}, // served with a token by internal/metricsserver
		LeaderElection: opts.LeaseNamespace != "", LeaderElectionID: leaseName,
		LeaderElectionNamespace: opts.LeaseNamespace, LeaderElectionReleaseOnCancel: true,
		MapperProvider: kube.NewMapper(scheme),
		Cache:          cache.Options{DefaultTransform: cache.TransformStripManagedFields(), NewInformer: kubewatch.Informer},
		// Names of controllers are those of metrics; a process can have one manager after the other.
		Controller: config.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		return nil, err
	}
	if err := mgr.GetFieldIndexer().IndexField(context.Background(), &corev1.PersistentVolume{},
		membership.IndexVolumesByNamespace, membership.VolumeNamespace); err != nil {
		return nil, err
	}
	if opts.HealthAddress != "" {
		if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
			return nil, err
		}
		if err := mgr.AddReadyzCheck("ping", healthz.Ping); err != nil {
			return nil, err
		}
	}
	bell := &bell{reader: mgr.GetClient()}
	watcher := engine.NewWatcher(opts.Engine, bell.ring)
	if err := mgr.Add(watcher); err != nil {
		return nil, err
	}
	events := mgr.GetEventRecorder(v1alpha1.ManagedByOperator)
	namespaces := &NamespaceReconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Watcher: watcher, Events: events}
	if err := namespaces.setup(mgr, bell); err != nil {
		return nil, err
	}
	actions := &action.Reconciler{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Watcher: watcher, Events: events}
	// A relocation waits for the other site. It must not hold up the actions of other groups.
	if err := ctrl.NewControllerManagedBy(mgr).WithOptions(controller.Options{MaxConcurrentReconciles: actionsAtOnce}).
		For(&v1alpha1.GroupAction{},
			builder.WithPredicates(predicate.GenerationChangedPredicate{})).Complete(actions); err != nil {
		return nil, err
	}
	schedules := &schedule.Reconciler{Client: mgr.GetClient(), Events: events}
	toSchedule := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		name := o.GetLabels()[v1alpha1.LabelSchedule]
		if name == "" {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: o.GetNamespace(), Name: name}}}
	})
	if err := ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.GroupActionSchedule{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.GroupAction{}, toSchedule).Complete(schedules); err != nil {
		return nil, err
	}
	if err := mgr.Add(waiting(mgr, opts.LeaseNamespace, watcher)); err != nil {
		return nil, err
	}
	sites := &SiteReconciler{Client: mgr.GetClient()}
	toSite := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: o.(*v1alpha1.ConsistencyGroup).Spec.RemoteSite}}}
	})
	return mgr, ctrl.NewControllerManagedBy(mgr).For(&v1alpha1.RemoteSite{}).
		Watches(&v1alpha1.ConsistencyGroup{}, toSite).Complete(sites)
}

// setup has a namespace reconciled for everything that is in it or concerns it.
func (r *NamespaceReconciler) setup(mgr manager.Manager, bell *bell) error {
	byNamespace := func(name func(client.Object) string) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return requests(name(o))
		})
	}
	own := byNamespace(client.Object.GetNamespace)
	ofClaim := byNamespace(func(o client.Object) string {
		if names := membership.VolumeNamespace(o); len(names) > 0 {
			return names[0]
		}
		return ""
	})
	all := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) (all []reconcile.Request) {
		groups := &v1alpha1.ConsistencyGroupList{}
		if err := r.List(ctx, groups); err != nil {
			klog.ErrorS(err, "The ConsistencyGroups cannot be read")
			return nil
		}
		for _, g := range groups.Items {
			all = append(all, requests(g.Namespace)...)
		}
		return all
	})
	// Statuses are this reconciler's own work.
	spec := builder.WithPredicates(predicate.Or[client.Object](predicate.GenerationChangedPredicate{},
		predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{}))
	return ctrl.NewControllerManagedBy(mgr).Named("namespace").
		WithOptions(controller.Options{MaxConcurrentReconciles: reconcilers}).
		For(&corev1.Namespace{}).
		Watches(&corev1.PersistentVolumeClaim{}, own).
		Watches(&corev1.PersistentVolume{}, ofClaim).
		Watches(&v1alpha1.ConsistencyGroup{}, own, spec).
		Watches(&v1alpha1.RemoteSite{}, all, spec).
		Watches(&storagev1.StorageClass{}, all).
		WatchesRawSource(source.Func(bell.start)).
		Complete(r)
}

func requests(namespace string) []reconcile.Request {
	if namespace == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: namespace}}}
}

// bell has the namespaces reconciled whose groups changed at the engine.
type bell struct {
	reader client.Reader

	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
}

func (b *bell) start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = queue
	return nil
}

func (b *bell) ring(before, now *engine.View) {
	b.mu.Lock()
	queue := b.queue
	b.mu.Unlock()
	if queue == nil || !before.Known {
		return // everything is reconciled at the start
	}
	changed := engine.Changes(before, now)
	if len(changed) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	groups := &v1alpha1.ConsistencyGroupList{}
	if err := b.reader.List(ctx, groups); err != nil {
		klog.ErrorS(err, "The ConsistencyGroups cannot be read")
		return
	}
	for _, g := range groups.Items {
		if slices.ContainsFunc(g.Spec.EngineGroups, func(name string) bool { return changed[name] }) ||
			slices.ContainsFunc(g.Status.EngineGroups, func(e v1alpha1.EngineGroup) bool { return changed[e.Name] }) ||
			slices.ContainsFunc(g.Status.Members,
				func(m v1alpha1.Member) bool { return changed[engine.NodeKey(m.Node)] }) {
			queue.Add(requests(g.Namespace)[0])
		}
	}
}
