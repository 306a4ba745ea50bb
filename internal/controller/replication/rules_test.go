package replication

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/hook"
)

const (
	holdIt  = `echo held >> log; ${WAIT_CMD}; echo gone >> log`
	tellIt  = `echo post >> log`
	refuses = `echo refused >> log; echo "no lock" >&2; exit 1`
)

// ruled sets a source up whose sessions run Rules, with a pod to run them in. Empty commands mean no Rule.
func ruled(w *world, pre string, background bool, post string) {
	w.t.Helper()
	for _, c := range []string{"data", "wal"} {
		w.east.claim(c, "1Gi", className)
	}
	w.east.group("app", "data", "wal")
	w.east.create(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "db-0", Labels: map[string]string{"app": "db"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	})
	w.east.rule("pre", pre, background)
	w.east.rule("post", post, false)
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) { ruledBy(r, pre, post) })
}

func ruledBy(r *v1alpha1.Replication, pre, post string) {
	if pre != "" {
		r.Spec.PreCutRule = "pre"
	}
	if post != "" {
		r.Spec.PostCutRule = "post"
	}
}

func (s *side) rule(name, value string, background bool) {
	s.w.t.Helper()
	if value == "" {
		return
	}
	s.create(&v1alpha1.Rule{ObjectMeta: metav1.ObjectMeta{Namespace: s.w.namespace, Name: name}, Rules: []v1alpha1.RuleItem{{
		PodSelector: map[string]string{"app": "db"}, Actions: []v1alpha1.RuleAction{{Value: value, Background: background}}}}})
}

func (s *side) editRule(name string, change func(*v1alpha1.Rule)) {
	s.w.t.Helper()
	rule := s.ruleNow(name)
	change(rule)
	s.must(s.kube.Update(s.w.t.Context(), rule))
}

func (s *side) ruleNow(name string) *v1alpha1.Rule {
	s.w.t.Helper()
	var rule v1alpha1.Rule
	s.must(s.kube.Get(s.w.t.Context(), s.key(name), &rule))
	return &rule
}

// state is how far the running session's Rules are.
func (s *side) state(name string, state v1alpha1.QuiesceState) func() bool {
	return func() bool {
		session := s.link(name).Session
		return session != nil && session.Quiesce != nil && session.Quiesce.State == state
	}
}

func (s *side) log() []string { return s.commands.Lines("log") }

func (s *side) logged(want ...string) func() bool {
	return func() bool { return slices.Equal(s.log(), want) }
}

// wrote is logged in any order: a command whose connection is lost ends beside those that are run next.
func (s *side) wrote(want ...string) func() bool {
	return func() bool {
		return slices.Equal(slices.Sorted(slices.Values(s.log())), slices.Sorted(slices.Values(want)))
	}
}

func (w *world) says(what, got string, want ...string) {
	w.t.Helper()
	for _, part := range want {
		if !strings.Contains(got, part) {
			w.t.Errorf("%s is %q, want %q in it", what, got, part)
		}
	}
}

// M-047: the members are cut after the first rule's command holds the application and before it is let go, and then the second rule's command
// has run; what came of it is told.
func TestMembersAreCutWhileARuleHoldsTheApplication(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.holdSnapshots = true
	ruled(w, holdIt, true, tellIt)
	w.until("snapshots are asked for", func() bool { return len(w.east.snapshots()) == 2 })
	if !w.east.state("app", v1alpha1.QuiesceQuiesced)() || !w.east.logged("held")() {
		t.Fatalf("snapshots are asked for while the commands wrote %v\n%s", w.east.log(), w.story())
	}
	w.says("CutAtomic", conditionOf(w.east.get("app"), v1alpha1.ConditionCutAtomic).Message, "not at one instant", "one by one while Rule pre")
	if c := conditionOf(w.east.get("app"), v1alpha1.ConditionCutAtomic); c.Status != metav1.ConditionFalse || c.Reason != "CutUnderRule" {
		t.Errorf("CutAtomic: %+v", c)
	}
	w.east.holdSnapshots = false
	w.until("the first point", w.east.committed("app", ""))
	if !w.east.logged("held", "gone", "post")() {
		t.Errorf("the commands wrote %v", w.east.log())
	}
	last := w.east.link("app").LastSession
	if q := last.Quiesce; q == nil || q.State != v1alpha1.QuiesceResumed || q.Holds != 1 || q.BegunAt == nil || q.QuiescedAt == nil || q.ResumedAt == nil || q.Failed != "" {
		t.Errorf("the session's quiescing: %+v", q)
	}
	w.says("the session's cutReason", last.CutReason, "Rule pre held the application for at most", "as 1 of its commands confirmed")
	if c := conditionOf(w.east.get("app"), v1alpha1.ConditionQuiesced); c.Status != metav1.ConditionTrue {
		t.Errorf("Quiesced: %+v", c)
	}
	for name, stage := range map[string]v1alpha1.RuleStage{"pre": v1alpha1.RulePreCut, "post": v1alpha1.RulePostCut} {
		results := w.east.ruleNow(name).Status.Results
		if len(results) != 1 || results[0].Stage != stage || results[0].Outcome != v1alpha1.RuleSucceeded || results[0].Point != last.Point || !slices.Equal(results[0].Pods, []string{"db-0"}) {
			t.Errorf("results of Rule %s: %+v", name, results)
		}
	}
	if there := w.west.get("app").Spec; there.PreCutRule != "" || there.PostCutRule != "" {
		t.Errorf("the peer was given the Rules of this side: %+v", there)
	}
}

func TestNothingIsCutWhenTheApplicationCannotBeQuiesced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ruled(w, refuses, false, tellIt)
	w.until("the session ends", func() bool { return w.east.link("app").LastSession != nil })
	last := w.east.link("app").LastSession
	if last.Result != resultFailed || len(w.east.snapshots()) != 0 || !w.east.logged("refused", "post")() {
		t.Errorf("session %+v, snapshots %v, log %v", last, w.east.snapshots(), w.east.log())
	}
	w.says("its end", last.Message, "nothing was cut", "Rule pre: rules[0].actions[0]", "code 1", "no lock")
	c := conditionOf(w.east.get("app"), v1alpha1.ConditionQuiesced)
	if c.Status != metav1.ConditionFalse || c.Reason != cycle.ReasonPreCutRuleFailed {
		t.Errorf("Quiesced: %+v", c)
	}
	w.until("it is tried again", func() bool { return strings.Count(strings.Join(w.east.log(), " "), "refused") > 1 })
	w.east.editRule("pre", func(r *v1alpha1.Rule) { r.Rules[0].Actions[0].Value = "true" })
	w.until("the first point", w.east.committed("app", ""))
	if results := w.east.ruleNow("pre").Status.Results; len(results) < 3 || results[0].Outcome != v1alpha1.RuleSucceeded || results[1].Outcome != v1alpha1.RuleFailed {
		t.Errorf("results: %+v", results)
	}
}

// The manager ends at each point between the saved intent and the point: the application is let go, by itself where a command held it, and
// by the second rule in any case; the session makes no point unless its members are known to be cut in time.
func TestAManagerThatEndsLeavesNoApplicationQuiesced(t *testing.T) {
	for _, c := range []struct {
		name       string
		pre        string
		background bool
		at         v1alpha1.QuiesceState
		want       []string
		// reason is why the session fails; empty when it does not.
		reason string
	}{
		{"before the first command", holdIt, true, v1alpha1.QuiesceQuiescing, []string{"post"}, cycle.ReasonQuiesceInterrupted},
		{"while it holds", holdIt, true, v1alpha1.QuiesceQuiesced, []string{"held", "gone", "post"}, cycle.ReasonQuiesceLost},
		{"while nothing holds but what commands have done", "echo frozen >> log", false, v1alpha1.QuiesceQuiesced, []string{"frozen", "post"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.east.holdSnapshots = true
			ruled(w, c.pre, c.background, tellIt)
			w.until("it is "+string(c.at), w.east.state("app", c.at))
			w.east.commands.Crash()
			w.skip += 3 * time.Minute // every command has ended
			if c.reason == "" {
				w.skip -= 3 * time.Minute
			}
			w.east.r = w.east.manager()
			w.east.holdSnapshots = false
			w.until("the session ends", func() bool { return w.east.link("app").LastSession != nil })
			if !w.east.wrote(c.want...)() {
				t.Errorf("the commands wrote %v, want %v\n%s", w.east.log(), c.want, w.story())
			}
			last := w.east.link("app").LastSession
			if c.reason == "" {
				if last.Result != resultCommitted {
					t.Errorf("the session: %+v", last)
				}
				return
			}
			if last.Result != resultFailed || last.Quiesce == nil || last.Quiesce.FailedReason != c.reason {
				t.Errorf("the session: %+v %+v", last, last.Quiesce)
			}
			w.until("the first point", w.east.committed("app", ""))
		})
	}
}

// What holds ends although the manager is there: nobody knows what the members are cut of.
func TestAHoldThatIsLostMakesNoPoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.holdSnapshots = true
	ruled(w, holdIt, true, tellIt)
	w.until("it is quiesced", w.east.state("app", v1alpha1.QuiesceQuiesced))
	w.east.commands.Crash()
	w.east.holdSnapshots = false
	w.east.play()
	w.until("the session ends", func() bool { return w.east.link("app").LastSession != nil })
	if last := w.east.link("app").LastSession; last.Result != resultFailed || last.Quiesce.FailedReason != cycle.ReasonQuiesceLost || !w.east.wrote("held", "gone", "post")() {
		t.Errorf("session %+v %+v, log %v", last, last.Quiesce, w.east.log())
	}
	if results := w.east.ruleNow("pre").Status.Results; len(results) == 0 || results[0].Outcome != v1alpha1.RuleFailed {
		t.Errorf("results: %+v", results)
	}
}

func TestAnApplicationStandsStillNoLongerThanItsLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.holdSnapshots = true
	ruled(w, holdIt, true, tellIt)
	w.until("the session ends", func() bool { return w.east.link("app").LastSession != nil })
	last := w.east.link("app").LastSession
	if last.Result != resultFailed || last.Quiesce.FailedReason != cycle.ReasonQuiescedTooLong || !w.east.logged("held", "gone", "post")() {
		t.Errorf("session %+v %+v, log %v", last, last.Quiesce, w.east.log())
	}
	w.says("its end", last.Message, "within 1m0s", "holdLimit")
}

func TestAPostCutRuleThatFailsKeepsThePointAndIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	told := events.NewFakeRecorder(1000)
	w.east.r.Events = told
	w.east.r.Rules.Pause = time.Millisecond
	ruled(w, "true", false, refuses)
	w.until("the first point", w.east.committed("app", ""))
	if !w.east.logged("refused", "refused", "refused")() {
		t.Errorf("the commands wrote %v", w.east.log())
	}
	c := conditionOf(w.east.get("app"), v1alpha1.ConditionQuiesced)
	if c.Status != metav1.ConditionFalse || c.Reason != reasonPostCutRuleFailed {
		t.Errorf("Quiesced: %+v", c)
	}
	w.says("the condition", c.Message, "may still be quiesced", "Rule post", "code 1")
	close(told.Events)
	found := ""
	for event := range told.Events {
		if strings.Contains(event, reasonPostCutRuleFailed) {
			found = event
		}
	}
	w.says("the event", found, "Warning", "may still be quiesced")
}

func TestWithoutAPodThePointIsCutWithAWarning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ruled(w, holdIt, true, tellIt)
	w.east.editRule("pre", func(r *v1alpha1.Rule) { r.Rules[0].PodSelector = map[string]string{"app": "nobody"} })
	w.until("the first point", w.east.committed("app", ""))
	c := conditionOf(w.east.get("app"), v1alpha1.ConditionQuiesced)
	if c.Status != metav1.ConditionFalse || c.Reason != reasonNoPods || !w.east.logged("post")() {
		t.Errorf("Quiesced: %+v, log %v", c, w.east.log())
	}
	w.says("the session's cutReason", w.east.link("app").LastSession.CutReason, "nothing was quiesced", "no running pod")
	if results := w.east.ruleNow("pre").Status.Results; len(results) != 1 || results[0].Outcome != v1alpha1.RuleNoPods {
		t.Errorf("results: %+v", results)
	}
}

func TestARuleThatCannotBeRunStartsNoSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ruled(w, "true", false, tellIt)
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.PreCutRule, r.Spec.PostCutRule = "lost", "hold" })
	w.east.rule("hold", holdIt, true)
	w.until("the missing one is named", func() bool { return w.east.ready("app").Reason == reasonRuleMissing })
	w.says("Ready", w.east.ready("app").Message, "Rule "+w.namespace+"/lost", "spec.preCutRule")
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.PreCutRule = "pre" })
	w.until("the background action is named", func() bool { return w.east.ready("app").Reason == reasonRuleUnusable })
	w.says("Ready", w.east.ready("app").Message, "Rule "+w.namespace+"/hold", "background")
	if l := w.east.link("app"); l.Session != nil || l.LastSession != nil {
		t.Errorf("a session was started: %+v %+v", l.Session, l.LastSession)
	}
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.PostCutRule = "post" })
	w.until("the first point", w.east.committed("app", ""))
}

// Two sessions that quiesced the same pods would let them go under each other: the second waits, also for what a manager left that has ended.
func TestSessionsTakeTurnsAtARule(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.holdSnapshots = true
	ruled(w, holdIt, true, tellIt)
	w.east.claim("other", "1Gi", className)
	w.east.group("second", "other")
	w.until("the first holds", w.east.state("app", v1alpha1.QuiesceQuiesced))
	w.east.replication("second", v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		r.Spec.PVCGroupName, r.Spec.PreCutRule = "second", "pre"
	})
	waits := func() bool {
		s := w.east.link("second").Session
		return s != nil && strings.Contains(s.Message, "Rule pre is being run for session") && strings.Contains(s.Message, "of Replication app")
	}
	w.until("the second waits", waits)
	// A new manager knows of no run; the first's status tells.
	w.east.commands.Crash()
	w.east.r = w.east.manager()
	w.until("the first is let go", func() bool { return slices.Contains(w.east.log(), "post") })
	if first := w.east.log()[:3]; !slices.Equal(first, []string{"held", "gone", "post"}) {
		t.Errorf("the commands wrote %v", w.east.log())
	}
	w.east.holdSnapshots = false
	w.until("the second's point", w.east.committed("second", ""))
	w.until("the first's point", w.east.committed("app", ""))
	for i, line := range w.east.log() {
		if line == "held" && w.east.log()[i+1] != "gone" {
			t.Errorf("two sessions held it at once: %v", w.east.log())
		}
	}
}

// Whatever ends the session from outside, the application is let go, once.
func TestNobodyLeavesAnApplicationQuiesced(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"the Replication is deleted": func(w *world) { w.east.must(w.east.kube.Delete(w.t.Context(), w.east.get("app"))) },
		"the link is removed": func(w *world) {
			w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].RlinkName = "another" })
		},
		"the role is changed while pods use the claims": func(w *world) {
			w.east.app("user", "data")
			w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role = v1alpha1.RoleTarget })
		},
		"the epoch has passed": func(w *world) { w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Epoch = 2 }) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.east.holdSnapshots = true
			ruled(w, holdIt, true, tellIt)
			w.until("it is quiesced", w.east.state("app", v1alpha1.QuiesceQuiesced))
			point := w.east.link("app").Session.Point
			end(w)
			w.until("the application is let go", w.east.logged("held", "gone", "post"))
			// Until now nothing waited for the pod that uses the claims.
			w.east.must(w.east.kube.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "user"}}, client.GracePeriodSeconds(0)))
			w.until("the session has ended", func() bool {
				rep := w.east.get("app")
				return rep == nil || !slices.ContainsFunc(rep.Status.Rlinks, func(l v1alpha1.RlinkStatus) bool { return l.Session != nil && l.Session.Point == point })
			})
			w.turn()
			if got := w.east.log(); !slices.Equal(got[:3], []string{"held", "gone", "post"}) || len(got) > 3 && got[3] != "held" {
				t.Errorf("the commands wrote %v", got)
			}
		})
	}
}

func TestRunsAreToldAsTheyAre(t *testing.T) {
	for run, told := range map[hook.RunPhase]cycle.RunState{hook.RunUnknown: cycle.RunUnknown, hook.RunReserved: cycle.RunReserved, hook.RunQuiescing: cycle.RunQuiescing,
		hook.RunQuiesced: cycle.RunQuiesced, hook.RunFailed: cycle.RunFailed, hook.RunResuming: cycle.RunResuming, hook.RunResumed: cycle.RunResumed} {
		if cycle.RunState(run) != told {
			t.Errorf("run phase %d is told as state %d", run, told)
		}
	}
}
