//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// lockedWriter writes as the ordered writer does, twenty numbers at a time under a lock that others may take in between, as a database
// session takes one. It syncs nothing and so is fast: what is cut a moment later is of another number.
const lockedWriter = `n=0; exec 9>>/tmp/quiesce; while true; do flock 9; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
n=$((n+1)); for v in a b c; do printf '%09d\n' $n 1<>/$v/n; done; done; flock -u 9; sleep 0.01; done`

// M-047: volumes that the storage does not cut together are of one state of their writer when a Rule holds it meanwhile, and are not
// without; a manager that is killed while it holds the writer lets it go on at once.
func TestARuleHoldsAWriterWhileItsVolumesAreCutOneByOne(t *testing.T) {
	s := newOrderedStory(t)
	s.startRuled()
	reports := []v1alpha1.SessionReport{s.session("")}
	for i := range 3 {
		reports = append(reports, s.session(fmt.Sprintf("held-%d", i)))
	}
	before := 0
	for i, r := range reports {
		if r.Cut != v1alpha1.CutNotAtomic || r.Quiesce == nil || r.Quiesce.Holds != 1 || r.Quiesce.Failed != "" || r.Quiesce.ResumeFailed != "" {
			t.Errorf("session %s was cut %s (%s), quiesced %+v", r.Point, r.Cut, r.CutReason, r.Quiesce)
			continue
		}
		n := s.restored(r, fmt.Sprintf("-held-%d", i))
		t.Logf("quiesced in %s, cut in %s: %v; session %.1f s", r.Quiesce.QuiescedAt.Sub(r.Quiesce.BegunAt.Time).Round(time.Millisecond),
			r.Quiesce.ResumedAt.Sub(r.Quiesce.QuiescedAt.Time).Round(time.Millisecond), n, r.FinishedAt.Sub(r.StartedAt.Time).Seconds())
		if n[0] != n[1] || n[1] != n[2] || n[0] <= before {
			t.Errorf("point %s was cut while the writer was held and holds %v, the one before it %d", r.Point, n, before)
		}
		before = n[0]
	}
	for _, name := range []string{"hold", "after"} {
		var rule v1alpha1.Rule
		must(t, s.home.Client.Get(t.Context(), client.ObjectKey{Namespace: groupSpace, Name: name}, &rule))
		if len(rule.Status.Results) != len(reports) || rule.Status.Results[0].Outcome != v1alpha1.RuleSucceeded || len(rule.Status.Results[0].Pods) != 1 {
			t.Errorf("Rule %s: %+v", name, rule.Status)
		}
	}
	r := s.replication(s.home)
	t.Logf("%s\n%s", conditionMessage(r.Status.Conditions, v1alpha1.ConditionCutAtomic), conditionMessage(r.Status.Conditions, v1alpha1.ConditionQuiesced))

	s.withoutTheRule()
	s.killedWhileItHolds()
}

// startRuled makes claims, writer, a group that is never cut together, Rules and replication.
func (s *orderedStory) startRuled() {
	s.create(s.home, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: groupSpace}})
	mounts := map[string]string{}
	for _, v := range ordered {
		s.claim("vol-" + v)
		mounts[v] = "vol-" + v
	}
	writer := s.pod("writer", lockedWriter, mounts)
	writer.Labels = map[string]string{"app": "writer"}
	s.create(s.home, writer)
	until(s.t, 2*time.Minute, "the writer runs", func() (bool, string) {
		must(s.t, s.home.Client.Get(s.t.Context(), client.ObjectKeyFromObject(writer), writer))
		return writer.Status.Phase == corev1.PodRunning, string(writer.Status.Phase)
	})
	within := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	hold := v1alpha1.RuleAction{Value: "flock /tmp/quiesce ${WAIT_CMD}", Background: true, Timeout: within(10 * time.Second)}
	for name, actions := range map[string][]v1alpha1.RuleAction{
		"hold": {hold}, "linger": {hold, {Value: "sleep 40", Timeout: within(45 * time.Second)}}, "after": {{Value: "date >> /tmp/resumed"}},
	} {
		s.create(s.home, &v1alpha1.Rule{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: name}, Rules: []v1alpha1.RuleItem{{PodSelector: writer.Labels, Actions: actions}}})
	}
	s.create(s.home, &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: "ordered"},
		Spec: v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "ordered"}}, CutPolicy: v1alpha1.CutSeparate}})
	retain := int32(20)
	s.create(s.home, &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: "ordered"},
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, PVCGroupName: "ordered", Epoch: 1, PreCutRule: "hold", PostCutRule: "after",
			Rlinks: []v1alpha1.Rlink{{RlinkName: "dr", ClusterPair: "west", Retain: &retain}}}})
}

// restored is what the volumes of a session's point hold, by claims made from it.
func (s *orderedStory) restored(r v1alpha1.SessionReport, suffix string) [3]int {
	s.t.Helper()
	s.lifeboat("restore", "-n", groupSpace, "ordered", "--context", s.away.Name, "--point", r.Point, "--suffix", suffix)
	mounts := map[string]string{}
	for _, v := range ordered {
		mounts[v] = "vol-" + v + suffix
	}
	return s.numbers(s.away, "reader"+suffix, mounts)
}

// withoutTheRule shows that the story before could have failed.
func (s *orderedStory) withoutTheRule() {
	s.t.Helper()
	s.edit(s.home, func(spec *v1alpha1.ReplicationSpec) { spec.PreCutRule, spec.PostCutRule = "", "" })
	for i := range 8 {
		r := s.session(fmt.Sprintf("free-%d", i))
		if r.Quiesce != nil {
			s.t.Errorf("session %s ran Rules that nobody names: %+v", r.Point, r.Quiesce)
		}
		n := s.restored(r, fmt.Sprintf("-free-%d", i))
		s.t.Logf("not held: %v", n)
		if n[0] < n[1] || n[1] < n[2] || n[0] > n[2]+1 {
			return
		}
	}
	s.t.Error("eight points were cut one by one while the writer wrote, and each is of one instant: this storage proves nothing")
}

// written is the number the writer has come to.
func (s *orderedStory) written() int {
	s.t.Helper()
	out, err := exec.CommandContext(s.t.Context(), clustersProgram, "kubectl", s.home.Name, "exec", "-n", groupSpace, "writer", "--", "cat", "/c/n").CombinedOutput()
	if err != nil {
		s.t.Fatalf("read what was written: %v: %s", err, out)
	}
	n, err := strconv.Atoi(strings.TrimLeft(strings.TrimSpace(string(out)), "0"))
	must(s.t, err)
	return n
}

func (s *orderedStory) killedWhileItHolds() {
	s.t.Helper()
	s.edit(s.home, func(spec *v1alpha1.ReplicationSpec) {
		spec.PreCutRule, spec.PostCutRule, spec.TriggerNow = "linger", "after", "killed"
	})
	last := -1
	until(s.t, time.Minute, "the writer stands still", func() (bool, string) {
		session := s.link(s.home).Session
		n := s.written()
		still := n == last && session != nil && session.Quiesce != nil && session.Quiesce.State == v1alpha1.QuiesceQuiescing
		last = n
		return still, fmt.Sprint(n, session)
	})
	killManagers(s.t, s.home)
	began := time.Now()
	until(s.t, 30*time.Second, "the writer goes on", func() (bool, string) {
		n := s.written()
		return n > last, fmt.Sprint(n)
	})
	s.t.Logf("the writer went on %s after its manager was killed", time.Since(began).Round(10*time.Millisecond))
	until(s.t, 3*time.Minute, "the session has ended without a point", func() (bool, string) {
		l := s.link(s.home)
		if l.LastSession == nil || l.LastSession.TriggerNow != "killed" || l.LastSession.Quiesce == nil {
			return false, fmt.Sprintf("%+v", l.Session)
		}
		return l.LastSession.Result == "Failed" && l.LastSession.Quiesce.FailedReason == "QuiesceInterrupted", l.LastSession.Message
	})
	s.edit(s.home, func(spec *v1alpha1.ReplicationSpec) { spec.PreCutRule = "hold" })
	if r := s.session("again"); r.Quiesce == nil || r.Quiesce.Holds != 1 {
		s.t.Errorf("session %s: %+v", r.Point, r.Quiesce)
	}
}
