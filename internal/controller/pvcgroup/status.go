package pvcgroup

import (
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
	status.Cut, status.CutReason, status.GroupSnapshotClassName = "", "", ""
	set := func(kind string, value metav1.ConditionStatus, reason, message string) {
		condition.Set(&status.Conditions, group.Generation, kind, value, reason, message)
	}
	status.VolumeAccess = s.access
	if s.fault != nil {
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, s.fault.Reason, s.fault.Message)
	} else {
		set(v1alpha1.ConditionReady, metav1.ConditionTrue, ReasonReady, s.way.Message)
	}
	if len(s.members) == 0 {
		set(v1alpha1.ConditionCutAtomic, metav1.ConditionUnknown, snapshot.FaultEmpty, "the group has no members to be cut")
		return
	}
	status.Cut, status.CutReason, status.GroupSnapshotClassName = s.way.Cut, s.way.Reason, s.way.GroupClass
	atomic := metav1.ConditionTrue
	if s.way.Cut == v1alpha1.CutNotAtomic {
		atomic = metav1.ConditionFalse
	}
	set(v1alpha1.ConditionCutAtomic, atomic, s.way.Reason, s.way.Message)
}
