// Package runbook says what the next step of a plan is, and why: from what one cluster sees of itself and of its
// peers to one Decision.
//
// It does no input or output, reads no clock, keeps nothing, and never stores the situation as the truth: it is derived
// from the durable copies each time. Every cluster of a plan runs the same rules over its own copy. Begin
// reading at Next; what it may rest on is in seen.go, what it can say in decision.go. The tests explore every history
// of two clusters within bounds and many of three.
package runbook

import (
	"fmt"
	"strings"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Next is the next thing to do on this cluster.
//
// The order of the cases is an argument:
//   - A writer that sees a newer epoch stops first, whatever it was doing: somebody else may write now, and
//     neither a move nor its undoing may touch the application.
//   - A cluster that handed over comes before everything an operation would do: after the grant there is no way back.
//   - Undoing comes before moving: once begun it is finished, an edit can only ask for a new operation after it.
//   - Only then do wishes count.
func Next(s Seen) Decision {
	d := next(s)
	d.Standing = StandingOf(s.Self, s.Own)
	return d
}

func next(s Seen) Decision {
	standing := StandingOf(s.Self, s.Own)
	if standing == Primary || standing == Taking {
		if p, found := s.newerAuthority(); found {
			return Decision{Action: Rest, Reason: ReasonSuperseded, Refused: true, Message: fmt.Sprintf(
				"this cluster writes in epoch %d, but cluster %s knows epoch %d (primary %q): nothing is done here until that is settled",
				s.Own.Epoch, p.Name, p.Copy.authority(), p.Copy.Primary)}
		}
	}
	switch {
	case standing == HandedOver:
		return handedOver(s)
	case standing == Taking:
		return taking(s)
	case standing == Primary && s.Own.Operation == nil:
		return primary(s)
	case standing == Primary && s.Own.Operation.Undo != "":
		return undoing(s)
	case standing == Primary:
		return moving(s)
	case standing == Unclaimed:
		return unclaimed(s)
	default:
		return standby(s)
	}
}

// unclaimed finds the first primary.
//
// Two copies made at once with different wishes never both claim: a claim needs every peer to have been read after
// the own copy, without a claim and without another wish, and the save fails if the own copy was edited since. Had two
// clusters claimed, each must have read the other before the other read itself, which cannot be.
func unclaimed(s Seen) Decision {
	if d, ok := accept(s); ok {
		return d
	}
	claimant, epoch := s.newestClaim()
	all, missing := s.allPeersRead()
	switch {
	case claimant != "" && (claimant != s.Self || all):
		return follow(claimant, epoch)
	case s.Own.Wanted != s.Self:
		return rest(ReasonNoPrimaryKnown, "waiting to hear from cluster %s that it is the primary", s.Own.Wanted)
	case !all:
		return rest(ReasonPeerUnknown, "waiting for cluster %s to answer before this cluster becomes the first primary%s", missing.Name, because(missing.Trouble))
	}
	for _, p := range s.Peers {
		if p.AppRuns == Yes {
			return refuse(ReasonApplicationOnPeer, "workloads of the application run on cluster %s, not only here: stop them there, or name that cluster in spec.primaryCluster", p.Name)
		}
		if p.Copy.Found && p.Copy.Wanted != s.Self {
			return refuse(ReasonCopiesDisagree, "this copy of the plan wants %s as primary, the copy on %s wants %s: make spec.primaryCluster the same on both", s.Own.Wanted, p.Name, p.Copy.Wanted)
		}
		if p.Copy.Found && p.Copy.authority() > 0 {
			return rest(ReasonNoPrimaryKnown, "cluster %s is taking the plan over in epoch %d; waiting for it to finish", p.Name, p.Copy.authority())
		}
	}
	if d := s.Data; d.Named {
		switch {
		case !d.Found:
			return refuse(ReasonReplicationMissing, "the Replication that spec.dataReplicationPointer names does not exist on this cluster, which shall be primary: make it, with role source")
		case d.Role != v1alpha1.RoleSource:
			return refuse(ReasonReplicationNotReady, "the Replication on this cluster, which shall be primary, has role %s: name the cluster whose Replication has role source in spec.primaryCluster", d.Role)
		}
	}
	return Decision{Action: Claim, Reason: ReasonFirstPrimary, Peer: s.Self, Epoch: max(1, s.Data.Epoch), Message: "this cluster is the first primary"}
}

// standby follows. A newer claim comes before a grant: a grant that an epoch has overtaken is history.
func standby(s Seen) Decision {
	if claimant, epoch := s.newestClaim(); epoch > s.Own.Epoch && claimant != s.Self {
		return follow(claimant, epoch)
	}
	if d, ok := accept(s); ok {
		return d
	}
	d := s.Data
	switch {
	case s.owesDemotion():
		return s.demote(s.Own.Epoch)
	case d.Found && d.Role == v1alpha1.RoleSource:
		// Never demoted unasked: a target is overwritten, and nobody handed this one over.
		return refuse(ReasonReplicationChanged, "cluster %s is primary, but the Replication on this cluster has role source: patch it to target, or name the right primary", s.Own.Primary)
	case d.Found && d.Epoch < s.Own.Epoch:
		return Decision{Action: Demote, Reason: ReasonEpochBehind, Epoch: s.Own.Epoch, Message: fmt.Sprintf("bringing the Replication to epoch %d", s.Own.Epoch)}
	case s.Own.Wanted != s.Own.Primary:
		return Decision{Action: Align, Reason: ReasonAligning, Peer: s.Own.Primary, Message: fmt.Sprintf(
			"spec.primaryCluster said %s, the primary is %s; a move is asked for there", s.Own.Wanted, s.Own.Primary)}
	case s.App.Known && !s.App.Stopped:
		return rest(ReasonApplicationOnStandby, "cluster %s is primary, but workloads of the application run here: %s", s.Own.Primary, s.App.Waiting)
	}
	return rest(ReasonStandby, "cluster %s runs the application", s.Own.Primary)
}

// accept takes a grant to this cluster. The grantor must still be handing over: a grant that it has outlived is
// history. The point is looked for before anything is saved, so that a grant that cannot be used changes nothing here.
func accept(s Seen) (Decision, bool) {
	from, ok := s.grantor()
	if !ok {
		return Decision{}, false
	}
	grant := from.Copy.Grant
	if s.Data.Named && !s.Data.holds(grant.Point, grant.Epoch-1) && !s.promotionAsked(grant.Epoch) {
		return rest(ReasonPointNotHeld, "cluster %s hands over with recovery point %s, the newest here is %s: the application is not started on older data", from.Name, grant.Point, s.Data.newest()), true
	}
	return Decision{Action: Accept, Reason: ReasonGranted, Peer: from.Name, Epoch: grant.Epoch, Point: grant.Point, Step: v1alpha1.StepPromote, Message: fmt.Sprintf(
		"cluster %s handed epoch %d over to this cluster", from.Name, grant.Epoch)}, true
}

// primary looks whether a move is wanted, and whether it can begin. Nothing is done before everything fits.
func primary(s Seen) Decision {
	to := s.Own.Wanted
	if to == s.Self {
		return rest(ReasonInStep, "the application runs on this cluster")
	}
	if d, ok := s.precheck(to); !ok {
		return d
	}
	return Decision{Action: Begin, Reason: ReasonRequested, Peer: to, Step: v1alpha1.StepCaptureObjects, Message: fmt.Sprintf("moving the application from %s to %s", s.Self, to)}
}

// precheck tells whether a move to a cluster can begin. What fails here leaves the application untouched, and the move
// begins by itself once it fits, unless the edit is taken back.
func (s Seen) precheck(to string) (Decision, bool) {
	p, d := s.target(to)
	if p == nil {
		return d, false
	}
	if p.Copy.Operation != nil {
		return rest(ReasonPeerBusy, "cluster %s still ends operation %s", to, p.Copy.Operation.ID), false
	}
	if p.AppRuns == Yes {
		return refuse(ReasonApplicationOnPeer, "workloads of the application already run on cluster %s: stop them there first", to), false
	}
	if !s.App.Known {
		return rest(ReasonApplicationUnknown, "the application's workloads cannot be read%s", because(s.App.Waiting)), false
	}
	if !s.Data.Named {
		return Decision{}, true
	}
	if d, ok := s.sourceReady(); !ok {
		return d, false
	}
	switch {
	case s.Data.Suspended:
		return refuse(ReasonSuspended, "the Replication is suspended: set suspendReplication to false"), false
	case s.Data.Trouble != "":
		return rest(ReasonReplicationFailing, "sessions to cluster %s do not succeed: %s", to, s.Data.Trouble), false
	case p.Data == nil:
		return rest(ReasonReplicationNotReady, "the Replication on cluster %s cannot be read%s", to, because(p.Trouble)), false
	case p.Data.Role != v1alpha1.RoleTarget || p.Data.RoleInForce != v1alpha1.RoleTarget || p.Data.Epoch != s.Own.Epoch:
		return rest(ReasonReplicationNotReady, "the Replication on cluster %s is %s in epoch %d; it must be target in epoch %d", to, orNothing(string(p.Data.RoleInForce)), p.Data.Epoch, s.Own.Epoch), false
	case !p.Data.Current(s.Own.Epoch):
		return rest(ReasonNoRecoveryPoint, "cluster %s has no recovery point of epoch %d yet: a first session must be committed before a move%s", to, s.Own.Epoch, because(s.Data.Waiting)), false
	}
	return Decision{}, true
}

// moving takes the steps of the old primary, up to the handover.
//
// An edit that takes the wish back is looked at first: until the grant is saved the edit wins, and the grant's save
// fails if an edit came between. The peer is needed by every step, so one rule serves all: lost ends the move, unknown only waits.
func moving(s Seen) Decision {
	o := s.Own.Operation
	if s.Own.Wanted != o.To {
		return undo(ReasonAbortedByEdit, "spec.primaryCluster was set to %s before the handover", s.Own.Wanted)
	}
	p, d := s.target(o.To)
	switch {
	case p == nil && (d.Reason == ReasonPeerUnreachable || d.Reason == ReasonPeerRefused || d.Reason == ReasonPeerNotPaired || d.Reason == ReasonPeerNotListed):
		return undo(d.Reason, "%s", d.Message)
	case p == nil:
		return d
	case p.AppRuns == Yes:
		return undo(ReasonApplicationOnPeer, "workloads of the application were started on cluster %s", o.To)
	}
	if s.Data.Named {
		switch d, ok := s.sourceReady(); {
		case !ok:
			return undo(ReasonReplicationChanged, "%s", d.Message)
		case s.Data.Suspended:
			return undo(ReasonSuspended, "the Replication was suspended")
		}
	}
	switch o.Step {
	case v1alpha1.StepCaptureObjects:
		return s.captureObjects(p)
	case v1alpha1.StepPreSync:
		return s.sync(v1alpha1.StepOffline, o.PreSyncs)
	case v1alpha1.StepOffline:
		return s.offline()
	case v1alpha1.StepFinalSync:
		return s.finalSync()
	case v1alpha1.StepHandover:
		return s.handover(p)
	}
	return undo(ReasonReplicationChanged, "step %s is not one of this cluster's", o.Step)
}

// captureObjects captures while the application runs, so that the replica counts in the snapshot are those it runs with.
func (s Seen) captureObjects(target *Peer) Decision {
	following := v1alpha1.StepPreSync
	if !s.Data.Named {
		following = v1alpha1.StepOffline
	}
	switch s.Snapshot.State {
	case SnapshotNone:
		return Decision{Action: Capture, Reason: ReasonSnapshotRunning, Message: "capturing the application's objects"}
	case SnapshotFailed:
		return undo(ReasonSnapshotFailed, "the application's objects could not be captured: %s", s.Snapshot.Message)
	case SnapshotCapturing:
		return rest(ReasonSnapshotRunning, "capturing the application's objects%s", because(s.Snapshot.Message))
	}
	if !contains(s.Snapshot.On, target.Name) {
		return rest(ReasonSnapshotSending, "sending the application snapshot to cluster %s%s", target.Name, because(s.Snapshot.Message))
	}
	for _, p := range s.Peers {
		if p.Reach == Connected && !contains(s.Snapshot.On, p.Name) && s.InStep < s.Limits.OtherPeers {
			return rest(ReasonSnapshotSending, "sending the application snapshot to cluster %s", p.Name)
		}
	}
	return enter(following, "the application snapshot is complete and on cluster %s", target.Name)
}

// sync runs one session and takes the following step when it is committed.
func (s Seen) sync(following v1alpha1.OperationStep, tries int) Decision {
	o := s.Own.Operation
	token := Token(*o)
	session, answered := s.Data.answer(token)
	if session.Early {
		session.State, session.Message = SessionFailed, "it began before it was asked for"
	}
	switch {
	case !answered && s.Data.Trigger != token:
		return Decision{Action: Sync, Reason: ReasonSessionRunning, Token: token, Message: "asking for a session"}
	case !answered:
		return rest(ReasonSessionRunning, "waiting for the session to start%s", because(s.Data.Waiting))
	case session.State == SessionRunning:
		return rest(ReasonSessionRunning, "session %s runs%s", session.Point, because(session.Message))
	case session.State == SessionFailed && tries >= s.attempts():
		return undo(ReasonSessionFailed, "session %s failed, the last of %d tries%s", session.Point, tries, because(session.Message))
	case session.State == SessionFailed:
		return Decision{Action: Enter, Reason: ReasonSessionRetried, Step: o.Step, Message: fmt.Sprintf("session %s failed and is tried again%s", session.Point, because(session.Message))}
	}
	d := enter(following, "session %s is committed on cluster %s", session.Point, o.To)
	d.Point = session.Point
	return d
}

// offline ends only when whoever stops the application says that all of it is gone: what a pod still writes would
// not be in the final session. How it looks from outside is not enough, a controller may be about to start one more pod.
func (s Seen) offline() Decision {
	if s.Limits.Stop > 0 && s.InStep >= s.Limits.Stop && !s.App.Stopped {
		return undo(ReasonOfflineTimedOut, "the application did not stop within %s: %s", s.Limits.Stop, s.App.Waiting)
	}
	following := v1alpha1.StepFinalSync
	if !s.Data.Named {
		following = v1alpha1.StepHandover
	}
	return Decision{Action: Stop, Reason: ReasonApplicationStopping, Step: following, Message: "taking the application offline"}
}

// stillOffline guards the steps after Offline: something that starts the application again makes the
// final session worthless, so the application is stopped again and another final session is cut.
func (s Seen) stillOffline() (Decision, bool) {
	switch {
	case !s.App.Known:
		return rest(ReasonApplicationUnknown, "the application's workloads cannot be read%s", because(s.App.Waiting)), false
	case s.App.Stopped:
		return Decision{}, true
	case s.Own.Operation.Offlines >= s.attempts():
		return undo(ReasonApplicationStarted, "something keeps starting the application during the move: %s", s.App.Waiting), false
	}
	return Decision{Action: Enter, Reason: ReasonApplicationStarted, Step: v1alpha1.StepOffline, Message: "the application was started again during the move and is stopped once more" + because(s.App.Waiting)}, false
}

func (s Seen) finalSync() Decision {
	if d, ok := s.stillOffline(); !ok {
		return d
	}
	return s.sync(v1alpha1.StepHandover, s.Own.Operation.FinalSyncs)
}

// handover is the one step that cannot be undone, so everything it rests on is looked at again: the application is
// offline, the target answers now, agrees on primary and epoch, and shows the final point as its own.
func (s Seen) handover(target *Peer) Decision {
	if d, ok := s.stillOffline(); !ok {
		return d
	}
	o := s.Own.Operation
	if s.Data.Named {
		switch {
		case o.FinalPoint == "":
			return enter(v1alpha1.StepFinalSync, "no final session is recorded")
		case target.Data == nil:
			return rest(ReasonReplicationNotReady, "the Replication on cluster %s cannot be read%s", o.To, because(target.Trouble))
		case !target.Data.holds(o.FinalPoint, s.Own.Epoch) && s.InStep >= s.Limits.Hold && o.FinalSyncs >= s.attempts():
			return undo(ReasonPointNotHeld, "cluster %s does not show recovery point %s, its newest is %s", o.To, o.FinalPoint, target.Data.newest())
		case !target.Data.holds(o.FinalPoint, s.Own.Epoch) && s.InStep >= s.Limits.Hold:
			return Decision{Action: Enter, Reason: ReasonPointNotHeld, Step: v1alpha1.StepFinalSync, Message: fmt.Sprintf("cluster %s does not show recovery point %s; another final session is cut", o.To, o.FinalPoint)}
		case !target.Data.holds(o.FinalPoint, s.Own.Epoch):
			return rest(ReasonPointNotHeld, "waiting for cluster %s to show recovery point %s, its newest is %s", o.To, o.FinalPoint, target.Data.newest())
		}
	}
	return Decision{Action: GrantEpoch, Reason: ReasonGranted, Peer: o.To, Epoch: s.Own.Epoch + 1, Point: o.FinalPoint, Message: fmt.Sprintf("handing epoch %d over to cluster %s", s.Own.Epoch+1, o.To)}
}

// undoing puts the application back, then the wish. The application comes first: it is what is missing.
func undoing(s Seen) Decision {
	o := s.Own.Operation
	if o.Step != v1alpha1.StepComplete {
		return Decision{Action: Start, Reason: ReasonRollingBack, Step: v1alpha1.StepComplete, Message: "putting the application back online"}
	}
	if o.Undo == ReasonAbortedByEdit {
		return Decision{Action: Close, Reason: ReasonRequestReversed, Result: Aborted, Message: "the move was aborted by an edit; the application runs on this cluster"}
	}
	// Without this the same move would begin again at once, and fail again.
	if s.Own.Wanted != s.Self {
		return Decision{Action: Align, Reason: ReasonRollingBack, Peer: s.Self, Message: "setting spec.primaryCluster back to this cluster"}
	}
	return Decision{Action: Close, Reason: ReasonRollingBack, Result: RolledBack, Message: "the move was undone; the application runs on this cluster"}
}

// handedOver demotes, keeps the application down, and waits for the new primary to finish.
//
// The demotion comes first, since it makes the API refuse pods on the replica. It comes before following too: once this cluster is
// a standby it would look like one whose Replication somebody turned to source by hand.
func handedOver(s Seen) Decision {
	grant := s.Own.Grant
	switch {
	case s.owesDemotion():
		return s.demote(grant.Epoch)
	case s.App.Known && !s.App.Stopped:
		return Decision{Action: Stop, Reason: ReasonApplicationStopping, Message: fmt.Sprintf("epoch %d is handed over to cluster %s; keeping the application offline here", grant.Epoch, grant.To)}
	}
	if claimant, epoch := s.newestClaim(); epoch >= grant.Epoch && claimant != s.Self {
		return follow(claimant, epoch)
	}
	edited := ""
	if s.Own.Wanted != grant.To {
		edited = fmt.Sprintf("; setting spec.primaryCluster to %s came after the handover and is not followed: ask for a move on %s when this one is complete", s.Own.Wanted, grant.To)
	}
	p := s.peer(grant.To)
	switch {
	case p == nil:
		return rest(ReasonHandedOver, "epoch %d is handed over to cluster %s, which is not in spec.preferredClusterList any more: put it back", grant.Epoch, grant.To)
	case p.Reach == Lost || p.Reach == Refused || p.Reach == Unpaired:
		return rest(ReasonHandedOver, "epoch %d is handed over to cluster %s, which cannot be reached now (%s): it goes on by itself, and this cluster must not%s", grant.Epoch, grant.To, p.Reach, edited)
	case p.Copy != nil && p.Copy.Operation != nil:
		return rest(ReasonHandedOver, "cluster %s brings the application up: step %s%s", grant.To, p.Copy.Operation.Step, edited)
	}
	return rest(ReasonHandedOver, "epoch %d is handed over; waiting for cluster %s to bring the application up%s", grant.Epoch, grant.To, edited)
}

// taking brings the application up on the new primary. None of it needs the old one, which may be gone by now.
//
// The data is promoted before the first object is restored, so that no pod ever starts on a replica; the point is looked
// for until the promotion is asked for, because afterwards a source has no committed point of its own to show.
func taking(s Seen) Decision {
	o, d := s.Own.Operation, s.Data
	switch o.Step {
	case v1alpha1.StepPromote:
		switch {
		case !d.Named:
			return enter(v1alpha1.StepRestore, "there is no data to promote")
		case !d.Found:
			return rest(ReasonReplicationMissing, "the Replication that spec.dataReplicationPointer names does not exist on this cluster")
		case !s.promotionAsked(s.Own.Epoch) && !d.holds(o.FinalPoint, s.Own.Epoch-1):
			return rest(ReasonPointNotHeld, "the application must start on recovery point %s, the newest here is %s", o.FinalPoint, d.newest())
		case !s.promotionAsked(s.Own.Epoch):
			return Decision{Action: Promote, Reason: ReasonPromoting, Epoch: s.Own.Epoch, Message: fmt.Sprintf("promoting the volumes in epoch %d", s.Own.Epoch)}
		case d.RoleInForce != v1alpha1.RoleSource || d.EpochInForce != s.Own.Epoch || !d.Promoted:
			return rest(ReasonPromoting, "waiting for the volumes to belong to the application%s", because(d.Waiting))
		}
		return enter(v1alpha1.StepRestore, "the volumes belong to the application in epoch %d", s.Own.Epoch)
	case v1alpha1.StepRestore:
		if s.Snapshot.State != SnapshotCompleted {
			return rest(ReasonSnapshotNotHere, "the application snapshot is not on this cluster%s", because(s.Snapshot.Message))
		}
		return Decision{Action: Restore, Reason: ReasonRestoring, Step: v1alpha1.StepVerify, Message: "restoring the application's objects"}
	case v1alpha1.StepVerify:
		return s.verify()
	}
	if s.Own.Wanted != s.Self {
		return Decision{Action: Align, Reason: ReasonAligning, Peer: s.Self, Message: "setting spec.primaryCluster to this cluster"}
	}
	return Decision{Action: Close, Reason: ReasonCompleted, Result: Completed, Message: fmt.Sprintf("the application moved from %s to %s", o.From, o.To)}
}

// verify waits for the application to be ready, but not for ever: it runs here whether it is ready or not, and until the
// status says so nobody can move it on or home. What is not ready afterwards stays visible in the plan's message.
func (s Seen) verify() Decision {
	finish := Decision{Action: Finish, Reason: ReasonApplicationReady, Peer: s.Self, Step: v1alpha1.StepComplete, Message: "the application is ready"}
	switch {
	case s.App.Known && s.App.Ready:
		return finish
	case s.Limits.Ready > 0 && s.InStep >= s.Limits.Ready:
		finish.Reason = ReasonApplicationNotReady
		finish.Message = fmt.Sprintf("the application was restored, but was not ready after %s%s", s.Limits.Ready, because(s.App.Waiting))
		return finish
	}
	return rest(ReasonApplicationStarting, "waiting for the application to be ready%s", because(s.App.Waiting))
}

// target finds the cluster a move goes to, fit to take part now; otherwise the decision says what is missing.
func (s Seen) target(name string) (*Peer, Decision) {
	p := s.peer(name)
	switch {
	case p == nil:
		return nil, refuse(ReasonPeerNotListed, "cluster %s is not in spec.preferredClusterList", name)
	case p.Reach == Unpaired:
		return nil, refuse(ReasonPeerNotPaired, "no ClusterPair on this cluster names cluster %s: pair the clusters first", name)
	case p.Reach == Refused:
		return nil, refuse(ReasonPeerRefused, "cluster %s refuses the link%s", name, because(p.Trouble))
	case p.Reach == Lost:
		return nil, rest(ReasonPeerUnreachable, "cluster %s does not answer; the application stays where it is", name)
	case p.Reach == Unknown || p.Copy == nil:
		return nil, rest(ReasonPeerUnknown, "waiting for an answer of cluster %s%s", name, because(p.Trouble))
	case !p.Copy.Found:
		return nil, rest(ReasonPeerHasNoPlan, "cluster %s has no copy of the plan yet%s", name, because(p.Trouble))
	case p.Behind:
		return nil, rest(ReasonPeerOutOfStep, "the copy on cluster %s has another spec; sending this one", name)
	case p.Copy.Primary != s.Self || p.Copy.Epoch != s.Own.Epoch:
		return nil, rest(ReasonPeerOutOfStep, "the copy on cluster %s says primary %s in epoch %d, this one %s in epoch %d; waiting for them to agree", name, orNothing(p.Copy.Primary), p.Copy.Epoch, s.Own.Primary, s.Own.Epoch)
	}
	return p, Decision{}
}

// sourceReady tells whether the local Replication is the source in this cluster's epoch, as a primary's must be.
func (s Seen) sourceReady() (Decision, bool) {
	d := s.Data
	switch {
	case !d.Found:
		return refuse(ReasonReplicationMissing, "the Replication that spec.dataReplicationPointer names does not exist"), false
	case d.Role != v1alpha1.RoleSource || d.Epoch > s.Own.Epoch:
		return refuse(ReasonReplicationChanged, "the Replication is asked to be %s in epoch %d, the primary's must be source in epoch %d", d.Role, d.Epoch, s.Own.Epoch), false
	case d.RoleInForce != v1alpha1.RoleSource || d.EpochInForce != s.Own.Epoch || !d.Promoted:
		return rest(ReasonReplicationNotReady, "the Replication is not source in epoch %d yet%s", s.Own.Epoch, because(d.Waiting)), false
	}
	return Decision{}, true
}

func (s Seen) attempts() int { return max(1, s.Limits.Attempts) }

func (s Seen) promotionAsked(epoch int64) bool {
	return s.Data.Role == v1alpha1.RoleSource && s.Data.Epoch == epoch
}

// owesDemotion: a grant was made and the Replication still has the epoch before it.
func (s Seen) owesDemotion() bool {
	g := s.Own.Grant
	return s.Data.Found && g != nil && s.Data.Epoch < g.Epoch
}

func (s Seen) demote(epoch int64) Decision {
	return Decision{Action: Demote, Reason: ReasonDemoting, Epoch: epoch, Message: fmt.Sprintf("epoch %d is handed over to cluster %s; turning the Replication to target", s.Own.Grant.Epoch, s.Own.Grant.To)}
}

// newerAuthority finds a peer that proves this writer stale: it knows a newer epoch, or claims this one for itself.
func (s Seen) newerAuthority() (Peer, bool) {
	for _, p := range s.Peers {
		if p.Copy == nil || !p.Copy.Found {
			continue
		}
		if p.Copy.authority() > s.Own.Epoch || (p.Copy.Epoch == s.Own.Epoch && p.Copy.Primary == p.Name) {
			return p, true
		}
	}
	return Peer{}, false
}

// newestClaim is the newest completed knowledge among the peers of who is primary. Hearsay counts: a copy that
// names a third cluster does so because that cluster finished.
func (s Seen) newestClaim() (primary string, epoch int64) {
	for _, p := range s.Peers {
		if c, e, ok := p.claim(); ok && e > epoch {
			primary, epoch = c, e
		}
	}
	return primary, epoch
}

// grantor is the peer that hands over to this cluster now, in an epoch newer than any other known.
func (s Seen) grantor() (Peer, bool) {
	for _, p := range s.Peers {
		if p.Copy == nil || !p.Copy.Found || StandingOf(p.Name, *p.Copy) != HandedOver {
			continue
		}
		if g := p.Copy.Grant; g.To == s.Self && g.Epoch > s.Own.Epoch && !s.overtaken(g.Epoch, p.Name) {
			return p, true
		}
	}
	return Peer{}, false
}

func (s Seen) overtaken(epoch int64, grantor string) bool {
	for _, p := range s.Peers {
		if p.Name != grantor && p.Copy != nil && p.Copy.Found && p.Copy.authority() >= epoch {
			return true
		}
	}
	return false
}

func (s Seen) allPeersRead() (bool, Peer) {
	for _, p := range s.Peers {
		if p.Copy == nil {
			return false, p
		}
	}
	return true, Peer{}
}

func (s Seen) peer(name string) *Peer {
	for i := range s.Peers {
		if s.Peers[i].Name == name {
			return &s.Peers[i]
		}
	}
	return nil
}

func follow(primary string, epoch int64) Decision {
	return Decision{Action: Follow, Reason: ReasonNewPrimary, Peer: primary, Epoch: epoch, Message: fmt.Sprintf("cluster %s is primary in epoch %d", primary, epoch)}
}

func rest(reason, format string, args ...any) Decision {
	return Decision{Action: Rest, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func refuse(reason, format string, args ...any) Decision {
	d := rest(reason, format, args...)
	d.Refused = true
	return d
}

func enter(step v1alpha1.OperationStep, format string, args ...any) Decision {
	return Decision{Action: Enter, Reason: ReasonNextStep, Step: step, Message: fmt.Sprintf(format, args...)}
}

func undo(reason, format string, args ...any) Decision {
	return Decision{Action: Undo, Reason: reason, Step: v1alpha1.StepRollback, Message: fmt.Sprintf(format, args...)}
}

func contains(list []string, name string) bool {
	for _, l := range list {
		if l == name {
			return true
		}
	}
	return false
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func orNothing(text string) string {
	if strings.TrimSpace(text) == "" {
		return "nothing yet"
	}
	return text
}
