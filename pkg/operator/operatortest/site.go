package operatortest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
	"github.com/slipstream-storage/slipstream/pkg/router"
)

// Site is a cluster in memory with its reconcilers.
type Site struct {
	T       *testing.T
	Client  client.Client
	Nodes   map[string]*Node
	Watcher *engine.Watcher
	// Namespaces and Actions are the reconcilers; start makes them.
	Namespaces, Actions reconcile.Reconciler
	Events              *events.FakeRecorder
	Clock               time.Time
	// Writes are the calls of the API server that change something.
	Writes []string
	// Down: the API server refuses everything.
	Down bool
	// Death ends the operator at one of its calls; nil: it lives.
	Death *Death

	start func(*Site)
}

// All implements engine.Replicators.
func (s *Site) All() (all []router.Replicator, err error) {
	for name, n := range s.Nodes {
		var client sidecarpb.SidecarClient = n
		if s.Death != nil {
			client = sidecarpb.NewSidecarClient(&dyingConn{n, s.Death})
		}
		all = append(all, router.Replicator{Node: name, Client: client})
	}
	return all, nil
}

// New returns a cluster with these nodes. start makes the reconcilers of a new process; it is called now, and by Reset.
func New(t *testing.T, start func(*Site), nodes ...string) *Site {
	t.Helper()
	s := &Site{T: t, Nodes: map[string]*Node{}, Events: events.NewFakeRecorder(100000),
		Clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), start: start}
	for _, name := range nodes {
		s.Nodes[name] = &Node{Groups: map[string]*sidecarpb.GroupStatus{}, Claims: map[string][2]string{},
			Fail: map[string]error{}, Bookmarks: map[string][]*sidecarpb.Bookmark{},
			Views: map[string]*sidecarpb.View{}}
	}
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	note := func(verb string, name string, do func() error) error {
		s.Writes = append(s.Writes, verb+" "+name)
		if s.Down {
			return fmt.Errorf("the API server is away")
		}
		return s.Death.around(verb+" "+name, do)
	}
	s.Client = fake.NewClientBuilder().WithScheme(scheme).
		WithStatusSubresource(&v1alpha1.ConsistencyGroup{}, &v1alpha1.GroupAction{}, &v1alpha1.RemoteSite{},
			&v1alpha1.GroupActionSchedule{}).
		WithIndex(&corev1.PersistentVolume{}, membership.IndexVolumesByNamespace, membership.VolumeNamespace).
		WithInterceptorFuncs(interceptor.Funcs{
			Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration,
				opts ...client.ApplyOption) error {
				return note("apply", "", func() error { return c.Apply(ctx, o, opts...) })
			},
			SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration,
				opts ...client.SubResourceApplyOption) error {
				return note("apply", sub, func() error { return c.SubResource(sub).Apply(ctx, o, opts...) })
			},
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if s.Death == nil { // also of the tests
					return c.Create(ctx, o, opts...)
				}
				return note("create", o.GetName(), func() error { return c.Create(ctx, o, opts...) })
			},
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch,
				opts ...client.PatchOption) error {
				return note("patch", o.GetName(), func() error { return c.Patch(ctx, o, p, opts...) })
			},
			Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
				return note("delete", o.GetName(), func() error { return c.Delete(ctx, o, opts...) })
			},
		}).Build()
	s.Watcher = engine.NewWatcher(s, func(_, _ *engine.View) {})
	s.Reset()
	return s
}

// Reset is a restart of the operator.
func (s *Site) Reset() { s.start(s) }

// Now is the clock of the reconcilers.
func (s *Site) Now() time.Time { return s.Clock }

// Create makes objects.
func (s *Site) Create(objects ...client.Object) {
	s.T.Helper()
	for _, o := range objects {
		if err := s.Client.Create(context.Background(), o); err != nil {
			s.T.Fatal(err)
		}
	}
}

// Get reads an object.
func (s *Site) Get(o client.Object, namespace, name string) {
	s.T.Helper()
	if err := s.Client.Get(context.Background(), types.NamespacedName{Namespace: namespace, Name: name},
		o); err != nil {
		s.T.Fatal(err)
	}
}

// Update writes an object.
func (s *Site) Update(o client.Object) {
	s.T.Helper()
	if err := s.Client.Update(context.Background(), o); err != nil {
		s.T.Fatal(err)
	}
}

// Settle reconciles a namespace as often as its watches would, with looks at the engine in between.
func (s *Site) Settle(namespace string) {
	s.T.Helper()
	for range 5 {
		s.Watcher.Look(context.Background())
		request := ctrl.Request{NamespacedName: types.NamespacedName{Name: namespace}}
		if _, err := s.Namespaces.Reconcile(context.Background(), request); err != nil {
			s.T.Fatal(err)
		}
	}
}

// Group returns a ConsistencyGroup.
func (s *Site) Group(namespace, name string) *v1alpha1.ConsistencyGroup {
	s.T.Helper()
	g := &v1alpha1.ConsistencyGroup{}
	s.Get(g, namespace, name)
	return g
}

// Engine returns the volumes of all groups of all nodes, by group without the digest of its name.
func (s *Site) Engine() map[string][]string {
	all := map[string][]string{}
	for name, n := range s.Nodes {
		n.Mu.Lock()
		for _, g := range n.Groups {
			readable := g.GetName()
			if i := strings.LastIndex(readable, "-"); i > 0 {
				readable = readable[:i]
			}
			key := name + "/" + readable
			all[key] = append(all[key], []string{}...)
			for _, v := range g.GetVolumes() {
				all[key] = append(all[key], v.GetVolumeId())
			}
			slices.Sort(all[key])
		}
		n.Mu.Unlock()
	}
	return all
}
