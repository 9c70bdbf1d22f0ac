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
// +kubebuilder:validation:XValidation:rule="!has(self.test) || self.type == 'TestFailover'",message="test is for TestFailover"
// +kubebuilder:validation:XValidation:rule="!has(self.recoveryPoint) || self.type in ['TestFailover', 'Failover']",message="recoveryPoint is for TestFailover and Failover"
// +kubebuilder:validation:XValidation:rule="!has(self.recoveryPoint) || !has(self.force) || !self.force",message="a failover to a recovery point is not forced: it is undecided until Commit or Rollback"
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
	// fails if they differ. Bookmark: the present point gets a name, at both sites. TestFailover: a copy is opened in a
	// namespace of its own, checked and thrown away; replication goes on. Commit: after a Failover to a recovery point,
	// the group stays there; what the site held past the point is kept as snapshots. Rollback: it goes back to what the
	// site held, and follows again; no pod may use a claim, and what was written since is lost.
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
	// recoveryPoint is the point that a TestFailover opens, or that a Failover makes primary. Such a Failover is not
	// decided: look, and make an action of type Commit or Rollback. No other site hears of it before. Absent: the newest.
	// +optional
	RecoveryPoint *RecoveryPoint `json:"recoveryPoint,omitempty"`
	// test says how a TestFailover is done.
	// +optional
	Test *TestFailover `json:"test,omitempty"`
	// timeout is how long the action may take from its start. It fails when it waits for longer. What the engine has begun
	// by then is not taken back; of a TestFailover everything is removed. Absent: it waits until it is deleted.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="longer than 0s"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// RecoveryPoint names one point of a group.
//
// +kubebuilder:validation:ExactlyOneOf=ordinal;time;bookmark
type RecoveryPoint struct {
	// ordinal in the order of the group's writes. A group on several nodes has one order for each, so use a time there.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Ordinal *int64 `json:"ordinal,omitempty"`
	// time by the clock of the primary.
	// +optional
	Time *metav1.MicroTime `json:"time,omitempty"`
	// bookmark is the label of one.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Bookmark *string `json:"bookmark,omitempty"`
}

// TestFailover says how a copy is tried. The claims of the group get claims of the same names in a namespace of their
// own, which show the copy at one point. What is written to them is thrown away with the namespace.
type TestFailover struct {
	// namespace that is made for the test, and deleted after it. It must not exist, and its name begins with that of the
	// action's namespace and a hyphen. Default: the action's namespace with -test.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespace string `json:"namespace,omitempty"`
	// network of the pods in the namespace. Isolated: a NetworkPolicy denies all traffic, so that what is tried does not
	// reach the systems that the primary works with; it needs a network plugin that enforces policies. Open: no policy.
	// Default: Isolated.
	// +optional
	// +kubebuilder:default=Isolated
	Network TestNetwork `json:"network,omitempty"`
	// checks are run one after the other as Jobs in the namespace. The test fails with the first one that fails.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Checks []Check `json:"checks,omitempty"`
	// keepFor is how long the namespace stays after the checks, for a person to look. The annotation
	// slipstream.dev/end-test on the action ends it earlier. Absent: it is removed at once.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="0s to 720h"
	KeepFor *metav1.Duration `json:"keepFor,omitempty"`
}

// TestNetwork is the network of a test failover.
// +kubebuilder:validation:Enum=Isolated;Open
type TestNetwork string

// The values of TestNetwork.
const (
	TestNetworkIsolated TestNetwork = "Isolated"
	TestNetworkOpen     TestNetwork = "Open"
)

// Check is a program that looks whether the application's data is good. It succeeds with exit status 0. What it writes
// to /dev/termination-log, or the end of its log if it fails, is in the record of the action.
//
// All claims of the group are at /claims/NAME, raw block devices too. The pod has no token of the API server, no
// capabilities and no way to gain privileges.
type Check struct {
	// name of the check.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=50
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// image of the container.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image"`
	// command of the container. Absent: that of the image.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=16384
	Command []string `json:"command,omitempty"`
	// args of the command.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=16384
	Args []string `json:"args,omitempty"`
	// env are environment variables. Do not put secrets here: who may read the action reads them.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Env []CheckVariable `json:"env,omitempty"`
	// runAsUser is the user id of the program, for example the one that owns the database's files. Absent: that of the
	// image.
	// +optional
	// +kubebuilder:validation:Minimum=0
	RunAsUser *int64 `json:"runAsUser,omitempty"`
	// timeout of the check. Default: 10m.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('24h')",message="1s to 24h"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// CheckVariable is an environment variable of a check.
type CheckVariable struct {
	// name of the variable.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`
	// value of the variable.
	// +optional
	// +kubebuilder:validation:MaxLength=16384
	Value string `json:"value,omitempty"`
}

// ActionType is what a GroupAction does.
// +kubebuilder:validation:Enum=Failover;Demote;Suspend;Resume;Relocate;Yield;Reprotect;Verify;Bookmark;TestFailover;Commit;Rollback
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

	ActionTestFailover ActionType = "TestFailover"
	ActionCommit       ActionType = "Commit"
	ActionRollback     ActionType = "Rollback"
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
	// failed: the step went wrong; message says why.
	// +optional
	Failed bool `json:"failed,omitempty"`
	// before is what the engine showed before the step, for an operator that goes on after a restart.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Before string `json:"before,omitempty"`
}

// ActionResult is what an action measured.
type ActionResult struct {
	// rto is the time from the creation of the action until the group could be used: of a Failover, until it was primary;
	// of a TestFailover, until the last check had succeeded, or, without checks, until the claims were bound.
	// +optional
	RTO *metav1.Duration `json:"rto,omitempty"`
	// rpo is the age of what the point lacks: of a Failover, the time that was lost at most; of a TestFailover, the lag of
	// the copy when it was opened, or the age of the recovery point that was asked for. Absent: unknown.
	// +optional
	RPO *metav1.Duration `json:"rpo,omitempty"`
	// rpoTarget is the target that the group had.
	// +optional
	RPOTarget *metav1.Duration `json:"rpoTarget,omitempty"`
	// rtoTarget is the target that the group had.
	// +optional
	RTOTarget *metav1.Duration `json:"rtoTarget,omitempty"`
	// loss is what a forced failover lost, over all groups at the engine.
	// +optional
	Loss *Loss `json:"loss,omitempty"`
	// points are the ordinals that the action is about: of a bookmark, or that were compared or opened.
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
