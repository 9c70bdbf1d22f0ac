package kube

import (
	"context"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// Field owners of what the operator applies. Each applies always the same fields, so that what one applies never
// removes what another one did.
const (
	ownerSpec   = v1alpha1.ManagedByOperator
	ownerStatus = v1alpha1.ManagedByOperator + "-status"
)

func configuration(kind, namespace, name string, fields map[string]any) runtime.ApplyConfiguration {
	u := &unstructured.Unstructured{Object: fields}
	u.SetAPIVersion(v1alpha1.GroupVersion.String())
	u.SetKind(kind)
	u.SetName(name)
	if namespace != "" {
		u.SetNamespace(namespace)
	}
	return client.ApplyConfigurationFromUnstructured(u)
}

// ApplyGroup writes a ConsistencyGroup that a label asks for.
func ApplyGroup(ctx context.Context, c client.Client, namespace, name, site string) error {
	spec := map[string]any{"remoteSite": site}
	if name != namespace {
		spec["claims"] = map[string]any{"matchLabels": map[string]any{v1alpha1.LabelConsistencyGroup: name}}
	}
	return c.Apply(ctx, configuration("ConsistencyGroup", namespace, name, map[string]any{
		"metadata": map[string]any{"labels": map[string]any{v1alpha1.LabelManagedBy: v1alpha1.ManagedByOperator}},
		"spec":     spec,
	}), client.FieldOwner(ownerSpec), client.ForceOwnership)
}

// PatchFinalizer adds or removes a finalizer of the operator. It is not applied: what one applies and another one has
// written, too, such as a tool that restores objects, could not be removed. The version makes it an error if the object
// has changed.
func PatchFinalizer(ctx context.Context, c client.Client, o client.Object, finalizer string, present bool) error {
	next := o.DeepCopyObject().(client.Object)
	if present {
		controllerutil.AddFinalizer(next, finalizer)
	} else {
		controllerutil.RemoveFinalizer(next, finalizer)
	}
	err := c.Patch(ctx, next, client.MergeFromWithOptions(o, client.MergeFromWithOptimisticLock{}),
		client.FieldOwner(ownerSpec))
	o.SetFinalizers(next.GetFinalizers())
	o.SetResourceVersion(next.GetResourceVersion())
	return client.IgnoreNotFound(err)
}

// ApplyStatus writes a status of one of our kinds. status is the typed one.
func ApplyStatus(ctx context.Context, c client.Client, kind string, o client.Object, status any) error {
	return ApplyStatusAt(ctx, c, kind, o, "", status)
}

// ApplyStatusAt is ApplyStatus that fails with a conflict if the object has another version; "" for any.
func ApplyStatusAt(ctx context.Context, c client.Client, kind string, o client.Object, version string,
	status any) error {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return err
	}
	metadata := map[string]any{"uid": string(o.GetUID())}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	return c.Status().Apply(ctx, configuration(kind, o.GetNamespace(), o.GetName(), map[string]any{
		"metadata": metadata, "status": fields}),
		client.FieldOwner(ownerStatus), client.ForceOwnership)
}
