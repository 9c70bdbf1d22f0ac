package kube

import (
	"net/http"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// kinds are those that the operator reads and writes.
var kinds = []struct {
	object client.Object
	scope  meta.RESTScope
}{
	{&corev1.Namespace{}, meta.RESTScopeRoot},
	{&corev1.PersistentVolume{}, meta.RESTScopeRoot},
	{&corev1.PersistentVolumeClaim{}, meta.RESTScopeNamespace},
	{&corev1.Pod{}, meta.RESTScopeNamespace},
	{&storagev1.StorageClass{}, meta.RESTScopeRoot},
	{&batchv1.Job{}, meta.RESTScopeNamespace},
	{&networkingv1.NetworkPolicy{}, meta.RESTScopeNamespace},
	{&v1alpha1.RemoteSite{}, meta.RESTScopeRoot},
	{&v1alpha1.ConsistencyGroup{}, meta.RESTScopeNamespace},
	{&v1alpha1.GroupAction{}, meta.RESTScopeNamespace},
	{&v1alpha1.GroupActionSchedule{}, meta.RESTScopeNamespace},
}

// Scheme has the objects that the operator reads and writes.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return scheme, v1alpha1.AddToScheme(scheme)
}

// NewMapper knows the kinds without asking the API server. So an operator that starts while the API server is away does
// not end, and Kubernetes does not let it wait longer after each attempt. Other kinds are looked up.
func NewMapper(scheme *runtime.Scheme) func(*rest.Config, *http.Client) (meta.RESTMapper, error) {
	return func(config *rest.Config, c *http.Client) (meta.RESTMapper, error) {
		known := meta.NewDefaultRESTMapper(nil)
		for _, kind := range kinds {
			gvk, err := apiutil.GVKForObject(kind.object, scheme)
			if err != nil {
				return nil, err
			}
			known.Add(gvk, kind.scope)
		}
		asked, err := apiutil.NewDynamicRESTMapper(config, c)
		if err != nil {
			return nil, err
		}
		return meta.FirstHitRESTMapper{MultiRESTMapper: meta.MultiRESTMapper{known, asked}}, nil
	}
}
