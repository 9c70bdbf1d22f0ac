package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ConsistencyGroup is a set of claims of its namespace that are replicated together. The operator makes one for a
// namespace with the label slipstream.dev/replicate-to; a person can write others.
//
// The spec is intent. What the group is, above all its role, is in the status, and changes by GroupActions only.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=cg,categories=slipstream
// +kubebuilder:printcolumn:name=Role,type=string,JSONPath=`.status.role`
// +kubebuilder:printcolumn:name=State,type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name=Ready,type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name=Lag,type=string,JSONPath=`.status.lag.time`
// +kubebuilder:printcolumn:name=Members,type=string,JSONPath=`.status.membersReady`
// +kubebuilder:printcolumn:name=Remote,type=string,JSONPath=`.spec.remoteSite`
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name=Promotable,type=string,JSONPath=`.status.conditions[?(@.type=="Promotable")].status`,priority=1
// +kubebuilder:printcolumn:name=RPO,type=string,JSONPath=`.status.rpoTarget`,priority=1
// +kubebuilder:printcolumn:name=Next,type=string,JSONPath=`.status.nextStep`,priority=1
// +kubebuilder:selectablefield:JSONPath=`.spec.remoteSite`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="the name of a group has at most 63 characters"
type ConsistencyGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says which claims are replicated to where.
	Spec ConsistencyGroupSpec `json:"spec"`
	// status says what the group is.
	// +optional
	Status ConsistencyGroupStatus `json:"status,omitempty"`
}

// ConsistencyGroupSpec says which claims are replicated to where.
type ConsistencyGroupSpec struct {
	// remoteSite is the name of the RemoteSite that the group replicates to. A change copies everything anew and leaves
	// the copy at the present site behind. So the condition RemoteAsDeclared is False, and nothing is done, until the
	// annotation slipstream.dev/confirm-remote of this object has the new name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	RemoteSite string `json:"remoteSite"`
	// claims selects the claims. A claim with the label slipstream.dev/consistency-group belongs to the group that it
	// names; one with slipstream.dev/replicate: "false" to none. Of the others this group gets those that the selector
	// matches, and that no older group and none that a person wrote has. Absent: all.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'])",message="the operators of matchExpressions are In, NotIn, Exists and DoesNotExist"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, (e.operator in ['In', 'NotIn']) == (has(e.values) && e.values.size() > 0))",message="In and NotIn need values, and Exists and DoesNotExist have none"
	Claims *metav1.LabelSelector `json:"claims,omitempty"`
	// settings are settings of the group. What is absent comes from the defaults of the RemoteSite.
	// +optional
	Settings ReplicationSettings `json:"settings,omitempty"`
	// deletionPolicy says what becomes of the replication when this object, the label of its namespace or the namespace
	// is deleted, or when a claim leaves the group. Stop: the volumes leave the groups at the engine, which are deleted;
	// the copies at the remote site stay as they were. Keep: the groups at the engine go on replicating, and slipctl
	// manages them. Default: Stop.
	// +optional
	// +kubebuilder:default=Stop
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
	// writeOrder says which writes are ordered when members are on several nodes. Group: all of the group. The groups at
	// the engine are then shards of one group over several nodes, and a claim whose node cannot take part stays Pending.
	// Node: those of each node only. Absent: Group when the group grows to a second node, if all of its nodes can take
	// part, and Node otherwise; groups at the engine that are separate stay so. What was once made a shard stays one.
	// +optional
	WriteOrder WriteOrder `json:"writeOrder,omitempty"`
	// engineGroups are groups at the engine that this object stands for besides those that it has made itself: copies of
	// another site, or groups made by StorageClass parameters. All volumes of such a group have to belong to claims of
	// this namespace; of a copy, after the mapping of the RemoteSite. A group without volumes is taken over when it has
	// one.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	EngineGroups []string `json:"engineGroups,omitempty"`
}

// WriteOrder says which writes are ordered.
// +kubebuilder:validation:Enum=Group;Node
type WriteOrder string

// The values of WriteOrder.
const (
	WriteOrderGroup WriteOrder = "Group"
	WriteOrderNode  WriteOrder = "Node"
)

// DeletionPolicy says what becomes of the replication of what leaves a group.
// +kubebuilder:validation:Enum=Stop;Keep
type DeletionPolicy string

// The values of DeletionPolicy.
const (
	DeletionStop DeletionPolicy = "Stop"
	DeletionKeep DeletionPolicy = "Keep"
)

// Role is what a group is at this site.
// +kubebuilder:validation:Enum=Primary;Secondary;Mixed;Unknown
type Role string

// The roles. Mixed: groups at the engine have different roles; an action was interrupted. Unknown: no node answers, or
// a group cannot be opened.
const (
	RolePrimary   Role = "Primary"
	RoleSecondary Role = "Secondary"
	RoleMixed     Role = "Mixed"
	RoleUnknown   Role = "Unknown"
)

// ConsistencyGroupStatus says what the group is.
type ConsistencyGroupStatus struct {
	// observedGeneration is the generation of the spec that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// role of the group at this site: Primary, Secondary, Mixed, Unknown. Absent: there is no group at the engine yet.
	// +optional
	Role Role `json:"role,omitempty"`
	// state is the worst state of the groups at the engine: Streaming, Syncing, Connecting, Idle, Demoted, Trial,
	// Diverged, Failed, Unknown.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	State string `json:"state,omitempty"`
	// confirm is what a forced action has to repeat. It changes with the group's history.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Confirm string `json:"confirm,omitempty"`
	// nextStep is what a person should do, with the command. Empty: nothing.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	NextStep string `json:"nextStep,omitempty"`
	// lag is how far the copy is behind: of the group at the engine that is furthest behind. It is renewed every half a
	// minute while it changes; metrics have it exactly. Absent: unknown.
	// +optional
	Lag *Lag `json:"lag,omitempty"`
	// rpoTarget is the largest lag that is allowed, from this object or the RemoteSite.
	// +optional
	RPOTarget *metav1.Duration `json:"rpoTarget,omitempty"`
	// membersReady is how many of the selected claims are members: 3/4.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	MembersReady string `json:"membersReady,omitempty"`
	// engineGroups are the groups at the engine, one for each node with members.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=256
	EngineGroups []EngineGroup `json:"engineGroups,omitempty"`
	// shards says which group over several nodes the groups at the engine are shards of, and has their numbers. A number
	// is here before its shard is made. Absent: the group was never on several nodes, or each node has a separate order.
	// +optional
	Shards *Shards `json:"shards,omitempty"`
	// members are the selected claims.
	// +optional
	// +listType=map
	// +listMapKey=claim
	// +kubebuilder:validation:MaxItems=2048
	Members []Member `json:"members,omitempty"`
	// excluded are claims of the namespace that are in no group. One group of each namespace lists them.
	// +optional
	// +listType=map
	// +listMapKey=claim
	// +kubebuilder:validation:MaxItems=2048
	Excluded []Excluded `json:"excluded,omitempty"`
	// conditions: Ready, Allowed, MembersReady, WriteOrder, Promotable, PeerReachable, WithinRPO, Converged,
	// RemoteAsDeclared. All of them are good when they are True.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Shards are the numbers of the shards of a group over several nodes.
type Shards struct {
	// name of the group over several nodes, the same at both sites.
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name"`
	// numbers of the shards. None is ever used for another shard.
	// +optional
	// +listType=map
	// +listMapKey=number
	// +kubebuilder:validation:MaxItems=1024
	Numbers []ShardNumber `json:"numbers,omitempty"`
}

// ShardNumber is the number of one shard.
type ShardNumber struct {
	// number of the shard, the same at both sites.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Number int32 `json:"number"`
	// engineGroup is the name of the group at the engine that is the shard. Absent: a shard that no node tells of.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	EngineGroup string `json:"engineGroup,omitempty"`
}

// Lag is how far a copy is behind.
type Lag struct {
	// time: the copy lacks nothing that was written longer ago than this, in whole seconds.
	// +optional
	Time *metav1.Duration `json:"time,omitempty"`
	// bytes is how many bytes of writes the copy lacks.
	// +optional
	Bytes *int64 `json:"bytes,omitempty"`
	// writes is how many writes the copy lacks.
	// +optional
	Writes *int64 `json:"writes,omitempty"`
	// engineGroup is the group at the engine that is furthest behind in time. Of a group over several nodes the others
	// wait for it.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	EngineGroup string `json:"engineGroup,omitempty"`
}

// EngineGroup is a group at the engine of one node.
type EngineGroup struct {
	// name of the group at the engine, the same at both sites.
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// node that has the group.
	// +kubebuilder:validation:MaxLength=63
	Node string `json:"node"`
	// role of the group at this site.
	// +optional
	Role Role `json:"role,omitempty"`
	// state of the group, as in the status above.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	State string `json:"state,omitempty"`
	// reason is why the state is as it is.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Reason string `json:"reason,omitempty"`
	// timeline is the history of writes that the group is on.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Timeline string `json:"timeline,omitempty"`
	// promotable: a forced promotion would give one consistent instant.
	// +optional
	Promotable bool `json:"promotable,omitempty"`
	// syncPercent of a running first copy or resync. Absent: none runs.
	// +optional
	SyncPercent *int32 `json:"syncPercent,omitempty"`
	// loss is what the last forced promotion lost.
	// +optional
	Loss *Loss `json:"loss,omitempty"`
	// shard is the number that the group has in a group over several nodes; see status.shards.
	// +optional
	Shard *int32 `json:"shard,omitempty"`
}

// MemberState is how far a claim is on its way into the group.
// +kubebuilder:validation:Enum=Member;Pending;Joining;NeedsRestage;Failed;NodeSilent
type MemberState string

// The states of a member. Member: it is replicated. Pending: the claim is not bound. Joining: the operator has asked
// the engine and waits. NeedsRestage: the volume is not replicable; reason says what to do. Failed: reason says why.
// NodeSilent: the node of the volume does not answer.
const (
	MemberIn           MemberState = "Member"
	MemberPending      MemberState = "Pending"
	MemberJoining      MemberState = "Joining"
	MemberNeedsRestage MemberState = "NeedsRestage"
	MemberFailed       MemberState = "Failed"
	MemberNodeSilent   MemberState = "NodeSilent"
)

// Member is a claim of the group.
type Member struct {
	// claim is the name of the PersistentVolumeClaim. A volume whose claim is gone has the name of its volume here.
	// +kubebuilder:validation:MaxLength=253
	Claim string `json:"claim"`
	// volume is the id of the volume, its handle in the PersistentVolume.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Volume string `json:"volume,omitempty"`
	// node that holds the volume.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Node string `json:"node,omitempty"`
	// group at the engine that the volume is in.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Group string `json:"group,omitempty"`
	// sizeBytes of the volume at the engine.
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// state of the member.
	State MemberState `json:"state"`
	// reason says why the claim is not a member yet, and what to do.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
}

// Excluded is a claim that is not replicated.
type Excluded struct {
	// claim is the name of the PersistentVolumeClaim.
	// +kubebuilder:validation:MaxLength=253
	Claim string `json:"claim"`
	// reason is one word: the label reason of the metric slipstream_claims_unprotected.
	// +kubebuilder:validation:MaxLength=63
	Reason string `json:"reason"`
	// message explains the reason.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
}

// ConsistencyGroupList is a list of ConsistencyGroups.
//
// +kubebuilder:object:root=true
type ConsistencyGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ConsistencyGroup `json:"items"`
}
