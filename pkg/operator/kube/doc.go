// Package kube writes objects as all parts of the operator do: statuses and ConsistencyGroups by server-side apply
// (apply.go), finalizers by a patch of one version. It has the kinds that the operator knows (mapper.go), and the form
// of conditions and texts (text.go).
//
// Functions have no state.
package kube
