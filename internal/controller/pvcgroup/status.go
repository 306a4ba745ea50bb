package pvcgroup

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// ReasonReady is the reason of condition Ready when it is True; the others are the Fault constants of package snapshot.
const ReasonReady = "AllMembersReady"

// tell writes what was seen into the status.
func tell(group *v1alpha1.PVCGroup, s seen) {
	status := &group.Status
	status.ObservedGeneration = group.Generation
	status.Members = nil
	total := resource.Quantity{Format: resource.BinarySI}
	for _, m := range s.members {
		member := v1alpha1.PVCGroupMember{PVCName: m.Name, Bound: m.Bound(), StorageClassName: m.StorageClass(), Driver: m.Driver(), SnapshotClassName: m.Class}
		if m.Claim != nil {
			member.VolumeMode = string(corev1.PersistentVolumeFilesystem)
		}
		if m.Block() {
			member.VolumeMode = string(corev1.PersistentVolumeBlock)
		}
		if m.Bound() {
			member.Size = resource.NewQuantity(m.Size(), resource.BinarySI)
			total.Add(*member.Size)
		}
		status.Members = append(status.Members, member)
	}
	status.TotalSize = &total
	status.Cut = ""
	if len(s.members) > 0 {
		status.Cut = snapshot.Cut(len(s.members))
	}
	status.VolumeAccess = s.access
	if s.fault != nil {
		condition.Set(&status.Conditions, group.Generation, v1alpha1.ConditionReady, metav1.ConditionFalse, s.fault.Reason, s.fault.Message)
		return
	}
	message := "the one member is cut by itself"
	if len(s.members) > 1 {
		message = fmt.Sprintf("%d members are snapshotted together, but not at one instant", len(s.members))
	}
	condition.Set(&status.Conditions, group.Generation, v1alpha1.ConditionReady, metav1.ConditionTrue, ReasonReady, message)
}
