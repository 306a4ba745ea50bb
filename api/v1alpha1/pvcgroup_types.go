package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PVCRef names one claim of a group.
type PVCRef struct {
	// pvcName is a PersistentVolumeClaim in the group's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	PVCName string `json:"pvcName"`
}

// VolumeAccess tells whether volumes are replicated as block devices or by their files.
// +kubebuilder:validation:Enum=Auto;Block;Files
type VolumeAccess string

const (
	// AccessAuto: Files when every member is ReadWriteMany or of a driver that has no block devices, otherwise Block.
	AccessAuto VolumeAccess = "Auto"
	// AccessBlock: members are read and written as block devices, whatever is on them.
	AccessBlock VolumeAccess = "Block"
	// AccessFiles: members are mounted, and their files replicated.
	AccessFiles VolumeAccess = "Files"
)

// PVCGroupSpec names the volumes that are cut at one instant: by list or by selector, not both.
// +kubebuilder:validation:XValidation:rule="has(self.pvcList) != has(self.selector)",message="give either pvcList or selector, and not both"
// +kubebuilder:validation:XValidation:rule="!has(self.pvcList) || self.pvcList.size() <= (has(self.maxMembers) ? self.maxMembers : 16)",message="pvcList is longer than maxMembers (16 unless set): raise maxMembers or split the group"
type PVCGroupSpec struct {
	// pvcList names the claims, all in this namespace.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=pvcName
	// +optional
	PVCList []PVCRef `json:"pvcList,omitempty"`

	// selector chooses the claims of this namespace by label, also those that appear later.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// maxMembers is how many claims the group may have.
	// +kubebuilder:default=16
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=256
	// +optional
	MaxMembers int32 `json:"maxMembers,omitempty"`

	// volumeAccess is how the members are replicated, all of them alike. Empty is Auto: by their files when every member is a
	// ReadWriteMany file system or of a driver known to have no block devices (NFS, SMB, CephFS and the like), otherwise as
	// block devices; a mixture is refused. Files carries names, content, modes, owners, times, extended attributes and
	// links; it costs a walk of the whole tree each session, and movers that may read and write files of every owner.
	// +optional
	VolumeAccess VolumeAccess `json:"volumeAccess,omitempty"`

	// cutPolicy says how the members are cut. PreferAtomic: at one instant by a VolumeGroupSnapshot where the storage of all
	// members has a VolumeGroupSnapshotClass and takes it, otherwise by snapshots taken together, with a status that says so.
	// RequireAtomic: no session without one instant. Separate: never by a VolumeGroupSnapshot.
	// +kubebuilder:default=PreferAtomic
	// +optional
	CutPolicy CutPolicy `json:"cutPolicy,omitempty"`
}

// CutPolicy says how the members of a group shall be cut.
// +kubebuilder:validation:Enum=PreferAtomic;RequireAtomic;Separate
type CutPolicy string

const (
	// CutPreferAtomic: at one instant where the storage can.
	CutPreferAtomic CutPolicy = "PreferAtomic"
	// CutRequireAtomic: at one instant or not at all.
	CutRequireAtomic CutPolicy = "RequireAtomic"
	// CutSeparate: each member by a snapshot of its own.
	CutSeparate CutPolicy = "Separate"
)

// CutAtomicity tells whether the members of a group are cut at one instant by the driver itself.
// +kubebuilder:validation:Enum=Single;Atomic;NotAtomic
type CutAtomicity string

const (
	// CutSingle: the group has one member, so any snapshot is one instant.
	CutSingle CutAtomicity = "Single"
	// CutAtomic: the driver cuts all members at one instant.
	CutAtomic CutAtomicity = "Atomic"
	// CutNotAtomic: members are snapshotted together but not at one instant.
	CutNotAtomic CutAtomicity = "NotAtomic"
)

// PVCGroupMember is what was seen of one claim.
type PVCGroupMember struct {
	// pvcName is the claim.
	PVCName string `json:"pvcName"`
	// size is the bound volume's capacity.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// bound is true when the claim has its volume.
	Bound bool `json:"bound"`
	// volumeMode is Filesystem or Block.
	// +optional
	VolumeMode string `json:"volumeMode,omitempty"`
	// storageClassName is the claim's class.
	// +optional
	StorageClassName string `json:"storageClassName,omitempty"`
	// driver is the CSI driver of the bound volume.
	// +optional
	Driver string `json:"driver,omitempty"`
	// snapshotClassName is the VolumeSnapshotClass that serves the driver; empty when there is none.
	// +optional
	SnapshotClassName string `json:"snapshotClassName,omitempty"`
}

// PVCGroupStatus shows the members.
type PVCGroupStatus struct {
	// members are the claims the group has now, by name.
	// +listType=map
	// +listMapKey=pvcName
	// +optional
	Members []PVCGroupMember `json:"members,omitempty"`
	// cut tells whether the driver can cut all members at one instant.
	// +optional
	Cut CutAtomicity `json:"cut,omitempty"`
	// volumeAccess is how the members are replicated: Block or Files. Empty while they cannot be.
	// +optional
	VolumeAccess VolumeAccess `json:"volumeAccess,omitempty"`
	// cutReason is one word for why: OneMember, GroupSnapshot, CutSeparately, MembersNotBound, DriversDiffer,
	// GroupSnapshotsUnknown or NoGroupSnapshotClass. Condition CutAtomic says it in a sentence.
	// +optional
	CutReason string `json:"cutReason,omitempty"`
	// groupSnapshotClassName is the VolumeGroupSnapshotClass that cuts the members; empty when none does.
	// +optional
	GroupSnapshotClassName string `json:"groupSnapshotClassName,omitempty"`
	// totalSize is the sum of the members' sizes.
	// +optional
	TotalSize *resource.Quantity `json:"totalSize,omitempty"`
	// observedGeneration is the spec this status was derived from.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready, CutAtomic.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// PVCGroup names volumes that are cut at one instant.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.totalSize`
// +kubebuilder:printcolumn:name="Cut",type=string,JSONPath=`.status.cut`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type PVCGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PVCGroupSpec   `json:"spec"`
	Status PVCGroupStatus `json:"status,omitempty"`
}

// PVCGroupList is a list of PVCGroups.
// +kubebuilder:object:root=true
type PVCGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PVCGroup `json:"items"`
}
