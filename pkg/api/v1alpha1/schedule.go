package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GroupActionSchedule makes a GroupAction at fixed times, as a CronJob makes Jobs: drills and comparisons. The actions
// that it has made stay when it is deleted.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=gas,categories=slipstream
// +kubebuilder:printcolumn:name=Schedule,type=string,JSONPath=`.spec.schedule`
// +kubebuilder:printcolumn:name=Type,type=string,JSONPath=`.spec.action.type`
// +kubebuilder:printcolumn:name=Group,type=string,JSONPath=`.spec.action.group`
// +kubebuilder:printcolumn:name=Last,type=date,JSONPath=`.status.lastScheduleTime`
// +kubebuilder:printcolumn:name=Success,type=date,JSONPath=`.status.lastSuccessTime`
// +kubebuilder:printcolumn:name=OnTime,type=string,JSONPath=`.status.conditions[?(@.type=="OnTime")].status`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 50",message="the name of a schedule has at most 50 characters"
type GroupActionSchedule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says when which action is made.
	Spec GroupActionScheduleSpec `json:"spec"`
	// status says what came of it.
	// +optional
	Status GroupActionScheduleStatus `json:"status,omitempty"`
}

// GroupActionScheduleSpec says when which action is made.
//
// +kubebuilder:validation:XValidation:rule="self.action.type in ['TestFailover', 'Verify']",message="TestFailover and Verify can be scheduled"
type GroupActionScheduleSpec struct {
	// schedule in the form of cron: five fields, or @hourly, @daily, @weekly, @monthly, @yearly.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="!self.contains('TZ') && !self.startsWith('@every')",message="the time zone is in timeZone, and @every is not known"
	Schedule string `json:"schedule"`
	// timeZone is the name of the zone of the schedule, as Europe/Berlin. Default: UTC.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	TimeZone string `json:"timeZone,omitempty"`
	// suspend makes no further actions.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
	// keep is how many ended actions of the schedule are kept, as records. The last success is always kept. Default: 10.
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Keep int32 `json:"keep,omitempty"`
	// overdueAfter is how old the last success may be. Absent: two periods of the schedule.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m')",message="at least 1m"
	OverdueAfter *metav1.Duration `json:"overdueAfter,omitempty"`
	// action is the spec of the actions. One is made only when the one before has ended.
	Action GroupActionSpec `json:"action"`
}

// GroupActionScheduleStatus says what came of a schedule.
type GroupActionScheduleStatus struct {
	// observedGeneration is the generation of the spec that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// lastScheduleTime is the time of the schedule that the last action was made for.
	// +optional
	LastScheduleTime *metav1.Time `json:"lastScheduleTime,omitempty"`
	// nextScheduleTime is when the next one is due. Absent: the schedule is suspended or wrong.
	// +optional
	NextScheduleTime *metav1.Time `json:"nextScheduleTime,omitempty"`
	// lastAction is the name of the last action.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	LastAction string `json:"lastAction,omitempty"`
	// lastSuccessTime is when the last action that succeeded ended.
	// +optional
	LastSuccessTime *metav1.Time `json:"lastSuccessTime,omitempty"`
	// lastSuccess is the name of the last action that succeeded.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	LastSuccess string `json:"lastSuccess,omitempty"`
	// conditions: OnTime.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// GroupActionScheduleList is a list of GroupActionSchedules.
//
// +kubebuilder:object:root=true
type GroupActionScheduleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []GroupActionSchedule `json:"items"`
}
