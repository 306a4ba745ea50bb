package runbook

import (
	"strconv"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Seen is everything a decision may rest on. Its owner reads it in this order: the own copy of the plan, then
// what is local, then the peers, each by a call that is answered now. Statuses are saved with the resource
// version of the own copy as it was read. Several arguments below rest on that order.
type Seen struct {
	// Self is this cluster.
	Self string
	// Own is this cluster's copy of the plan.
	Own Copy
	// Peers are the other clusters of the plan, most preferred first.
	Peers []Peer
	// Data is the local Replication; zero when the plan names none.
	Data Data
	// App is the application's workloads on this cluster.
	App App
	// Snapshot is the application snapshot of Own.Operation, as it is on this cluster.
	Snapshot Snapshot
	// InStep is how long Own.Operation has been in its step.
	InStep time.Duration
	// Limits bound patience.
	Limits Limits
}

// Copy is one cluster's copy of the plan: what it wants and what it durably holds to be true.
type Copy struct {
	// Found is false when the cluster has no copy.
	Found bool
	// Wanted is spec.primaryCluster.
	Wanted string
	// Primary and Epoch are status.primaryCluster and status.epoch; empty and 0 before the first is known.
	Primary string
	Epoch   int64
	// Operation runs on that cluster; nil between operations.
	Operation *Operation
	// Grant is the newest handover that cluster made; it stays after it was used.
	Grant *Grant
}

// Operation is a move as far as it has been saved.
type Operation struct {
	ID       string
	From, To string
	Step     v1alpha1.OperationStep
	// PreSyncs, Offlines and FinalSyncs count how often those steps were entered.
	PreSyncs, Offlines, FinalSyncs int
	// Undo is status.operation.rollbackReason: why the operation is being undone; empty while it is not.
	Undo string
	// FinalPoint is the recovery point of the session that was cut with the application offline.
	FinalPoint string
}

// Grant is the right to write in an epoch, given to one cluster.
type Grant struct {
	Epoch     int64
	To        string
	Operation string
	// Point is what the new primary must hold before it may write; empty without data.
	Point string
}

// Reach is what is known of the link to a peer. The zero value is not knowing: an unanswered call is not a lost peer.
type Reach string

// The kinds of reach.
const (
	Unknown   Reach = ""
	Connected Reach = "Connected"
	// Lost means more heartbeats in a row than the tolerance were missed. The peer may still run.
	Lost Reach = "Lost"
	// Refused means the peer answers but trust, name or version do not fit.
	Refused Reach = "Refused"
	// Unpaired means no ClusterPair names the cluster.
	Unpaired Reach = "Unpaired"
)

// Peer is what was seen of another cluster just now.
type Peer struct {
	Name  string
	Reach Reach
	// Copy is its copy of the plan; nil when it could not be read now, which says nothing about what it holds.
	Copy *Copy
	// Trouble tells why the copy, or the Replication, could not be read.
	Trouble string
	// Behind is true when its copy was read and its spec is not yet what this cluster's says.
	Behind bool
	// AppRuns is Yes when workloads of the application run there.
	AppRuns Answer
	// Data is its Replication; nil when it could not be read now or does not exist.
	Data *Data
}

// Answer is a yes or a no, or neither.
type Answer string

// The answers.
const (
	NotKnown Answer = ""
	Yes      Answer = "Yes"
	No       Answer = "No"
)

// Data is a Replication: what is asked of it and what is in force.
type Data struct {
	// Named is true when the plan names a Replication. Without data the steps for data are left out.
	Named bool
	// Found is true when it exists.
	Found bool
	// Role and Epoch are asked for (spec).
	Role  v1alpha1.Role
	Epoch int64
	// RoleInForce and EpochInForce are reached (status). Promoted is true when the claims belong to the application.
	RoleInForce  v1alpha1.Role
	EpochInForce int64
	Promoted     bool
	// Trigger is spec.triggerNow.
	Trigger string
	// Sessions are those that answered a trigger, newest first.
	Sessions []Session
	// Points are the recovery points known to be committed on the target, newest first. On the target they are its own.
	Points []Point
	// Suspended is true when sessions are held back by an edit.
	Suspended bool
	// Trouble tells why sessions do not succeed at present; empty when they do.
	Trouble string
	// Waiting tells what it is waiting for, for messages.
	Waiting string
}

// Point is a recovery point. Ids begin with the UTC time of the cut, so that those of one source sort by time.
type Point struct {
	ID    string
	Epoch int64
}

// SessionState is where a session stands.
type SessionState string

// The states of a session.
const (
	SessionRunning   SessionState = "Running"
	SessionCommitted SessionState = "Committed"
	SessionFailed    SessionState = "Failed"
)

// Session is one run that answered a trigger.
type Session struct {
	Trigger string
	State   SessionState
	// Early is true when it began before the operation entered the step that asks for it: it cannot be the answer.
	Early   bool
	Point   string
	Message string
}

// App is the application on this cluster. An application that its users scaled to 0 is both stopped and ready.
type App struct {
	// Known is false when its workloads could not be read now; nothing else means anything then.
	Known bool
	// Stopped: no workload wants a pod, and no pod is left.
	Stopped bool
	// Ready: every pod that is wanted is ready, and nothing is kept offline by an operation.
	Ready bool
	// Waiting names what runs or is not ready, as "Deployment web has 1 of 2 pods ready", or why it is not known.
	Waiting string
}

// SnapshotState is where an application snapshot stands.
type SnapshotState string

// The states of a snapshot.
const (
	SnapshotNone      SnapshotState = ""
	SnapshotCapturing SnapshotState = "Capturing"
	SnapshotCompleted SnapshotState = "Completed"
	SnapshotFailed    SnapshotState = "Failed"
)

// Snapshot is an application snapshot on this cluster.
type Snapshot struct {
	State   SnapshotState
	Message string
	// On are the peers that hold the whole of it.
	On []string
}

// Limits bound patience. For Stop and Ready zero means without bound.
type Limits struct {
	// Attempts is how often each session of an operation is tried, and how often the application is stopped. Zero means once.
	Attempts int
	// Stop is how long the application may take to stop before the move is undone.
	Stop time.Duration
	// Ready is how long the move waits for the application to become ready on the new primary before it is
	// called complete all the same.
	Ready time.Duration
	// OtherPeers is how long the move waits for clusters that are not its target to take the application snapshot.
	OtherPeers time.Duration
	// Hold is how long the move waits for the target to show a point that its source saw committed.
	Hold time.Duration
}

// Standing is what a copy of the plan says about the cluster it lives in.
type Standing string

// The standings.
const (
	// Unclaimed: no primary is known here yet.
	Unclaimed Standing = "Unclaimed"
	// Standby: another cluster is primary.
	Standby Standing = "Standby"
	// Primary: this cluster holds the right to write.
	Primary Standing = "Primary"
	// HandedOver: this cluster gave the right away and waits for the new primary to finish.
	HandedOver Standing = "HandedOver"
	// Taking: this cluster accepted the right and brings the application up.
	Taking Standing = "Taking"
)

// StandingOf tells the standing of cluster self by its own copy. Only Primary and Taking may write, and for any
// epoch at most one cluster ever stands so: an epoch is made by a grant, a grant names one cluster and is saved
// in the same write that ends the granting cluster's standing.
func StandingOf(self string, c Copy) Standing {
	switch {
	case c.Primary == self && c.Grant != nil && c.Grant.Epoch > c.Epoch:
		return HandedOver
	case c.Operation != nil && c.Operation.To == self:
		return Taking
	case c.Primary == self:
		return Primary
	case c.Primary == "":
		return Unclaimed
	default:
		return Standby
	}
}

// Token is the trigger of the session that the operation's present step asks for; empty in other steps. Each
// time the step is entered it is another one, so that an answer to an earlier try is never taken for this one's.
func Token(o Operation) string {
	token, attempt := "", 0
	switch o.Step {
	case v1alpha1.StepPreSync:
		token, attempt = o.ID+"-pre", o.PreSyncs
	case v1alpha1.StepFinalSync:
		token, attempt = o.ID+"-final", o.FinalSyncs
	default:
		return ""
	}
	if attempt > 1 {
		token += "-" + strconv.Itoa(attempt)
	}
	return token
}

// authority is the highest epoch that a copy knows to exist: its own, or one it has granted.
func (c Copy) authority() int64 {
	if c.Grant != nil && c.Grant.Epoch > c.Epoch {
		return c.Grant.Epoch
	}
	return c.Epoch
}

// claim is the completed knowledge of a cluster: who is primary in which epoch. A cluster that is taking over
// carries the new epoch beside the old primary until it has finished, so it claims nothing.
func (p Peer) claim() (primary string, epoch int64, ok bool) {
	if p.Copy == nil || !p.Copy.Found || p.Copy.Primary == "" {
		return "", 0, false
	}
	if StandingOf(p.Name, *p.Copy) == Taking && p.Copy.Primary != p.Name {
		return "", 0, false
	}
	return p.Copy.Primary, p.Copy.Epoch, true
}

// answer is the session that answered a token: a committed one if there is any, otherwise the newest. A scheduled
// session that runs after it carries the same trigger and is not waited for. ok is false when none did yet.
func (d Data) answer(token string) (newest Session, ok bool) {
	for _, s := range d.Sessions {
		switch {
		case s.Trigger != token:
			continue
		case s.State == SessionCommitted && !s.Early:
			return s, true
		case !ok:
			newest, ok = s, true
		}
	}
	return newest, ok
}

// Current tells whether the newest point is of an epoch: after a change of primary the points of the epoch before
// say nothing about the direction that replication has now.
func (d Data) Current(epoch int64) bool {
	return len(d.Points) > 0 && d.Points[0].Epoch == epoch
}

// holds tells whether the side these points are of has point, or one that was committed on top of it. Commits
// are in order, so a later point of the same source epoch contains an earlier one; it is there when a scheduled
// session slipped in after the final one, with the application offline.
func (d Data) holds(point string, epoch int64) bool {
	for _, p := range d.Points {
		if p.ID == point {
			return true
		}
	}
	return len(d.Points) > 0 && d.Points[0].Epoch == epoch && d.Points[0].ID > point
}

// newest is the newest point, for messages.
func (d Data) newest() string {
	if len(d.Points) == 0 {
		return "none"
	}
	return d.Points[0].ID
}
