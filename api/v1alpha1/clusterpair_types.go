package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// PairMode says what a pair is for.
// +kubebuilder:validation:Enum=DisasterRecovery;Default
type PairMode string

const (
	// PairModeDisasterRecovery sends changes only, for ever.
	PairModeDisasterRecovery PairMode = "DisasterRecovery"
	// PairModeDefault makes every seventh scheduled session a full one.
	PairModeDefault PairMode = "Default"
)

// LinkState is what this cluster knows about its link to the peer. Unknown is not Lost.
// +kubebuilder:validation:Enum=Unknown;Connected;Lost;Refused
type LinkState string

const (
	// LinkUnknown: no heartbeat has been tried yet.
	LinkUnknown LinkState = "Unknown"
	// LinkConnected: the newest heartbeats were answered.
	LinkConnected LinkState = "Connected"
	// LinkLost: more heartbeats in a row than the tolerance were not answered.
	LinkLost LinkState = "Lost"
	// LinkRefused: the peer answers, but trust, name or version do not fit.
	LinkRefused LinkState = "Refused"
)

// ClusterPairSpec says who the peer is, where it is, and what it may do here.
type ClusterPairSpec struct {
	// peerCluster is the name the peer gives itself (its --cluster-name).
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="peerCluster cannot be changed: make a new ClusterPair"
	PeerCluster string `json:"peerCluster"`

	// gatewayAddress is host:port of the peer's gateway, as seen from this cluster's pods. Example: "203.0.113.7:9002".
	// +kubebuilder:validation:Pattern=`^(\[[0-9a-fA-F:.]+\]|[^:\s]+):[0-9]{1,5}$`
	GatewayAddress string `json:"gatewayAddress"`

	// trustSecretName is a Secret in lifeboat-system whose key ca.crt holds the peer's CA certificate. No key of the peer is needed.
	// +kubebuilder:validation:MinLength=1
	TrustSecretName string `json:"trustSecretName"`

	// mode is DisasterRecovery (changes only) or Default (every seventh scheduled session is a full one).
	// +kubebuilder:default=DisasterRecovery
	// +optional
	Mode PairMode `json:"mode,omitempty"`

	// namespaces are those of this cluster that the peer may act in: prepare replicas, push application snapshots, read roles.
	// Empty means none; "*" means every namespace except kube-* and lifeboat-system.
	// +kubebuilder:validation:MaxItems=256
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`

	// heartbeatMissTolerance is how many heartbeats in a row (one every 5 seconds) may be missed before the link reads Lost.
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=3
	// +kubebuilder:validation:Maximum=60
	// +optional
	HeartbeatMissTolerance int32 `json:"heartbeatMissTolerance,omitempty"`

	// checkNow lets this cluster's manager try every way to the peer when its value changes, and report in status.check. Any text will
	// do; a time is good practice. `lifeboat check` sets it.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	CheckNow string `json:"checkNow,omitempty"`
}

// CheckOutcome is what became of one check. Skipped says nothing of what was to be checked.
// +kubebuilder:validation:Enum=Passed;Failed;Skipped
type CheckOutcome string

const (
	// CheckPassed: it is as it should be.
	CheckPassed CheckOutcome = "Passed"
	// CheckFailed: it is not; the message tells what to do.
	CheckFailed CheckOutcome = "Failed"
	// CheckSkipped: it could not be or needed not be looked at.
	CheckSkipped CheckOutcome = "Skipped"
)

// CheckResult is one check of the way to a peer, made from inside this cluster.
type CheckResult struct {
	// name is what was checked: gateway, identity, control, version, clock or receiver.
	Name string `json:"name"`
	// about is whom or where it was about.
	// +optional
	About string `json:"about,omitempty"`
	// outcome is Passed, Failed or Skipped.
	Outcome CheckOutcome `json:"outcome"`
	// message tells what was found and, where it failed, what to do.
	// +optional
	Message string `json:"message,omitempty"`
}

// CheckReport is the newest check of the way to a peer.
type CheckReport struct {
	// checkNow is the value of spec.checkNow that it answers.
	CheckNow string `json:"checkNow"`
	// at is when it ended.
	At metav1.Time `json:"at"`
	// results in the order they were made.
	// +kubebuilder:validation:MaxItems=512
	// +optional
	Results []CheckResult `json:"results,omitempty"`
}

// ClusterPairStatus shows the link.
type ClusterPairStatus struct {
	// linkState is Unknown until the first heartbeat, then Connected, Lost or Refused.
	// +optional
	LinkState LinkState `json:"linkState,omitempty"`
	// lastHeartbeat is when the peer last answered.
	// +optional
	LastHeartbeat *metav1.Time `json:"lastHeartbeat,omitempty"`
	// missedHeartbeats counts unanswered heartbeats since the last answered one.
	// +optional
	MissedHeartbeats int32 `json:"missedHeartbeats,omitempty"`
	// roundTripMicroseconds is the time the last answered heartbeat took.
	// +optional
	RoundTripMicroseconds int64 `json:"roundTripMicroseconds,omitempty"`
	// peerVersion is the peer's software version.
	// +optional
	PeerVersion string `json:"peerVersion,omitempty"`
	// peerProtocol is the peer's control protocol version.
	// +optional
	PeerProtocol int32 `json:"peerProtocol,omitempty"`
	// check is what the newest check of the way to the peer found.
	// +optional
	Check *CheckReport `json:"check,omitempty"`
	// observedGeneration is the spec this status was derived from.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Connected.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterPair says that this cluster and a peer trust each other.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pair
// +kubebuilder:printcolumn:name="Peer",type=string,JSONPath=`.spec.peerCluster`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.gatewayAddress`
// +kubebuilder:printcolumn:name="Link",type=string,JSONPath=`.status.linkState`
// +kubebuilder:printcolumn:name="Last heartbeat",type=date,JSONPath=`.status.lastHeartbeat`
// +kubebuilder:printcolumn:name="Peer version",type=string,JSONPath=`.status.peerVersion`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterPair struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ClusterPairSpec   `json:"spec"`
	Status ClusterPairStatus `json:"status,omitempty"`
}

// ClusterPairList is a list of ClusterPairs.
// +kubebuilder:object:root=true
type ClusterPairList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterPair `json:"items"`
}
