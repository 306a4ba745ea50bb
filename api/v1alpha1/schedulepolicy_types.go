package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// IntervalPolicy is a run every so often, start to start. The first one starts at once.
// +kubebuilder:validation:XValidation:rule="(has(self.intervalMinutes) ? 1 : 0) + (has(self.every) ? 1 : 0) == 1",message="give either intervalMinutes or every"
type IntervalPolicy struct {
	// intervalMinutes is the interval in minutes, at least 1.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=5256000
	// +optional
	IntervalMinutes int64 `json:"intervalMinutes,omitempty"`

	// every is the interval in days, hours and minutes, at least a minute; a day is 24 hours. Examples: "12m", "2h", "1d".
	// +kubebuilder:validation:MaxLength=30
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+d)?([0-9]+h)?([0-9]+m)?$') && self.matches('[1-9]')",message="every is written in days, hours and minutes, at least a minute: 12m, 2h, 1d or 1d12h"
	// +optional
	Every string `json:"every,omitempty"`

	// retain is taken and kept, so that policies written for other products can be used as they are. How many recovery points a
	// replication keeps is said by its link.
	// +kubebuilder:validation:Minimum=1
	// +optional
	Retain int64 `json:"retain,omitempty"`

	// options are taken and kept for the same reason.
	// +optional
	Options map[string]string `json:"options,omitempty"`
}

// DailyPolicy is a run at a time of every day.
type DailyPolicy struct {
	// time of day, as "1:02PM" or "1:02pm", in the policy's time zone. Where the clock jumps over it, the run starts at the jump;
	// where the clock shows it twice, at the first.
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0?[0-9]|1[0-2]):[0-5][0-9](AM|PM|am|pm)$')",message="time is a time of day as 1:02PM or 1:02pm"
	// +kubebuilder:validation:MaxLength=8
	Time string `json:"time"`

	// retain: see interval.
	// +kubebuilder:validation:Minimum=1
	// +optional
	Retain int64 `json:"retain,omitempty"`

	// forceFullSnapshotDay is taken and kept like retain. Replications verify instead of copying in full.
	// +kubebuilder:validation:MaxLength=9
	// +optional
	ForceFullSnapshotDay string `json:"forceFullSnapshotDay,omitempty"`

	// options: see interval.
	// +optional
	Options map[string]string `json:"options,omitempty"`
}

// WeeklyPolicy is a run at a time of one day of every week.
type WeeklyPolicy struct {
	// day of the week, as "Sunday", "Sun", "sunday" or "sun".
	// +kubebuilder:validation:XValidation:rule="self.matches('^([Ss]un(day)?|[Mm]on(day)?|[Tt]ue(sday)?|[Ww]ed(nesday)?|[Tt]hu(r|rs|rsday)?|[Ff]ri(day)?|[Ss]at(urday)?)$')",message="day is a day of the week as Sunday or Sun"
	// +kubebuilder:validation:MaxLength=9
	Day string `json:"day"`

	// time of day, as in daily.
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0?[0-9]|1[0-2]):[0-5][0-9](AM|PM|am|pm)$')",message="time is a time of day as 1:02PM or 1:02pm"
	// +kubebuilder:validation:MaxLength=8
	Time string `json:"time"`

	// retain: see interval.
	// +kubebuilder:validation:Minimum=1
	// +optional
	Retain int64 `json:"retain,omitempty"`

	// options: see interval.
	// +optional
	Options map[string]string `json:"options,omitempty"`
}

// MonthlyPolicy is a run at a time of one date of every month.
type MonthlyPolicy struct {
	// date is the day of the month, 1 to 31. A date that a month lacks is counted on into the next month: 31 in February is 3 March,
	// or 2 March in a leap year, and the run of 31 March comes as well.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 31",message="date is a day of the month, 1 to 31"
	Date int32 `json:"date"`

	// time of day, as in daily.
	// +kubebuilder:validation:XValidation:rule="self.matches('^(0?[0-9]|1[0-2]):[0-5][0-9](AM|PM|am|pm)$')",message="time is a time of day as 1:02PM or 1:02pm"
	// +kubebuilder:validation:MaxLength=8
	Time string `json:"time"`

	// retain: see interval.
	// +kubebuilder:validation:Minimum=1
	// +optional
	Retain int64 `json:"retain,omitempty"`

	// options: see interval.
	// +optional
	Options map[string]string `json:"options,omitempty"`
}

// SchedulePolicyItem says when runs are wanted. Several kinds may stand in one policy: each keeps its own promise, and there is one
// run at a time over all of them. A run that is more than an hour late is skipped and counted; one of an interval without
// startTime starts however late it is.
// +kubebuilder:validation:XValidation:rule="has(self.interval) || has(self.daily) || has(self.weekly) || has(self.monthly) || has(self.cron)",message="give one of interval, daily, weekly, monthly and cron, or several"
// +kubebuilder:validation:XValidation:rule="!has(self.startTime) || has(self.interval)",message="startTime is when interval is counted from: give an interval too, or leave it out"
type SchedulePolicyItem struct {
	// interval is a run every so often.
	// +optional
	Interval *IntervalPolicy `json:"interval,omitempty"`

	// daily is a run a day.
	// +optional
	Daily *DailyPolicy `json:"daily,omitempty"`

	// weekly is a run a week.
	// +optional
	Weekly *WeeklyPolicy `json:"weekly,omitempty"`

	// monthly is a run a month.
	// +optional
	Monthly *MonthlyPolicy `json:"monthly,omitempty"`

	// cron is an expression of five fields (minute hour day month weekday), or one of @hourly, @daily, @weekly, @monthly and
	// @yearly. Example: "*/5 * * * *".
	// +kubebuilder:validation:MaxLength=200
	// +optional
	Cron string `json:"cron,omitempty"`

	// startTime is the time of day that interval is counted from, in ISO 8601, in the policy's time zone unless it names an offset.
	// Empty means that it is counted from the start of each run. Examples: "16:18:43", "16:18:43+02:00".
	// +kubebuilder:validation:XValidation:rule="self.matches('^T?([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?(Z|[+-][0-9][0-9]:[0-9][0-9])?$')",message="startTime is a time of day as 16:18:43 or 16:18:43+02:00"
	// +kubebuilder:validation:MaxLength=16
	// +optional
	StartTime string `json:"startTime,omitempty"`

	// timeZone is the zone of all times here, by its name in the IANA time zone database. Empty means UTC. Example: "Europe/Berlin".
	// +kubebuilder:validation:MaxLength=64
	// +optional
	TimeZone string `json:"timeZone,omitempty"`
}

// SchedulePolicyStatus shows the policy as printers do.
type SchedulePolicyStatus struct {
	// intervalMinutes is the interval in minutes; "N/A" when the policy has none, "Invalid" when it cannot be used.
	// +optional
	IntervalMinutes string `json:"intervalMinutes,omitempty"`
	// daily is the time of day, or N/A, or Invalid.
	// +optional
	Daily string `json:"daily,omitempty"`
	// weekly is the day and time, as "Thursday@10:13PM", or N/A, or Invalid.
	// +optional
	Weekly string `json:"weekly,omitempty"`
	// monthly is the date and time, as "14@8:05PM", or N/A, or Invalid.
	// +optional
	Monthly string `json:"monthly,omitempty"`
	// observedGeneration is the policy this status was derived from.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready is False when the policy cannot be used, and says which field is why.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// SchedulePolicy says when runs are wanted, for whoever names it. It does nothing by itself. An edit applies to all who use it.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=sp
// +kubebuilder:printcolumn:name="Interval-Minutes",type=string,JSONPath=`.status.intervalMinutes`
// +kubebuilder:printcolumn:name="Daily",type=string,JSONPath=`.status.daily`
// +kubebuilder:printcolumn:name="Weekly",type=string,JSONPath=`.status.weekly`
// +kubebuilder:printcolumn:name="Monthly",type=string,JSONPath=`.status.monthly`
// +kubebuilder:printcolumn:name="Cron",type=string,JSONPath=`.policy.cron`,priority=1
// +kubebuilder:printcolumn:name="Time zone",type=string,JSONPath=`.policy.timeZone`,priority=1
// +kubebuilder:printcolumn:name="Why",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
type SchedulePolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// policy says when runs are wanted.
	Policy SchedulePolicyItem   `json:"policy"`
	Status SchedulePolicyStatus `json:"status,omitempty"`
}

// SchedulePolicyList is a list of SchedulePolicies.
// +kubebuilder:object:root=true
type SchedulePolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SchedulePolicy `json:"items"`
}
