package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DisasterRecoveryPlanSpec is the promise for one application.
type DisasterRecoveryPlanSpec struct {
	// primaryCluster is the cluster where the application shall run. Editing it on the present primary moves the
	// application there, with nothing lost; setting it back before the handover aborts the move.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	PrimaryCluster string `json:"primaryCluster"`

	// preferredClusterList are the clusters that may run the application, most preferred first, the present primary among them.
	// +kubebuilder:validation:MinItems=2
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.all(c, self.exists_one(d, d == c))",message="preferredClusterList names a cluster twice"
	PreferredClusterList []string `json:"preferredClusterList"`

	// selector chooses the objects of this namespace that belong to the application. Empty means all of them.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// dataReplicationPointer is the Replication in this namespace that carries the application's volumes. Empty means the
	// application has no data of its own.
	// +optional
	DataReplicationPointer string `json:"dataReplicationPointer,omitempty"`

	// metadataBackupInterval is how often the application's objects are captured and sent to the peers between operations.
	// Examples: "15m", "1h". At least 1m.
	// +kubebuilder:default="15m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m')",message="metadataBackupInterval is at least 1m"
	// +optional
	MetadataBackupInterval *metav1.Duration `json:"metadataBackupInterval,omitempty"`

	// maximumMetadataCopies is how many periodic application snapshots are kept on each cluster.
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=50
	// +optional
	MaximumMetadataCopies int32 `json:"maximumMetadataCopies,omitempty"`
}

// OperationType says what kind of move an operation is.
// +kubebuilder:validation:Enum=Migrate
type OperationType string

// OperationMigrate is a planned move: nothing is lost.
const OperationMigrate OperationType = "Migrate"

// OperationStep is a step of an operation, in the order it is taken.
// +kubebuilder:validation:Enum=Precheck;CaptureObjects;PreSync;Offline;FinalSync;Handover;Promote;Restore;Verify;Complete;Rollback
type OperationStep string

// The steps of a migrate. Those up to and with Handover are taken by the old primary, those after it by the new one.
const (
	StepPrecheck       OperationStep = "Precheck"
	StepCaptureObjects OperationStep = "CaptureObjects"
	StepPreSync        OperationStep = "PreSync"
	StepOffline        OperationStep = "Offline"
	StepFinalSync      OperationStep = "FinalSync"
	StepHandover       OperationStep = "Handover"
	StepPromote        OperationStep = "Promote"
	StepRestore        OperationStep = "Restore"
	StepVerify         OperationStep = "Verify"
	StepComplete       OperationStep = "Complete"
	// StepRollback puts the application back on the old primary; only before the handover.
	StepRollback OperationStep = "Rollback"
)

// StepRecord is one step as it went.
type StepRecord struct {
	// name of the step.
	Name OperationStep `json:"name"`
	// cluster that takes it.
	Cluster string `json:"cluster"`
	// startedAt and finishedAt bound it; finishedAt is absent while it runs.
	StartedAt metav1.MicroTime `json:"startedAt"`
	// +optional
	FinishedAt *metav1.MicroTime `json:"finishedAt,omitempty"`
	// message tells what it did or waits for.
	// +optional
	Message string `json:"message,omitempty"`
}

// Operation is a move that runs. It is saved before anything is done.
type Operation struct {
	// id is unique; objects made for the operation carry it.
	ID string `json:"id"`
	// type of the move.
	Type OperationType `json:"type"`
	// from and to are the clusters.
	From string `json:"from"`
	To   string `json:"to"`
	// startedAt is when it was accepted.
	StartedAt metav1.Time `json:"startedAt"`
	// step it is in.
	Step OperationStep `json:"step"`
	// rollbackReason is set once the operation is being undone; it never becomes empty again.
	// +optional
	RollbackReason string `json:"rollbackReason,omitempty"`
	// applicationSnapshot is the snapshot the new primary restores from.
	// +optional
	ApplicationSnapshot string `json:"applicationSnapshot,omitempty"`
	// preSyncPoint and finalPoint are the recovery points of the two sessions of the operation.
	// +optional
	PreSyncPoint string `json:"preSyncPoint,omitempty"`
	// +optional
	FinalPoint string `json:"finalPoint,omitempty"`
	// steps taken so far, oldest first.
	// +kubebuilder:validation:MaxItems=32
	// +optional
	Steps []StepRecord `json:"steps,omitempty"`
}

// Grant hands the right to write over to another cluster. Once it is saved the granting cluster is no primary any more.
type Grant struct {
	// epoch the new primary writes in.
	Epoch int64 `json:"epoch"`
	// to is the new primary.
	To string `json:"to"`
	// operation is the id of the operation it was granted in.
	Operation string `json:"operation"`
	// point is the recovery point the new primary must hold before it may write; empty without data.
	// +optional
	Point string `json:"point,omitempty"`
	// applicationSnapshot is what it restores from.
	// +optional
	ApplicationSnapshot string `json:"applicationSnapshot,omitempty"`
	// grantedAt is when it was saved.
	GrantedAt metav1.Time `json:"grantedAt"`
}

// OperationReport is how an ended operation went.
type OperationReport struct {
	// id, type, from and to as in the operation.
	ID   string        `json:"id"`
	Type OperationType `json:"type"`
	From string        `json:"from"`
	To   string        `json:"to"`
	// result is Completed, Aborted (by an edit) or RolledBack (by a failure).
	// +kubebuilder:validation:Enum=Completed;Aborted;RolledBack
	Result string `json:"result"`
	// message tells why it was not completed.
	// +optional
	Message string `json:"message,omitempty"`
	// epoch in force afterwards.
	Epoch int64 `json:"epoch"`
	// startedAt and finishedAt bound it.
	StartedAt  metav1.Time `json:"startedAt"`
	FinishedAt metav1.Time `json:"finishedAt"`
	// steps with their times.
	// +optional
	Steps []StepRecord `json:"steps,omitempty"`
}

// PlanPeer is what the plan knows of one peer.
type PlanPeer struct {
	// cluster is the peer.
	Cluster string `json:"cluster"`
	// reachable is true while the peer answers.
	Reachable bool `json:"reachable"`
	// primaryCluster and epoch are what the peer believes.
	// +optional
	PrimaryCluster string `json:"primaryCluster,omitempty"`
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
	// applicationSnapshot is the newest snapshot the peer holds.
	// +optional
	ApplicationSnapshot string `json:"applicationSnapshot,omitempty"`
	// message tells what is wrong with it.
	// +optional
	Message string `json:"message,omitempty"`
}

// DisasterRecoveryPlanStatus shows who may write and what is being done about it.
type DisasterRecoveryPlanStatus struct {
	// localCluster is the cluster this copy of the plan lives in.
	// +optional
	LocalCluster string `json:"localCluster,omitempty"`
	// primaryCluster is the cluster that runs the application; it changes when an operation completes.
	// +optional
	PrimaryCluster string `json:"primaryCluster,omitempty"`
	// epoch grows at every change of primary.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
	// phase is one word for printers: Protected, Standby, Moving, RollingBack, Waiting, Refused, NotReady.
	// +optional
	Phase string `json:"phase,omitempty"`
	// step is the present step of the operation that runs.
	// +optional
	Step OperationStep `json:"step,omitempty"`
	// reason is one CamelCase word for the present situation.
	// +optional
	Reason string `json:"reason,omitempty"`
	// message tells the situation in a sentence: what is done, or what it waits for and since when.
	// +optional
	Message string `json:"message,omitempty"`
	// waitingSince is when the present step began to wait for the same thing.
	// +optional
	WaitingSince *metav1.Time `json:"waitingSince,omitempty"`
	// operation runs now; absent otherwise.
	// +optional
	Operation *Operation `json:"operation,omitempty"`
	// grant is the newest handover this cluster made.
	// +optional
	Grant *Grant `json:"grant,omitempty"`
	// backupStatus, dataReplicationStatus and restoreStatus tell of the parts of an operation; empty between operations.
	// +optional
	BackupStatus string `json:"backupStatus,omitempty"`
	// +optional
	DataReplicationStatus string `json:"dataReplicationStatus,omitempty"`
	// +optional
	RestoreStatus string `json:"restoreStatus,omitempty"`
	// lastApplicationSnapshot is the newest complete one here.
	// +optional
	LastApplicationSnapshot string `json:"lastApplicationSnapshot,omitempty"`
	// peers shows each other cluster of the plan.
	// +listType=map
	// +listMapKey=cluster
	// +optional
	Peers []PlanPeer `json:"peers,omitempty"`
	// history are the ended operations, newest first.
	// +kubebuilder:validation:MaxItems=10
	// +optional
	History []OperationReport `json:"history,omitempty"`
	// observedGeneration is the spec this status was derived from.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready, Protected, PeersReachable.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DisasterRecoveryPlan is the promise for one application: where it runs and where it can run instead.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=drplan
// +kubebuilder:printcolumn:name="Wanted",type=string,JSONPath=`.spec.primaryCluster`
// +kubebuilder:printcolumn:name="Primary",type=string,JSONPath=`.status.primaryCluster`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Step",type=string,JSONPath=`.status.step`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`
// +kubebuilder:printcolumn:name="Epoch",type=integer,JSONPath=`.status.epoch`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.spec.primaryCluster in self.spec.preferredClusterList",message="spec.primaryCluster must be one of spec.preferredClusterList"
// +kubebuilder:validation:XValidation:rule="self.spec.primaryCluster == oldSelf.spec.primaryCluster || !has(self.status) || !has(self.status.primaryCluster) || self.spec.primaryCluster == self.status.primaryCluster || self.status.localCluster == self.status.primaryCluster",messageExpression="'spec.primaryCluster is edited on the present primary: this cluster is ' + self.status.localCluster + ', the primary is ' + self.status.primaryCluster + '; make the edit there'"
type DisasterRecoveryPlan struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   DisasterRecoveryPlanSpec   `json:"spec"`
	Status DisasterRecoveryPlanStatus `json:"status,omitempty"`
}

// DisasterRecoveryPlanList is a list of DisasterRecoveryPlans.
// +kubebuilder:object:root=true
type DisasterRecoveryPlanList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DisasterRecoveryPlan `json:"items"`
}
