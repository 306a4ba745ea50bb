package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ApplicationSnapshotSpec says what to capture from this namespace.
type ApplicationSnapshotSpec struct {
	// selector chooses objects by label. Empty means every object of the namespace.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// includeResources limits the capture to these resources, as "deployments.apps" or "configmaps". Empty means all kinds.
	// +optional
	IncludeResources []string `json:"includeResources,omitempty"`

	// excludeResources are left out, as "events" or "leases.coordination.k8s.io". What belongs to a cluster is always left out.
	// +optional
	ExcludeResources []string `json:"excludeResources,omitempty"`

	// planName is the DisasterRecoveryPlan this snapshot was taken for.
	// +optional
	PlanName string `json:"planName,omitempty"`

	// operation is the id of the operation that restores from this snapshot; empty for a periodic one.
	// +optional
	Operation string `json:"operation,omitempty"`
}

// SnapshotPhase is where a capture stands.
// +kubebuilder:validation:Enum=New;Capturing;Completed;Failed
type SnapshotPhase string

const (
	// SnapshotNew: nothing was done yet.
	SnapshotNew SnapshotPhase = "New"
	// SnapshotCapturing: objects are being read.
	SnapshotCapturing SnapshotPhase = "Capturing"
	// SnapshotCompleted: all objects are in the store and can be restored.
	SnapshotCompleted SnapshotPhase = "Completed"
	// SnapshotFailed: see the message; nothing can be restored from it.
	SnapshotFailed SnapshotPhase = "Failed"
)

// PeerSync tells whether a peer has the snapshot.
type PeerSync struct {
	// cluster is the peer.
	Cluster string `json:"cluster"`
	// synced is true once the peer holds the whole snapshot.
	Synced bool `json:"synced"`
	// message tells why not.
	// +optional
	Message string `json:"message,omitempty"`
}

// ApplicationSnapshotStatus shows what was captured and where it is.
type ApplicationSnapshotStatus struct {
	// phase is New, Capturing, Completed or Failed.
	// +optional
	Phase SnapshotPhase `json:"phase,omitempty"`
	// message tells what it waits for or why it failed.
	// +optional
	Message string `json:"message,omitempty"`
	// sourceCluster is where the objects were captured.
	// +optional
	SourceCluster string `json:"sourceCluster,omitempty"`
	// capturedAt is when the capture began.
	// +optional
	CapturedAt *metav1.Time `json:"capturedAt,omitempty"`
	// objects is how many objects it holds.
	// +optional
	Objects int32 `json:"objects,omitempty"`
	// digest identifies the content.
	// +optional
	Digest string `json:"digest,omitempty"`
	// sizeBytes is the packed size.
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// location is where it is stored, as "secrets/lifeboat-system/<name>".
	// +optional
	Location string `json:"location,omitempty"`
	// peers tells which peers have it.
	// +listType=map
	// +listMapKey=cluster
	// +optional
	Peers []PeerSync `json:"peers,omitempty"`
	// observedGeneration is the spec this status was derived from.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// ApplicationSnapshot is the captured Kubernetes objects of an application.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=appsnap
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Objects",type=integer,JSONPath=`.status.objects`
// +kubebuilder:printcolumn:name="Size",type=integer,JSONPath=`.status.sizeBytes`
// +kubebuilder:printcolumn:name="From",type=string,JSONPath=`.status.sourceCluster`
// +kubebuilder:printcolumn:name="Operation",type=string,JSONPath=`.spec.operation`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.spec == oldSelf.spec",message="an ApplicationSnapshot is not changed once made: make a new one"
type ApplicationSnapshot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ApplicationSnapshotSpec   `json:"spec"`
	Status ApplicationSnapshotStatus `json:"status,omitempty"`
}

// ApplicationSnapshotList is a list of ApplicationSnapshots.
// +kubebuilder:object:root=true
type ApplicationSnapshotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ApplicationSnapshot `json:"items"`
}
