package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GroupAction is one deed on a ConsistencyGroup of its namespace. It is run once, cannot be changed, and is the record
// of what was done. Make it at the site that the deed is for: a Failover at the site that is to become primary.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=ga,categories=slipstream
// +kubebuilder:printcolumn:name=Group,type=string,JSONPath=`.spec.group`
// +kubebuilder:printcolumn:name=Type,type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name=Phase,type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name=RTO,type=string,JSONPath=`.status.result.rto`
// +kubebuilder:printcolumn:name=Loss,type=string,JSONPath=`.status.result.loss.text`,priority=1
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.spec == oldSelf.spec",message="an action is run once: make another one"
// +kubebuilder:selectablefield:JSONPath=`.spec.group`
type GroupAction struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says what is done to which group.
	Spec GroupActionSpec `json:"spec"`
	// status is the record of the action.
	// +optional
	Status GroupActionStatus `json:"status,omitempty"`
}

// GroupActionSpec says what is done to which group.
//
// +kubebuilder:validation:XValidation:rule="!has(self.force) || !self.force || self.type == 'Failover'",message="force is for Failover"
// +kubebuilder:validation:XValidation:rule="!has(self.force) || !self.force || has(self.confirm)",message="force needs confirm: the text of status.confirm of the ConsistencyGroup"
// +kubebuilder:validation:XValidation:rule="(self.type == 'Bookmark') == has(self.bookmark)",message="bookmark is the label of a Bookmark"
type GroupActionSpec struct {
	// group is the name of the ConsistencyGroup.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Group string `json:"group"`
	// type is what is done at this site. Failover: it becomes primary; without force only if the other site has demoted
	// itself and all of its writes are here. Demote: it stops being primary, for a planned move; no pod may use a claim
	// of the group, and the other site can then fail over without a loss. Suspend: it stops shipping; writes go on and
	// are kept for the other site. Resume: it ships again. Relocate: the other site becomes primary and this one follows
	// it, without a loss; no pod may use a claim of the group. Yield: after both sites took writes, this one gives way;
	// its own writes are kept as snapshots and undone. Reprotect: after a failover, this primary site waits until the
	// other site has a whole copy again; a suspended group is resumed. Verify: both sites are compared at one ordinal; it
	// fails if they differ. Bookmark: the present point gets a name, at both sites.
	Type ActionType `json:"type"`
	// force fails over although writes of the other site can be lost. The result says how many.
	// +optional
	Force bool `json:"force,omitempty"`
	// confirm is the text of status.confirm of the ConsistencyGroup. It changes with every change of the group's history,
	// so that an action that was written for an earlier state does nothing.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Confirm string `json:"confirm,omitempty"`
	// bookmark is the label that a Bookmark gives to the present point.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z][-a-z0-9.]{0,62}$`
	Bookmark string `json:"bookmark,omitempty"`
	// timeout is how long the action may take from its start. It fails when it waits for longer. What the engine has begun
	// by then is not taken back. Absent: it waits until it is deleted.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="longer than 0s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// ActionType is what a GroupAction does.
// +kubebuilder:validation:Enum=Failover;Demote;Suspend;Resume;Relocate;Yield;Reprotect;Verify;Bookmark
type ActionType string

// The types of actions.
const (
	ActionFailover  ActionType = "Failover"
	ActionDemote    ActionType = "Demote"
	ActionSuspend   ActionType = "Suspend"
	ActionResume    ActionType = "Resume"
	ActionRelocate  ActionType = "Relocate"
	ActionYield     ActionType = "Yield"
	ActionReprotect ActionType = "Reprotect"
	ActionVerify    ActionType = "Verify"
	ActionBookmark  ActionType = "Bookmark"
)

// ActionPhase is how far an action is.
// +kubebuilder:validation:Enum=Running;Succeeded;Failed
type ActionPhase string

// The phases of an action. The last two are final.
const (
	ActionRunning   ActionPhase = "Running"
	ActionSucceeded ActionPhase = "Succeeded"
	ActionFailed    ActionPhase = "Failed"
)

// GroupActionStatus is the record of an action.
type GroupActionStatus struct {
	// phase is Running, Succeeded or Failed. Absent: not begun.
	// +optional
	Phase ActionPhase `json:"phase,omitempty"`
	// message says why the action failed, or what it waits for.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Message string `json:"message,omitempty"`
	// startTime is when the operator began the action.
	// +optional
	StartTime *metav1.MicroTime `json:"startTime,omitempty"`
	// completionTime is when the operator ended the action.
	// +optional
	CompletionTime *metav1.MicroTime `json:"completionTime,omitempty"`
	// steps are what was done, in order.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=256
	Steps []ActionStep `json:"steps,omitempty"`
	// result is what was measured.
	// +optional
	Result *ActionResult `json:"result,omitempty"`
}

// ActionStep is one step of an action.
type ActionStep struct {
	// name of the step, and what it is done to.
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name"`
	// startTime of the step.
	StartTime metav1.MicroTime `json:"startTime"`
	// endTime of the step. Absent: it runs, or was interrupted.
	// +optional
	EndTime *metav1.MicroTime `json:"endTime,omitempty"`
	// message is what came of it.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Message string `json:"message,omitempty"`
	// before is what the engine showed before the step, for an operator that goes on after a restart.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Before string `json:"before,omitempty"`
}

// ActionResult is what an action measured.
type ActionResult struct {
	// rto, of a Failover, is the time from the creation of the action until the group could be used.
	// +optional
	RTO *metav1.Duration `json:"rto,omitempty"`
	// rpoTarget is the target that the group had.
	// +optional
	RPOTarget *metav1.Duration `json:"rpoTarget,omitempty"`
	// rtoTarget is the target that the group had.
	// +optional
	RTOTarget *metav1.Duration `json:"rtoTarget,omitempty"`
	// loss is what a forced failover lost, over all groups at the engine.
	// +optional
	Loss *Loss `json:"loss,omitempty"`
	// points are the ordinals that the action is about: of a bookmark, or that were compared.
	// +optional
	// +listType=map
	// +listMapKey=group
	// +kubebuilder:validation:MaxItems=256
	Points []ActionPoint `json:"points,omitempty"`
	// differences is how many extents of 64 KiB a Verify found to differ. Absent: no comparison has ended.
	// +optional
	Differences *int64 `json:"differences,omitempty"`
}

// ActionPoint is one ordinal of a group at the engine.
type ActionPoint struct {
	// group at the engine.
	// +kubebuilder:validation:MaxLength=63
	Group string `json:"group"`
	// ordinal in the order of the group's writes.
	Ordinal int64 `json:"ordinal"`
	// time of the ordinal by the clock of the primary. Absent: unknown.
	// +optional
	Time *metav1.MicroTime `json:"time,omitempty"`
}

// Loss says what a forced failover lost. A field that is absent is unknown, which is not zero.
type Loss struct {
	// exact: the old primary has come back and said what it had written. Otherwise the numbers are bounds.
	// +optional
	Exact bool `json:"exact,omitempty"`
	// writes is how many writes were lost.
	// +optional
	Writes *int64 `json:"writes,omitempty"`
	// bytes is how many bytes were lost.
	// +optional
	Bytes *int64 `json:"bytes,omitempty"`
	// time: everything that the old primary had written longer than this before the failover is here.
	// +optional
	Time *metav1.Duration `json:"time,omitempty"`
	// text explains the numbers.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Text string `json:"text,omitempty"`
}

// GroupActionList is a list of GroupActions.
//
// +kubebuilder:object:root=true
type GroupActionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GroupAction `json:"items"`
}
