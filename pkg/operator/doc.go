// Package operator replicates the claims of namespaces. It turns the intent of RemoteSite, ConsistencyGroup and the
// label of a namespace (pkg/api/v1alpha1) into groups at the engine, the replicators of the nodes, and carries out
// GroupActions.
//
// # Parts
//
//   - Watcher asks all nodes for their groups every two seconds and keeps the last answers (View).
//   - Plan decides, without I/O, which claims belong to which group, which do not and why, and what has to be done at
//     the engine. Status and conditions are made of its result in the same way.
//   - NamespaceReconciler does it, for one namespace at a time: makes the ConsistencyGroups that the labels ask for,
//     calls the engine, writes the status. The fault of one namespace never touches another's.
//   - ActionReconciler carries out GroupActions, step by step; each step is in the status before the next begins.
//   - SiteReconciler writes the status of RemoteSites.
//   - Package backup tells the engine what the cluster knows of claims, and makes claims of other sites wait here.
//   - Coverage says of every claim of the cluster whether it is protected, or why not.
//
// # What is removed
//
// Nothing is removed at the engine because an object is missing. A ConsistencyGroup ends by its deletionTimestamp. A
// volume leaves its group if its claim is there and says so, or if its PersistentVolume is there, released, and its
// claim was found missing twice, with half a minute between, the second time by asking the API server. A volume without
// PersistentVolume stays: the volume of a deleted PersistentVolume leaves its group when the driver deletes it, so this
// one is there because the cluster's objects are from an earlier time.
//
// # Writes
//
// Objects are written by server-side apply, with the operator's own fields, and only if something differs. Roles are
// never written: they are results.
//
// # Concurrency
//
// One leader runs the reconcilers; each of them works on one object at a time. Watcher and View are safe for concurrent
// use.
package operator
