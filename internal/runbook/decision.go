package runbook

import "lifeboat.dev/lifeboat/api/v1alpha1"

// Action is the one thing to do next. Every action may be repeated at any time without harm.
type Action string

// The actions. Those that only save status: Claim, Follow, Begin, Enter, Undo, Grant, Accept, Finish, Close. The others change
// something outside the plan's status, and what they intend was saved before.
const (
	// Rest: do nothing but show the reason.
	Rest Action = "Rest"
	// Claim: save this cluster as the first primary, in Decision.Epoch.
	Claim Action = "Claim"
	// Follow: save Decision.Peer as primary in Decision.Epoch and end an operation that was handed over.
	Follow Action = "Follow"
	// Begin: save a new operation to Decision.Peer, in Decision.Step.
	Begin Action = "Begin"
	// Enter: save Decision.Step as the operation's step, and Decision.Point where one is given.
	Enter Action = "Enter"
	// Undo: save Decision.Reason as why the operation is being undone, and enter the step Rollback.
	Undo Action = "Undo"
	// Capture: make the operation's ApplicationSnapshot.
	Capture Action = "Capture"
	// Sync: trigger a session with Decision.Token.
	Sync Action = "Sync"
	// Stop: take the application offline here; when all of it is gone, enter Decision.Step, if one is given.
	Stop Action = "Stop"
	// GrantEpoch: save the grant of Decision.Epoch to Decision.Peer. From that write on this cluster may not write.
	GrantEpoch Action = "Grant"
	// Demote: ask the Replication to be target in Decision.Epoch.
	Demote Action = "Demote"
	// Accept: save the grant of Decision.Peer as this cluster's own operation and epoch.
	Accept Action = "Accept"
	// Promote: ask the Replication to be source in Decision.Epoch.
	Promote Action = "Promote"
	// Restore: restore the application's objects; when that is done, enter Decision.Step.
	Restore Action = "Restore"
	// Finish: save this cluster as primary and enter the step Complete.
	Finish Action = "Finish"
	// Start: put the application back online; when that is done, enter Decision.Step.
	Start Action = "Start"
	// Align: set spec.primaryCluster to Decision.Peer.
	Align Action = "Align"
	// Close: move the operation into the history with Decision.Result.
	Close Action = "Close"
)

// Result is how an operation ended.
type Result string

// The results.
const (
	Completed  Result = "Completed"
	Aborted    Result = "Aborted"
	RolledBack Result = "RolledBack"
)

// Decision is the next thing to do, and why.
type Decision struct {
	Action   Action
	Standing Standing
	// Reason is one word for the situation, Message a sentence for the operator.
	Reason  string
	Message string
	// Refused is true when what is wanted cannot happen until somebody changes something.
	Refused bool

	Step   v1alpha1.OperationStep
	Peer   string
	Epoch  int64
	Point  string
	Token  string
	Result Result
}

// Reasons of the situations in which nothing moves.
const (
	// ReasonInStep: the application runs where it is wanted and the copies agree.
	ReasonInStep = "InStep"
	// ReasonStandby: another cluster is primary and this one is ready to follow.
	ReasonStandby = "Standby"
	// ReasonNoPrimaryKnown: no cluster has claimed the plan yet, or its claim was not seen yet.
	ReasonNoPrimaryKnown = "NoPrimaryKnown"
	// ReasonCopiesDisagree: the copies of a new plan name different primaries.
	ReasonCopiesDisagree = "CopiesDisagree"
	// ReasonSuperseded: a peer knows a newer epoch than this cluster writes in.
	ReasonSuperseded = "Superseded"
	// ReasonHandedOver: the right was given away and the new primary has not finished.
	ReasonHandedOver = "HandedOver"
	// ReasonApplicationOnStandby: workloads run although another cluster is primary.
	ReasonApplicationOnStandby = "ApplicationOnStandby"
)

// Reasons why an operation waits, does not begin, or is undone.
const (
	ReasonPeerUnknown         = "PeerUnknown"
	ReasonPeerUnreachable     = "PeerUnreachable"
	ReasonPeerRefused         = "PeerRefused"
	ReasonPeerNotPaired       = "PeerNotPaired"
	ReasonPeerNotListed       = "PeerNotListed"
	ReasonPeerHasNoPlan       = "PeerHasNoPlan"
	ReasonPeerOutOfStep       = "PeerOutOfStep"
	ReasonPeerBusy            = "PeerBusy"
	ReasonApplicationOnPeer   = "ApplicationOnPeer"
	ReasonApplicationUnknown  = "ApplicationUnknown"
	ReasonApplicationStopping = "ApplicationStopping"
	ReasonApplicationStarting = "ApplicationStarting"
	ReasonApplicationStarted  = "ApplicationStarted"
	ReasonApplicationReady    = "ApplicationReady"
	ReasonApplicationNotReady = "ApplicationNotReady"
	ReasonOfflineTimedOut     = "OfflineTimedOut"
	ReasonReplicationMissing  = "ReplicationMissing"
	ReasonReplicationNotReady = "ReplicationNotReady"
	ReasonReplicationChanged  = "ReplicationChanged"
	ReasonReplicationFailing  = "ReplicationFailing"
	ReasonSuspended           = "ReplicationSuspended"
	ReasonNoRecoveryPoint     = "NoRecoveryPoint"
	ReasonSessionRunning      = "SessionRunning"
	ReasonSessionFailed       = "SessionFailed"
	ReasonSessionRetried      = "SessionRetried"
	ReasonPointNotHeld        = "PointNotHeld"
	ReasonSnapshotRunning     = "SnapshotRunning"
	ReasonSnapshotSending     = "SnapshotSending"
	ReasonSnapshotFailed      = "SnapshotFailed"
	ReasonSnapshotNotHere     = "SnapshotNotHere"
	ReasonAbortedByEdit       = "AbortedByEdit"
	ReasonPromoting           = "Promoting"
)

// Reasons why an operation moves on.
const (
	ReasonRequested       = "Requested"
	ReasonNextStep        = "NextStep"
	ReasonGranted         = "Granted"
	ReasonDemoting        = "Demoting"
	ReasonRestoring       = "Restoring"
	ReasonRollingBack     = "RollingBack"
	ReasonCompleted       = "Completed"
	ReasonNewPrimary      = "NewPrimary"
	ReasonFirstPrimary    = "FirstPrimary"
	ReasonAligning        = "Aligning"
	ReasonEpochBehind     = "EpochBehind"
	ReasonEditAfterGrant  = "EditAfterHandover"
	ReasonRequestReversed = "RequestTakenBack"
)
