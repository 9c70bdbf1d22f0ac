// Package v1alpha1 has the Kubernetes objects of Slipstream: RemoteSite and ConsistencyGroup, which say what is to be
// replicated to where, GroupAction, which is one deed on a group and its record, and GroupActionSchedule, which makes
// actions at fixed times.
//
// The operator (package operator) carries them out. The CustomResourceDefinitions of the chart are generated from the
// comments here, with the rules that the API server checks; `make generate` does so.
//
// A role is never a field of a spec: it is a result, in the status. So no tool that reverts fields can demote a group.
//
// +kubebuilder:object:generate=true
// +groupName=slipstream.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of the objects here.
var GroupVersion = schema.GroupVersion{Group: "slipstream.dev", Version: "v1alpha1"}

// AddToScheme adds the objects to a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion, &RemoteSite{}, &RemoteSiteList{}, &ConsistencyGroup{}, &ConsistencyGroupList{},
		&GroupAction{}, &GroupActionList{}, &GroupActionSchedule{}, &GroupActionScheduleList{})
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
