package credentials

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// Options say which Secrets there should be.
type Options struct {
	Namespace string
	// NodeSecret and ControllerSecret get certificates; both or neither.
	NodeSecret, ControllerSecret string
	// MetricsSecret gets the token of metrics' readers; empty: none is made.
	MetricsSecret string
	// Validity of new certificates. They are renewed when a third of it is left.
	Validity time.Duration
}

// Check finds out what would not work, before any call.
func (o Options) Check() error {
	switch {
	case o.Namespace == "":
		return errors.New("the namespace of the Secrets is missing")
	case (o.NodeSecret == "") != (o.ControllerSecret == ""):
		return errors.New("the nodes' Secret and the controller's belong together: name both or neither")
	case o.NodeSecret == "" && o.MetricsSecret == "":
		return errors.New("no Secret is named")
	case o.NodeSecret != "" &&
		(o.NodeSecret == o.ControllerSecret || o.NodeSecret == o.MetricsSecret || o.ControllerSecret == o.MetricsSecret):
		return errors.New("two of the Secrets have one name")
	case o.Validity < minValidity:
		return fmt.Errorf(
			"certificates that are valid for %v could end before a daily run renews them: want at least %v", o.Validity,
			minValidity)
	}
	return nil
}

// minValidity leaves a daily run several days for the three steps.
const minValidity = 30 * 24 * time.Hour

// attempts is how often a run begins again because another writer wrote at the same time.
const attempts = 5

// Run makes or renews what is due. It may be repeated, and be ended at any time. An error says which Secret is as it
// was; the next run goes on from there.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	if err := o.Check(); err != nil {
		return err
	}
	s, err := newSecrets(config, o.Namespace)
	if err != nil {
		return err
	}
	return run(ctx, s, o, time.Now())
}

func run(ctx context.Context, s *secrets, o Options, now time.Time) error {
	var err error
	for range attempts {
		if err = ensure(ctx, s, o, now); !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return err
}

func ensure(ctx context.Context, s *secrets, o Options, now time.Time) error {
	if o.MetricsSecret != "" {
		if err := ensureToken(ctx, s, o.MetricsSecret, now); err != nil {
			return err
		}
	}
	if o.NodeSecret == "" {
		return nil
	}
	node, err := s.get(ctx, o.NodeSecret)
	if err != nil {
		return err
	}
	controller, err := s.get(ctx, o.ControllerSecret)
	if err != nil {
		return err
	}
	next, done, err := plan(pair{sideOf(node), sideOf(controller)}, now, o.Validity)
	if err != nil || done == none {
		return err
	}
	for _, w := range []struct {
		name string
		old  *corev1.Secret
		side *side
	}{{o.NodeSecret, node, next.node}, {o.ControllerSecret, controller, next.controller}} {
		at := map[string]string{changedAnnotation: w.side.changed.UTC().Format(time.RFC3339)}
		if err := s.put(ctx, w.name, w.old, corev1.SecretTypeTLS, w.side.data(), at); err != nil {
			return err
		}
	}
	klog.InfoS("Changed certificates", "step", string(done), "node", o.NodeSecret, "controller", o.ControllerSecret)
	return nil
}

// ensureToken makes a token if none exists. It is never replaced: delete the Secret to get another one.
func ensureToken(ctx context.Context, s *secrets, name string, now time.Time) error {
	old, err := s.get(ctx, name)
	if err != nil || old != nil && len(old.Data[TokenKey]) > 0 {
		return err
	}
	at := map[string]string{changedAnnotation: now.UTC().Format(time.RFC3339)}
	if err := s.put(ctx, name, old, corev1.SecretTypeOpaque, map[string][]byte{TokenKey: []byte(rand.Text())},
		at); err != nil {
		return err
	}
	klog.InfoS("Made the token for readers of metrics", "secret", name)
	return nil
}
