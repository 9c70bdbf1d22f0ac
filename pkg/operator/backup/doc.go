// Package backup makes the claims of a group wait at the other site. It is a part of the operator.
//
// At the site of the primary it tells the engine what the cluster knows of the members' claims (Teller). That travels
// over the link with the description of the member. At the site of the copy it makes a namespace, a PersistentVolume
// and a claim that is bound to it (Waiter), if the RemoteSite accepts claims. So an application's manifests work there
// unchanged after a failover, and neither cluster has credentials of the other.
//
// # What is accepted
//
// What the engine says of a claim comes from the other site and is checked by the engine for form
// (blockdev.ClaimRecord). Here is decided what may be made of it: namespaces that the RemoteSite lists, never kube-* or
// the operator's own, and StorageClasses of this cluster. Labels come by an allowlist. Nothing else of the other
// cluster's objects is taken over: no annotations, finalizers or owners.
//
// # What is changed
//
// An object that this package did not make, or that no longer has its label, is never changed. If such an object is in
// the way, the condition ClaimsPresent of the RemoteSite says so. Objects of a group that is primary here belong to
// this cluster: they are not followed any more. They are made once if this cluster has nothing of the group yet. An
// object is applied only if something differs.
//
// # What is removed
//
// The claim and the PersistentVolume of a volume that its primary took out of the group, if every node answers, the
// group is here as a secondary without the volume, and that is so at two looks with half a minute in between. The
// reclaim policy is Retain, so the copy on disk stays. Nothing else is removed.
//
// # Concurrency
//
// One goroutine runs a pass after another (Start). Nothing here is for concurrent use.
package backup
