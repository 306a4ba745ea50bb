package cycle

import (
	"fmt"
	"strings"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/queue"
	"lifeboat.dev/lifeboat/internal/schedule"
)

const (
	// CutWithin is how far apart the snapshots of one point may be asked for. When a crash left some of them
	// older than this, the point is given up: the others would be of another time.
	CutWithin = 10 * time.Second
	// TogetherPatience is how long the storage may refuse to cut a group at one instant before its members are
	// snapshotted one by one. Whoever asks it tries several times meanwhile: holding writers may fail once.
	TogetherPatience = 30 * time.Second
	// SnapshotPatience is how long a session waits for its snapshots.
	SnapshotPatience = 10 * time.Minute
	// PeerMemory is how long a source waits for a target to show the point that was committed last, before it takes a
	// target that says it is ready at its word: the target was made anew and knows no former point.
	PeerMemory = time.Minute
)

// Why a session is started.
const (
	TriggerFirst    = "First"
	TriggerSchedule = "Schedule"
	TriggerNow      = "Trigger"
)

// Ended is the newest session that ended.
type Ended struct {
	Point      string
	Committed  bool
	Trigger    string
	TriggerNow string
	FinishedAt time.Time
}

// Recovery is the newest point known to be committed on the target.
type Recovery struct {
	Point string
	Time  time.Time
	Epoch int64
	// Cut tells whether its members were cut at one instant; empty when that is not known.
	Cut v1alpha1.CutAtomicity
}

// Peer is what a source knows of the other side. Found and what follows it mean something only when Asked is true.
type Peer struct {
	// Name is the peer's cluster, for messages.
	Name string
	Link v1alpha1.LinkState
	// Asked is true when the peer answered just now; otherwise Trouble says why not.
	Asked   bool
	Trouble string
	// Refuses is true when the peer answers that it must not be asked.
	Refuses bool

	Found         bool
	Stand         Stand // wanted there
	InForce       Stand
	ReceiverReady bool
	WaitingFor    string
	// Members is true when the peer's group has the same members as ours.
	Members bool
	// Sizes are the members that have another size there, as far as the peer tells sizes.
	Sizes []Sizes
	// Stuck is true when the peer says that somebody has to act there.
	Stuck bool
	// Agreed is true once the peer has compared members, map and sizes with this side's, in this epoch and as the spec is now.
	Agreed bool
	// Lacks is true when the peer says that objects are missing there, Well that it can do its work.
	Lacks, Well bool
	// Quiet is true when the peer has seen its present spec and runs no session: wanted as target, it will start none.
	Quiet bool
	// Recovery is the point the peer has finished with, zero when it knows none.
	Recovery Recovery
	// Prepared is what the peer last said about preparing; empty when it was not asked or is content.
	Prepared string
	// Declined is set when the peer last refused to prepare.
	Declined *Problem
	// PrepareDue is true when it may be asked to prepare (again).
	PrepareDue bool
}

// Source is everything a side that is wanted as source sees of one of its links.
type Source struct {
	// Rlink names the link, for the messages of its siblings; Cluster is this one, Namespace and Name the Replication's.
	Rlink, Cluster, Namespace, Name string
	Now                             time.Time
	Wanted, InForce                 Stand
	Suspended                       bool
	// Moving is true while a plan holds the application offline: only sessions it asks for are run, because every
	// other one would make the application wait.
	Moving     bool
	TriggerNow string
	// Scheduled is false when there is no schedule; Look is its look otherwise.
	Scheduled bool
	Look      schedule.Look
	// Unscheduled is why the schedule that is asked for cannot be used: then sessions are started by hand alone.
	Unscheduled *Problem
	// Turn tells whether a session that is due may start beside those of other replications; nil when nobody has asked.
	Turn *queue.Turn
	// Problem is what stands in the way of a new session; a session that runs has its members already.
	Problem *Problem
	Peer    Peer
	// Create is true when the peer's objects are made on request.
	Create bool

	Session  *Session
	Last     *Ended
	Failures int // sessions in a row that failed, newest first
	Recovery Recovery

	// Snapshots, Clones and Mover are the running session's. Clones are Partial while one of them is on its way in or
	// out; Trouble tells why.
	Snapshots []Snapshot
	Clones    Presence
	Trouble   string
	Mover     Mover
	// Stale names Jobs, clones and snapshots of points that are neither the session's nor the base's, and that nobody
	// has asked to be removed yet.
	Stale []string

	// Replica is what is left of having been a target.
	Replica Replica
	// Acknowledged is the point after which a person accepts that all is lost; empty for none.
	Acknowledged string
	// Brought is the epoch of the source that prepared this side last: it is that source's, never one to become the source in.
	Brought int64
	// Own is true when the wanted epoch is this side's: it took it itself, or a plan handed it over. That it stands in the spec says
	// nothing of the peers.
	Own bool
	// Lost names the clusters that this side's epoch was taken without.
	Lost []string
	// Rollback is the older point that the replica shall be promoted with.
	Rollback Rollback
}

// Backoff is how long after its end a failed session is tried again: 30 s doubled at each failure in a row, 15 min at most.
func Backoff(failures int) time.Duration {
	const first, most = 30 * time.Second, 15 * time.Minute
	if failures > 6 {
		return most
	}
	return min(first<<max(failures-1, 0), most)
}

// NextSource decides for a side that is wanted as source and has one link.
//
// Order is safety. What a target leaves behind goes first, or application and receiver would write one volume. A session of an
// older epoch ends before the new epoch is in force. A session is saved before anything is made for it, so that nothing is
// ever made that no status knows. Only then come new sessions.
func NextSource(s Source) Decision { return NextSources([]Source{s})[0] }

// NextSources decides for each link of a side that is wanted as source. The first link is the one a replica was received through:
// it alone dismantles the replica, and only when no peer of any link can be the source any more. The role is taken in one look of
// all links. In force, every link goes its own way, whatever its siblings wait for.
func NextSources(links []Source) []Decision {
	out := make([]Decision, len(links))
	for i, s := range links {
		switch {
		case !leavesTarget(links[0]):
			out[i] = hasten(s, nextSource(s, links, unready(links, i)))
		case i == 0:
			out[i] = hasten(s, leaveTarget(s, links))
		default:
			out[i] = out[0]
			out[i].Step, out[i].Poll = Wait, max(out[0].Poll, Hasty)
			if out[0].Step == TakeRole {
				out[i].Step = TakeRole
			}
		}
	}
	return out
}

// unready names the siblings whose sessions keep the wanted epoch from coming into force.
func unready(links []Source, but int) []string {
	var names []string
	for i, s := range links {
		if i != but && s.Session != nil && s.Session.Epoch != s.Wanted.Epoch {
			names = append(names, s.Rlink)
		}
	}
	return names
}

// leavesTarget reports that a replica, or the role of a target, must be left first.
func leavesTarget(s Source) bool {
	return s.InForce.Role == v1alpha1.RoleTarget || (s.InForce.Role == "" && s.Replica.Exists())
}

func hasten(s Source, d Decision) Decision {
	// What a person or a lost link holds up does not come sooner for being asked after.
	if waited := s.Moving && d.Step != Rest || d.Phase == Promoting; waited && d.Poll <= Steady {
		d.Poll = min(d.Poll, Hasty)
	}
	return d
}

func nextSource(s Source, links []Source, siblings []string) Decision {
	if s.InForce.Role == "" {
		if d, ok := firstRole(s, links); !ok {
			return d
		}
	}
	if s.InForce != s.Wanted {
		return takeSource(s, siblings)
	}
	if s.Session != nil {
		return runSession(s)
	}
	if len(s.Stale) > 0 {
		return tidy(s.Stale)
	}
	if s.Suspended {
		return Decision{Step: Rest, Phase: Suspended, Reason: ReasonSuspended, Ready: true, Poll: Calm,
			Message: "new sessions are suspended by suspendReplication; set it to false to go on"}
	}
	if s.Problem != nil {
		return wait(Failed, s.Problem.Reason, s.Problem.Message, Patient)
	}
	if d, ok := peerFirst(s); !ok {
		return d
	}
	return begin(s)
}

func tidy(stale []string) Decision {
	return Decision{Step: Tidy, Phase: Running, Reason: ReasonTidying, Ready: true,
		Message: "removing what ended sessions left: " + strings.Join(stale, ", ")}
}

// takeSource brings role and epoch into force. A session of an older epoch would be refused by every target that
// knows the new one, so it ends here.
func takeSource(s Source, siblings []string) Decision {
	if s.Session == nil || s.Session.Epoch == s.Wanted.Epoch {
		if len(siblings) > 0 {
			return wait(Preparing, ReasonTidying, "waiting for sessions of an older epoch to end on the links "+strings.Join(siblings, ", "), Quick)
		}
		return Decision{Step: TakeRole, Phase: Preparing, Reason: ReasonRoleTaken, Message: fmt.Sprintf("this side becomes the source in epoch %d", s.Wanted.Epoch)}
	}
	return abort(s.Session, s.Mover, fmt.Sprintf("the epoch became %d while it ran in epoch %d", s.Wanted.Epoch, s.Session.Epoch))
}

// abort ends a session from outside. A mover that is through is believed first; otherwise its pods are gone before
// the session is, so that nothing of it runs unseen. An application that it has quiesced is let go before either.
func abort(session *Session, mover Mover, why string) Decision {
	return resumeFirst(session, aborted(session, mover, why))
}

func aborted(session *Session, mover Mover, why string) Decision {
	message := fmt.Sprintf("session %s is aborted: %s", session.Point, why)
	switch mover.State {
	case MoverCommitted:
		return commit(session)
	case MoverRunning, MoverEnding:
		return Decision{Step: RemoveMover, Phase: Demoting, Reason: ReasonAborted, Message: message, Poll: Quick}
	}
	return Decision{Step: FailSession, Phase: Demoting, Reason: ReasonAborted, Message: message}
}

func commit(session *Session) Decision {
	return Decision{Step: CommitSession, Phase: Running, Reason: ReasonSessionEnded, Ready: true,
		Message: fmt.Sprintf("point %s is committed on the target", session.Point)}
}

// runSession takes a saved session to its end.
func runSession(s Source) Decision { return resumeFirst(s.Session, goOn(s)) }

func goOn(s Source) Decision {
	running := func(step Step, reason, message string, poll time.Duration) Decision {
		return Decision{Step: step, Phase: Running, Reason: reason, Message: message, Ready: true, Poll: poll}
	}
	fail := func(reason, message string) Decision {
		return Decision{Step: FailSession, Phase: Running, Reason: reason, Message: message, Ready: true}
	}
	// The mover's word comes first: once the target has the point, nothing that is missing here matters.
	switch s.Mover.State {
	case MoverCommitted:
		return commit(s.Session)
	case MoverRefused:
		return fail(ReasonMoverRefused, s.Mover.Message)
	case MoverFailed:
		return fail(ReasonMoverFailed, s.Mover.Message)
	}
	// Who was taken over from meanwhile has no target that would tell its mover so: that is a source now.
	if epoch := max(s.Peer.Stand.Epoch, s.Peer.InForce.Epoch); s.Peer.Found && epoch > s.Session.Epoch {
		why := overtaken(s.Peer, s.Session.Epoch)
		if s.Mover.State != MoverAbsent {
			return running(RemoveMover, ReasonStaleEpoch, why, Quick)
		}
		return fail(ReasonStaleEpoch, why)
	}
	missing, unready, oldest, trouble := count(s.Snapshots)
	if s.Session.CutAt.IsZero() {
		began := s.Session.StartedAt
		if q := s.Session.Quiescence; q != nil {
			if d, ok := quiesce(q, s.Now, s.Snapshots); ok {
				return d
			}
			began = q.QuiescedAt
		}
		switch {
		case s.Now.Sub(began) > SnapshotPatience && (len(missing) > 0 || len(unready) > 0):
			return fail(ReasonSnapshotsFailed, fmt.Sprintf("no usable snapshot of %s within %s%s", join(missing, unready), SnapshotPatience, trouble))
		case len(missing) > 0 && len(missing) < len(s.Snapshots) && s.Now.Sub(oldest) > CutWithin:
			return fail(ReasonCutInterrupted, fmt.Sprintf("taking the snapshots was interrupted: a snapshot of %s now would be more than %s younger than the others", join(missing), CutWithin))
		case s.Session.Together && s.Session.MayPart && trouble != "" && s.Now.Sub(oldest) > TogetherPatience && s.Session.Quiescence.mayCut():
			return running(CutApart, ReasonGroupSnapshotRefused, "the members are snapshotted one by one: the storage refused for "+TogetherPatience.String()+" to cut them at one instant"+trouble, 0)
		case len(missing) > 0:
			return running(TakeSnapshots, ReasonSessionRunning, "taking snapshots of "+join(missing), 0)
		case len(unready) > 0:
			return running(Wait, ReasonSnapshotsPending, "waiting for the snapshots of "+join(unready)+trouble, Quick)
		}
		return running(RecordCut, ReasonSessionRunning, "all snapshots can be used", 0)
	}
	if len(missing) > 0 {
		// A claim that was not made yet would wait for them for ever, and the base of the next session would be missing.
		if s.Mover.State != MoverAbsent {
			return running(RemoveMover, ReasonSnapshotsVanished, "removing the mover: the snapshots of "+join(missing)+" were deleted", Quick)
		}
		return fail(ReasonSnapshotsVanished, "the snapshots of "+join(missing)+" were deleted while their session ran")
	}
	switch s.Clones {
	case Absent:
		return running(MakeClones, ReasonSessionRunning, "making block claims from the snapshots", 0)
	case Partial:
		// A pod that comes before its claims is put back by the scheduler for longer than they take.
		return running(Wait, ReasonSessionRunning, "waiting for the block claims"+because(s.Trouble), Quick)
	}
	switch s.Mover.State {
	case MoverAbsent:
		return running(StartMover, ReasonSessionRunning, "starting the mover", 0)
	case MoverEnding:
		return running(Wait, ReasonSessionRunning, "waiting for the former mover to end before it is started again", Quick)
	}
	if s.Mover.Outdated {
		return running(RemoveMover, ReasonSessionRunning, "the target's address was changed: the mover is started again and goes on where it was", Quick)
	}
	if s.Mover.Ending {
		return running(FollowMover, ReasonSessionRunning, s.Mover.Message, Quick)
	}
	return running(FollowMover, ReasonSessionRunning, s.Mover.Message, Steady)
}

func count(snapshots []Snapshot) (missing, unready []string, oldest time.Time, trouble string) {
	for _, snap := range snapshots {
		switch {
		case !snap.Exists:
			missing = append(missing, snap.Claim)
			continue
		case !snap.Ready:
			unready = append(unready, snap.Claim)
		}
		if oldest.IsZero() || snap.CreatedAt.Before(oldest) {
			oldest = snap.CreatedAt
		}
		if snap.Error != "" && !snap.Ready {
			trouble += fmt.Sprintf("; the snapshot of %s reports: %s", snap.Claim, snap.Error)
		}
	}
	return missing, unready, oldest, trouble
}

func join(lists ...[]string) string {
	var all []string
	for _, list := range lists {
		all = append(all, list...)
	}
	return strings.Join(all, ", ")
}

// peerFirst tells what must become true of the peer before a session may start; ok when all of it is.
func peerFirst(s Source) (d Decision, ok bool) {
	p := s.Peer
	blocked := func(reason, message string) (Decision, bool) {
		return wait(Waiting, reason, message, Patient), false
	}
	soon := func(reason, message string) (Decision, bool) {
		return wait(Waiting, reason, message, Steady), false
	}
	if !p.Asked {
		switch {
		case p.Refuses:
			return blocked(ReasonPeerRefuses, p.Trouble)
		case p.Link == v1alpha1.LinkRefused:
			return blocked(ReasonLinkRefused, fmt.Sprintf("cluster %s answers but trust, name or version do not fit: %s", p.Name, p.Trouble))
		case p.Link == v1alpha1.LinkConnected, p.Link == v1alpha1.LinkUnknown, p.Link == "":
			return soon(ReasonLinkUnknown, fmt.Sprintf("cluster %s did not answer yet: %s", p.Name, p.Trouble))
		}
		// Heartbeats notice when it is back, and wake whoever waits.
		return wait(Waiting, ReasonLinkLost, fmt.Sprintf("the link to cluster %s is lost: %s; sessions go on when it answers again", p.Name, p.Trouble), CalmTarget), false
	}
	prepare := func(reason, otherwise string) (Decision, bool) {
		switch {
		case !s.Create && p.Declined != nil && !p.PrepareDue:
			return wait(Failed, p.Declined.Reason, p.Declined.Message, Patient), false
		// What is made by hand is only compared, and let follow the epoch.
		case !s.Create && reason != ReasonPeerEpochBehind && reason != ReasonPeerDiffers:
			return blocked(reason, otherwise+"; make it there, or set peerObjects to Create")
		case p.PrepareDue:
			return Decision{Step: PreparePeer, Phase: Preparing, Reason: ReasonPeerPreparing, Poll: Quick,
				Message: fmt.Sprintf("asking cluster %s to prepare the replica", p.Name)}, false
		case p.Declined != nil:
			return declined(p), false
		case p.Prepared != "":
			return wait(Preparing, ReasonPeerPreparing, fmt.Sprintf("cluster %s prepares the replica: %s", p.Name, p.Prepared), Steady), false
		}
		return wait(Preparing, ReasonPeerPreparing, fmt.Sprintf("cluster %s prepares the replica: %s", p.Name, otherwise), Steady), false
	}
	switch {
	case !p.Found:
		return prepare(ReasonPeerMissing, fmt.Sprintf("there is no Replication of this name in cluster %s", p.Name))
	// Whoever has the greater epoch is right, whatever either side believes to be.
	case max(p.Stand.Epoch, p.InForce.Epoch) > s.Wanted.Epoch:
		return blocked(ReasonStaleEpoch, overtaken(p, s.Wanted.Epoch))
	case p.Stand.Role != v1alpha1.RoleTarget:
		return soon(ReasonPeerIsSource, fmt.Sprintf("the Replication in cluster %s has role source too; set it to target on the side whose application is stopped", p.Name))
	case p.Stand.Epoch < s.Wanted.Epoch:
		return prepare(ReasonPeerEpochBehind, fmt.Sprintf("its Replication is in epoch %d, this side in epoch %d", p.Stand.Epoch, s.Wanted.Epoch))
	case !p.Agreed && (s.Recovery.Point == "" || s.Recovery.Epoch != s.Wanted.Epoch):
		return prepare(ReasonPeerDiffers, "comparing members, map and sizes")
	case !p.Members:
		return prepare(ReasonMembersDiffer, fmt.Sprintf("the group in cluster %s has other members than this one", p.Name))
	case p.Lacks:
		return prepare(ReasonPeerPreparing, p.WaitingFor)
	}
	if d, ok := sameSizes(s); !ok {
		return d, false
	}
	switch {
	case p.InForce != p.Stand, !p.ReceiverReady && !p.Well:
		waits := p.WaitingFor
		if waits == "" {
			waits = "its receiver is not ready"
		}
		return wait(Preparing, ReasonPeerPreparing, fmt.Sprintf("cluster %s prepares the replica: %s", p.Name, waits), Steady), false
	}
	return Decision{}, true
}

// NeedsPeer reports whether what the peer says may decide what becomes of a session: one whose mover does not reach its target, or is to
// be started. Others are not asked for, since a question takes time.
func NeedsPeer(s Source) bool {
	return s.Session != nil && !s.Session.CutAt.IsZero() && (s.Mover.Waiting || s.Mover.State == MoverEnding || s.Mover.State == MoverAbsent && s.Clones == Present)
}

func overtaken(p Peer, own int64) string {
	return fmt.Sprintf("cluster %s is in epoch %d, this side in epoch %d: another cluster has become primary since; set spec.role to target here",
		p.Name, max(p.Stand.Epoch, p.InForce.Epoch), own)
}

func declined(p Peer) Decision {
	return wait(Failed, p.Declined.Reason, p.Declined.Message, Patient)
}

// begin starts a session when one is due, the target has finished with the former one, and it is this replication's turn. What
// somebody asked for, a person or a move, waits for no turn.
func begin(s Source) Decision {
	trigger, in := due(s)
	if s.Unscheduled != nil && trigger != TriggerNow {
		return wait(Failed, s.Unscheduled.Reason, s.Unscheduled.Message, Patient)
	}
	if trigger == "" {
		d := Decision{Step: Rest, Phase: Idle, Reason: ReasonReady, Ready: true, Poll: min(Calm, max(in, Quick)), Message: "waiting for the next run"}
		if s.Last != nil && !s.Last.Committed {
			d.Phase, d.Reason, d.Message = Waiting, ReasonRetryLater, "the newest session failed; the next one starts by itself"
		}
		if s.Moving {
			d.Message = "the application is being moved: until then only sessions that the move asks for are run"
		}
		return d
	}
	if !s.Peer.ReceiverReady || !finished(s) {
		return Decision{Step: Wait, Phase: Waiting, Reason: ReasonPeerFinishing, Ready: true, Poll: Steady,
			Message: fmt.Sprintf("cluster %s is not through with the former session yet%s", s.Peer.Name, because(s.Peer.WaitingFor))}
	}
	if s.Turn != nil && !s.Turn.Go && trigger != TriggerNow {
		return Decision{Step: Wait, Phase: Waiting, Reason: ReasonItsTurn, Ready: true, Poll: Calm, Message: s.Turn.String()}
	}
	return Decision{Step: StartSession, Phase: Running, Reason: ReasonSessionDue, Ready: true, Trigger: trigger, Message: "a session is due: " + trigger}
}

// finished reports whether the target has done everything about the point that was committed last, its snapshots included:
// the next delta must not be applied while they are taken.
func finished(s Source) bool {
	if s.Recovery.Point == "" || s.Recovery.Epoch != s.Wanted.Epoch {
		return true
	}
	if s.Peer.Recovery.Point == s.Recovery.Point || s.Peer.Recovery.Time.After(s.Recovery.Time) {
		return true
	}
	return s.Last != nil && s.Now.Sub(s.Last.FinishedAt) > PeerMemory
}

// due is why a session should start now, or else in how long one is.
func due(s Source) (trigger string, in time.Duration) {
	answered := ""
	if s.Last != nil {
		answered = s.Last.TriggerNow
	}
	if s.TriggerNow != "" && s.TriggerNow != answered {
		return TriggerNow, 0
	}
	if s.Moving {
		return "", Steady
	}
	retry := ""
	switch {
	case s.Recovery.Point == "", s.Recovery.Epoch < s.Wanted.Epoch:
		retry = TriggerFirst
	case s.Last != nil && !s.Last.Committed && s.Last.Trigger != TriggerNow:
		// Whoever triggered by hand sees the failure and decides; a schedule has nobody.
		retry = s.Last.Trigger
	}
	if retry != "" && s.Failures == 0 {
		return retry, 0
	}
	// A schedule that is due does not wait for the end of a backoff.
	if s.Scheduled && s.Look.Due {
		return TriggerSchedule, 0
	}
	in = Calm
	if s.Scheduled && !s.Look.Next.IsZero() {
		in = s.Look.Next.Sub(s.Now)
	}
	if retry == "" {
		return "", in
	}
	left := s.Last.FinishedAt.Add(Backoff(s.Failures)).Sub(s.Now)
	if left <= 0 {
		return retry, 0
	}
	return "", min(in, left)
}
