// Package cycle says the next step of one replication on this side, and why.
//
// It knows what a side sees of its own objects and of its peer, and the order in which things are made and removed so
// that data stay safe. It reads nothing, changes nothing and keeps nothing: whoever asks again after a crash between
// any two effects gets the step that goes on from there. Begin reading at NextSources and NextTargets.
package cycle

import (
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Step is what to do next. Every step looks first and may be taken twice.
type Step string

// Steps of both sides.
const (
	// Wait: something else must change first; Reason and Message say what.
	Wait Step = "Wait"
	// Rest: all is done until the next run.
	Rest Step = "Rest"
	// TakeRole: nothing of the old role is left, so the wanted role and epoch come into force.
	TakeRole Step = "TakeRole"
)

// Steps of a source.
const (
	// TakeEpoch saves an epoch of this side's own, in which it becomes the source.
	TakeEpoch Step = "TakeEpoch"
	// PreparePeer asks the peer to make what is missing there.
	PreparePeer Step = "PreparePeer"
	// GrowPeer tells the peer the sizes its claims shall grow to.
	GrowPeer Step = "GrowPeer"
	// StartSession saves the session's point before anything is made for it.
	StartSession Step = "StartSession"
	// TakeSnapshots cuts all members together.
	TakeSnapshots Step = "TakeSnapshots"
	// CutApart gives up cutting all members at one instant, which the storage refuses: each is snapshotted by itself.
	CutApart Step = "CutApart"
	// RecordCut saves that all snapshots are usable, and their instant.
	RecordCut Step = "RecordCut"
	// MakeClones makes a block claim from each snapshot.
	MakeClones Step = "MakeClones"
	// StartMover starts the Job that carries the point, or makes it again.
	StartMover Step = "StartMover"
	// FollowMover reads the running mover's progress.
	FollowMover Step = "FollowMover"
	// CommitSession saves the mover's report; this point's snapshots are the base from now on.
	CommitSession Step = "CommitSession"
	// FailSession saves why the session ended without a recovery point.
	FailSession Step = "FailSession"
	// RemoveMover removes the session's Job and its pods.
	RemoveMover Step = "RemoveMover"
	// Tidy removes Jobs, clones and snapshots that no session and no base needs.
	Tidy Step = "Tidy"
)

// Steps of a target.
const (
	// BindClaims starts a pod that mounts claims which get their volumes no other way, RemoveBinder removes it.
	BindClaims   Step = "BindClaims"
	RemoveBinder Step = "RemoveBinder"
	// MakePair makes the static block volume and claim beside each of the user's claims.
	MakePair Step = "MakePair"
	// RemovePair removes them; the volumes stay.
	RemovePair Step = "RemovePair"
	// RemoveFormer removes those of claims that are no members any more, once no receiver has them.
	RemoveFormer Step = "RemoveFormer"
	// MakeSpool makes the claim that keeps a delta until it is whole.
	MakeSpool Step = "MakeSpool"
	// SealSpool saves that the spool holds nothing the replica does not: from then on it may be removed.
	SealSpool Step = "SealSpool"
	// RemoveSpool removes it.
	RemoveSpool Step = "RemoveSpool"
	// StartReceiver makes the receiver as it should be, and the way to it.
	StartReceiver Step = "StartReceiver"
	// CloseReceiver takes away the way to the receiver, which goes on applying what it has.
	CloseReceiver Step = "CloseReceiver"
	// RemoveReceiver removes the receiver and its pods.
	RemoveReceiver Step = "RemoveReceiver"
	// BeginRollback saves that the replica is about to be rolled back to an older point: from then on it holds none.
	BeginRollback Step = "BeginRollback"
	// MakeRollback makes block claims from the snapshots of the point.
	MakeRollback Step = "MakeRollback"
	// StartRollback starts the Job that writes what differs.
	StartRollback Step = "StartRollback"
	// RecordRollback saves that the replica holds the point.
	RecordRollback Step = "RecordRollback"
	// RemoveRollback removes the Job and the block claims.
	RemoveRollback Step = "RemoveRollback"
	// TakeRecoveryPoint snapshots the user's claims.
	TakeRecoveryPoint Step = "TakeRecoveryPoint"
	// RecordPoint saves the committed point, which lets the source start its next session.
	RecordPoint Step = "RecordPoint"
	// RemoveStrays removes receivers of links that the replica is not received through.
	RemoveStrays Step = "RemoveStrays"
	// GrowClaims asks for the claims to be as large as the source's.
	GrowClaims Step = "GrowClaims"
	// DropRecoveryPoints removes what retention no longer keeps.
	DropRecoveryPoints Step = "DropRecoveryPoints"
)

// Phases, one word for printers.
const (
	Preparing = "Preparing"
	Idle      = "Idle"
	Running   = "Running"
	Waiting   = "Waiting"
	Promoting = "Promoting"
	Demoting  = "Demoting"
	Suspended = "Suspended"
	Failed    = "Failed"
)

// How soon to look again.
const (
	// Hasty is for when an application waits for this side: each wait of a move counts in its downtime.
	Hasty = 100 * time.Millisecond
	// Quick is for what takes a second or so: snapshots, claims, pods that end.
	Quick = 250 * time.Millisecond
	// Steady is for what runs.
	Steady = time.Second
	// Patient is for what a person or the peer must change.
	Patient = 5 * time.Second
	// Calm is for when nothing is wanted. Whoever looks is woken by news: this is for those that are lost.
	Calm = 2 * time.Minute
	// CalmTarget is shorter than the shortest Backoff: a target has noticed what an ended session committed
	// before its source tries again.
	CalmTarget = 10 * time.Second
)

// Decision is the next step and why.
type Decision struct {
	Step Step
	// Phase is the word for status.phase.
	Phase string
	// Reason is one CamelCase word, one of the Reason constants.
	Reason string
	// Message is a sentence for the operator: what is done or waited for, and what to do about it.
	Message string
	// Ready is true when the replication can do its work: nothing is missing and nobody has to act.
	Ready bool
	// Poll is how soon to look again; 0 is at once.
	Poll time.Duration
	// Trigger is why StartSession starts.
	Trigger string
	// Epoch is what TakeEpoch takes.
	Epoch int64
	// Lost names the clusters that a promotion goes on without, of TakeEpoch and SealSpool.
	Lost []string
	// Fault is why the session will make no point once the application is let go, of Resume; nil when it will.
	Fault *Problem
}

// Reasons. Those of a Problem come from who saw it.
const (
	ReasonReady                = "Ready"
	ReasonBindingClaims        = "BindingClaims"
	ReasonSuspended            = "Suspended"
	ReasonSessionDue           = "SessionDue"
	ReasonSessionRunning       = "SessionRunning"
	ReasonSessionEnded         = "SessionEnded"
	ReasonRetryLater           = "RetryLater"
	ReasonItsTurn              = "WaitingForItsTurn"
	ReasonSnapshotsPending     = "SnapshotsPending"
	ReasonSnapshotsFailed      = "SnapshotsFailed"
	ReasonGroupSnapshotRefused = "GroupSnapshotRefused"
	ReasonRegrouping           = "Regrouping"
	ReasonRollingBack          = "RollingBack"
	ReasonRollbackFailed       = "RollbackFailed"
	ReasonPointNotKept         = "PointNotKept"
	ReasonCutInterrupted       = "CutInterrupted"
	ReasonSnapshotsVanished    = "SnapshotsVanished"
	ReasonMoverRefused         = "MoverRefused"
	ReasonMoverFailed          = "MoverFailed"
	ReasonAborted              = "Aborted"
	ReasonTidying              = "Tidying"
	ReasonRoleTaken            = "RoleTaken"
	ReasonLinkLost             = "LinkLost"
	ReasonLinkRefused          = "LinkRefused"
	ReasonLinkUnknown          = "LinkUnknown"
	ReasonPeerRefuses          = "PeerRefuses"
	ReasonPeerMissing          = "PeerMissing"
	ReasonSourceMissing        = "SourceMissing"
	ReasonPeerPreparing        = "PeerPreparing"
	ReasonPeerIsSource         = "PeerIsSource"
	ReasonPeerEpochBehind      = "PeerEpochBehind"
	ReasonStaleEpoch           = "StaleEpoch"
	ReasonPeerDiffers          = "PeerDiffers"
	ReasonMembersDiffer        = "MembersDiffer"
	ReasonSizesDiffer          = "SizesDiffer"
	ReasonGrowing              = "Growing"
	ReasonCannotGrow           = "CannotGrow"
	ReasonPeerFinishing        = "PeerFinishing"
	ReasonClaimsInUse          = "ClaimsInUse"
	ReasonVolumesAttached      = "VolumesAttached"
	ReasonEpochTaken           = "EpochTaken"
	ReasonLeavingSource        = "LeavingSource"
	ReasonLeavingTarget        = "LeavingTarget"
	ReasonNothingToPromote     = "NothingToPromote"
	ReasonReplicaPreparing     = "ReplicaPreparing"
	ReasonNotReceiving         = "NotReceiving"
	ReasonReceiverStarting     = "ReceiverStarting"
	ReasonReceiverSilent       = "ReceiverSilent"
	ReasonApplying             = "Applying"
	ReasonReceiving            = "Receiving"
	ReasonRecoveryPoint        = "TakingRecoveryPoint"
	ReasonRecoveryPointNotKept = "RecoveryPointNotKept"
)

// Problem is something missing or wrong that a person must mend, as it was seen.
type Problem struct {
	Reason  string
	Message string
}

// Stand is a role in an epoch. The zero value means none yet.
type Stand struct {
	Role  v1alpha1.Role
	Epoch int64
}

// Presence is how far something that is made has come. Unknown states are never taken for Absent.
type Presence int

const (
	// Absent: it does not exist.
	Absent Presence = iota
	// Partial: some of it exists, or it is being made or removed.
	Partial
	// Outdated: it exists and is not as it should be.
	Outdated
	// Present: it exists and can be used.
	Present
)

// Snapshot is one member's snapshot as it was seen.
type Snapshot struct {
	Claim string
	// Exists is true once the object is there.
	Exists bool
	// CreatedAt is when the object was made; zero when it is not there.
	CreatedAt time.Time
	// Cut is true once the driver says when it cut the volume.
	Cut bool
	// Ready is true once volumes can be made from it.
	Ready bool
	// Error is what the driver said last.
	Error string
}

// Session is the session that runs, as saved.
type Session struct {
	Point     string
	Epoch     int64
	Trigger   string
	StartedAt time.Time
	// CutAt is the instant RecordCut saved, zero before.
	CutAt time.Time
	// Together is true when the storage is asked to cut all members at one instant, MayPart when they may be snapshotted one
	// by one should it refuse.
	Together, MayPart bool
	// Quiescence is how far its Rules are; nil without any.
	Quiescence *Quiescence
}

// MoverState is where a session's mover stands.
type MoverState int

const (
	// MoverAbsent: there is neither Job nor pod.
	MoverAbsent MoverState = iota
	// MoverRunning: it starts, runs, or will be started again by its Job.
	MoverRunning
	// MoverCommitted: it ended and its point is committed and applied on the target.
	MoverCommitted
	// MoverRefused: the target will never take this session as it is.
	MoverRefused
	// MoverFailed: its Job has given up.
	MoverFailed
	// MoverEnding: it is being removed.
	MoverEnding
)

// Mover is a session's mover as it was seen.
type Mover struct {
	State MoverState
	// Message tells what it waits for or why it ended.
	Message string
	// Ending is true when it is about to be through.
	Ending bool
	// Outdated is true when it dials another address than it should by now.
	Outdated bool
	// Waiting is true when it does not reach its target.
	Waiting bool
}

func wait(phase, reason, message string, poll time.Duration) Decision {
	return Decision{Step: Wait, Phase: phase, Reason: reason, Message: message, Poll: poll}
}
