// Package condition is the one way status is written: conditions are set on the object in memory while a
// reconcile looks and acts, and Save writes the whole status once, at the end.
//
// It knows conditions and patches. It never decides what a condition should say.
package condition

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// maxMessage keeps a message within what the API accepts (32768) and what a person reads.
const maxMessage = 1024

// Set puts a condition into conditions. The transition time changes only when the status does; the
// message may be any length and is shortened to what a person reads.
func Set(conditions *[]metav1.Condition, generation int64, kind string, status metav1.ConditionStatus, reason, message string) {
	if len(message) > maxMessage {
		message = message[:maxMessage-3] + "..."
	}
	meta.SetStatusCondition(conditions, metav1.Condition{
		Type:               kind,
		Status:             status,
		ObservedGeneration: generation,
		Reason:             reason,
		Message:            message,
	})
}

// True reports whether a condition is there and True. Absent and Unknown are not True.
func True(conditions []metav1.Condition, kind string) bool {
	return meta.IsStatusConditionTrue(conditions, kind)
}

// Save writes the status of now if it differs from before, as one merge patch that carries the resource
// version of before: somebody else's write in between is a conflict, which the caller returns and the
// queue repeats. Before must be the object as it was read.
func Save(ctx context.Context, c client.Client, before, now client.Object) error {
	same, err := sameStatus(before, now)
	if err != nil {
		return err
	}
	if same {
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := c.Status().Patch(ctx, now, patch); err != nil {
		return fmt.Errorf("save status of %T %s: %w", now, client.ObjectKeyFromObject(now), err)
	}
	return nil
}

func sameStatus(before, now client.Object) (bool, error) {
	a, err := runtime.DefaultUnstructuredConverter.ToUnstructured(before)
	if err != nil {
		return false, fmt.Errorf("read status of %s: %w", client.ObjectKeyFromObject(before), err)
	}
	b, err := runtime.DefaultUnstructuredConverter.ToUnstructured(now)
	if err != nil {
		return false, fmt.Errorf("read status of %s: %w", client.ObjectKeyFromObject(now), err)
	}
	return equality.Semantic.DeepEqual(a["status"], b["status"]), nil
}
