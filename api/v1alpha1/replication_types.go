package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Role says which side of a replication this cluster is.
// +kubebuilder:validation:Enum=source;target
type Role string

const (
	// RoleSource: the application writes here; sessions leave from here.
	RoleSource Role = "source"
	// RoleTarget: the replica lives here; only whole deltas are written to it.
	RoleTarget Role = "target"
)

// PeerObjects says who makes the objects on the other side.
// +kubebuilder:validation:Enum=Create;Manual
type PeerObjects string

const (
	// PeerObjectsCreate: the source asks the peer to make PVCGroup, Replication and missing claims.
	PeerObjectsCreate PeerObjects = "Create"
	// PeerObjectsManual: somebody made them on both sides.
	PeerObjectsManual PeerObjects = "Manual"
)

// Compression of what crosses the link.
// +kubebuilder:validation:Enum=Auto;Off
type Compression string

const (
	// CompressionAuto compresses with zstd what gets smaller by it.
	CompressionAuto Compression = "Auto"
	// CompressionOff sends bytes as they are.
	CompressionOff Compression = "Off"
)

// Rlink is the replication's link to one peer.
type Rlink struct {
	// rlinkName names the link within this Replication.
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=20
	RlinkName string `json:"rlinkName"`

	// clusterPair is the ClusterPair of the peer.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ClusterPair string `json:"clusterPair"`

	// schedule is when sessions start, in cron format, in UTC. Empty means only on triggerNow. On a target it is
	// kept for the day this side becomes the source. Example: "*/5 * * * *".
	// +optional
	Schedule string `json:"schedule,omitempty"`

	// pvcMap maps local claims to the peer's claims where their names differ. Claims not named keep their name.
	// +optional
	PVCMap map[string]string `json:"pvcMap,omitempty"`

	// suspendReplication stops new sessions; one that runs ends first.
	// +optional
	SuspendReplication bool `json:"suspendReplication,omitempty"`

	// bandwidthLimit is how many bytes per second one session may send. Empty means no limit. Example: "50M".
	// +optional
	BandwidthLimit *resource.Quantity `json:"bandwidthLimit,omitempty"`

	// compression is Auto (zstd where it makes data smaller) or Off.
	// +kubebuilder:default=Auto
	// +optional
	Compression Compression `json:"compression,omitempty"`

	// spoolSize is the size of the claim that keeps a delta on the target until it is whole. A delta never
	// touches the replica before it is whole, so the spool must hold one. Empty means the sum of the members plus 5 %.
	// +optional
	SpoolSize *resource.Quantity `json:"spoolSize,omitempty"`

	// retain is how many recovery points are kept on the target as snapshots beside the replica itself. 0 keeps none. Each
	// takes the space of what changed since. Together with retainFor both bounds hold: see there.
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=500
	// +optional
	Retain *int32 `json:"retain,omitempty"`

	// retainFor is how old a kept recovery point may become, by the instant it was cut at. Empty bounds nothing. A point goes
	// once it is not among the newest retain ones or is older than retainFor, whichever comes first; the newest one is never
	// dropped for its age. To keep every point of a day at one session in 15 minutes set retain to 96 and retainFor to "24h".
	// Examples: "36h", "720h".
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m')",message="retainFor is at least 1m; leave it empty to bound nothing"
	// +optional
	RetainFor *metav1.Duration `json:"retainFor,omitempty"`

	// retainSnapshotsOnDeletion keeps the recovery points on the target when this Replication is deleted there; otherwise they
	// go with it. What is kept is listed and restored by lifeboat recovery-points and lifeboat restore.
	// +optional
	RetainSnapshotsOnDeletion bool `json:"retainSnapshotsOnDeletion,omitempty"`

	// storageClassMap maps local storage classes to the peer's, for claims that are made there. A class that is not named keeps its name where
	// the peer has one of that name, and becomes the peer's default class otherwise.
	// +kubebuilder:validation:MaxProperties=32
	// +optional
	StorageClassMap map[string]string `json:"storageClassMap,omitempty"`

	// peerObjects is Create (the source asks the peer to make what is missing there) or Manual.
	// +kubebuilder:default=Create
	// +optional
	PeerObjects PeerObjects `json:"peerObjects,omitempty"`
}

// ReplicationSpec says what is kept in step, with whom, and which side this is.
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.epoch) || (has(self.epoch) && self.epoch >= oldSelf.epoch)",message="epoch never goes back: a smaller epoch is a stale primary"
// +kubebuilder:validation:XValidation:rule="self.pvcGroupName == oldSelf.pvcGroupName",message="pvcGroupName cannot be changed: make a new Replication"
type ReplicationSpec struct {
	// role is source or target.
	Role Role `json:"role"`

	// pvcGroupName is the PVCGroup in this namespace whose volumes are replicated.
	// +kubebuilder:validation:MinLength=1
	PVCGroupName string `json:"pvcGroupName"`

	// epoch grows at every change of primary. A source with a smaller epoch than its target knows is refused.
	// A DisasterRecoveryPlan sets it, and by that vouches that no other cluster is the source. Who sets roles by hand leaves it alone: the side
	// that becomes the source takes an epoch of its own, shown in status.epoch. Empty means 1.
	// +kubebuilder:validation:Minimum=1
	// +optional
	Epoch int64 `json:"epoch,omitempty"`

	// rlinks are the peers, one link each, at most 8. A source sends through every link by itself: none waits for another. A target
	// receives through one of them, that of the peer which is the source; the others are for the day another peer is.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, b.clusterPair == a.clusterPair))",message="each rlink has a ClusterPair of its own: two links to one peer would write one replica"
	// +listType=map
	// +listMapKey=rlinkName
	Rlinks []Rlink `json:"rlinks"`

	// acknowledgePeerLost lets this side become the source although a peer that may be the source does not answer: the id of the newest
	// recovery point here, status.rlinks[].recoveryPoint.point. What was written on the lost peer after that point is lost. It must name the point,
	// so that it says what is given up, and so that one that is left over from another day, when this was another point, counts for nothing.
	// Without a lost peer it does nothing. Example: "20260131t120000-1a2b3c".
	// +kubebuilder:validation:MaxLength=64
	// +optional
	AcknowledgePeerLost string `json:"acknowledgePeerLost,omitempty"`

	// promoteTo is the recovery point that the replica is rolled back to when it is promoted, before its claims become
	// usable; empty means the newest point, as it is. The point must be kept as snapshots of all members: lifeboat recovery-points lists
	// them. It is answered by one promotion, which status.promotedTo shows; clear it and set it again for another. What was written
	// after the point is lost on this side. Example: "20260131t120000-1a2b3c".
	// +kubebuilder:validation:MaxLength=63
	// +optional
	PromoteTo string `json:"promoteTo,omitempty"`

	// triggerNow starts a session on every link at once when its value changes. Any text will do; a time is good practice.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	TriggerNow string `json:"triggerNow,omitempty"`
}

// Tier is how changes were found. See the guide on change tiers.
type Tier string

const (
	// TierFull sent every block that is not zero.
	TierFull Tier = "full"
	// TierDigest compared block digests with the target's digest map.
	TierDigest Tier = "digest"
	// TierAllocated sent what was ever written, without reading the rest.
	TierAllocated Tier = "allocated"
	// TierCBT read only what the storage lists as changed since the point the target has.
	TierCBT Tier = "cbt"
)

// RecoveryPoint is what a session committed on the target: all volumes of the group at one instant.
type RecoveryPoint struct {
	// point is the id of the instant.
	Point string `json:"point"`
	// time is the instant the volumes were cut at on the source.
	Time metav1.Time `json:"time"`
	// epoch is the epoch of the source that cut it.
	Epoch int64 `json:"epoch"`
	// cut tells whether the members were cut at one instant on the source: Single, Atomic or NotAtomic; empty when the source
	// did not say.
	// +optional
	Cut CutAtomicity `json:"cut,omitempty"`
	// snapshots are the VolumeSnapshots that keep this point on the target; empty for the point the replica itself holds.
	// +optional
	Snapshots []string `json:"snapshots,omitempty"`
	// groupSnapshot is the VolumeGroupSnapshot that these snapshots belong to; empty when each is by itself.
	// +optional
	GroupSnapshot string `json:"groupSnapshot,omitempty"`
}

// SessionStatus is the session that runs now.
type SessionStatus struct {
	// point is the id of the instant this session carries.
	Point string `json:"point"`
	// trigger tells why it was started: First, Schedule or Trigger.
	Trigger string `json:"trigger"`
	// triggerNow is the value of spec.triggerNow that this session answers.
	// +optional
	TriggerNow string `json:"triggerNow,omitempty"`
	// claims are the members this session carries, whatever becomes of the group meanwhile.
	// +optional
	Claims []string `json:"claims,omitempty"`
	// epoch the session runs in.
	Epoch int64 `json:"epoch"`
	// startedAt is when it was decided on.
	StartedAt metav1.MicroTime `json:"startedAt"`
	// cut tells how the members are cut in this session: Single, Atomic or NotAtomic.
	// +optional
	Cut CutAtomicity `json:"cut,omitempty"`
	// cutReason tells why not at one instant; empty when they are.
	// +optional
	CutReason string `json:"cutReason,omitempty"`
	// cutAt is when the snapshots were taken.
	// +optional
	CutAt *metav1.Time `json:"cutAt,omitempty"`
	// phase is the step it is in.
	// +optional
	Phase string `json:"phase,omitempty"`
	// message tells what it does or waits for.
	// +optional
	Message string `json:"message,omitempty"`
	// bytesDone of bytesTotal have been examined.
	// +optional
	BytesDone int64 `json:"bytesDone,omitempty"`
	// bytesTotal is the size of all volumes.
	// +optional
	BytesTotal int64 `json:"bytesTotal,omitempty"`
	// bytesPerSecond is the present rate.
	// +optional
	BytesPerSecond int64 `json:"bytesPerSecond,omitempty"`
	// percent of the session that is done, 0 to 100.
	// +optional
	Percent int32 `json:"percent,omitempty"`
	// etaSeconds is the time left at the present rate.
	// +optional
	ETASeconds int64 `json:"etaSeconds,omitempty"`
	// tier is how changes are found in this session.
	// +optional
	Tier Tier `json:"tier,omitempty"`
}

// SessionReport is how an ended session went.
type SessionReport struct {
	// point is the id of the instant it carried.
	Point string `json:"point"`
	// result is Committed or Failed.
	// +kubebuilder:validation:Enum=Committed;Failed
	Result string `json:"result"`
	// trigger tells why it was started.
	// +optional
	Trigger string `json:"trigger,omitempty"`
	// triggerNow is the value of spec.triggerNow that it answered.
	// +optional
	TriggerNow string `json:"triggerNow,omitempty"`
	// message tells why it failed.
	// +optional
	Message string `json:"message,omitempty"`
	// startedAt and finishedAt bound it.
	StartedAt  metav1.MicroTime `json:"startedAt"`
	FinishedAt metav1.MicroTime `json:"finishedAt"`
	// cut tells how the members were cut: Single, Atomic or NotAtomic.
	// +optional
	Cut CutAtomicity `json:"cut,omitempty"`
	// cutReason tells why not at one instant; empty when they were.
	// +optional
	CutReason string `json:"cutReason,omitempty"`
	// tier tells how changes were found.
	// +optional
	Tier Tier `json:"tier,omitempty"`
	// tierReason tells why not a cheaper one.
	// +optional
	TierReason string `json:"tierReason,omitempty"`
	// bytesRead from the source volumes.
	BytesRead int64 `json:"bytesRead"`
	// bytesChanged were found to differ.
	BytesChanged int64 `json:"bytesChanged"`
	// bytesSent crossed the link after compression.
	BytesSent int64 `json:"bytesSent"`
	// bytesResent had been acknowledged and were sent again.
	BytesResent int64 `json:"bytesResent"`
	// attempts is how often the mover had to connect.
	// +optional
	Attempts int32 `json:"attempts,omitempty"`
}

// Agreement names the state of a source's spec that its peer has compared with its own.
type Agreement struct {
	// epoch it was compared in.
	Epoch int64 `json:"epoch"`
	// generation of the spec that was compared.
	Generation int64 `json:"generation"`
}

// RlinkStatus shows one link of a replication.
type RlinkStatus struct {
	// rlinkName is the link.
	RlinkName string `json:"rlinkName"`
	// phase is one word for this link; that of the Replication is the one of its links that most needs to be seen.
	// +optional
	Phase string `json:"phase,omitempty"`
	// session runs now; absent between sessions.
	// +optional
	Session *SessionStatus `json:"session,omitempty"`
	// lastSession is the newest ended session.
	// +optional
	LastSession *SessionReport `json:"lastSession,omitempty"`
	// history are the sessions that ended before, newest first, at most 10.
	// +kubebuilder:validation:MaxItems=10
	// +optional
	History []SessionReport `json:"history,omitempty"`
	// recoveryPoint is the newest point committed on the target.
	// +optional
	RecoveryPoint *RecoveryPoint `json:"recoveryPoint,omitempty"`
	// recoveryPoints are the points kept as snapshots on the target, newest first.
	// +optional
	RecoveryPoints []RecoveryPoint `json:"recoveryPoints,omitempty"`
	// groupSnapshotsRefusedAt is when the storage last refused to cut the group at one instant. It is not asked again for 10
	// minutes, on a target for a day: sessions would wait for the same answer.
	// +optional
	GroupSnapshotsRefusedAt *metav1.Time `json:"groupSnapshotsRefusedAt,omitempty"`
	// basePoint is the instant whose snapshots are kept on the source as base of the next session.
	// +optional
	BasePoint string `json:"basePoint,omitempty"`
	// agreed is what the peer has found to fit its own side: members, map and sizes. Without it no first session of an epoch begins.
	// +optional
	Agreed *Agreement `json:"agreed,omitempty"`
	// nextRun is when the schedule starts the next session.
	// +optional
	NextRun *metav1.Time `json:"nextRun,omitempty"`
	// missedRuns counts scheduled runs that were skipped.
	// +optional
	MissedRuns int64 `json:"missedRuns,omitempty"`
	// receiverReady is true on a target whose receiver takes sessions.
	// +optional
	ReceiverReady bool `json:"receiverReady,omitempty"`
	// waitingFor tells in a sentence what this link waits for; empty when it waits for nothing but its schedule.
	// +optional
	WaitingFor string `json:"waitingFor,omitempty"`
	// objects lists the Jobs, Deployments and claims that serve this link, as kind/name.
	// +optional
	Objects []string `json:"objects,omitempty"`
}

// ReceivingStatus is the link a target receives its replica through.
type ReceivingStatus struct {
	// rlinkName is the link.
	RlinkName string `json:"rlinkName"`
	// epoch is the epoch in which its peer was seen as the source, 0 when it never was.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
}

// ClaimSize tells how large a claim's volume is.
type ClaimSize struct {
	// claim is a local claim of the group.
	Claim string `json:"claim"`
	// bytes is the exact size of its volume.
	Bytes int64 `json:"bytes"`
}

// ClaimedEpoch is an epoch that this side has taken for itself to become the source.
type ClaimedEpoch struct {
	// epoch that was taken.
	Epoch int64 `json:"epoch"`
	// generation of the spec it was taken for. It counts for no other.
	Generation int64 `json:"generation"`
	// lost are the clusters that did not answer and whose loss was acknowledged.
	// +optional
	Lost []string `json:"lost,omitempty"`
}

// TakeoverStatus tells that this side became the source without asking every other.
type TakeoverStatus struct {
	// epoch of the takeover.
	Epoch int64 `json:"epoch"`
	// point that this side was promoted with. What was written elsewhere after it is not here.
	// +optional
	Point string `json:"point,omitempty"`
	// at is when the replica was sealed.
	At metav1.Time `json:"at"`
	// clusters that may still believe that they are the source, or hold what is not here: each stays until it has committed a session of this source.
	Clusters []string `json:"clusters"`
}

// ReplicationStatus shows how far the copy is.
type ReplicationStatus struct {
	// role is the role that is in force, which follows spec.role once everything of the old role is gone.
	// +optional
	Role Role `json:"role,omitempty"`
	// epoch is the epoch in force.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
	// phase is one word for printers: Preparing, Idle, Running, Waiting, Promoting, Demoting, Suspended, Failed.
	// +optional
	Phase string `json:"phase,omitempty"`
	// claims are the local claims of the group; a target's claims must not be mounted by pods.
	// +optional
	Claims []string `json:"claims,omitempty"`
	// sizes are those of the claims' volumes. No session starts while they differ from the peer's: a claim that grows on the
	// source is grown on the target.
	// +listType=map
	// +listMapKey=claim
	// +optional
	Sizes []ClaimSize `json:"sizes,omitempty"`
	// primaryCluster is the cluster that may write, as far as this side knows.
	// +optional
	PrimaryCluster string `json:"primaryCluster,omitempty"`
	// claimedEpoch is saved before a promotion without an epoch in the spec begins, and goes when it is done.
	// +optional
	ClaimedEpoch *ClaimedEpoch `json:"claimedEpoch,omitempty"`
	// takeover stays from a promotion without the former source until every cluster it was done without is a target that was resynchronised.
	// +optional
	Takeover *TakeoverStatus `json:"takeover,omitempty"`
	// receiving is the link that a target receives through, or received through before it became the source.
	// +optional
	Receiving *ReceivingStatus `json:"receiving,omitempty"`
	// rlinks shows each link.
	// +listType=map
	// +listMapKey=rlinkName
	// +optional
	Rlinks []RlinkStatus `json:"rlinks,omitempty"`
	// promotedTo is the value of spec.promoteTo that a promotion has answered.
	// +optional
	PromotedTo string `json:"promotedTo,omitempty"`
	// rollingBackTo is the point that the replica is being rolled back to: until that is done it is no instant of anything.
	// +optional
	RollingBackTo string `json:"rollingBackTo,omitempty"`
	// observedGeneration is the spec this status was derived from.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// conditions: Ready, Replicated, Promoted, CutAtomic.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Replication keeps one group of volumes in step with a peer.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=repl
// +kubebuilder:printcolumn:name="Role",type=string,JSONPath=`.status.role`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Schedule",type=string,JSONPath=`.spec.rlinks[0].schedule`
// +kubebuilder:printcolumn:name="Progress",type=integer,JSONPath=`.status.rlinks[0].session.percent`
// +kubebuilder:printcolumn:name="Recovery point",type=date,JSONPath=`.status.rlinks[0].recoveryPoint.time`
// +kubebuilder:printcolumn:name="Epoch",type=integer,JSONPath=`.status.epoch`
// +kubebuilder:printcolumn:name="Waiting for",type=string,JSONPath=`.status.rlinks[0].waitingFor`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 40",message="the name of a Replication may have at most 40 characters: Jobs, snapshots and claims are named from it"
type Replication struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ReplicationSpec   `json:"spec"`
	Status ReplicationStatus `json:"status,omitempty"`
}

// ReplicationList is a list of Replications.
// +kubebuilder:object:root=true
type ReplicationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Replication `json:"items"`
}
