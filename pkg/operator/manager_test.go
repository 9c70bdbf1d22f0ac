package operator

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/internal/testkube"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

const patience = testkube.Patience

// counted counts the requests of a manager that change something.
type counted struct {
	http.RoundTripper
	writes *atomic.Int64
}

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		c.writes.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// run starts a manager on the site's engine; stop ends it.
func (s *site) run(t *testing.T, config *rest.Config) (writes *atomic.Int64, stop func()) {
	t.Helper()
	writes = &atomic.Int64{}
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return counted{next, writes} })
	mgr, err := NewManager(Options{Config: config, Engine: s})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	return writes, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > patience {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(start)
}

func isReady(g *v1alpha1.ConsistencyGroup) bool {
	return meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.ConditionReady)
}

// TestManager runs the operator as it is wired, on an API server.
func TestManager(t *testing.T) {
	config := testkube.Start(t, "../..")
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "a", "b", "c")
	s.Client = api
	ctx := context.Background()
	s.Create(operatortest.Remote("site-b"))
	_, stop := s.run(t, config)

	t.Run("label", func(t *testing.T) {
		s.Create(operatortest.Labelled("shop"))
		id := s.Claim("shop", "data", "a")
		took := eventually(t, "the group is ready", func() bool {
			g := &v1alpha1.ConsistencyGroup{}
			return api.Get(ctx, client.ObjectKey{Namespace: "shop", Name: "shop"}, g) == nil && isReady(g)
		})
		t.Logf("ready %v after the claim", took.Round(time.Millisecond))
		s.WantEngine(map[string][]string{"a/shop": {id}})
	})

	t.Run("action", func(t *testing.T) {
		for _, n := range s.Nodes {
			n.Mu.Lock()
			for _, g := range n.Groups {
				g.Role = sidecarpb.Role_ROLE_SECONDARY
			}
			n.Mu.Unlock()
		}
		g := &v1alpha1.ConsistencyGroup{}
		eventually(t, "the status says secondary", func() bool {
			return api.Get(ctx, client.ObjectKey{Namespace: "shop", Name: "shop"}, g) == nil &&
				g.Status.Role == v1alpha1.RoleSecondary
		})
		action := &v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "failover"},
			Spec: v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionFailover, Force: true, Confirm: g.Status.Confirm}}
		s.Create(action)
		eventually(t, "the action ends", func() bool {
			return api.Get(ctx, client.ObjectKeyFromObject(action), action) == nil &&
				action.Status.Phase == v1alpha1.ActionSucceeded
		})
		if r := action.Status.Result; r == nil || r.RTO == nil || r.Loss == nil || len(action.Status.Steps) != 1 ||
			action.Status.Steps[0].EndTime == nil {
			t.Errorf("status: %+v", action.Status)
		}
		action.Spec.Force = false
		if err := api.Update(ctx, action); !apierrors.IsInvalid(err) {
			t.Errorf("an action was changed: %v", err)
		}
		eventually(t, "the status says primary", func() bool {
			return api.Get(ctx, client.ObjectKey{Namespace: "shop", Name: "shop"}, g) == nil &&
				g.Status.Role == v1alpha1.RolePrimary
		})
	})

	t.Run("unlabel", func(t *testing.T) {
		namespace := &corev1.Namespace{}
		s.Get(namespace, "", "shop")
		delete(namespace.Labels, v1alpha1.LabelReplicateTo)
		s.Update(namespace)
		eventually(t, "the group is gone", func() bool {
			return apierrors.IsNotFound(api.Get(ctx, client.ObjectKey{Namespace: "shop", Name: "shop"},
				&v1alpha1.ConsistencyGroup{}))
		})
		s.WantEngine(map[string][]string{})
	})

	t.Run("many", func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes minutes")
		}
		const namespaces = 300
		var group errgroup.Group
		group.SetLimit(8)
		for n := range namespaces {
			group.Go(func() error {
				name := fmt.Sprintf("ns-%d", n)
				s.Create(operatortest.Labelled(name))
				for c := range 3 {
					s.Claim(name, fmt.Sprintf("claim-%d", c), string(rune('a'+n%3)))
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		ready := func() bool {
			groups := &v1alpha1.ConsistencyGroupList{}
			if err := api.List(ctx, groups); err != nil || len(groups.Items) != namespaces {
				return false
			}
			for i := range groups.Items {
				if g := &groups.Items[i]; !isReady(g) || g.Status.MembersReady != "3/3" {
					return false
				}
			}
			return true
		}
		t.Logf("%d namespaces are ready %v after the last was made", namespaces, eventually(t, "all are ready", ready))
		stop()
		for _, n := range s.Nodes {
			n.Took()
		}
		// A new process finds everything as it should be.
		var writes *atomic.Int64
		writes, stop = s.run(t, config)
		time.Sleep(figuresInterval + 10*time.Second)
		if n := writes.Load(); n > 0 {
			t.Errorf("%d requests that change something in a steady state", n)
		}
		for name, n := range s.Nodes {
			if calls := n.Took(); len(calls) > 0 {
				t.Errorf("node %s: calls in a steady state: %.3v", name, calls)
			}
		}
	})
	stop()
}
