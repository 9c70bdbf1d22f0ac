package kubewatch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// refused is as net/http returns it.
var refused = &url.Error{Op: "Get", URL: "https://10.0.0.1", Err: &net.OpError{Op: "dial", Net: "tcp",
	Err: syscall.ECONNREFUSED}}

// server answers calls with these errors, one after the other, and then well.
type server struct {
	errs  []error
	calls int
}

func (s *server) next() error {
	s.calls++
	if len(s.errs) == 0 {
		return nil
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return err
}

func (s *server) listerWatcher() *patient {
	p := New(&cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return &corev1.PodList{}, s.next()
		},
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) {
			return watch.NewEmptyWatch(), s.next()
		}}).(*patient)
	p.interval = time.Millisecond
	return p
}

// TestReach: a server that cannot be reached is tried until it can, and client-go does not hear of it. What a server
// answers is passed on at once.
func TestReach(t *testing.T) {
	busy := apierrors.NewTooManyRequests("later", 1)
	away := []error{refused, fmt.Errorf("dial: %w", &net.DNSError{Name: "kubernetes"}),
		&url.Error{Op: "Get", Err: &net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}}}
	for name, tc := range map[string]struct {
		errs  []error
		want  error
		calls int
	}{
		"there":              {nil, nil, 1},
		"away":               {append(append(away, away...), away...), nil, 10},
		"busy":               {[]error{busy}, busy, 1},
		"away, then busy":    {[]error{refused, busy}, busy, 2},
		"ended while called": {[]error{syscall.ECONNRESET}, syscall.ECONNRESET, 1},
	} {
		t.Run(name, func(t *testing.T) {
			for what, call := range map[string]func(*patient) error{
				"list":  func(p *patient) error { _, err := p.List(metav1.ListOptions{}); return err },
				"watch": func(p *patient) error { _, err := p.Watch(metav1.ListOptions{}); return err },
			} {
				s := &server{errs: tc.errs}
				if err := call(s.listerWatcher()); !errors.Is(err, tc.want) || s.calls != tc.calls {
					t.Errorf("%s: %v after %d calls, want %v after %d", what, err, s.calls, tc.want, tc.calls)
				}
			}
		})
	}
}

// TestReachEnds: a call that is given up does not wait for the server.
func TestReachEnds(t *testing.T) {
	s := &server{errs: []error{refused, refused}}
	p := s.listerWatcher()
	p.interval = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := p.WatchWithContext(ctx, metav1.ListOptions{})
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("it ended with %v", err)
	}
}

// TestWatchList: client-go goes by the same as without this package.
func TestWatchList(t *testing.T) {
	plain := &cache.ListWatch{}
	if New(plain).(*patient).IsWatchListSemanticsUnSupported() {
		t.Error("watch-list is off for a plain client")
	}
	fake := cache.ToListWatcherWithWatchListSemantics(plain, withoutWatchList{})
	if !New(fake).(*patient).IsWatchListSemanticsUnSupported() {
		t.Error("watch-list is on for a client that cannot")
	}
}

type withoutWatchList struct{}

func (withoutWatchList) IsWatchListSemanticsUnSupported() bool { return true }
