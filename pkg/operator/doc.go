// Package operator replicates the claims of namespaces. It turns the intent of RemoteSite, ConsistencyGroup and the
// label of a namespace (pkg/api/v1alpha1) into groups at the engine, the replicators of the nodes.
//
// # What is where
//
//   - This package wires everything (NewManager). NamespaceReconciler works on one namespace at a time: it makes the
//     ConsistencyGroups that the labels ask for, calls the engine, and writes the status. The fault of one namespace
//     never touches another's. SiteReconciler writes the status of RemoteSites. Metrics are what the objects say.
//   - Package engine asks all nodes for their groups and keeps the last answers (View).
//   - Package membership decides which claims are replicated, and says of every claim whether it is protected, or why
//     not.
//   - Package plan decides, without a call, which claims belong to which group, what has to be done at the engine, the
//     numbers of shards, and the status and conditions that follow.
//   - Package action carries out GroupActions: failover, relocation, comparison, test failover and others. Package
//     drill has the objects of a test failover.
//   - Package schedule makes the actions of GroupActionSchedules.
//   - Package backup tells the engine what the cluster knows of claims, and makes claims of other sites wait here.
//   - Package kube writes statuses, finalizers and conditions for all of them.
//   - Package operatortest is for tests: a cluster and replicators in memory.
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
// One leader runs the reconcilers; each of them works on one object at a time.
package operator
