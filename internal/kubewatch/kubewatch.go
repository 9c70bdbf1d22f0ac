// Package kubewatch makes watches of the API server come back soon after an outage.
//
// Client-go waits longer after each failed attempt, 30 to 60 seconds after six of them, each watch for itself. After an
// outage of a minute a program would work with old objects for up to a minute more. A server that is not there has no
// load from being asked more often, so here it is tried about once a second. What a server answers, also errors, is
// left to client-go.
//
// What New returns may be used concurrently, as the ListerWatcher below it.
package kubewatch

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
)

// interval is the time between two attempts; the next one is up to as much later.
const interval = time.Second

// New returns a ListerWatcher whose calls wait until the API server can be reached.
func New(lw cache.ListerWatcher) cache.ListerWatcher {
	return &patient{lw: cache.ToListerWatcherWithContext(lw),
		noWatchList: watchlist.DoesClientNotSupportWatchListSemantics(lw), interval: interval}
}

// Informer makes an informer with such a ListerWatcher. It is for the caches of controller-runtime.
func Informer(lw cache.ListerWatcher, object runtime.Object, resync time.Duration,
	indexers cache.Indexers) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(New(lw), object, resync, indexers)
}

type patient struct {
	lw cache.ListerWatcherWithContext
	// noWatchList: lists come page by page.
	noWatchList bool
	interval    time.Duration
}

// List implements cache.Lister.
func (p *patient) List(options metav1.ListOptions) (runtime.Object, error) {
	return p.ListWithContext(context.Background(), options)
}

// Watch implements cache.Watcher.
func (p *patient) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return p.WatchWithContext(context.Background(), options)
}

// ListWithContext implements cache.ListerWithContext.
func (p *patient) ListWithContext(ctx context.Context, options metav1.ListOptions) (list runtime.Object, err error) {
	err = p.reach(ctx, func() error {
		list, err = p.lw.ListWithContext(ctx, options)
		return err
	})
	return list, err
}

// WatchWithContext implements cache.WatcherWithContext.
func (p *patient) WatchWithContext(ctx context.Context, options metav1.ListOptions) (w watch.Interface, err error) {
	err = p.reach(ctx, func() error {
		w, err = p.lw.WatchWithContext(ctx, options)
		return err
	})
	return w, err
}

// IsWatchListSemanticsUnSupported tells client-go what the ListerWatcher below would.
func (p *patient) IsWatchListSemanticsUnSupported() bool { return p.noWatchList }

// reach repeats a call until it reaches the server, or ctx ends.
func (p *patient) reach(ctx context.Context, call func() error) error {
	for away := false; ; away = true {
		err := call()
		if !unreachable(err) || ctx.Err() != nil {
			return err
		}
		if !away {
			klog.V(2).InfoS("The API server cannot be reached; it is tried until it can", "err", err)
		}
		if !pause.For(ctx, p.interval+rand.N(p.interval)) {
			return err
		}
	}
}

// unreachable reports that nothing answered: the connection was not made.
func unreachable(err error) bool {
	var dial *net.OpError
	var name *net.DNSError
	return utilnet.IsConnectionRefused(err) || errors.As(err, &dial) && dial.Op == "dial" || errors.As(err, &name)
}
