package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/condition"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/hook"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// +kubebuilder:rbac:groups=lifeboat.dev,resources=rules,verbs=get
// +kubebuilder:rbac:groups=lifeboat.dev,resources=rules/status,verbs=patch

// Reasons around Rules, beside those of package cycle.
const (
	reasonRuleMissing       = "RuleMissing"
	reasonRuleUnusable      = "RuleUnusable"
	reasonPostCutRuleFailed = "PostCutRuleFailed"
	reasonNoPods            = "NoPodsToQuiesce"
	reasonNotQuiescedYet    = "NotQuiescedYet"
	reasonOnlyPostCut       = "OnlyPostCutRule"
)

const (
	// proofWithin is how long commands that hold the application may take to answer.
	proofWithin = 5 * time.Second
	// maxResults is how many runs a Rule shows.
	maxResults = 10
)

// ruleRun is what was read of a session's Rules in one look, and what a step found.
type ruleRun struct {
	pre, post *v1alpha1.Rule
	run       hook.Run
	// taken is set when the Rules became another session's before BeginQuiesce could reserve them.
	taken bool
}

func (v *view) ruleOwner() hook.Owner {
	return hook.Owner{Replication: v.key(), Rlink: v.rlink.RlinkName, Point: v.status.Session.Point}
}

// quiescence is that of the link's session; nil without one, or without Rules.
func (v *view) quiescence() *v1alpha1.QuiesceStatus {
	if v.status.Session == nil {
		return nil
	}
	return v.status.Session.Quiesce
}

// quiesceOpen reports that commands may have run whose effects are not undone.
func quiesceOpen(q *v1alpha1.QuiesceStatus) bool {
	return q != nil && q.State != v1alpha1.QuiesceWaiting && q.State != v1alpha1.QuiesceResumed
}

// ruleOf reads a Rule; nil when none is named. What is wrong with it is a sentence.
func ruleOf(ctx context.Context, from client.Reader, namespace, name string, stage v1alpha1.RuleStage) (*v1alpha1.Rule, *cycle.Problem, error) {
	if name == "" {
		return nil, nil, nil
	}
	var rule v1alpha1.Rule
	err := from.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &rule)
	switch {
	case apierrors.IsNotFound(err):
		field := "spec.preCutRule"
		if stage == v1alpha1.RulePostCut {
			field = "spec.postCutRule"
		}
		return nil, &cycle.Problem{Reason: reasonRuleMissing, Message: fmt.Sprintf("Rule %s/%s does not exist: create it; %s names it", namespace, name, field)}, nil
	case err != nil:
		return nil, nil, fmt.Errorf("read Rule %s/%s: %w", namespace, name, err)
	}
	if why := hook.Unusable(&rule, stage); why != "" {
		return nil, &cycle.Problem{Reason: reasonRuleUnusable, Message: why}, nil
	}
	return &rule, nil, nil
}

// rulePair reads both Rules that are named, and what is wrong with the first that cannot be run.
func rulePair(ctx context.Context, from client.Reader, namespace, pre, post string) (before, after *v1alpha1.Rule, problem *cycle.Problem, err error) {
	before, problem, err = ruleOf(ctx, from, namespace, pre, v1alpha1.RulePreCut)
	if err != nil {
		return nil, nil, nil, err
	}
	after, second, err := ruleOf(ctx, from, namespace, post, v1alpha1.RulePostCut)
	if problem == nil {
		problem = second
	}
	return before, after, problem, err
}

// observeRules notes what is wrong with the Rules that new sessions run. Without a usable one no session starts: it would be
// cut without being quiesced. A session reads those it runs from the API server.
func observeRules(ctx context.Context, from client.Reader, v *view) error {
	spec := &v.rep.Spec
	if v.status.Session != nil || spec.PreCutRule == "" && spec.PostCutRule == "" {
		return nil
	}
	_, _, problem, err := rulePair(ctx, from, v.rep.Namespace, spec.PreCutRule, spec.PostCutRule)
	if problem != nil {
		v.note(problem.Reason, "%s", problem.Message)
	}
	return err
}

// observeQuiescence tells how far the session's Rules are. It comes after the snapshots were read: what holds the application is asked only
// when all members are cut, so that its answer proves that they were cut while it held.
func (r *Reconciler) observeQuiescence(ctx context.Context, v *view, session *cycle.Session, snapshots []cycle.Snapshot) error {
	q := v.quiescence()
	if session == nil || q == nil {
		return nil
	}
	out := &cycle.Quiescence{Pre: q.PreCutRule, Post: q.PostCutRule, State: q.State, Holds: int(q.Holds)}
	session.Quiescence = out
	if q.QuiescedAt != nil {
		out.QuiescedAt = q.QuiescedAt.Time
	}
	if q.HoldLimit != nil {
		out.HoldLimit = q.HoldLimit.Duration
	}
	if q.FailedReason != "" {
		out.Fault = &cycle.Problem{Reason: q.FailedReason, Message: q.Failed}
	}
	if q.State == v1alpha1.QuiesceResumed {
		return nil
	}
	owner := v.ruleOwner()
	var err error
	if q.State == v1alpha1.QuiesceWaiting {
		if v.rules.pre, v.rules.post, out.Unusable, err = rulePair(ctx, r.Live, v.rep.Namespace, q.PreCutRule, q.PostCutRule); err != nil {
			return err
		}
		if out.Busy = r.Rules.Holder(owner, q.PreCutRule, q.PostCutRule); out.Busy == "" {
			out.Busy, err = r.ruleUser(ctx, v)
		}
		return err
	}
	uncut := slices.ContainsFunc(snapshots, func(s cycle.Snapshot) bool { return !s.Cut })
	if q.State == v1alpha1.QuiesceQuiesced && q.Holds > 0 && !uncut && r.Rules.Look(owner).Phase == hook.RunQuiesced {
		asking, cancel := context.WithTimeout(ctx, proofWithin)
		defer cancel()
		_ = r.Rules.Prove(asking, owner) // the run tells
	}
	v.rules.run = r.Rules.Look(owner)
	out.Run, out.Proven, out.Trouble = cycle.RunState(v.rules.run.Phase), v.rules.run.Proven, v.rules.run.Pre.Err
	return nil
}

// ruleUser finds a session whose status says that it uses one of the Rules. That of a manager that has ended is known by nothing else.
func (r *Reconciler) ruleUser(ctx context.Context, v *view) (string, error) {
	var all v1alpha1.ReplicationList
	if err := r.Live.List(ctx, &all, client.InNamespace(v.rep.Namespace)); err != nil {
		return "", fmt.Errorf("list replications of namespace %s: %w", v.rep.Namespace, err)
	}
	mine := v.quiescence()
	for i := range all.Items {
		other := &all.Items[i]
		for _, link := range other.Status.Rlinks {
			if link.Session == nil || !quiesceOpen(link.Session.Quiesce) || other.Name == v.rep.Name && link.RlinkName == v.rlink.RlinkName {
				continue
			}
			q := link.Session.Quiesce
			for _, rule := range []string{mine.PreCutRule, mine.PostCutRule} {
				if rule != "" && (rule == q.PreCutRule || rule == q.PostCutRule) {
					return hook.Owner{Replication: client.ObjectKeyFromObject(other), Rlink: link.RlinkName, Point: link.Session.Point}.Uses(rule), nil
				}
			}
		}
	}
	return "", nil
}

// actOnRules takes a step of Rules. The commands run meanwhile; looks that follow tell how far they are.
func (r *Reconciler) actOnRules(ctx context.Context, v *view, d cycle.Decision) error {
	q, owner := v.quiescence(), v.ruleOwner()
	switch d.Step {
	case cycle.BeginQuiesce:
		v.rules.taken = r.Rules.Reserve(owner, q.PreCutRule, q.PostCutRule) != ""
	case cycle.Quiesce:
		pre, problem, err := ruleOf(ctx, r.Live, v.rep.Namespace, q.PreCutRule, v1alpha1.RulePreCut)
		if err != nil {
			return err
		}
		if problem != nil { // it has gone a moment ago: the next look finds no run, and lets go
			r.Rules.Forget(owner)
			return nil
		}
		r.Rules.Quiesce(ctx, owner, pre)
	case cycle.Resume:
		return r.resume(ctx, v)
	case cycle.RecordResumed:
		r.tellRules(ctx, v)
		r.Rules.Forget(owner)
	}
	return nil
}

// resume lets the session's application go.
func (r *Reconciler) resume(ctx context.Context, v *view) error {
	q := v.quiescence()
	post, problem, err := ruleOf(ctx, r.Live, v.rep.Namespace, q.PostCutRule, v1alpha1.RulePostCut)
	if err != nil {
		return err
	}
	trouble, late := "", time.Duration(0)
	if problem != nil {
		trouble = problem.Message
	}
	if q.CommandsEndBy != nil && q.QuiescedAt == nil {
		late = q.CommandsEndBy.Sub(v.now)
	}
	r.Rules.Resume(ctx, v.ruleOwner(), post, trouble, late)
	return nil
}

// rememberRules changes what the next look builds on.
func (v *view) rememberRules(d cycle.Decision) {
	q, at := v.quiescence(), metav1.NewMicroTime(v.now)
	switch d.Step {
	case cycle.StartSession:
		if spec := v.rep.Spec; spec.PreCutRule != "" || spec.PostCutRule != "" {
			v.status.Session.Quiesce = &v1alpha1.QuiesceStatus{PreCutRule: spec.PreCutRule, PostCutRule: spec.PostCutRule, State: v1alpha1.QuiesceWaiting}
		}
	case cycle.BeginQuiesce:
		if v.rules.taken {
			return
		}
		end := metav1.NewMicroTime(v.now.Add(hook.CommandsEnd(v.rules.pre)))
		q.State, q.BegunAt, q.CommandsEndBy, q.HoldLimit = v1alpha1.QuiesceQuiescing, &at, &end, &metav1.Duration{Duration: hook.HoldLimit(v.rules.pre)}
	case cycle.RecordQuiesced:
		q.State, q.QuiescedAt, q.Holds, q.Warning = v1alpha1.QuiesceQuiesced, &at, int32(v.rules.run.Holds), v.rules.run.Pre.Warning
	case cycle.Resume:
		if q.State == v1alpha1.QuiesceResuming {
			return
		}
		q.State, q.ResumedAt = v1alpha1.QuiesceResuming, &at
		if d.Fault != nil {
			q.FailedReason, q.Failed = d.Fault.Reason, d.Fault.Message
		}
	case cycle.RecordResumed:
		q.State, q.ResumeFailed = v1alpha1.QuiesceResumed, v.rules.run.Post.Err
		if s := v.status.Session; s.Cut == v1alpha1.CutNotAtomic && q.Failed == "" {
			s.CutReason += "; " + quiescedHow(q)
		}
	}
}

// quiescedHow says in part of a sentence how the application stood while its members were cut.
func quiescedHow(q *v1alpha1.QuiesceStatus) string {
	stood := ""
	if q.BegunAt != nil && q.ResumedAt != nil {
		stood = fmt.Sprintf(" for at most %s", q.ResumedAt.Sub(q.BegunAt.Time).Round(time.Millisecond))
	}
	switch {
	case q.Warning != "":
		return "nothing was quiesced: " + q.Warning
	case q.PreCutRule == "":
		return "the application was not quiesced: there is no preCutRule"
	case q.Holds > 0:
		return fmt.Sprintf("Rule %s held the application%s, as %d of its commands confirmed once all were cut", q.PreCutRule, stood, q.Holds)
	}
	return fmt.Sprintf("the commands of Rule %s had quiesced the application%s", q.PreCutRule, stood)
}

// toldCut is how the members are cut next, with the Rule that makes up for it.
func (v *view) toldCut() snapshot.Way { return v.cut().Under(v.rep.Spec.PreCutRule) }

// tellRules adds what came of a run to the Rules' status. It is for people alone: what cannot be written is left out.
func (r *Reconciler) tellRules(ctx context.Context, v *view) {
	q, run := v.quiescence(), v.rules.run
	result := func(stage v1alpha1.RuleStage, out hook.Outcome) v1alpha1.RuleResult {
		made := v1alpha1.RuleResult{Replication: v.rep.Name, Rlink: v.rlink.RlinkName, Point: v.status.Session.Point, Stage: stage,
			At: metav1.NewTime(v.now), Outcome: v1alpha1.RuleSucceeded, Pods: out.Pods}
		switch {
		case out.Err != "":
			made.Outcome, made.Message = v1alpha1.RuleFailed, out.Err
		case out.Warning != "":
			made.Outcome, made.Message = v1alpha1.RuleNoPods, out.Warning
		}
		return made
	}
	pre := result(v1alpha1.RulePreCut, run.Pre)
	if q.FailedReason == cycle.ReasonQuiesceInterrupted || q.FailedReason == cycle.ReasonQuiesceLost && run.Pre.Err == "" {
		pre.Outcome, pre.Message = v1alpha1.RuleInterrupted, q.Failed
	}
	for name, results := range map[string][]v1alpha1.RuleResult{q.PostCutRule: {result(v1alpha1.RulePostCut, run.Post)}, q.PreCutRule: {pre}} {
		if q.PreCutRule == q.PostCutRule {
			results = []v1alpha1.RuleResult{result(v1alpha1.RulePostCut, run.Post), pre}
		}
		if name == "" {
			continue
		}
		if err := r.tellRule(ctx, client.ObjectKey{Namespace: v.rep.Namespace, Name: name}, results); err != nil {
			log.FromContext(ctx).Info("the results of a Rule were not told", "rule", name, "cause", err.Error())
		}
	}
}

func (r *Reconciler) tellRule(ctx context.Context, key client.ObjectKey, results []v1alpha1.RuleResult) error {
	var err error
	for range 3 { // other sessions tell theirs
		var rule v1alpha1.Rule
		if err = r.Live.Get(ctx, key, &rule); err != nil {
			return client.IgnoreNotFound(err)
		}
		before := rule.DeepCopy()
		rule.Status.Results = slices.Insert(rule.Status.Results, 0, results...)
		rule.Status.Results = rule.Status.Results[:min(len(rule.Status.Results), maxResults)]
		if err = condition.Save(ctx, r.Client, before, &rule); !apierrors.IsConflict(err) {
			return err
		}
	}
	return err
}

// resumeLeft lets the applications go that sessions of links have quiesced which nobody will finish. It reports whether that is under way
// still. The runs are known until forgetRules: whoever asks again before that is saved shall not let them go once more.
func (r *Reconciler) resumeLeft(ctx context.Context, links ...*view) (left bool, err error) {
	var errs []error
	for _, v := range links {
		if !quiesceOpen(v.quiescence()) {
			continue
		}
		v.rules.run = r.Rules.Look(v.ruleOwner())
		if v.rules.run.Phase != hook.RunResumed {
			left = true
			errs = append(errs, r.resume(ctx, v))
			continue
		}
		v.rememberRules(cycle.Decision{Step: cycle.RecordResumed})
	}
	return left, errors.Join(errs...)
}

// forgetRules gives the Rules of sessions back that nobody will finish.
func (r *Reconciler) forgetRules(links ...*view) {
	for _, v := range links {
		if v.quiescence() != nil {
			r.Rules.Forget(v.ruleOwner())
		}
	}
}

// tellQuiesced says in a condition how the newest sessions were quiesced, and whether the application may still stand still.
func tellQuiesced(seen *sight) {
	rep := seen.rep
	if rep.Spec.Role != v1alpha1.RoleSource || rep.Spec.PreCutRule == "" && rep.Spec.PostCutRule == "" {
		rep.Status.Conditions = slices.DeleteFunc(rep.Status.Conditions, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionQuiesced })
		return
	}
	status, reason, message := metav1.ConditionUnknown, reasonNotQuiescedYet, "no session has run the Rules yet"
	for _, v := range seen.links {
		q := lastQuiescence(v.status)
		if q == nil {
			continue
		}
		told := "point " + v.status.LastSession.Point + ": "
		if len(seen.links) > 1 {
			told = "link " + v.rlink.RlinkName + ", " + told
		}
		switch {
		case q.ResumeFailed != "":
			status, reason, message = metav1.ConditionFalse, reasonPostCutRuleFailed, told+"the application may still be quiesced: "+q.ResumeFailed
		case status == metav1.ConditionFalse:
			continue // an earlier link's; only what may still stand still is worse
		case q.State != v1alpha1.QuiesceResumed:
			status, reason, message = metav1.ConditionFalse, reasonNotQuiescedYet, told+"the session ended before its Rules were run: "+v.status.LastSession.Message
		case q.Failed != "":
			status, reason, message = metav1.ConditionFalse, q.FailedReason, told+q.Failed
		case q.Warning != "":
			status, reason, message = metav1.ConditionFalse, reasonNoPods, told+quiescedHow(q)
		case status == metav1.ConditionUnknown:
			status, reason, message = metav1.ConditionTrue, cycle.ReasonQuiesced, told+quiescedHow(q)
			if q.PreCutRule == "" {
				reason = reasonOnlyPostCut
			}
		}
	}
	condition.Set(&rep.Status.Conditions, rep.Generation, v1alpha1.ConditionQuiesced, status, reason, message)
}

// lastQuiescence is that of the newest session that has ended; nil when it had no Rules.
func lastQuiescence(status *v1alpha1.RlinkStatus) *v1alpha1.QuiesceStatus {
	if status.LastSession == nil {
		return nil
	}
	return status.LastSession.Quiesce
}

// announceRules tells of an application that may still be quiesced, and of a point that was cut without being quiesced, unless that is as before.
func (r *Reconciler) announceRules(before *v1alpha1.Replication, v *view, d cycle.Decision) {
	q := v.quiescence()
	if r.Events == nil || d.Step != cycle.RecordResumed || q == nil {
		return
	}
	if q.ResumeFailed != "" {
		r.Events.Eventf(v.rep, nil, corev1.EventTypeWarning, reasonPostCutRuleFailed, string(d.Step), "the application may still be quiesced: %s", q.ResumeFailed)
	}
	former := ""
	if link := statusOf(before, v.rlink.RlinkName); link != nil {
		if last := lastQuiescence(link); last != nil {
			former = last.Warning
		}
	}
	if q.Warning != "" && !strings.EqualFold(former, q.Warning) {
		r.Events.Eventf(v.rep, nil, corev1.EventTypeWarning, reasonNoPods, string(d.Step), "%s", q.Warning)
	}
}
