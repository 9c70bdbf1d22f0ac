package credentials

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

const (
	// ownLabel says that a Secret is of this package.
	ownLabel, ownValue = "app.kubernetes.io/managed-by", "slipstream-credentials"
	// changedAnnotation is the time of a Secret's last step.
	changedAnnotation = "slipstream.dev/changed"

	nextCertKey = "next.crt"
	nextKeyKey  = "next.key"
	// TokenKey is where the token of metrics' readers is in its Secret.
	TokenKey = "token"
)

// secrets are those of one namespace. Of client-go only the REST client is used, with a scheme of the core kinds.
type secrets struct {
	client    rest.Interface
	namespace string
}

func newSecrets(config *rest.Config, namespace string) (*secrets, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	c := rest.CopyConfig(config)
	c.GroupVersion, c.APIPath = &corev1.SchemeGroupVersion, "/api"
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, err
	}
	return &secrets{client: client, namespace: namespace}, nil
}

// get returns a Secret that this package made, or nil if the name is free. A Secret of another owner is an error.
func (s *secrets) get(ctx context.Context, name string) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	err := s.client.Get().Namespace(s.namespace).Resource("secrets").Name(name).Do(ctx).Into(secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read Secret %s/%s: %w", s.namespace, name, err)
	case secret.Labels[ownLabel] != ownValue:
		return nil, fmt.Errorf(
			"there is a Secret %s/%s that this program did not make (it lacks the label %s: %s), and it stays as it "+
				"is; delete it, or name it among the chart's values", s.namespace, name, ownLabel, ownValue)
	}
	return secret, nil
}

// put writes a Secret: anew where old is nil, else in place of that version of it and of no other.
func (s *secrets) put(ctx context.Context, name string, old *corev1.Secret, kind corev1.SecretType,
	data map[string][]byte, annotations map[string]string) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace,
		Labels: map[string]string{ownLabel: ownValue}}, Type: kind}
	request := s.client.Post()
	if old != nil {
		secret = old.DeepCopy()
		request = s.client.Put().Name(name)
	}
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	maps.Copy(secret.Annotations, annotations)
	secret.Data = data
	if err := request.Namespace(s.namespace).Resource("secrets").Body(secret).Do(ctx).Error(); err != nil {
		return fmt.Errorf("write Secret %s/%s: %w", s.namespace, name, err)
	}
	return nil
}

// sideOf is what a Secret has; nil for none. Without a time of its last step it counts as changed long ago.
func sideOf(secret *corev1.Secret) *side {
	if secret == nil {
		return nil
	}
	d := secret.Data
	s := &side{ca: d[tlsfiles.CAFile], cert: d[tlsfiles.CertFile], key: d[tlsfiles.KeyFile], nextCert: d[nextCertKey],
		nextKey: d[nextKeyKey]}
	if changed, err := time.Parse(time.RFC3339, secret.Annotations[changedAnnotation]); err == nil {
		s.changed = changed
	}
	return s
}

func (s *side) data() map[string][]byte {
	data := map[string][]byte{tlsfiles.CAFile: s.ca, tlsfiles.CertFile: s.cert, tlsfiles.KeyFile: s.key}
	if s.nextCert != nil {
		data[nextCertKey], data[nextKeyKey] = s.nextCert, s.nextKey
	}
	return data
}
