package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/objective"
	"lifeboat.dev/lifeboat/internal/schedule"
)

// Reasons of the conditions Scheduled and WithinObjective, and of their events.
const (
	reasonScheduled             = "Scheduled"
	reasonScheduleInvalid       = "ScheduleInvalid"
	reasonSchedulePolicyMissing = "SchedulePolicyMissing"
	reasonSchedulePolicyInvalid = "SchedulePolicyInvalid"
	reasonObjectiveMet          = "ObjectiveMet"
	reasonObjectiveAtRisk       = "ObjectiveAtRisk"
	reasonObjectiveBreached     = "ObjectiveBreached"
)

// observeSchedule reads what says when sessions start, and looks at it. A schedule that cannot be used is a problem of its own:
// nothing but the schedule stops for it.
func (r *Reconciler) observeSchedule(ctx context.Context, v *view) error {
	unscheduled := func(reason, format string, args ...any) {
		v.unscheduled = &cycle.Problem{Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	link := v.rlink
	var err error
	switch {
	case link.Schedule != "":
		if v.agenda, err = schedule.ParseAgenda(link.Schedule); err != nil {
			unscheduled(reasonScheduleInvalid, "spec.rlinks[%s].%v", link.RlinkName, err)
		}
	case link.Interval != "":
		if v.agenda, err = schedule.ParseInterval(link.Interval, link.StartTime); err != nil {
			unscheduled(reasonScheduleInvalid, "spec.rlinks[%s].%v", link.RlinkName, err)
		}
	case link.SchedulePolicyName != "":
		// A policy is read from the cache: it tells when, never what may be written.
		var policy v1alpha1.SchedulePolicy
		err := r.Client.Get(ctx, client.ObjectKey{Name: link.SchedulePolicyName}, &policy)
		switch {
		case apierrors.IsNotFound(err):
			unscheduled(reasonSchedulePolicyMissing, "SchedulePolicy %s does not exist: create it, or correct spec.rlinks[%s].schedulePolicyName, which names it", link.SchedulePolicyName, link.RlinkName)
			return nil
		case err != nil:
			return fmt.Errorf("read SchedulePolicy %s: %w", link.SchedulePolicyName, err)
		}
		if v.agenda, err = schedule.ParsePolicy(policy.Policy); err != nil {
			unscheduled(reasonSchedulePolicyInvalid, "SchedulePolicy %s, which spec.rlinks[%s].schedulePolicyName names, cannot be used: %v", link.SchedulePolicyName, link.RlinkName, err)
		}
	}
	v.outlook = v.agenda.Look(promises(v.status), v.now)
	return nil
}

func promises(status *v1alpha1.RlinkStatus) []schedule.Promise {
	var out []schedule.Promise
	for _, run := range status.Scheduled {
		p := schedule.Promise{Kind: schedule.Kind(run.Kind)}
		if run.Next != nil {
			p.Next = run.Next.Time
		}
		if run.Last != nil {
			p.Last = run.Last.Time
		}
		out = append(out, p)
	}
	return out
}

func scheduledRuns(promises []schedule.Promise) []v1alpha1.ScheduledRun {
	var out []v1alpha1.ScheduledRun
	for _, p := range promises {
		out = append(out, v1alpha1.ScheduledRun{Kind: string(p.Kind), Next: timeOrNil(p.Next), Last: timeOrNil(p.Last)})
	}
	return out
}

func timeOrNil(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	at := metav1.NewTime(t)
	return &at
}

func kindNames(kinds []schedule.Kind) []string {
	var out []string
	for _, k := range kinds {
		out = append(out, string(k))
	}
	return out
}

// scheduleText is a link's schedule in a word or two.
func scheduleText(link v1alpha1.Rlink) string {
	switch {
	case link.Schedule != "":
		return link.Schedule
	case link.Interval != "" && link.StartTime != "":
		return "every " + link.Interval + " from " + link.StartTime
	case link.Interval != "":
		return "every " + link.Interval
	case link.SchedulePolicyName != "":
		return "policy " + link.SchedulePolicyName
	}
	return ""
}

// tellSchedule saves what the schedule promised. A session that begins keeps every promise that is due with it; what comes due while
// it runs is looked at after its end. While the schedule cannot be used its promises are neither kept nor broken.
func tellSchedule(v *view, d cycle.Decision) {
	switch {
	case v.source != nil && v.unscheduled != nil:
		v.status.NextRun = nil
		return
	case v.source == nil, v.agenda.Empty():
		v.status.Scheduled, v.status.NextRun = nil, nil
		return
	case v.source.Session != nil:
		return
	}
	look := v.outlook
	v.status.MissedRuns += look.Skipped
	kept, next := look.Resting, look.Next
	if d.Step == cycle.StartSession {
		kept, next = look.Started(v.now, look.Kinds...), look.After
	}
	v.status.Scheduled, v.status.NextRun = scheduledRuns(kept), timeOrNil(next)
	if v.rlink.SuspendReplication {
		v.status.NextRun = nil
	}
}

// tellScheduled says whether the links' schedules can be used.
func tellScheduled(seen *sight) {
	conditions, generation := &seen.rep.Status.Conditions, seen.rep.Generation
	var problems []string
	reason, scheduled := "", false
	for _, v := range seen.links {
		scheduled = scheduled || !v.agenda.Empty()
		if v.unscheduled != nil {
			problems, reason = append(problems, v.unscheduled.Message), v.unscheduled.Reason
		}
	}
	switch {
	case len(problems) > 0:
		condition.Set(conditions, generation, v1alpha1.ConditionScheduled, metav1.ConditionFalse, reason, strings.Join(problems, "; "))
	case scheduled:
		condition.Set(conditions, generation, v1alpha1.ConditionScheduled, metav1.ConditionTrue, reasonScheduled, seen.rep.Status.Schedule)
	default:
		meta.RemoveStatusCondition(conditions, v1alpha1.ConditionScheduled)
	}
}

// tellObjective says how the link stands to its objective. A target has it of the link that it receives through.
func tellObjective(v *view, d cycle.Decision) {
	former := v.status.Objective
	v.status.Objective = nil
	allowed, err := schedule.ParseDuration(v.rlink.RecoveryPointObjective)
	// An objective that cannot be read is none: the API server refuses all others.
	if err != nil || v.target != nil && !v.lead {
		return
	}
	verdict := objective.Judge(standing(v, d, former, allowed))
	v.status.Objective = &v1alpha1.ObjectiveStatus{State: string(verdict.State), Until: metav1.NewTime(verdict.Until), Message: verdict.Message, Forecast: verdict.Forecast}
}

func standing(v *view, d cycle.Decision, former *v1alpha1.ObjectiveStatus, allowed time.Duration) objective.Seen {
	s := objective.Seen{Now: v.now, Objective: allowed, Since: v.rep.CreationTimestamp.Time, Suspended: v.rlink.SuspendReplication, Point: pointThere(v)}
	// While a session runs the peer is not asked. That it had less than this side believes stays so until something is committed.
	if asked := v.source == nil || v.source.Peer.Asked; !asked && former != nil && d.Step != cycle.CommitSession && v.observed == v.rep.Generation {
		if known := former.Until.Add(-allowed); known.Before(s.Point) {
			s.Point = known
		}
	}
	if session := v.status.Session; session != nil {
		s.Running, s.Left = true, time.Duration(session.ETASeconds)*time.Second
	}
	if v.status.NextRun != nil && v.rep.Status.Role == v1alpha1.RoleSource {
		s.Next = v.status.NextRun.Time
	}
	for _, ended := range append([]v1alpha1.SessionReport{lastSession(v.status)}, v.status.History...) {
		if ended.Result == resultCommitted {
			s.Usual = ended.FinishedAt.Sub(ended.StartedAt.Time).Round(time.Second)
			break
		}
	}
	return s
}

func lastSession(status *v1alpha1.RlinkStatus) v1alpha1.SessionReport {
	if status.LastSession == nil {
		return v1alpha1.SessionReport{}
	}
	return *status.LastSession
}

// pointThere is the instant of the newest point that the target has, by its own word where it was asked; zero when it has none. Just
// after a commit it may not have told yet.
func pointThere(v *view) time.Time {
	own := recovery(v.status.RecoveryPoint).Time
	if v.source == nil || !v.source.Peer.Asked || !v.source.Peer.Found || v.source.InForce.Role != v1alpha1.RoleSource {
		return own
	}
	last := v.source.Last
	theirs := v.source.Peer.Recovery
	if last != nil && v.now.Sub(last.FinishedAt) <= cycle.PeerMemory || !theirs.Time.Before(own) {
		return own
	}
	return theirs.Time
}

// tellSummary writes what printers show of all links together.
func tellSummary(rep *v1alpha1.Replication) {
	status := &rep.Status
	var texts []string
	suspended := 0
	for _, link := range rep.Spec.Rlinks {
		if text := scheduleText(link); text != "" && !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
		if link.SuspendReplication {
			suspended++
		}
	}
	status.Schedule = strings.Join(texts, ", ")
	switch suspended {
	case 0:
		status.Suspended = "False"
	case len(rep.Spec.Rlinks):
		status.Suspended = "True"
	default:
		status.Suspended = "Some"
	}
	status.Active, status.RecoveryPointTime = 0, nil
	var behind []metav1.Time
	wanted := len(rep.Spec.Rlinks)
	for i := range status.Rlinks {
		link := &status.Rlinks[i]
		if link.Session != nil {
			status.Active++
		}
		if link.RecoveryPoint != nil {
			behind = append(behind, link.RecoveryPoint.Time)
		}
		// A target has one replica, whichever link it is received through.
		if status.Role == v1alpha1.RoleTarget && status.Receiving != nil && status.Receiving.RlinkName == link.RlinkName {
			behind, wanted = nil, 1
			if link.RecoveryPoint != nil {
				behind = append(behind, link.RecoveryPoint.Time)
			}
			break
		}
	}
	if len(behind) > 0 && len(behind) == wanted {
		oldest := slices.MinFunc(behind, func(a, b metav1.Time) int { return a.Compare(b.Time) })
		status.RecoveryPointTime = &oldest
	}
	tellWithinObjective(rep)
}

// tellWithinObjective says how all links together stand to their objectives.
func tellWithinObjective(rep *v1alpha1.Replication) {
	worst := objective.State("")
	var messages []string
	for i := range rep.Status.Rlinks {
		link := &rep.Status.Rlinks[i]
		if link.Objective == nil {
			continue
		}
		if state := objective.State(link.Objective.State); worst == "" || state == objective.Breached || state == objective.AtRisk && worst == objective.Met {
			worst = state
		}
		message := link.Objective.Message
		if link.Objective.Forecast != "" {
			message += "; " + link.Objective.Forecast
		}
		if len(rep.Status.Rlinks) > 1 {
			message = "link " + link.RlinkName + ": " + message
		}
		messages = append(messages, message)
	}
	set := func(status metav1.ConditionStatus, reason string) {
		condition.Set(&rep.Status.Conditions, rep.Generation, v1alpha1.ConditionWithinObjective, status, reason, strings.Join(messages, "; "))
	}
	rep.Status.Objective = string(worst)
	switch worst {
	case objective.Breached:
		set(metav1.ConditionFalse, reasonObjectiveBreached)
	case objective.AtRisk:
		set(metav1.ConditionTrue, reasonObjectiveAtRisk)
	case objective.Met:
		set(metav1.ConditionTrue, reasonObjectiveMet)
	default:
		meta.RemoveStatusCondition(&rep.Status.Conditions, v1alpha1.ConditionWithinObjective)
	}
}

// untilBreach shortens a wait so that a breach is noticed when it begins.
func untilBreach(v *view, wait time.Duration) time.Duration {
	if v.status.Objective == nil {
		return wait
	}
	if left := v.status.Objective.Until.Sub(v.now); left > 0 {
		// A breach begins after the instant at which the point is as old as allowed.
		return min(wait, left+time.Millisecond)
	}
	return wait
}

// usersOfPolicy names the Replications that a SchedulePolicy tells when to run.
func (r *Reconciler) usersOfPolicy(ctx context.Context, policy client.Object) []reconcile.Request {
	var all v1alpha1.ReplicationList
	if err := r.Client.List(ctx, &all); err != nil {
		return nil // each looks at its policy again by itself soon
	}
	var users []reconcile.Request
	for i := range all.Items {
		if slices.ContainsFunc(all.Items[i].Spec.Rlinks, func(l v1alpha1.Rlink) bool { return l.SchedulePolicyName == policy.GetName() }) {
			users = append(users, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&all.Items[i])})
		}
	}
	return users
}
