package membership

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// IndexVolumesByNamespace is the index of PersistentVolumes of the driver by the namespace of their claim.
const IndexVolumesByNamespace = "claimNamespace"

// VolumeNamespace is the function of the index.
func VolumeNamespace(o client.Object) []string {
	volume, ok := o.(*corev1.PersistentVolume)
	if !ok || volume.Spec.CSI == nil || volume.Spec.ClaimRef == nil {
		return nil
	}
	return []string{volume.Spec.ClaimRef.Namespace}
}

// Read reads the objects of a namespace, from a cache that has the index.
func Read(ctx context.Context, c client.Reader, name string) (*Objects, error) {
	groups, claims := &v1alpha1.ConsistencyGroupList{}, &corev1.PersistentVolumeClaimList{}
	sites, volumes, classes := &v1alpha1.RemoteSiteList{}, &corev1.PersistentVolumeList{}, &storagev1.StorageClassList{}
	for _, list := range []struct {
		objects client.ObjectList
		options []client.ListOption
	}{
		{groups, []client.ListOption{client.InNamespace(name)}}, {claims, []client.ListOption{client.InNamespace(name)}},
		{sites, nil}, {volumes, []client.ListOption{client.MatchingFields{IndexVolumesByNamespace: name}}}, {classes, nil},
	} {
		if err := c.List(ctx, list.objects, list.options...); err != nil {
			return nil, err
		}
	}
	in := newObjects(sites, classes)
	namespace := &corev1.Namespace{}
	switch err := c.Get(ctx, client.ObjectKey{Name: name}, namespace); {
	case err == nil:
		in.Namespace = namespace
	case !apierrors.IsNotFound(err):
		return nil, err
	}
	for i := range groups.Items {
		in.Groups = append(in.Groups, &groups.Items[i])
	}
	for i := range claims.Items {
		in.Claims = append(in.Claims, &claims.Items[i])
	}
	for i := range volumes.Items {
		in.Volumes[volumes.Items[i].Name] = &volumes.Items[i]
	}
	return in, nil
}

// newObjects has what is the same for all namespaces.
func newObjects(sites *v1alpha1.RemoteSiteList, classes *storagev1.StorageClassList) *Objects {
	in := &Objects{Sites: map[string]*v1alpha1.RemoteSite{}, Volumes: map[string]*corev1.PersistentVolume{},
		Provisioners: map[string]string{}}
	for i := range sites.Items {
		in.Sites[sites.Items[i].Name] = &sites.Items[i]
	}
	for _, class := range classes.Items {
		in.Provisioners[class.Name] = class.Provisioner
	}
	return in
}
