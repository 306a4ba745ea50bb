package replication

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

const (
	resultCommitted = "Committed"
	resultFailed    = "Failed"
	// maxHistory is how many ended sessions are shown beside the newest.
	maxHistory = 10
)

// Reasons of conditions beside those of package cycle.
const (
	reasonActFailed       = "StepFailed"
	reasonRecoveryPoint   = "RecoveryPoint"
	reasonNoRecoveryPoint = "NoRecoveryPoint"
	reasonSessionFailed   = "SessionFailed"
	reasonSource          = "Source"
	reasonTakenOver       = "TakenOver"
	reasonReplica         = "Replica"
	reasonPromoting       = "Promoting"
	reasonLeftBehind      = "LeftBehind"
	reasonBeingDeleted    = "BeingDeleted"
	reasonNoMembers       = "NoMembers"
	reasonCutUnknown      = "CutUnknown"
)

// tell writes what was seen, decided and done into the status. What is remembered changes only when the step went through.
func (r *Reconciler) tell(seen *sight, next []cycle.Decision, acted []error) {
	status, lead := &seen.rep.Status, seen.lead()
	for i, v := range seen.links {
		if acted[i] == nil {
			r.remember(v, next[i])
		}
	}
	if seen.rep.Spec.PromoteTo == "" {
		status.PromotedTo = ""
	}
	status.ObservedGeneration = seen.rep.Generation
	status.Phase = phase(next)
	// A session's members stay while it runs, and a group that cannot be read right now has not become empty.
	if len(lead.members) > 0 {
		status.Claims = lead.memberNames()
		status.Sizes = sizesHere(lead)
		// A claim that left the group is no user's yet while its replica pair is there.
		for _, former := range lead.replica.seen.Former {
			status.Claims = add(status.Claims, former)
		}
		slices.Sort(status.Claims)
	}
	status.PrimaryCluster = r.primary(lead)
	for i, v := range seen.links {
		d := next[i]
		v.status.Phase = d.Phase
		v.status.WaitingFor = waitingFor(d)
		v.status.ReceiverReady = receiverReady(v, d)
		v.status.Objects = objects(v)
		v.status.Logs = logs(v)
		tellPoints(v)
		tellSchedule(v, d)
		tellProgress(v, d)
		tellObjective(v, d)
	}
	if status.ClaimedEpoch != nil && (claimed(seen.rep) == nil || status.Role == v1alpha1.RoleSource) {
		status.ClaimedEpoch = nil
	}
	tellGone(seen)
	tellSummary(seen.rep)
	tellConditions(seen, next, acted)
	tellScheduled(seen)
	tellQuiesced(seen)
}

// phase is the one of the links' that most needs to be seen: first what a person must mend, last what is at rest.
func phase(next []cycle.Decision) string {
	for _, word := range []string{cycle.Failed, cycle.Waiting, cycle.Demoting, cycle.Promoting, cycle.Preparing, cycle.Running, cycle.Idle} {
		if slices.ContainsFunc(next, func(d cycle.Decision) bool { return d.Phase == word }) {
			return word
		}
	}
	return next[0].Phase
}

// tellGone drops the status of links that are not in the spec any more once nothing of them is left.
func tellGone(seen *sight) {
	for _, v := range seen.gone {
		if quiesceOpen(v.quiescence()) {
			v.status.WaitingFor = "being removed: the application that its session has quiesced is let go first"
			continue
		}
		v.status.Session, v.status.WaitingFor, v.status.Objects, v.status.Logs = nil, "being removed: it is not in spec.rlinks any more", objects(v), logs(v)
	}
	clean := func(s v1alpha1.RlinkStatus) bool {
		return slices.ContainsFunc(seen.gone, func(v *view) bool {
			return v.status.RlinkName == s.RlinkName && v.status.Session == nil && len(leftover(v)) == 0 && len(v.pods) == 0 && v.replica.deployment == nil && v.replica.service == nil
		})
	}
	seen.rep.Status.Rlinks = slices.DeleteFunc(slices.Clone(seen.rep.Status.Rlinks), clean)
}

// remember changes what the next look builds on.
func (r *Reconciler) remember(v *view, d cycle.Decision) {
	if v.target != nil && v.target.Spoils(d) {
		v.status.RecoveryPoint = nil
	}
	switch d.Step {
	case cycle.PreparePeer:
		v.status.Agreed = nil
		if v.agreed {
			agreement := v.agreement()
			v.status.Agreed = &agreement
		}
	case cycle.TakeEpoch:
		v.rep.Status.ClaimedEpoch = &v1alpha1.ClaimedEpoch{Epoch: d.Epoch, Generation: v.rep.Generation, Lost: d.Lost}
	case cycle.TakeRole:
		stand := v.wanted()
		if v.lead && v.source != nil && v.rep.Status.Takeover == nil {
			takeOver(v, nil)
		}
		v.rep.Status.Role, v.rep.Status.Epoch = stand.Role, stand.Epoch
		if v.target != nil {
			v.status.BasePoint, v.status.NextRun, v.status.Scheduled = "", nil, nil
		}
		v.status.GroupSnapshotsRefusedAt = nil // of the former role
		if v.source != nil && v.rep.Spec.PromoteTo != "" {
			v.rep.Status.PromotedTo = v.rep.Spec.PromoteTo
		}
		r.forget(v.linkKey())
	case cycle.StartSession:
		v.status.Session = &v1alpha1.SessionStatus{
			Point: v.point, Trigger: d.Trigger, TriggerNow: v.rep.Spec.TriggerNow, ScheduleKinds: kindNames(v.outlook.Kinds), Claims: v.memberNames(),
			Epoch: v.rep.Status.Epoch, StartedAt: metav1.NewMicroTime(v.now), Cut: v.cut().Cut,
		}
		if v.cut().Cut == v1alpha1.CutNotAtomic {
			v.status.Session.CutReason = v.cut().Message
		}
		v.rememberRules(d)
	case cycle.BeginQuiesce, cycle.RecordQuiesced, cycle.Resume, cycle.RecordResumed:
		v.rememberRules(d)
	case cycle.CutApart:
		at := metav1.NewTime(v.now)
		v.status.GroupSnapshotsRefusedAt = &at
		if s := v.status.Session; s != nil {
			s.Cut, s.CutReason = v1alpha1.CutNotAtomic, d.Message
		}
	case cycle.RecordCut:
		at := metav1.NewTime(cutAt(v))
		v.status.Session.CutAt = &at
	case cycle.CommitSession:
		end(v, resultCommitted, "", v.report)
		resynchronised(v)
	case cycle.FailSession:
		end(v, resultFailed, d.Message, v.report)
	case cycle.BeginRollback:
		v.rep.Status.RollingBackTo, v.status.RecoveryPoint = v.rep.Spec.PromoteTo, nil
	case cycle.RecordRollback:
		v.rep.Status.RollingBackTo, v.rep.Status.PromotedTo = "", v.rep.Spec.PromoteTo
		v.status.RecoveryPoint = rolledBack(v)
	case cycle.RemoveRollback:
		// On a target the replica is set up anew; until then there is no point, and nothing to roll back.
		if v.target != nil {
			v.rep.Status.RollingBackTo = ""
		}
	case cycle.SealSpool:
		if applied := v.replica.seen.State.Applied; applied.Point != "" {
			v.status.RecoveryPoint = point(applied, nil)
		}
		takeOver(v, d.Lost)
	case cycle.RecordPoint:
		// What this side was taken over with is another source's now.
		v.rep.Status.Takeover = nil
		v.status.RecoveryPoint = point(v.target.Replica.State.Applied, nil)
	}
}

// takeOver remembers that this side becomes the source without having asked all others.
func takeOver(v *view, lost []string) {
	if c := claimed(v.rep); c != nil {
		lost = append(slices.Clone(lost), c.Lost...)
	}
	slices.Sort(lost)
	if lost = slices.Compact(lost); len(lost) == 0 {
		return
	}
	t := &v1alpha1.TakeoverStatus{Epoch: v.wanted().Epoch, At: metav1.NewTime(v.now), Clusters: lost}
	if p := v.status.RecoveryPoint; p != nil {
		t.Point = p.Point
	}
	v.rep.Status.Takeover = t
}

// resynchronised takes a cluster off the takeover: it has committed what this source sent, so it is a target that holds what is here.
func resynchronised(v *view) {
	t := v.rep.Status.Takeover
	if t == nil || v.status.RecoveryPoint.Epoch < t.Epoch {
		return
	}
	t.Clusters = slices.DeleteFunc(t.Clusters, func(cluster string) bool { return cluster == v.peerCluster() })
	if len(t.Clusters) == 0 {
		v.rep.Status.Takeover = nil
	}
}

// cutAt is the instant of the running session: that of the snapshot cut first.
func cutAt(v *view) time.Time {
	var first time.Time
	for _, claim := range v.status.Session.Claims {
		s := find(v, v.status.Session.Point, snapshot.ForSession, claim)
		if s == nil {
			continue
		}
		at := s.CutAt
		if at.IsZero() {
			at = s.CreatedAt
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// end moves the running session into the history. A committed one is the recovery point from now on, and its snapshots, if they
// are still there, the base of the next.
func end(v *view, result, message string, report *engine.Report) {
	s := v.status.Session
	ended := v1alpha1.SessionReport{Point: s.Point, Result: result, Trigger: s.Trigger, TriggerNow: s.TriggerNow, ScheduleKinds: s.ScheduleKinds, Message: message,
		StartedAt: s.StartedAt, FinishedAt: metav1.NewMicroTime(v.now), Cut: s.Cut, CutReason: s.CutReason, Quiesce: s.Quiesce}
	if report != nil {
		ended.Tier, ended.TierReason = v1alpha1.Tier(report.Tier), report.TierReason
		ended.BytesRead, ended.BytesChanged, ended.BytesSent, ended.BytesResent = report.BytesRead, report.BytesChanged, report.BytesSent, report.BytesResent
		ended.Attempts = int32(report.Attempts) + crashes(v)
	}
	if last := v.status.LastSession; last != nil {
		v.status.History = slices.Insert(v.status.History, 0, *last)
		v.status.History = v.status.History[:min(len(v.status.History), maxHistory)]
	}
	v.status.LastSession, v.status.Session = &ended, nil
	if result != resultCommitted {
		return
	}
	v.status.RecoveryPoint = &v1alpha1.RecoveryPoint{Point: s.Point, Epoch: s.Epoch, Time: metav1.NewTime(s.StartedAt.Time), Cut: s.Cut}
	if s.CutAt != nil {
		v.status.RecoveryPoint.Time = *s.CutAt
	}
	v.status.BasePoint = s.Point
	for _, claim := range s.Claims {
		if find(v, s.Point, snapshot.ForSession, claim) == nil {
			v.status.BasePoint = ""
		}
	}
}

// crashes counts the session's pods that ended without a word; each began to connect anew.
func crashes(v *view) int32 {
	for _, job := range v.jobs {
		if job.Labels[v1alpha1.LabelPoint] == v.status.Session.Point {
			return job.Status.Failed
		}
	}
	return 0
}

func point(p cycle.Recovery, snapshots []string) *v1alpha1.RecoveryPoint {
	return &v1alpha1.RecoveryPoint{Point: p.Point, Time: metav1.NewTime(p.Time), Epoch: p.Epoch, Cut: p.Cut, Snapshots: snapshots}
}

// tellPoints lists the points that are kept as snapshots here, newest first.
func tellPoints(v *view) {
	if v.target == nil || !v.lead {
		return
	}
	known := map[string]v1alpha1.RecoveryPoint{}
	for _, former := range v.status.RecoveryPoints {
		known[former.Point] = former
	}
	if newest := v.status.RecoveryPoint; newest != nil {
		known[newest.Point] = *newest
	}
	names, groups, noted := map[string][]string{}, map[string]string{}, map[string]snapshot.Seen{}
	for _, s := range v.snapshots {
		if s.Purpose != snapshot.ForRecovery || s.Deleting {
			continue
		}
		noted[s.Point], groups[s.Point] = s, s.Group
		if s.Name != "" {
			names[s.Point] = append(names[s.Point], s.Name)
		}
	}
	v.status.RecoveryPoints = nil
	for _, p := range kept(v.snapshots) {
		entry, ok := known[p.ID]
		if !ok {
			// Taken in a former life of this Replication, or not recorded yet: the snapshots are all that tells of it.
			entry = v1alpha1.RecoveryPoint{Point: p.ID, Time: metav1.NewTime(p.Time), Epoch: noted[p.ID].Epoch, Cut: noted[p.ID].Cut}
		}
		entry.Snapshots, entry.GroupSnapshot = names[p.ID], groups[p.ID]
		v.status.RecoveryPoints = append(v.status.RecoveryPoints, entry)
	}
	slices.SortFunc(v.status.RecoveryPoints, func(a, b v1alpha1.RecoveryPoint) int { return b.Time.Compare(a.Time.Time) })
	if newest := v.status.RecoveryPoint; newest != nil {
		newest.Snapshots, newest.GroupSnapshot = names[newest.Point], groups[newest.Point]
	}
}

// primary is the cluster that may write, as far as this side knows.
func (r *Reconciler) primary(v *view) string {
	if v.rep.Status.Role == v1alpha1.RoleTarget {
		return v.peerCluster()
	}
	return r.Cluster
}

func waitingFor(d cycle.Decision) string {
	if d.Step == cycle.Rest && d.Reason != cycle.ReasonSuspended && d.Reason != cycle.ReasonRetryLater && d.Reason != cycle.ReasonSourceMissing {
		return ""
	}
	if d.Step != cycle.Wait && d.Step != cycle.Rest && d.Ready {
		return ""
	}
	return d.Message
}

// receiverReady is what lets the source begin: the receiver takes sessions, and nothing it committed is still to be recorded.
func receiverReady(v *view, d cycle.Decision) bool {
	if v.target == nil || !v.lead || v.rep.Status.Role != v1alpha1.RoleTarget || v.inForce() != v.wanted() {
		return false
	}
	settled := d.Step == cycle.Rest || d.Step == cycle.DropRecoveryPoints
	return settled && v.state != nil && v.state.Ready
}

// objects lists what serves the link, as kind/name.
func objects(v *view) []string {
	var out []string
	for _, job := range v.jobs {
		out = append(out, "Job/"+job.Name)
	}
	if d := v.replica.deployment; d != nil {
		out = append(out, "Deployment/"+d.Name)
	}
	for _, claim := range v.claims {
		out = append(out, "PersistentVolumeClaim/"+claim.Name)
	}
	slices.Sort(out)
	return out
}

// logs are the commands that show what the link's movers say: the running session's, and the receiver's.
func logs(v *view) []string {
	var out []string
	for _, job := range v.jobs {
		out = append(out, fmt.Sprintf("kubectl -n %s logs job/%s", v.rep.Namespace, job.Name))
	}
	if d := v.replica.deployment; d != nil {
		out = append(out, fmt.Sprintf("kubectl -n %s logs deployment/%s", v.rep.Namespace, d.Name))
	}
	slices.Sort(out)
	return out
}

// tellProgress shows where the running session is.
func tellProgress(v *view, d cycle.Decision) {
	s := v.status.Session
	if s == nil {
		return
	}
	s.Phase, s.Message = sessionPhase(v, d), d.Message
	if v.source == nil || v.state == nil {
		return
	}
	s.BytesDone, s.BytesTotal, s.BytesPerSecond = v.state.BytesDone, v.state.BytesTotal, v.state.BytesPerSecond
	s.Percent, s.ETASeconds, s.Tier = int32(v.state.Percent), v.state.ETASeconds, v1alpha1.Tier(v.state.Tier)
}

func sessionPhase(v *view, d cycle.Decision) string {
	q := v.quiescence()
	switch {
	case q != nil && (q.State == v1alpha1.QuiesceQuiescing || q.State == v1alpha1.QuiesceResuming):
		return string(q.State)
	case v.status.Session.CutAt == nil:
		return "Snapshotting"
	case d.Step == cycle.MakeClones, d.Step == cycle.RecordCut:
		return "Cloning"
	case v.state != nil && d.Step == cycle.FollowMover:
		return string(v.state.Phase)
	}
	return "Starting"
}

func tellConditions(seen *sight, next []cycle.Decision, acted []error) {
	rep := seen.rep
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		condition.Set(&rep.Status.Conditions, rep.Generation, kind, status, reason, message)
	}
	// The first link that is not well speaks for all, by name where there are several.
	worst := func(of func(i int, v *view) (metav1.ConditionStatus, string, string)) (metav1.ConditionStatus, string, string) {
		for i, v := range seen.links {
			if status, reason, message := of(i, v); status != metav1.ConditionTrue {
				if len(seen.links) > 1 {
					message = "link " + v.rlink.RlinkName + ": " + message
				}
				return status, reason, message
			}
		}
		return of(0, seen.lead())
	}
	status, reason, message := worst(func(i int, v *view) (metav1.ConditionStatus, string, string) { return ready(v, next[i], acted[i]) })
	set(v1alpha1.ConditionReady, status, reason, message)
	status, reason, message = worst(func(_ int, v *view) (metav1.ConditionStatus, string, string) { return replicated(v) })
	set(v1alpha1.ConditionReplicated, status, reason, message)
	status, reason, message = worst(func(_ int, v *view) (metav1.ConditionStatus, string, string) { return cutAtomic(v) })
	set(v1alpha1.ConditionCutAtomic, status, reason, message)
	status, reason, message = promoted(seen.lead(), next[0])
	set(v1alpha1.ConditionPromoted, status, reason, message)
}

func ready(v *view, d cycle.Decision, acted error) (metav1.ConditionStatus, string, string) {
	switch {
	case acted != nil:
		return metav1.ConditionFalse, reasonActFailed, acted.Error()
	// A running session does not hide what stands in the way of the next.
	case v.problem != nil:
		return metav1.ConditionFalse, v.problem.Reason, v.problem.Message
	case v.unscheduled != nil && v.source != nil:
		return metav1.ConditionFalse, v.unscheduled.Reason, v.unscheduled.Message
	case d.Ready:
		return metav1.ConditionTrue, d.Reason, d.Message
	}
	return metav1.ConditionFalse, d.Reason, d.Message
}

func replicated(v *view) (metav1.ConditionStatus, string, string) {
	if v.target != nil && !v.lead && v.rep.Status.Role == v1alpha1.RoleTarget {
		return metav1.ConditionTrue, cycle.ReasonNotReceiving, "the replica is received through another link"
	}
	p := v.status.RecoveryPoint
	last := v.status.LastSession
	failed := v.rep.Status.Role == v1alpha1.RoleSource && last != nil && last.Result == resultFailed
	switch {
	case p == nil && failed:
		return metav1.ConditionFalse, reasonSessionFailed, "no point was ever committed; the newest session failed: " + last.Message
	case p == nil:
		return metav1.ConditionFalse, reasonNoRecoveryPoint, "no session has been committed yet"
	case failed:
		return metav1.ConditionFalse, reasonSessionFailed, fmt.Sprintf("the newest recovery point is %s of %s; the newest session failed: %s", p.Point, p.Time.UTC().Format(time.RFC3339), last.Message)
	}
	return metav1.ConditionTrue, reasonRecoveryPoint, fmt.Sprintf("point %s of %s is committed%s", p.Point, p.Time.UTC().Format(time.RFC3339), atomicity(v))
}

// atomicity says honestly what the point is when the group has more than one member.
func atomicity(v *view) string {
	n := len(v.rep.Status.Claims)
	switch {
	case n < 2:
		return ""
	case v.status.RecoveryPoint.Cut == v1alpha1.CutAtomic:
		return fmt.Sprintf("; its %d members were cut at one instant", n)
	case v.status.RecoveryPoint.Cut == "":
		return fmt.Sprintf("; it does not tell whether its %d members were cut at one instant", n)
	}
	return fmt.Sprintf("; its %d members were snapshotted together, but not at one instant", n)
}

// cutAtomic tells whether the members are cut at one instant: on a source by the way they are cut next, on a target by the
// newest point.
func cutAtomic(v *view) (metav1.ConditionStatus, string, string) {
	way := v.toldCut()
	switch {
	case v.rep.Status.Role == v1alpha1.RoleTarget && !v.lead:
		return metav1.ConditionTrue, reasonReplica, "the replica is received through another link"
	case v.rep.Status.Role == v1alpha1.RoleTarget:
		return pointAtomic(v)
	}
	switch way.Cut {
	case v1alpha1.CutNotAtomic:
		return metav1.ConditionFalse, way.Reason, way.Message
	case "":
		return metav1.ConditionUnknown, reasonNoMembers, "the group's members are not known yet"
	}
	return metav1.ConditionTrue, way.Reason, way.Message
}

func pointAtomic(v *view) (metav1.ConditionStatus, string, string) {
	p := v.status.RecoveryPoint
	switch {
	case p == nil:
		return metav1.ConditionUnknown, reasonNoRecoveryPoint, "no session has been committed yet"
	case p.Cut == v1alpha1.CutNotAtomic:
		return metav1.ConditionFalse, reasonCutNotAtomic, fmt.Sprintf("the members of point %s were snapshotted together, but not at one instant: the source's status tells why", p.Point)
	case p.Cut == "":
		return metav1.ConditionUnknown, reasonCutUnknown, fmt.Sprintf("the source of point %s did not tell how it was cut", p.Point)
	}
	return metav1.ConditionTrue, string(p.Cut), fmt.Sprintf("point %s is of one instant", p.Point)
}

func promoted(v *view, d cycle.Decision) (metav1.ConditionStatus, string, string) {
	switch {
	case v.rep.Status.Role == v1alpha1.RoleSource && v.rep.Status.Takeover != nil:
		t := v.rep.Status.Takeover
		return metav1.ConditionTrue, reasonTakenOver, fmt.Sprintf("the claims belong to the application; they were taken over with point %s, without cluster %s: set spec.role to target there, and it is resynchronised",
			t.Point, strings.Join(t.Clusters, ", "))
	case v.rep.Status.Role == v1alpha1.RoleSource:
		return metav1.ConditionTrue, reasonSource, "the claims belong to the application"
	case v.rep.Spec.Role == v1alpha1.RoleSource:
		return metav1.ConditionFalse, reasonPromoting, d.Message
	}
	return metav1.ConditionFalse, reasonReplica, "the claims hold a replica: no pod may mount them"
}
