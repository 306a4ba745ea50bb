//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// lockedScript writes as the ordered writer does, two hundred numbers at a time under a lock that others may take in between, as a database
// session takes one. It syncs nothing and so is fast: what is cut a moment later is of another number.
const lockedScript = `set -eu
volumes=$(seq 0 $(($1 - 1)))
trap 'exit 0' TERM INT
exec 9>>/tmp/quiesce
n=0
while :; do
  flock 9
  for ((k = 0; k < 200; k++)); do
    n=$((n + 1))
    for i in $volumes; do printf '%020d\n' $n 1<>/volumes/$i/n; done
  done
  flock -u 9
  sleep $2
done
`

// M-047: volumes that the storage does not cut together are of one state of their writer when a Rule holds it meanwhile, and are not
// without; a manager that is killed while it holds the writer lets it go on at once.
func TestARuleHoldsAWriterWhileItsVolumesAreCutOneByOne(t *testing.T) {
	s := tell(t)
	w := &writer{story: s, name: "ruled", volumes: 3, script: lockedScript, pause: "0.002"}
	w.begin(t, s.Home)
	hold := v1alpha1.RuleAction{Value: "flock /tmp/quiesce ${WAIT_CMD}", Background: true, Timeout: &metav1.Duration{Duration: 10 * time.Second}}
	w.rule(t, "hold", hold)
	w.rule(t, "linger", hold, v1alpha1.RuleAction{Value: "sleep 40", Timeout: &metav1.Duration{Duration: 45 * time.Second}})
	w.rule(t, "after", v1alpha1.RuleAction{Value: "date >> /tmp/resumed"})
	w.protectBy(t, v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: w.label()}, CutPolicy: v1alpha1.CutSeparate},
		v1alpha1.Rlink{ClusterPair: s.Away.Name, Retain: ptr.To[int32](20)},
		func(spec *v1alpha1.ReplicationSpec) { spec.PreCutRule, spec.PostCutRule = "hold", "after" })
	w.inStep(t, s.Home, s.Away)
	reports := w.heldSessions(t)
	before := int64(0)
	for i, r := range reports {
		n := w.numbers(t, s.Away, w.copies(t, r.Point, fmt.Sprintf("-held-%d", i)))
		t.Logf("quiesced in %s, cut in %s: %v; session %.1f s", r.Quiesce.QuiescedAt.Sub(r.Quiesce.BegunAt.Time).Round(time.Millisecond),
			r.Quiesce.ResumedAt.Sub(r.Quiesce.QuiescedAt.Time).Round(time.Millisecond), n, r.FinishedAt.Sub(r.StartedAt.Time).Seconds())
		if n[0] != n[2] || n[0] <= before {
			t.Errorf("point %s was cut while the writer was held and holds %v, the one before it %d", r.Point, n, before)
		}
		before = n[0]
	}
	for _, name := range []string{"hold", "after"} {
		var rule v1alpha1.Rule
		must(t, s.Home.Client.Get(t.Context(), client.ObjectKey{Namespace: s.Namespace, Name: name}, &rule))
		if len(rule.Status.Results) != len(reports) || rule.Status.Results[0].Outcome != v1alpha1.RuleSucceeded || len(rule.Status.Results[0].Pods) != 1 {
			t.Errorf("Rule %s: %+v", name, rule.Status)
		}
	}
	r := w.replication(t, s.Home)
	t.Logf("%s\n%s", conditionMessage(r.Status.Conditions, v1alpha1.ConditionCutAtomic), conditionMessage(r.Status.Conditions, v1alpha1.ConditionQuiesced))

	w.withoutTheRule(t)
	w.killedWhileItHolds(t)
	w.remove(t)
}

// rule makes a Rule for the writer's pods on the home cluster.
func (w *writer) rule(t *testing.T, name string, actions ...v1alpha1.RuleAction) {
	t.Helper()
	must(t, w.story.Home.Client.Create(t.Context(), &v1alpha1.Rule{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: name},
		Rules: []v1alpha1.RuleItem{{PodSelector: w.label(), Actions: actions}}}))
}

// heldSessions are the first session and three more. Each cut the volumes one by one while a Rule held whoever writes them.
func (w *writer) heldSessions(t *testing.T) []v1alpha1.SessionReport {
	t.Helper()
	home := w.story.Home
	reports := []v1alpha1.SessionReport{*w.link(t, home).LastSession}
	for i := range 3 {
		reports = append(reports, w.session(t, home, w.story.Away, fmt.Sprintf("held-%d", i)))
	}
	for _, r := range reports {
		if r.Cut != v1alpha1.CutNotAtomic || r.Quiesce == nil || r.Quiesce.Holds != 1 || r.Quiesce.Failed != "" || r.Quiesce.ResumeFailed != "" {
			t.Fatalf("session %s was cut %s (%s), quiesced %+v", r.Point, r.Cut, r.CutReason, r.Quiesce)
		}
	}
	return reports
}

// free shows that the points before could have failed: nobody holds the writer now, and of eight points one at least is apart. That is given
// each session's report and a suffix for copies of its point.
func (w *writer) free(t *testing.T, apart func(r v1alpha1.SessionReport, suffix string) bool) {
	t.Helper()
	for i := range 8 {
		r := w.session(t, w.story.Home, w.story.Away, fmt.Sprintf("free-%d", i))
		if apart(r, fmt.Sprintf("-free-%d", i)) {
			return
		}
	}
	t.Error("eight points were cut one by one while the volumes were written, and each is of one instant: this storage proves nothing")
}

func (w *writer) withoutTheRule(t *testing.T) {
	t.Helper()
	w.edit(t, w.story.Home, func(spec *v1alpha1.ReplicationSpec) { spec.PreCutRule, spec.PostCutRule = "", "" })
	w.free(t, func(r v1alpha1.SessionReport, suffix string) bool {
		if r.Quiesce != nil {
			t.Errorf("session %s ran Rules that nobody names: %+v", r.Point, r.Quiesce)
		}
		_, fault := inOrder(w.read(t, w.story.Away, w.copies(t, r.Point, suffix)))
		t.Logf("not held: %s", fault)
		return fault != ""
	})
}

// written is the number the writer has come to.
func (w *writer) written(t *testing.T) int64 {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), clustersProgram, "kubectl", w.story.Home.Name, "exec", "-n", w.story.Namespace, "deployment/"+w.name, "--",
		"cat", fmt.Sprintf("/volumes/%d/n", w.volumes-1)).CombinedOutput()
	if err != nil {
		t.Fatalf("read what was written: %v: %s", err, out)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	must(t, err)
	return n
}

func (w *writer) killedWhileItHolds(t *testing.T) {
	t.Helper()
	home, away := w.story.Home, w.story.Away
	w.edit(t, home, func(spec *v1alpha1.ReplicationSpec) {
		spec.PreCutRule, spec.PostCutRule, spec.TriggerNow = "linger", "after", "killed"
	})
	last := int64(-1)
	until(t, time.Minute, "the writer stands still", func() (bool, string) {
		session := w.link(t, home).Session
		n := w.written(t)
		still := n == last && session != nil && session.Quiesce != nil && session.Quiesce.State == v1alpha1.QuiesceQuiescing
		last = n
		return still, fmt.Sprint(n, session)
	})
	killManagers(t, home)
	began := time.Now()
	until(t, 30*time.Second, "the writer goes on", func() (bool, string) {
		n := w.written(t)
		return n > last, fmt.Sprint(n)
	})
	t.Logf("the writer went on %s after its manager was killed", time.Since(began).Round(10*time.Millisecond))
	until(t, 3*time.Minute, "the session has ended without a point", func() (bool, string) {
		l := w.link(t, home)
		if l.LastSession == nil || l.LastSession.TriggerNow != "killed" || l.LastSession.Quiesce == nil {
			return false, fmt.Sprintf("%+v", l.Session)
		}
		return l.LastSession.Result == "Failed" && l.LastSession.Quiesce.FailedReason == "QuiesceInterrupted", l.LastSession.Message
	})
	w.edit(t, home, func(spec *v1alpha1.ReplicationSpec) { spec.PreCutRule = "hold" })
	if r := w.session(t, home, away, "again"); r.Quiesce == nil || r.Quiesce.Holds != 1 {
		t.Errorf("session %s: %+v", r.Point, r.Quiesce)
	}
}
