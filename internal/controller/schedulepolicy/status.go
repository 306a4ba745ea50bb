package schedulepolicy

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/schedule"
)

// Reasons of the condition Ready.
const (
	// ReasonReady: the policy can be used.
	ReasonReady = "Ready"
	// ReasonInvalid: it cannot; the message names the field.
	ReasonInvalid = "Invalid"
)

func tell(policy *v1alpha1.SchedulePolicy) {
	st := &policy.Status
	shown := schedule.Show(policy.Policy)
	st.IntervalMinutes, st.Daily, st.Weekly, st.Monthly = shown.IntervalMinutes, shown.Daily, shown.Weekly, shown.Monthly
	st.ObservedGeneration = policy.Generation
	status, reason, message := metav1.ConditionTrue, ReasonReady, "the policy can be used"
	if _, err := schedule.ParsePolicy(policy.Policy); err != nil {
		status, reason, message = metav1.ConditionFalse, ReasonInvalid, err.Error()
	}
	condition.Set(&st.Conditions, policy.Generation, v1alpha1.ConditionReady, status, reason, message)
}
