package plan

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/runbook"
)

const (
	maxHistory = 10
	// maxSteps is what the API accepts. The rules stop long before it.
	maxSteps = 32
	// maxMessage keeps step messages to what a person reads.
	maxMessage = 512
)

// Phases of status.phase.
const (
	phaseProtected   = "Protected"
	phaseStandby     = "Standby"
	phaseMoving      = "Moving"
	phaseRollingBack = "RollingBack"
	phaseWaiting     = "Waiting"
	phaseRefused     = "Refused"
	phaseNotReady    = "NotReady"
)

// Reasons of the conditions that come from here and not from the rules.
const (
	reasonProtected           = "Protected"
	reasonReachable           = "Reachable"
	reasonVolumesUnreplicated = "VolumesNotReplicated"
	reasonNoSnapshot          = "NoApplicationSnapshot"
)

// report writes the whole status: first what was decided, then how it looks.
func (r *Reconciler) report(plan *v1alpha1.DisasterRecoveryPlan, s seen, next runbook.Decision, done outcome) {
	message := next.Message
	if done.message != "" {
		message += ": " + done.message
	}
	if next.Reason == runbook.ReasonPeerHasNoPlan || next.Reason == runbook.ReasonPeerOutOfStep {
		if why := done.peers[plan.Spec.PrimaryCluster]; why != "" {
			message += ": " + why
		}
	}
	message = shorten(message)
	st := &plan.Status
	r.advance(plan, s, next, done, message)

	step := v1alpha1.OperationStep("")
	if st.Operation != nil {
		step = st.Operation.Step
	}
	if st.Reason != next.Reason || st.Step != step || st.WaitingSince == nil {
		at := metav1.NewTime(s.now)
		st.WaitingSince = &at
	}
	if next.Reason == runbook.ReasonInStep || next.Reason == runbook.ReasonStandby {
		st.WaitingSince = nil
	}
	st.LocalCluster = r.Cluster
	st.ObservedGeneration = plan.Generation
	st.Step, st.Reason, st.Message = step, next.Reason, message
	st.LastApplicationSnapshot = newestComplete(s.snapshots)
	st.Peers = peersOf(s, done)
	showParts(st, message)
	conditions(plan, s, next, message)
	st.Phase = phaseOf(plan, next)
}

// advance writes what a decision saves. It changes nothing else, so that one write carries the whole of a decision.
func (r *Reconciler) advance(plan *v1alpha1.DisasterRecoveryPlan, s seen, next runbook.Decision, done outcome, message string) {
	st := &plan.Status
	now := metav1.NewTime(s.now)
	switch next.Action {
	case runbook.Claim:
		st.PrimaryCluster, st.Epoch = r.Cluster, next.Epoch
	case runbook.Follow:
		if st.Operation != nil {
			end(st, followedReport(st.Operation, s.plans[next.Peer], next, now))
		}
		st.PrimaryCluster, st.Epoch = next.Peer, next.Epoch
	case runbook.Begin:
		id := r.newID(s.now)
		st.Operation = &v1alpha1.Operation{ID: id, Type: v1alpha1.OperationMigrate, From: r.Cluster, To: next.Peer, StartedAt: now, ApplicationSnapshot: plan.Name + "-" + id}
		r.enter(st.Operation, s, v1alpha1.StepPrecheck, "")
		r.enter(st.Operation, s, next.Step, "cluster "+next.Peer+" is ready for the move")
	case runbook.Enter:
		switch {
		case next.Point == "":
		case st.Operation.Step == v1alpha1.StepPreSync:
			st.Operation.PreSyncPoint = next.Point
		default:
			st.Operation.FinalPoint = next.Point
		}
		r.enter(st.Operation, s, next.Step, message)
	case runbook.Restore, runbook.Start, runbook.Stop:
		if done.done && next.Step != "" {
			r.enter(st.Operation, s, next.Step, endedMessage(next, done))
		}
	case runbook.Undo:
		st.Operation.RollbackReason = next.Reason
		r.enter(st.Operation, s, next.Step, message)
	case runbook.GrantEpoch:
		st.Grant = &v1alpha1.Grant{Epoch: next.Epoch, To: next.Peer, Operation: st.Operation.ID, Point: next.Point, ApplicationSnapshot: st.Operation.ApplicationSnapshot, GrantedAt: now}
		finishStep(st.Operation, s, message)
	case runbook.Accept:
		st.Operation = accepted(s.plans[next.Peer], next, r.Cluster)
		st.Epoch = next.Epoch
		r.enter(st.Operation, s, next.Step, "")
	case runbook.Finish:
		st.PrimaryCluster = r.Cluster
		r.enter(st.Operation, s, next.Step, message)
	case runbook.Close:
		finishStep(st.Operation, s, message)
		end(st, closedReport(st, next, now))
	}
}

func endedMessage(next runbook.Decision, done outcome) string {
	switch {
	case done.message != "":
		return done.message
	case next.Action == runbook.Stop:
		return "the application is offline"
	case next.Action == runbook.Start:
		return "the application is back online"
	}
	return next.Message
}

// enter ends the step that runs with a message and begins another.
func (r *Reconciler) enter(o *v1alpha1.Operation, s seen, step v1alpha1.OperationStep, message string) {
	finishStep(o, s, message)
	o.Step = step
	o.Steps = append(o.Steps, v1alpha1.StepRecord{Name: step, Cluster: r.Cluster, StartedAt: metav1.NewMicroTime(s.now)})
	if len(o.Steps) > maxSteps {
		o.Steps = slices.Delete(o.Steps, 0, len(o.Steps)-maxSteps)
	}
}

func finishStep(o *v1alpha1.Operation, s seen, message string) {
	if len(o.Steps) == 0 {
		return
	}
	last := &o.Steps[len(o.Steps)-1]
	if last.FinishedAt != nil {
		return
	}
	at := metav1.NewMicroTime(s.now)
	last.FinishedAt = &at
	if message != "" {
		last.Message = message
	}
}

// accepted is the operation as the new primary goes on with it: the grantor's, with the steps it took.
func accepted(from *v1alpha1.DisasterRecoveryPlan, next runbook.Decision, self string) *v1alpha1.Operation {
	grant := from.Status.Grant
	o := &v1alpha1.Operation{ID: grant.Operation, Type: v1alpha1.OperationMigrate, From: next.Peer, To: self, StartedAt: grant.GrantedAt}
	if theirs := from.Status.Operation; theirs != nil && theirs.ID == grant.Operation {
		o = theirs.DeepCopy()
	}
	o.FinalPoint, o.ApplicationSnapshot, o.RollbackReason = grant.Point, grant.ApplicationSnapshot, ""
	return o
}

func closedReport(st *v1alpha1.DisasterRecoveryPlanStatus, next runbook.Decision, now metav1.Time) v1alpha1.OperationReport {
	o := st.Operation
	report := v1alpha1.OperationReport{ID: o.ID, Type: o.Type, From: o.From, To: o.To, Result: string(next.Result), Epoch: st.Epoch, StartedAt: o.StartedAt, FinishedAt: now, Steps: o.Steps}
	if o.RollbackReason != "" {
		report.Message = o.RollbackReason + ": " + undoneBecause(o)
	}
	return report
}

// undoneBecause is the sentence with which the last step before the rollback ended.
func undoneBecause(o *v1alpha1.Operation) string {
	for i, s := range o.Steps {
		if s.Name == v1alpha1.StepRollback && i > 0 {
			return o.Steps[i-1].Message
		}
	}
	return "see the steps"
}

// followedReport is the new primary's own report of the operation, which has all steps; without it, what is known here.
func followedReport(o *v1alpha1.Operation, primary *v1alpha1.DisasterRecoveryPlan, next runbook.Decision, now metav1.Time) v1alpha1.OperationReport {
	report := v1alpha1.OperationReport{ID: o.ID, Type: o.Type, From: o.From, To: o.To, Result: string(runbook.Completed), Epoch: next.Epoch, StartedAt: o.StartedAt, FinishedAt: now, Steps: o.Steps}
	if primary == nil {
		return report
	}
	for i := range primary.Status.History {
		if h := &primary.Status.History[i]; h.ID == o.ID {
			return *h.DeepCopy()
		}
	}
	if theirs := primary.Status.Operation; theirs != nil && theirs.ID == o.ID {
		report.Steps = theirs.Steps
	}
	return report
}

// end moves the operation into the history and clears what only spoke of it.
func end(st *v1alpha1.DisasterRecoveryPlanStatus, report v1alpha1.OperationReport) {
	st.History = slices.Insert(st.History, 0, report)
	st.History = st.History[:min(len(st.History), maxHistory)]
	st.Operation = nil
}

// showParts tells of the parts of an operation; between operations they are empty.
func showParts(st *v1alpha1.DisasterRecoveryPlanStatus, message string) {
	if st.Operation == nil {
		st.BackupStatus, st.DataReplicationStatus, st.RestoreStatus = "", "", ""
		return
	}
	switch st.Operation.Step {
	case v1alpha1.StepCaptureObjects:
		st.BackupStatus = message
	case v1alpha1.StepPreSync, v1alpha1.StepFinalSync, v1alpha1.StepHandover, v1alpha1.StepPromote:
		st.DataReplicationStatus = message
	case v1alpha1.StepRestore, v1alpha1.StepVerify:
		st.RestoreStatus = message
	}
}

func peersOf(s seen, done outcome) []v1alpha1.PlanPeer {
	var peers []v1alpha1.PlanPeer
	for _, p := range s.view.Peers {
		shown := v1alpha1.PlanPeer{Cluster: p.Name, Reachable: p.Reach == runbook.Connected, Message: shorten(p.Trouble), ApplicationSnapshot: newestOn(s.snapshots, p.Name)}
		if why := done.peers[p.Name]; why != "" {
			shown.Message = shorten(why)
		}
		if p.Copy != nil {
			shown.PrimaryCluster, shown.Epoch = p.Copy.Primary, p.Copy.Epoch
		}
		peers = append(peers, shown)
	}
	return peers
}

func newestComplete(snapshots []v1alpha1.ApplicationSnapshot) string {
	for _, s := range snapshots {
		if s.Status.Phase == v1alpha1.SnapshotCompleted {
			return s.Name
		}
	}
	return ""
}

// newestOn is the newest snapshot that another cluster holds: one that was sent there, or that came from there.
func newestOn(snapshots []v1alpha1.ApplicationSnapshot, cluster string) string {
	for _, s := range snapshots {
		if s.Status.Phase == v1alpha1.SnapshotCompleted && s.Status.SourceCluster == cluster {
			return s.Name
		}
		for _, p := range s.Status.Peers {
			if p.Cluster == cluster && p.Synced {
				return s.Name
			}
		}
	}
	return ""
}

func conditions(plan *v1alpha1.DisasterRecoveryPlan, s seen, next runbook.Decision, message string) {
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		condition.Set(&plan.Status.Conditions, plan.Generation, kind, status, reason, message)
	}
	set(peersReachable(s))
	set(protected(plan, s))
	switch {
	case next.Refused, next.Reason == runbook.ReasonNoPrimaryKnown, next.Reason == runbook.ReasonApplicationOnStandby, plan.Status.PrimaryCluster == "":
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, next.Reason, message)
	case next.Standing == runbook.Primary && plan.Status.Operation == nil && s.view.App.Known && !s.view.App.Ready:
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, runbook.ReasonApplicationNotReady, shorten("the application is not ready: "+s.view.App.Waiting))
	case next.Standing == runbook.Primary && s.view.Data.Named && !s.view.Data.Found:
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, runbook.ReasonReplicationMissing, fmt.Sprintf("Replication %s does not exist: make it, or correct spec.dataReplicationPointer", plan.Spec.DataReplicationPointer))
	default:
		set(v1alpha1.ConditionReady, metav1.ConditionTrue, next.Reason, message)
	}
}

func peersReachable(s seen) (kind string, status metav1.ConditionStatus, reason, message string) {
	kind = v1alpha1.ConditionPeersReachable
	for _, p := range s.view.Peers {
		switch p.Reach {
		case runbook.Connected:
			continue
		case runbook.Unknown:
			return kind, metav1.ConditionUnknown, runbook.ReasonPeerUnknown, shorten(fmt.Sprintf("cluster %s has not answered: %s", p.Name, p.Trouble))
		case runbook.Lost:
			return kind, metav1.ConditionFalse, runbook.ReasonPeerUnreachable, shorten(fmt.Sprintf("cluster %s does not answer: %s", p.Name, p.Trouble))
		case runbook.Unpaired:
			return kind, metav1.ConditionFalse, runbook.ReasonPeerNotPaired, shorten(p.Trouble)
		}
		return kind, metav1.ConditionFalse, runbook.ReasonPeerRefused, shorten(fmt.Sprintf("cluster %s refuses: %s", p.Name, p.Trouble))
	}
	return kind, metav1.ConditionTrue, reasonReachable, "every other cluster of the plan answers"
}

// protected tells whether the application could run elsewhere. The primary knows for every peer, a standby for itself.
func protected(plan *v1alpha1.DisasterRecoveryPlan, s seen) (kind string, status metav1.ConditionStatus, reason, message string) {
	kind = v1alpha1.ConditionProtected
	if len(s.unreplicated) > 0 && plan.Status.PrimaryCluster == plan.Status.LocalCluster {
		return kind, metav1.ConditionFalse, reasonVolumesUnreplicated, shorten(fmt.Sprintf(
			"claims of the application are not replicated (%s): make a Replication and name it in spec.dataReplicationPointer", strings.Join(s.unreplicated, ", ")))
	}
	if s.view.Data.Named && !s.view.Data.Current(plan.Status.Epoch) {
		return kind, metav1.ConditionFalse, runbook.ReasonNoRecoveryPoint, fmt.Sprintf("no recovery point of the volumes is committed in epoch %d yet", plan.Status.Epoch)
	}
	if plan.Status.PrimaryCluster != plan.Status.LocalCluster {
		if newestComplete(s.snapshots) == "" {
			return kind, metav1.ConditionFalse, reasonNoSnapshot, "no application snapshot has arrived yet"
		}
		return kind, metav1.ConditionTrue, reasonProtected, "this cluster holds an application snapshot and what volumes the plan has"
	}
	for _, p := range s.view.Peers {
		if newestOn(s.snapshots, p.Name) == "" {
			return kind, metav1.ConditionFalse, reasonNoSnapshot, fmt.Sprintf("cluster %s has no application snapshot yet", p.Name)
		}
	}
	return kind, metav1.ConditionTrue, reasonProtected, "every peer holds an application snapshot and what volumes the plan has"
}

func phaseOf(plan *v1alpha1.DisasterRecoveryPlan, next runbook.Decision) string {
	st := plan.Status
	isPrimary := st.PrimaryCluster == st.LocalCluster
	switch {
	case next.Reason == runbook.ReasonSuperseded:
		return phaseNotReady
	case st.Operation != nil && st.Operation.RollbackReason != "":
		return phaseRollingBack
	case st.Operation != nil:
		return phaseMoving
	case next.Refused:
		return phaseRefused
	case st.PrimaryCluster == "" || isPrimary && plan.Spec.PrimaryCluster != st.PrimaryCluster:
		return phaseWaiting
	case !condition.True(st.Conditions, v1alpha1.ConditionReady):
		return phaseNotReady
	case !isPrimary:
		return phaseStandby
	case !condition.True(st.Conditions, v1alpha1.ConditionProtected):
		return phaseNotReady
	}
	return phaseProtected
}

// tell emits events for what an operator wants to find later; what repeats is not told again.
func (r *Reconciler) tell(before, plan *v1alpha1.DisasterRecoveryPlan, next runbook.Decision) {
	if r.Events == nil {
		return
	}
	event := func(kind, reason, message string) {
		r.Events.Eventf(plan, nil, kind, reason, "Operate", "%s", message)
	}
	st := plan.Status
	switch next.Action {
	case runbook.Claim, runbook.Follow, runbook.Begin, runbook.GrantEpoch, runbook.Accept, runbook.Finish:
		event(corev1.EventTypeNormal, next.Reason, st.Message)
	case runbook.Undo:
		event(corev1.EventTypeWarning, next.Reason, st.Message)
	case runbook.Close:
		kind := corev1.EventTypeNormal
		if next.Result == runbook.RolledBack {
			kind = corev1.EventTypeWarning
		}
		event(kind, string(next.Result), fmt.Sprintf("operation %s: %s", st.History[0].ID, st.Message))
	}
	if o := st.Operation; o != nil && before.Status.Operation != nil && before.Status.Operation.Step != o.Step && next.Action != runbook.Undo {
		event(corev1.EventTypeNormal, "StepEnded", fmt.Sprintf("operation %s: %s ended, %s begins: %s", o.ID, before.Status.Operation.Step, o.Step, st.Message))
	}
	if next.Refused && before.Status.Reason != next.Reason {
		event(corev1.EventTypeWarning, next.Reason, st.Message)
	}
}

func shorten(message string) string {
	runes := []rune(message)
	if len(runes) <= maxMessage {
		return message
	}
	return string(runes[:maxMessage-3]) + "..."
}
