package cycle

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// RecoveryPointPatience is how long a target waits for the snapshots of a recovery point before it goes on without
// them: the replica itself holds the point, and holding up replication would lose more.
const RecoveryPointPatience = 5 * time.Minute

// KeepTogetherPatience is how long the storage may refuse to snapshot a replica's members as one. It is short: a replica is still
// while it is snapshotted, so that snapshots one by one are of one instant too.
const KeepTogetherPatience = 5 * time.Second

// Received is what a receiver says of itself.
type Received struct {
	// Busy is true while a source is connected or a delta is being applied.
	Busy bool
	// Committed is the newest point that is whole in the spool, Applied the newest the replica holds whole.
	Committed, Applied Recovery
	// Progress tells in a sentence what it does.
	Progress string
}

// settled reports that the spool holds nothing the replica does not.
func (r *Received) settled() bool {
	return r != nil && !r.Busy && r.Committed.Point == r.Applied.Point
}

// Replica is what there is of a target's objects.
type Replica struct {
	Pair Presence
	// Spool is Outdated when it belongs to a replica of another kind: of blocks instead of files, or the other way.
	Spool Presence
	// Files is true for a replica whose files are written through the claims themselves: it has no pair.
	Files bool
	// Sealed is true once SealSpool was taken: the spool is on its way out.
	Sealed bool
	// Receiver is Partial while it starts or ends, Outdated when it runs with another configuration.
	Receiver Presence
	// Door is true while sources can reach the receiver in any way, Ajar when others of its ways in are closed.
	Door, Ajar bool
	// Rollback names what a rollback to an older point left: its Job, pods and block claims.
	Rollback []string
	// Former names claims that are no members any more and have their half of the pair still.
	Former []string
	// Regroups is true when the receiver runs with other members than the group has now.
	Regroups bool
	// Trouble tells why the receiver or the pair is not there yet.
	Trouble string
	// State is what the receiver says; nil when it does not answer.
	State *Received
	// Strays names receivers, and ways to them, that serve a link this side does not receive from.
	Strays []string
}

// Exists reports whether anything of a target is there.
func (r Replica) Exists() bool {
	return r.Pair != Absent || r.Spool != Absent || r.Receiver != Absent || r.Door || len(r.Strays) > 0
}

// Target is everything a side that is wanted as target sees of one of its links.
type Target struct {
	// Rlink names the link, for the messages of its siblings.
	Rlink           string
	Now             time.Time
	Wanted, InForce Stand
	// Problem is what a person must mend before a replica can be kept.
	Problem *Problem
	// Users names the pods that mount the claims, Lifeboat's own left out.
	Users []string
	// Attached names the nodes that the claims' volumes are attached to.
	Attached []string
	// Growth names the claims that are smaller than the source's. Misfit tells why what serves the replica does not fit the
	// volumes any more, as when somebody grew a claim; empty when it does.
	Growth []Growth
	Misfit string
	// SourceQuiet is true when the source said just now that it runs no session; otherwise SourceTrouble may tell why not. Both
	// mean something only while claims grow.
	SourceQuiet   bool
	SourceTrouble string

	// Session, Mover and Leftover are what is left of having been a source. Leftover names all Jobs, movers' pods, clones
	// and snapshots of sessions, those that are on their way out included.
	Session  *Session
	Mover    Mover
	Leftover []string

	// SourceMissing tells that the other side has no Replication of this name, and how it is called there; empty when it has one, or
	// nobody knows.
	SourceMissing string
	// Unbound names the claims that get their volumes when a pod mounts them; Binder is the pod that does so, with what holds it up.
	Unbound       []string
	Binder        Presence
	BinderTrouble string

	Replica Replica
	// Recorded is the point saved last.
	Recorded Recovery
	// Retain is how many recovery points are kept as snapshots.
	Retain int
	// Snapshots are those of the receiver's applied point, Together tells that they are taken as one.
	Snapshots []Snapshot
	Together  bool
	// Surplus names the recovery points that retention no longer keeps.
	Surplus []string
}

// NextTarget decides for a side that is wanted as target and has one link.
//
// Order is safety. The replica is written only while no pod uses the claims, so users go first and nothing is removed before
// they are gone: until then the role can be set back and nothing was lost. Then everything of a source
// goes, so that no session leaves from what is about to become a replica.
func NextTarget(s Target) Decision { return NextTargets([]Target{s})[0] }

// NextTargets decides for each link of a side that is wanted as target. As long as it is a source, every link ends its own session,
// and the role is taken in one look of all links when nothing is left of any. In force, the first link is the one that the
// replica is received through, and it alone is tended: one group has one replica, which has one receiver.
func NextTargets(links []Target) []Decision {
	out := make([]Decision, len(links))
	for i, s := range links {
		switch {
		case s.InForce.Role != v1alpha1.RoleTarget:
			out[i] = leaveSource(s, unfinished(links, i))
		case i == 0:
			out[i] = nextTarget(s)
		case out[0].Step == TakeRole:
			out[i] = out[0]
		default:
			out[i] = Decision{Step: Rest, Phase: out[0].Phase, Reason: ReasonNotReceiving, Ready: true, Poll: CalmTarget, Message: "the replica is received through the link " + links[0].Rlink}
		}
	}
	return out
}

// unfinished names the siblings of which anything of a session is left.
func unfinished(links []Target, but int) []string {
	var names []string
	for i, s := range links {
		if i != but && (s.Session != nil || len(s.Leftover) > 0) {
			names = append(names, s.Rlink)
		}
	}
	return names
}

func nextTarget(s Target) Decision {
	if s.InForce.Epoch != s.Wanted.Epoch {
		return Decision{Step: TakeRole, Phase: Preparing, Reason: ReasonRoleTaken, Message: fmt.Sprintf("this side is the target in epoch %d", s.Wanted.Epoch)}
	}
	if len(s.Replica.Rollback) > 0 {
		return removeRollback(Waiting, s.Replica.Rollback)
	}
	if len(s.Users) > 0 {
		return spoiled(s)
	}
	if s.Replica.Sealed {
		if s.resizing() {
			return resized(dismantle(s.Replica, false, s.resizeMessage()))
		}
		// A promotion was begun and taken back. The claims may have been free for a moment: what the spool knows of them is not trusted.
		return dismantle(s.Replica, false, "the promotion was taken back; the replica is set up anew")
	}
	if d, binding := bind(s); binding {
		return d
	}
	if s.Problem != nil {
		return wait(Failed, s.Problem.Reason, s.Problem.Message, Patient)
	}
	if s.resizing() {
		return resize(s)
	}
	return keepReplica(s)
}

// bind gets claims their volumes that wait for a pod. The pod is gone before a replica is begun: both would hold the volume.
func bind(s Target) (Decision, bool) {
	claims := strings.Join(s.Unbound, ", ")
	preparing := func(step Step, message string) (Decision, bool) {
		return Decision{Step: step, Phase: Preparing, Reason: ReasonBindingClaims, Message: message, Poll: Quick}, true
	}
	switch {
	case len(s.Unbound) > 0 && s.Binder == Absent:
		return preparing(BindClaims, "starting a pod that mounts claims which wait for one: "+claims)
	case len(s.Unbound) > 0:
		return preparing(Wait, "waiting for the volumes of "+claims+because(s.BinderTrouble))
	case s.Binder != Absent:
		return preparing(RemoveBinder, "removing the pod that bound the claims")
	}
	return Decision{}, false
}

// leaveSource removes what a source leaves, then takes the role.
func leaveSource(s Target, siblings []string) Decision {
	// An application that stands still could not even be stopped.
	if s.Session != nil && s.Session.Quiescence.open() {
		return abort(s.Session, s.Mover, "this side becomes the target")
	}
	if len(s.Users) > 0 {
		return wait(Demoting, ReasonClaimsInUse, demotingMessage(s.Users), Quick)
	}
	if s.Session != nil {
		return abort(s.Session, s.Mover, "this side becomes the target")
	}
	if len(s.Leftover) > 0 {
		return Decision{Step: Tidy, Phase: Demoting, Reason: ReasonLeavingSource, Poll: Quick,
			Message: "removing what sessions left: " + strings.Join(s.Leftover, ", ")}
	}
	if len(siblings) > 0 {
		return wait(Demoting, ReasonLeavingSource, "waiting until nothing is left of the sessions of the links "+strings.Join(siblings, ", "), Quick)
	}
	if len(s.Attached) > 0 {
		return wait(Demoting, ReasonVolumesAttached, "waiting for the volumes to be detached from "+strings.Join(s.Attached, ", "), Quick)
	}
	return Decision{Step: TakeRole, Phase: Demoting, Reason: ReasonRoleTaken, Message: fmt.Sprintf("this side becomes the target in epoch %d", s.Wanted.Epoch)}
}

func demotingMessage(users []string) string {
	return "pods use the volumes: " + strings.Join(users, ", ") + "; stop them: this side stays the source until they are gone, so that nothing they write is lost"
}

func usersMessage(users []string) string {
	return "pods mount the claims of the replica: " + strings.Join(users, ", ") + "; stop them, only whole deltas may be written here"
}

// spoiled stops receiving while pods use the claims. The spool goes too: its digest map no longer tells what the volumes hold, so the
// next session compares anew; and until then there is no recovery point (see Spoils).
func spoiled(s Target) Decision {
	if s.Replica.Exists() {
		d := dismantle(s.Replica, true, usersMessage(s.Users))
		d.Reason = ReasonClaimsInUse
		return d
	}
	return wait(Waiting, ReasonClaimsInUse, usersMessage(s.Users), Steady)
}

// Spoils reports that a step taken here means that the volumes hold the recorded point no more: pods have used them, or they are others
// than before. A promotion that is taken back spoils nothing: the application was not let in. Nor does growing.
func (s Target) Spoils(d Decision) bool {
	switch d.Step {
	case CloseReceiver, RemoveReceiver, RemovePair, RemoveSpool:
		return !s.Replica.Sealed && d.Reason != ReasonGrowing
	}
	return false
}

// keepReplica sets the replica up and records what arrives.
func keepReplica(s Target) Decision {
	r := s.Replica
	preparing := func(step Step, reason, message string, poll time.Duration) Decision {
		return Decision{Step: step, Phase: Preparing, Reason: reason, Message: message, Poll: poll}
	}
	if len(r.Strays) > 0 {
		return preparing(RemoveStrays, ReasonReplicaPreparing, fmt.Sprintf("the replica is received through the link %s from now on: removing %s", s.Rlink, strings.Join(r.Strays, ", ")), Quick)
	}
	switch {
	case r.Spool == Outdated:
		return dismantle(r, true, "the group is replicated in another way than before; the replica is set up anew")
	case r.Pair == Absent && !r.Files:
		return preparing(MakePair, ReasonReplicaPreparing, "making the block volumes beside the claims", Quick)
	case r.Pair == Outdated:
		return dismantle(r, true, "the claims have other volumes than before; the replica is set up anew")
	}
	if r.Spool == Absent {
		return preparing(MakeSpool, ReasonReplicaPreparing, "making the spool", 0)
	}
	if r.Regroups {
		if d, settled := regroup(s); !settled {
			return d
		}
	}
	if r.Receiver == Absent || r.Receiver == Outdated || !r.Door || r.Ajar {
		return preparing(StartReceiver, ReasonReceiverStarting, "starting the receiver", Quick)
	}
	if r.Receiver == Partial || r.Pair == Partial || r.Spool == Partial {
		message := "the receiver is starting"
		if r.Trouble != "" {
			message += ": " + r.Trouble
		}
		return wait(Preparing, ReasonReceiverStarting, message, Quick)
	}
	if len(r.Former) > 0 {
		return preparing(RemoveFormer, ReasonRegrouping, "removing the replica pairs of claims that left the group: "+strings.Join(r.Former, ", "), 0)
	}
	if r.State == nil {
		return wait(Preparing, ReasonReceiverSilent, "the receiver does not answer yet"+because(r.Trouble), Steady)
	}
	if applied := r.State.Applied; applied.Point != "" && applied.Point != s.Recorded.Point {
		return record(s, applied)
	}
	if len(s.Surplus) > 0 {
		return Decision{Step: DropRecoveryPoints, Phase: Idle, Reason: ReasonTidying, Ready: true,
			Message: "removing recovery points beyond retain: " + strings.Join(s.Surplus, ", ")}
	}
	if r.State.Busy {
		return Decision{Step: Rest, Phase: Running, Reason: ReasonReceiving, Ready: true, Poll: Steady, Message: r.State.Progress}
	}
	if s.SourceMissing != "" {
		return orphaned(s)
	}
	return Decision{Step: Rest, Phase: Idle, Reason: ReasonReady, Ready: true, Poll: CalmTarget, Message: "the receiver waits for a session"}
}

// orphaned rests all the same: whoever deleted the source, by mistake or in malice, has not deleted the replica with it, and a source that
// comes back finds its receiver.
func orphaned(s Target) Decision {
	d := Decision{Step: Rest, Phase: Waiting, Reason: ReasonSourceMissing, Poll: CalmTarget, Message: s.SourceMissing}
	if s.Recorded.Point == "" {
		d.Message += ": make it there, with role source"
		return d
	}
	d.Message += fmt.Sprintf(": nothing is sent any more. The replica holds point %s of %s and is kept; set spec.role to source to use it, make the Replication there again to go on, or delete this one (its claims stay)",
		s.Recorded.Point, s.Recorded.Time.UTC().Format(time.RFC3339))
	return d
}

// regroup waits until the receiver may get other members. A committed delta that is not applied yet needs the volumes it was made
// for, and a point is kept with the members it has: both come before.
func regroup(s Target) (d Decision, settled bool) {
	switch state := s.Replica.State; {
	case state == nil:
		return wait(Preparing, ReasonRegrouping, "the group has other members now; before the receiver follows it must tell that it has applied all it has"+because(s.Replica.Trouble), Steady), false
	case !state.settled():
		return wait(Preparing, ReasonRegrouping, "the group has other members now; waiting for the receiver to apply what it has", Quick), false
	case state.Applied.Point != "" && state.Applied.Point != s.Recorded.Point:
		return record(s, state.Applied), false
	}
	return Decision{}, true
}

func because(trouble string) string {
	if trouble == "" {
		return ""
	}
	return ": " + trouble
}

// record keeps the applied point: as snapshots when they are wanted, then in the status. Only the latter lets the source go on.
func record(s Target, applied Recovery) Decision {
	save := Decision{Step: RecordPoint, Phase: Idle, Reason: ReasonReady, Ready: true, Message: "point " + applied.Point + " is the replica's"}
	if s.Retain == 0 {
		return save
	}
	missing, _, oldest, trouble := count(s.Snapshots)
	var uncut []string
	for _, snap := range s.Snapshots {
		if snap.Exists && !snap.Cut {
			uncut = append(uncut, snap.Claim)
		}
	}
	taking := Decision{Phase: Running, Reason: ReasonRecoveryPoint, Ready: true}
	switch {
	case s.Together && trouble != "" && len(uncut) > 0 && s.Now.Sub(oldest) > KeepTogetherPatience:
		taking.Step, taking.Message = CutApart, fmt.Sprintf("keeping point %s by a snapshot of each member: the storage refused a group snapshot%s", applied.Point, trouble)
		return taking
	case len(uncut) > 0 && s.Now.Sub(oldest) > RecoveryPointPatience:
		save.Reason = ReasonRecoveryPointNotKept
		save.Message = fmt.Sprintf("point %s is the replica's, but no snapshot of %s was taken within %s%s", applied.Point, join(uncut), RecoveryPointPatience, trouble)
		return save
	case len(missing) > 0:
		taking.Step, taking.Message = TakeRecoveryPoint, fmt.Sprintf("taking snapshots of %s to keep point %s", join(missing), applied.Point)
		return taking
	case len(uncut) > 0:
		taking.Step, taking.Poll = Wait, Quick
		taking.Message = fmt.Sprintf("waiting for the snapshots of %s that keep point %s%s", join(uncut), applied.Point, trouble)
		return taking
	}
	return save
}

// leaveTarget turns a replica into the application's volumes.
//
// Order is safety. First no new source can reach the receiver, then none that did can commit any more (see fence), then the
// receiver says that its spool holds nothing the replica does not, and that is saved: a spool that is not sealed may hold the half of
// a delta that the replica lacks, so before that nothing is removed. Then the receiver goes, whose pods hold the devices; then the
// pair; then the spool. Only then may the application write.
//
// Before all that, this side has an epoch: one that a plan handed over to it, or one that it took itself (see claim).
func leaveTarget(s Source, links []Source) Decision {
	r := s.Replica
	if !entitled(s, links) {
		return claim(s, links)
	}
	if len(r.Strays) > 0 {
		return Decision{Step: RemoveStrays, Phase: Promoting, Reason: ReasonLeavingTarget, Poll: Quick, Message: "removing " + strings.Join(r.Strays, ", ")}
	}
	back := s.Rollback
	if back.Point != "" && back.Problem != "" && r.Pair != Absent {
		return wait(Failed, ReasonPointNotKept, back.Problem, Patient)
	}
	if r.Spool != Absent && !r.Sealed {
		return settle(s, links)
	}
	if back.Point != "" && r.Pair != Absent && r.Receiver == Absent {
		if len(back.Others) > 0 {
			return removeRollback(Promoting, back.Others)
		}
		return rollBack(back)
	}
	if len(r.Rollback) > 0 {
		return removeRollback(Promoting, r.Rollback)
	}
	if r.Exists() {
		d := dismantle(r, false, "this side becomes the source")
		d.Phase = Promoting
		return d
	}
	return Decision{Step: TakeRole, Phase: Promoting, Reason: ReasonRoleTaken, Message: fmt.Sprintf("this side becomes the source in epoch %d", s.Wanted.Epoch)}
}

// settle waits until the replica holds everything the spool does, and will.
func settle(s Source, links []Source) Decision {
	r := s.Replica
	promoting := func(step Step, reason, message string, poll time.Duration) Decision {
		return Decision{Step: step, Phase: Promoting, Reason: reason, Message: message, Poll: poll}
	}
	switch {
	case r.Door:
		return promoting(CloseReceiver, ReasonLeavingTarget, "no session can begin here any more", 0)
	case r.Pair == Absent && !r.Files:
		return promoting(MakePair, ReasonLeavingTarget, "the block volumes are needed once more to apply what the spool holds", Quick)
	case r.Receiver == Absent:
		return promoting(StartReceiver, ReasonLeavingTarget, "the receiver is needed once more to apply what the spool holds", Quick)
	}
	var lost []string
	for _, link := range links {
		if d, fenced := fence(s, link.Peer); !fenced {
			return d
		}
		if !link.Peer.Asked {
			lost = append(lost, link.Peer.Name)
		}
	}
	switch {
	case r.State == nil:
		return wait(Promoting, ReasonReceiverSilent, "waiting for the receiver to tell what it has applied"+because(r.Trouble), Quick)
	case !r.State.settled():
		return wait(Promoting, ReasonApplying, "waiting for the receiver to apply what it has"+because(r.State.Progress), Quick)
	// A former source that received nothing yet holds the point it left with.
	case r.State.Applied.Point == "" && s.Recovery.Point == "":
		return nothingToPromote()
	}
	d := promoting(SealSpool, ReasonLeavingTarget, fmt.Sprintf("the replica holds point %s whole", cmp.Or(r.State.Applied.Point, s.Recovery.Point)), 0)
	d.Lost = lost
	return d
}

// fence makes sure that no source commits here any more. A connection that was made before the receiver was closed may still become a
// session: so either the peer says that it has no mover and will start none, or the receiver is started again in the new epoch, in
// which it refuses the old one.
// Every peer is asked, whichever link the replica was received through: each may have become the source since.
func fence(s Source, p Peer) (Decision, bool) {
	// One that the epoch was taken without may be back and know nothing of it yet.
	lost := slices.Contains(s.Lost, p.Name) && max(p.Stand.Epoch, p.InForce.Epoch) < s.Wanted.Epoch
	switch {
	case p.Asked && (!p.Found || p.Stand.Role == v1alpha1.RoleTarget && (p.InForce.Role == v1alpha1.RoleTarget || p.Quiet)):
		return Decision{}, true
	case p.Asked && !lost && p.Stand.Role == v1alpha1.RoleTarget:
		return wait(Promoting, ReasonPeerIsSource, leaving(p), Quick), false
	case p.Asked && !lost:
		return wait(Waiting, ReasonPeerIsSource, wrongOrder(s, p), Steady), false
	case s.Replica.Receiver == Outdated:
		return Decision{Step: StartReceiver, Phase: Promoting, Reason: ReasonLeavingTarget, Poll: Quick,
			Message: fmt.Sprintf("starting the receiver in epoch %d, in which it refuses the former source", s.Wanted.Epoch)}, false
	case s.Replica.Receiver != Present:
		return wait(Promoting, ReasonReceiverStarting, fmt.Sprintf("waiting for the receiver to start in epoch %d%s", s.Wanted.Epoch, because(s.Replica.Trouble)), Quick), false
	}
	return Decision{}, true
}

// dismantle removes a replica's objects: receiver, then pair, then spool. With settled first it waits until the replica holds
// everything the spool does, where a receiver can still tell.
func dismantle(r Replica, settled bool, why string) Decision {
	remove := func(step Step) Decision {
		return Decision{Step: step, Phase: Waiting, Reason: ReasonLeavingTarget, Message: why, Poll: Quick}
	}
	switch {
	case len(r.Strays) > 0:
		return remove(RemoveStrays)
	case settled && r.Door && !r.Sealed:
		return Decision{Step: CloseReceiver, Phase: Waiting, Reason: ReasonLeavingTarget, Message: why}
	case settled && !r.Sealed && r.State != nil && !r.State.settled():
		return wait(Waiting, ReasonApplying, why+"; waiting for the receiver to apply what it has", Quick)
	case r.Receiver != Absent || r.Door:
		return remove(RemoveReceiver)
	case r.Pair != Absent:
		return remove(RemovePair)
	}
	return remove(RemoveSpool)
}
