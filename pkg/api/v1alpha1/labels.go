package v1alpha1

// Labels and annotations.
const (
	// LabelReplicateTo on a Namespace names the RemoteSite that all claims of the namespace are replicated to.
	LabelReplicateTo = "slipstream.dev/replicate-to"
	// LabelReplicate with the value "false" on a claim keeps the claim out of every group.
	LabelReplicate = "slipstream.dev/replicate"
	// LabelConsistencyGroup on a claim names the ConsistencyGroup of its namespace that the claim belongs to, whatever
	// the group selects.
	LabelConsistencyGroup = "slipstream.dev/consistency-group"
	// LabelRemoteSite on an object that the operator has made for a copy names the site that the copy comes from.
	LabelRemoteSite = "slipstream.dev/remote-site"
	// LabelTestOf on a Namespace that the operator has made for a test failover names the namespace that is tried. Claims
	// and volumes of the test have it, too.
	LabelTestOf = "slipstream.dev/test-of"
	// LabelTestAction on the objects of a test failover has the uid of the GroupAction.
	LabelTestAction = "slipstream.dev/test-action"
	// LabelSchedule on a GroupAction names the GroupActionSchedule that made it.
	LabelSchedule = "slipstream.dev/schedule"
	// LabelManagedBy has the value ManagedByOperator on objects that the operator has made and may delete.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// AnnotationEndTest on a GroupAction of a test failover ends the test, whatever spec.test.keepFor says.
	AnnotationEndTest = "slipstream.dev/end-test"
	// AnnotationConfirmRemote on a ConsistencyGroup names the RemoteSite that the group may change to although the copy
	// at the present site is given up by that.
	AnnotationConfirmRemote = "slipstream.dev/confirm-remote"
)

// ManagedByOperator is the value of LabelManagedBy, and the operator's field owner.
const ManagedByOperator = "slipstream-operator"

// FinalizerGroup is on a ConsistencyGroup that has groups at the engine. It is removed without asking the peer.
const FinalizerGroup = "slipstream.dev/engine-groups"

// FinalizerTest is on a GroupAction whose test failover has objects or views that are to be removed.
const FinalizerTest = "slipstream.dev/test-failover"

// StepKeep is the step of a test failover in which its namespace is kept for a person.
const StepKeep = "Keep"

// Condition types. All of them are good when they are True.
const (
	// ConditionReady summarizes the others: every selected claim is a member and has a copy that can be promoted.
	ConditionReady = "Ready"
	// ConditionAllowed: the RemoteSite exists and admits the namespace.
	ConditionAllowed = "Allowed"
	// ConditionMembersReady: every selected claim is a member at the engine.
	ConditionMembersReady = "MembersReady"
	// ConditionWriteOrder: all members are in one order of writes.
	ConditionWriteOrder = "WriteOrder"
	// ConditionPromotable: a forced promotion would give one consistent instant.
	ConditionPromotable = "Promotable"
	// ConditionPeerReachable: the engine is connected to the peer.
	ConditionPeerReachable = "PeerReachable"
	// ConditionWithinRPO: the copy lags less than the target.
	ConditionWithinRPO = "WithinRPO"
	// ConditionConverged: both sites have one history. False: they have diverged.
	ConditionConverged = "Converged"
	// ConditionRemoteAsDeclared: the engine replicates to the RemoteSite of the spec.
	ConditionRemoteAsDeclared = "RemoteAsDeclared"
	// ConditionOnTime of a GroupActionSchedule: the last success is recent enough.
	ConditionOnTime = "OnTime"
	// ConditionReachable of a RemoteSite: every group that replicates to the site is connected to it.
	ConditionReachable = "Reachable"
	// ConditionClaimsPresent of a RemoteSite: what waits here for the site's copies is complete. False: see its reasons.
	ConditionClaimsPresent = "ClaimsPresent"
)

// Reasons of ConditionClaimsPresent.
const (
	// ReasonAllPresent: each claim of the site that is to wait here does, or there is none.
	ReasonAllPresent = "AllPresent"
	// ReasonClaimConflict: an object that the operator did not make is in the way. It is left as it is.
	ReasonClaimConflict = "ClaimConflict"
	// ReasonNotAccepted: the RemoteSite does not accept a claim, or no site may make it.
	ReasonNotAccepted = "NotAccepted"
	// ReasonStorageClassMissing: a claim's StorageClass does not exist in this cluster.
	ReasonStorageClassMissing = "StorageClassMissing"
	// ReasonFailed: the API server refused an object.
	ReasonFailed = "Failed"
)
