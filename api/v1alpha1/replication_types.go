package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
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

// Rlink is the replication's link to one peer. Every field may be changed at any time but clusterPair; a session that runs ends as
// it began, and the next one takes what was changed.
// +kubebuilder:validation:XValidation:rule="self.clusterPair == oldSelf.clusterPair",message="clusterPair cannot be changed: what this link has sent is the former peer's; remove the link, and add one of another name for the other peer"
// +kubebuilder:validation:XValidation:rule="(has(self.schedule) && self.schedule.size() > 0 ? 1 : 0) + (has(self.interval) && self.interval.size() > 0 ? 1 : 0) + (has(self.schedulePolicyName) && self.schedulePolicyName.size() > 0 ? 1 : 0) <= 1",message="give one of schedule, interval and schedulePolicyName: they all say when sessions start"
// +kubebuilder:validation:XValidation:rule="!has(self.startTime) || self.startTime.size() == 0 || has(self.interval) && self.interval.size() > 0",message="startTime is when interval is counted from: give an interval too, or leave it out"
type Rlink struct {
	// rlinkName names the link within this Replication. Its objects are named from it, so another name is another link.
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=20
	RlinkName string `json:"rlinkName"`

	// clusterPair is the ClusterPair of the peer. It cannot be changed.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ClusterPair string `json:"clusterPair"`

	// schedule is when sessions start, in cron format, in UTC. Empty means only on triggerNow, unless interval or
	// schedulePolicyName is set. On a target it is kept for the day this side becomes the source. May be changed at any time.
	// Example: "*/5 * * * *".
	// +optional
	Schedule string `json:"schedule,omitempty"`

	// interval is how often sessions start, from start to start, in days, hours and minutes, at least a minute; a day is 24 hours.
	// It stands instead of schedule. May be changed at any time. Examples: "12m", "2h", "1d".
	// +kubebuilder:validation:MaxLength=30
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches('^([0-9]+d)?([0-9]+h)?([0-9]+m)?$') && self.matches('[1-9]')",message="interval is written in days, hours and minutes, at least a minute: 12m, 2h, 1d or 1d12h"
	// +optional
	Interval string `json:"interval,omitempty"`

	// startTime is the time of day that interval is counted from, in ISO 8601, in UTC unless it names an offset. Empty means that it
	// is counted from the start of each session. May be changed at any time. Examples: "16:18:43", "16:18:43+02:00".
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches('^T?([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?(Z|[+-][0-9][0-9]:[0-9][0-9])?$')",message="startTime is a time of day as 16:18:43 or 16:18:43+02:00"
	// +optional
	StartTime string `json:"startTime,omitempty"`

	// schedulePolicyName is the SchedulePolicy that says when sessions start, in each of the two clusters its own. It stands instead
	// of schedule. While there is no such policy, or it cannot be used, sessions start on triggerNow only, and the condition
	// Scheduled says why. May be changed at any time, and so may the policy.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	SchedulePolicyName string `json:"schedulePolicyName,omitempty"`

	// recoveryPointObjective is how old the newest recovery point on the target may become, in days, hours and minutes. When it is
	// older, the condition WithinObjective is False; when fewer sessions may run than are due, the one that is closest to its
	// objective starts first. It starts no session by itself: the schedule does. Empty means no objective. May be changed at any
	// time. Examples: "5m", "1h30m".
	// +kubebuilder:validation:MaxLength=30
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches('^([0-9]+d)?([0-9]+h)?([0-9]+m)?$') && self.matches('[1-9]')",message="recoveryPointObjective is written in days, hours and minutes, at least a minute: 5m, 1h30m or 1d"
	// +optional
	RecoveryPointObjective string `json:"recoveryPointObjective,omitempty"`

	// pvcMap maps local claims to the peer's claims where their names differ. Claims not named keep their name. May be changed; where
	// the claims on the target become others by it, the next session compares everything.
	// +optional
	PVCMap map[string]string `json:"pvcMap,omitempty"`

	// suspendReplication stops new sessions, also on triggerNow; one that runs ends first. Scheduled runs are counted in missedRuns
	// meanwhile. The base is kept: the first session after it is set to false carries everything that changed.
	// +optional
	SuspendReplication bool `json:"suspendReplication,omitempty"`

	// bandwidthLimit is how many bytes per second one session may send. Empty means no limit. Applies from the next session on.
	// Example: "50M".
	// +optional
	BandwidthLimit *resource.Quantity `json:"bandwidthLimit,omitempty"`

	// compression is Auto (zstd where it makes data smaller) or Off. Applies from the next session on.
	// +kubebuilder:default=Auto
	// +optional
	Compression Compression `json:"compression,omitempty"`

	// spoolSize is the size of the claim that keeps a delta on the target until it is whole. A delta never
	// touches the replica before it is whole, so the spool must hold one. Empty means the sum of the members plus 5 %. A spool
	// that is there keeps its size; a change applies to the next one that is made.
	// +optional
	SpoolSize *resource.Quantity `json:"spoolSize,omitempty"`

	// retain is how many recovery points are kept on the target as snapshots beside the replica itself. 0 keeps none. Each
	// takes the space of what changed since. Together with retainFor both bounds hold: see there. Fewer than before removes the
	// oldest ones soon.
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

	// localEndpoint gives this side's receiver an address of its own: "name:port", ":port" or "name", whose port is 9002. The receiver
	// listens on that port. Where a Service of that name exists it is used as it is, whatever its type; for ":port" any Service that
	// selects the label app: <replication><rlink>. Otherwise Lifeboat makes one of type LoadBalancer. On a source it is kept for the day
	// this side becomes the target. Empty means that the receiver is reached through the cluster's gateway. Examples: "db-in:9002", ":9005".
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z]([-a-z0-9]{0,61}[a-z0-9])?)?(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$') && self != ''",message="localEndpoint is name:port, :port or name: the name of a Service in this namespace, and a port from 1 to 65535"
	// +kubebuilder:validation:MaxLength=69
	// +optional
	LocalEndpoint string `json:"localEndpoint,omitempty"`

	// remoteAddress is host:port where this side reaches the peer's receiver instead of through the peer's gateway: the address of the
	// peer's localEndpoint as it is seen from here, which may be a mapped one that the peer does not know. On a target it is kept for the
	// day this side becomes the source. A session that runs goes on over the new address when it is changed.
	// Empty means the gateway of the ClusterPair. Examples: "203.0.113.7:9002", "[2001:db8::7]:9002".
	// +kubebuilder:validation:XValidation:rule="self.matches('^([[][0-9a-fA-F:.]+[]]|[^]:/@ [][^:/@ ]*):([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$')",message="remoteAddress is host:port with a port from 1 to 65535, such as 203.0.113.7:9002; an IPv6 address goes in brackets, such as [2001:db8::7]:9002"
	// +kubebuilder:validation:MaxLength=260
	// +optional
	RemoteAddress string `json:"remoteAddress,omitempty"`

	// peerObjects is Create (the source asks the peer to make what is missing there) or Manual. May be changed at any time; what
	// was made stays.
	// +kubebuilder:default=Create
	// +optional
	PeerObjects PeerObjects `json:"peerObjects,omitempty"`
}

// Mover says what is special about a Replication's movers.
type Mover struct {
	// image is what movers run. Empty means the manager's own image. It must be of a Lifeboat whose protocol the peer understands.
	// Example: "registry.example.com/lifeboat:v1.2".
	// +kubebuilder:validation:MaxLength=500
	// +optional
	Image string `json:"image,omitempty"`

	// imagePullPolicy is Always, IfNotPresent or Never. Empty means IfNotPresent.
	// +kubebuilder:validation:Enum=Always;IfNotPresent;Never
	// +optional
	ImagePullPolicy corev1.PullPolicy `json:"imagePullPolicy,omitempty"`

	// podAnnotations are put on movers' pods, as for an additional network. Those of Lifeboat and Kubernetes themselves are not taken.
	// Example: {"k8s.v1.cni.cncf.io/networks": "storage/replication"}.
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('lifeboat.dev/') && !k.startsWith('kubernetes.io/'))",message="podAnnotations: keys that begin with lifeboat.dev/ or kubernetes.io/ are not the user's"
	// +optional
	PodAnnotations map[string]string `json:"podAnnotations,omitempty"`
}

// ReplicationSpec says what is kept in step, with whom, and which side this is.
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.epoch) || (has(self.epoch) && self.epoch >= oldSelf.epoch)",message="epoch never goes back: a smaller epoch is a stale primary"
// +kubebuilder:validation:XValidation:rule="self.pvcGroupName == oldSelf.pvcGroupName",message="pvcGroupName cannot be changed: make a new Replication"
type ReplicationSpec struct {
	// role is source or target.
	Role Role `json:"role"`

	// pvcGroupName is the PVCGroup in this namespace whose volumes are replicated. It cannot be changed.
	// +kubebuilder:validation:MinLength=1
	PVCGroupName string `json:"pvcGroupName"`

	// epoch grows at every change of primary. A source with a smaller epoch than its target knows is refused.
	// A DisasterRecoveryPlan that was handed the right to write over sets it together with the role, and its status proves it. Who sets roles by hand
	// leaves it alone: the side that becomes the source takes an epoch of its own, shown in status.epoch. One that is set by hand is a
	// wish for a number: peers are asked, and a lost one must be acknowledged, all the same. Empty means 1.
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

	// mover changes the pods that read and write volumes on this side. It is not handed to the peer: the other cluster has
	// registries and networks of its own. A change takes effect with the next session of a source; a target's receiver is started again,
	// and a session that was under way goes on with it.
	// +optional
	Mover *Mover `json:"mover,omitempty"`

	// promoteTo is the recovery point that the replica is rolled back to when it is promoted, before its claims become
	// usable; empty means the newest point, as it is. The point must be kept as snapshots of all members: lifeboat recovery-points lists
	// them. It is answered by one promotion, which status.promotedTo shows; clear it and set it again for another. What was written
	// after the point is lost on this side. Example: "20260131t120000-1a2b3c".
	// +kubebuilder:validation:MaxLength=63
	// +optional
	PromoteTo string `json:"promoteTo,omitempty"`

	// preCutRule is a Rule in this namespace whose commands quiesce the application before the snapshots of a session are asked for. When
	// one fails, nothing is cut: the session ends and is tried again as any that failed. Each link's sessions run it, one at a time. It is
	// this side's alone: the peer has Rules of its own, and runs none unless its Replication names them. A target runs none. Empty means none.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	PreCutRule string `json:"preCutRule,omitempty"`

	// postCutRule is a Rule in this namespace whose commands are run once all members are cut, or the cut has failed, after what
	// the preCutRule holds was let go. When it fails it is tried again, three times in all; the point stays, and condition Quiesced and an event
	// say so. It may have no background actions. Empty means none.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	PostCutRule string `json:"postCutRule,omitempty"`

	// triggerNow starts a session on every link at once when its value changes, unless the link is suspended. It never waits behind
	// scheduled sessions. Any text will do; a time is good practice.
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
	// scheduleKinds are the kinds of the schedule that were due when it started: Cron, Interval, Daily, Weekly, Monthly.
	// +optional
	ScheduleKinds []string `json:"scheduleKinds,omitempty"`
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
	// quiesce shows how the Rules around the cut go; absent without any.
	// +optional
	Quiesce *QuiesceStatus `json:"quiesce,omitempty"`
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
	// scheduleKinds are the kinds of the schedule that were due when it started.
	// +optional
	ScheduleKinds []string `json:"scheduleKinds,omitempty"`
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
	// quiesce shows how the Rules around the cut went; absent without any.
	// +optional
	Quiesce *QuiesceStatus `json:"quiesce,omitempty"`
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

// ScheduledRun is what the schedule has promised of one kind of runs.
type ScheduledRun struct {
	// kind is Cron, Interval, Daily, Weekly or Monthly.
	Kind string `json:"kind"`
	// next is when the next run is wanted.
	// +optional
	Next *metav1.Time `json:"next,omitempty"`
	// last is when the newest run of this kind started.
	// +optional
	Last *metav1.Time `json:"last,omitempty"`
}

// ObjectiveStatus shows how a link stands to its recoveryPointObjective.
type ObjectiveStatus struct {
	// state is Met, AtRisk (met now, but not any more when the next point comes, at the present rate) or Breached.
	// +kubebuilder:validation:Enum=Met;AtRisk;Breached
	State string `json:"state"`
	// until is when the newest recovery point is as old as the objective allows.
	Until metav1.Time `json:"until"`
	// message says how it stands.
	// +optional
	Message string `json:"message,omitempty"`
	// forecast says how the next point will come, as far as that is known.
	// +optional
	Forecast string `json:"forecast,omitempty"`
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
	// recoveryPoint is the newest point committed on the target. The age of its time is the lag: what would be lost if the source
	// ended now. The lag itself is no field, since it would be wrong a second later; printers and metrics tell it.
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
	// scheduled is what the schedule has promised of each of its kinds.
	// +listType=map
	// +listMapKey=kind
	// +optional
	Scheduled []ScheduledRun `json:"scheduled,omitempty"`
	// objective shows how the link stands to its recoveryPointObjective; absent when it has none.
	// +optional
	Objective *ObjectiveStatus `json:"objective,omitempty"`
	// missedRuns counts scheduled runs that were skipped: more than an hour late, or passed by a later one of their kind.
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
	// logs are the commands that show what the Jobs and Deployments of this link say.
	// +optional
	Logs []string `json:"logs,omitempty"`
	// endpoint shows what became of localEndpoint; absent without one.
	// +optional
	Endpoint *EndpointStatus `json:"endpoint,omitempty"`
}

// EndpointStatus is a receiver's own address, as far as this cluster knows it.
type EndpointStatus struct {
	// service leads to the receiver.
	// +optional
	Service string `json:"service,omitempty"`
	// address is what the Service says of where it is reached; the peer may have to use another, mapped one.
	// +optional
	Address string `json:"address,omitempty"`
	// message tells what is wrong or waited for; empty when nothing is.
	// +optional
	Message string `json:"message,omitempty"`
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
	// schedule is when sessions start, for printers: a cron expression, "every 12m", or "policy gold".
	// +optional
	Schedule string `json:"schedule,omitempty"`
	// suspended is True when every link is suspended, Some when some are, and False.
	// +optional
	Suspended string `json:"suspended,omitempty"`
	// active is how many sessions run.
	// +optional
	Active int32 `json:"active"`
	// recoveryPointTime is the instant of the newest recovery point; with several links that of the link that is furthest behind.
	// Absent while a link has none.
	// +optional
	RecoveryPointTime *metav1.Time `json:"recoveryPointTime,omitempty"`
	// objective is Met, AtRisk or Breached, the worst of all links; absent when none has an objective.
	// +optional
	Objective string `json:"objective,omitempty"`
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
	// claimedEpoch is saved before a promotion that no plan asks for begins, and goes when it is done.
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
	// conditions: Ready, Replicated, Promoted, CutAtomic; Scheduled when there is a schedule, WithinObjective when there is an objective,
	// Quiesced when there are Rules.
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
// +kubebuilder:printcolumn:name="Schedule",type=string,JSONPath=`.status.schedule`
// +kubebuilder:printcolumn:name="Suspend",type=string,JSONPath=`.status.suspended`
// +kubebuilder:printcolumn:name="Active",type=integer,JSONPath=`.status.active`
// +kubebuilder:printcolumn:name="Last recovery point",type=string,JSONPath=`.status.recoveryPointTime`
// +kubebuilder:printcolumn:name="Lag",type=date,JSONPath=`.status.recoveryPointTime`
// +kubebuilder:printcolumn:name="Objective",type=string,JSONPath=`.status.objective`
// +kubebuilder:printcolumn:name="Progress",type=integer,JSONPath=`.status.rlinks[0].session.percent`,priority=1
// +kubebuilder:printcolumn:name="Epoch",type=integer,JSONPath=`.status.epoch`,priority=1
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
