package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
)

// recorder keeps events as "Warning Reason: note".
type recorder struct {
	mu   sync.Mutex
	told []string
}

func (r *recorder) Eventf(_, _ runtime.Object, kind, reason, _, note string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, kind+" "+reason+": "+fmt.Sprintf(note, args...))
}

// of returns the events of a reason.
func (r *recorder) of(reason string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, line := range r.told {
		if strings.Contains(line, " "+reason+": ") {
			out = append(out, line)
		}
	}
	return out
}

func (s *side) record() *recorder {
	r := &recorder{}
	s.r.Events = r
	return r
}

// scheduled makes a source with that link and waits for its first point.
func (w *world) scheduled(name string, edit func(*v1alpha1.Rlink)) {
	w.t.Helper()
	w.east.claim(name, "1Gi", className)
	w.east.group(name, name)
	w.east.replication(name, v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		r.Spec.PVCGroupName = name
		edit(&r.Spec.Rlinks[0])
	})
}

func (s *side) editLink(name string, edit func(*v1alpha1.Rlink)) {
	s.w.t.Helper()
	s.edit(name, func(r *v1alpha1.Replication) { edit(&r.Spec.Rlinks[0]) })
}

// forward lets time pass with a look every few seconds.
func (w *world) forward(by, step time.Duration, look func()) {
	w.t.Helper()
	for end := w.skip + by; w.skip < end; w.skip += step {
		w.turn()
		look()
	}
}

func (s *side) policy(name string, item v1alpha1.SchedulePolicyItem) {
	s.w.t.Helper()
	p := &v1alpha1.SchedulePolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Policy: item}
	s.create(p)
	s.w.t.Cleanup(func() { _ = s.kube.Delete(context.Background(), p) })
}

// M-032, M-033: a cron expression starts a session every second minute, and the newest point is never older than one interval and one
// transfer, with what the manager takes to notice.
func TestTheScheduleIsTheObjective(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Schedule = "*/2 * * * *" })
	w.until("the first point", w.east.committed("app", ""))
	w.until("rest", w.east.idle("app"))
	points := map[string]bool{}
	var transfer, turn time.Duration
	former := w.now()
	w.forward(9*time.Minute, 4*time.Second, func() {
		l := w.east.link("app")
		now := w.now()
		turn, former = max(turn, now.Sub(former)), now
		points[l.RecoveryPoint.Point] = true
		if s := l.LastSession; s.Trigger == cycle.TriggerSchedule {
			transfer = max(transfer, s.FinishedAt.Sub(s.StartedAt.Time))
		}
		// That a run is due, and that it has ended, is noticed a turn of the world later.
		if lag := now.Sub(l.RecoveryPoint.Time.Time); transfer > 0 && lag > 2*time.Minute+transfer+3*turn {
			t.Fatalf("the newest point is %s old; a session takes %s, a turn %s", lag, transfer, turn)
		}
	})
	if len(points) < 5 {
		t.Errorf("%d points in nine minutes, want one every second minute", len(points))
	}
	if l := w.east.link("app"); l.MissedRuns != 0 || l.LastSession.Trigger != cycle.TriggerSchedule || !slices.Equal(l.LastSession.ScheduleKinds, []string{"Cron"}) {
		t.Errorf("link: %+v", l)
	}
}

// M-107: what `kubectl get replication` shows. M-110: what `kubectl describe replication` does.
func TestWhatKubectlShows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Schedule = "*/2 * * * *" })
	w.until("the first point", w.east.committed("app", ""))
	w.until("rest", w.east.idle("app"))
	get := func(more ...string) []string {
		t.Helper()
		out := servers.Kubectl(t, "east", append([]string{"get", "replication", "-n", w.namespace}, more...)...)
		return strings.Split(out, "\n")
	}
	point := w.east.link("app").RecoveryPoint.Time.UTC().Format(time.RFC3339)
	lines := get()
	if lines[0] != "NAME ROLE PHASE SCHEDULE SUSPEND ACTIVE LAST RECOVERY POINT LAG OBJECTIVE AGE" {
		t.Errorf("header: %s", lines[0])
	}
	if want := "app source Idle */2 * * * * False 0 " + point; !strings.HasPrefix(lines[1], want) {
		t.Errorf("at rest: %s\nwant %s", lines[1], want)
	}
	w.east.holdMovers = true
	w.east.trigger("app", "now")
	w.until("a session runs", func() bool { return w.east.link("app").Session != nil })
	if lines := get(); !strings.HasPrefix(lines[1], "app source Running */2 * * * * False 1 "+point) {
		t.Errorf("running: %s", lines[1])
	}
	w.east.holdMovers = false
	w.until("it ends", w.east.committed("app", "now"))
	w.east.editLink("app", func(l *v1alpha1.Rlink) { l.SuspendReplication = true })
	w.until("suspended", func() bool { return w.east.get("app").Status.Phase == cycle.Suspended })
	if lines := get("-o", "wide"); !strings.HasPrefix(lines[1], "app source Suspended */2 * * * * True 0 ") || !strings.Contains(lines[1], "set it to false to go on") {
		t.Errorf("suspended: %s", lines[1])
	}
	described := servers.Kubectl(t, "east", "describe", "replication", "app", "-n", w.namespace)
	last := w.east.link("app").LastSession
	for _, want := range []string{"Role: source", "Last Session:", "Result: Committed", "Recovery Point:", "Point: " + last.Point} {
		if !strings.Contains(described, want) {
			t.Errorf("describe does not show %q:\n%s", want, described)
		}
	}
}

// M-108: no session starts while suspended, also not by hand; missed runs are counted; the base stays, so that the first session
// afterwards carries everything that changed meanwhile and nothing else.
func TestSuspendedAndResumed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Interval = "2m" })
	w.until("the first point", w.east.committed("app", ""))
	w.until("rest", w.east.idle("app"))
	before := w.east.link("app")
	snapshots := w.east.snapshots()
	w.east.edit("app", func(r *v1alpha1.Replication) {
		r.Spec.Rlinks[0].SuspendReplication, r.Spec.TriggerNow = true, "while suspended"
	})
	w.forward(11*time.Minute, time.Minute, func() {
		if l := w.east.link("app"); l.Session != nil || l.LastSession.Point != before.LastSession.Point {
			t.Fatalf("a session was started while suspended: %+v", l)
		}
	})
	held := w.east.link("app")
	if held.BasePoint != before.BasePoint || !slices.Equal(w.east.snapshots(), snapshots) {
		t.Errorf("the base went while suspended: %s, %v", held.BasePoint, w.east.snapshots())
	}
	if held.MissedRuns < 4 || held.NextRun != nil {
		t.Errorf("missed runs: %d, next run %v", held.MissedRuns, held.NextRun)
	}
	w.east.editLink("app", func(l *v1alpha1.Rlink) { l.SuspendReplication = false })
	w.until("it goes on", w.east.committed("app", "while suspended"))
	after := w.east.link("app")
	if after.LastSession.Tier != v1alpha1.TierDigest || !after.RecoveryPoint.Time.After(before.RecoveryPoint.Time.Time) {
		t.Errorf("the session after it: %+v", after.LastSession)
	}
	w.east.trigger("app", "by hand")
	w.until("a trigger works again", w.east.committed("app", "by hand"))
}

// M-109: a schedule is edited into each of its forms while replication goes on; nothing is made anew.
func TestAScheduleIsEditedLive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	policy := w.namespace + "-live"
	w.east.policy(policy, v1alpha1.SchedulePolicyItem{Interval: &v1alpha1.IntervalPolicy{IntervalMinutes: 3}, Daily: &v1alpha1.DailyPolicy{Time: "12:00AM"}})
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Schedule = "0 0 1 1 *" })
	w.until("the first point", w.east.committed("app", ""))
	uid, volumes := w.east.get("app").UID, w.volumes("app")
	for _, c := range []struct {
		edit  func(*v1alpha1.Rlink)
		shown string
		kinds []string
	}{
		{func(l *v1alpha1.Rlink) { l.Schedule = "*/2 * * * *" }, "*/2 * * * *", []string{"Cron"}},
		{func(l *v1alpha1.Rlink) { l.Schedule, l.Interval = "", "3m" }, "every 3m", []string{"Interval"}},
		{func(l *v1alpha1.Rlink) { l.StartTime = "00:01:30" }, "every 3m from 00:01:30", []string{"Interval"}},
		{func(l *v1alpha1.Rlink) { l.Interval, l.StartTime, l.SchedulePolicyName = "", "", policy }, "policy " + policy, []string{"Daily", "Interval"}},
	} {
		former := w.east.link("app").LastSession.Point
		w.east.editLink("app", c.edit)
		w.until(c.shown, func() bool {
			l := w.east.link("app")
			return w.east.get("app").Status.Schedule == c.shown && l.LastSession.Point != former && l.LastSession.Result == resultCommitted
		})
		l := w.east.link("app")
		var kinds []string
		for _, run := range l.Scheduled {
			kinds = append(kinds, run.Kind)
		}
		slices.Sort(kinds)
		if !slices.Equal(kinds, c.kinds) || len(l.LastSession.ScheduleKinds) != 1 || !slices.Contains(c.kinds, l.LastSession.ScheduleKinds[0]) {
			t.Errorf("%s: promised %v, the session was due by %v", c.shown, kinds, l.LastSession.ScheduleKinds)
		}
	}
	// The policy itself is edited: the new interval counts from the start of the last session.
	var p v1alpha1.SchedulePolicy
	w.east.must(w.east.kube.Get(t.Context(), client.ObjectKey{Name: policy}, &p))
	p.Policy.Interval.IntervalMinutes = 60 * 24
	w.east.must(w.east.kube.Update(t.Context(), &p))
	w.until("rest", w.east.idle("app"))
	started := w.east.link("app").LastSession.StartedAt
	w.until("the promise is of the new interval", func() bool {
		runs := w.east.link("app").Scheduled
		i := slices.IndexFunc(runs, func(r v1alpha1.ScheduledRun) bool { return r.Kind == "Interval" })
		return i >= 0 && runs[i].Next.Sub(started.Time).Round(time.Hour) == 24*time.Hour
	})
	if w.east.get("app").UID != uid || w.volumes("app") != volumes {
		t.Error("something was made anew")
	}
}

// M-029, T-32: a policy that is missing or cannot be used is told by name, stops nothing else, and is taken up when it is mended.
func TestAPolicyThatCannotBeUsedStopsTheScheduleAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	policy := w.namespace + "-bad"
	told, toldThere := w.east.record(), w.west.record()
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Schedule = "0 0 1 1 *" })
	w.until("the first point", w.east.committed("app", ""))
	w.east.editLink("app", func(l *v1alpha1.Rlink) { l.Schedule, l.SchedulePolicyName = "", policy })

	says := func(reason, text string) func() bool {
		return func() bool {
			rep := w.east.get("app")
			c := conditionOf(rep, v1alpha1.ConditionScheduled)
			return c.Status == "False" && c.Reason == reason && strings.Contains(c.Message, text) && w.east.ready("app").Reason == reason &&
				strings.Contains(rep.Status.Rlinks[0].WaitingFor, text)
		}
	}
	w.until("it is missed by name", says(reasonSchedulePolicyMissing, "SchedulePolicy "+policy+" does not exist: create it, or correct spec.rlinks[dr].schedulePolicyName"))
	for range 3 {
		w.turn()
	}
	if events := told.of(reasonSchedulePolicyMissing); len(events) != 1 || !strings.HasPrefix(events[0], "Warning ") {
		t.Errorf("events: %v", events)
	}
	w.east.trigger("app", "by hand")
	w.until("somebody asks for a session all the same", w.east.committed("app", "by hand"))

	w.east.policy(policy, v1alpha1.SchedulePolicyItem{Interval: &v1alpha1.IntervalPolicy{IntervalMinutes: 2}, TimeZone: "Mars/Olympus"})
	w.until("it cannot be used, and why", says(reasonSchedulePolicyInvalid, `policy.timeZone is "Mars/Olympus"`))
	if events := told.of(reasonSchedulePolicyInvalid); len(events) != 1 || !strings.Contains(events[0], policy) {
		t.Errorf("events: %v", events)
	}
	// The target has no such schedule to keep: it goes on receiving.
	if c := w.west.ready("app"); c.Status != "True" || len(toldThere.of(reasonScheduleInvalid)) != 0 {
		t.Errorf("the target: %+v", c)
	}
	former := w.east.link("app").LastSession.Point
	var p v1alpha1.SchedulePolicy
	w.east.must(w.east.kube.Get(t.Context(), client.ObjectKey{Name: policy}, &p))
	p.Policy.TimeZone = ""
	w.east.must(w.east.kube.Update(t.Context(), &p))
	w.until("runs start without touching the replication", func() bool {
		l := w.east.link("app").LastSession
		return l.Point != former && l.Result == resultCommitted && l.Trigger == cycle.TriggerSchedule
	})
	if c := conditionOf(w.east.get("app"), v1alpha1.ConditionScheduled); c.Status != "True" || c.Message != "policy "+policy {
		t.Errorf("Scheduled: %+v", c)
	}
	w.east.editLink("app", func(l *v1alpha1.Rlink) { l.SchedulePolicyName = "" })
	w.until("no schedule, nothing to say of it", func() bool {
		rep := w.east.get("app")
		return conditionOf(rep, v1alpha1.ConditionScheduled).Type == "" && len(rep.Status.Rlinks[0].Scheduled) == 0
	})
}

// oneNamespace keeps what other tests do beside this one out of sight.
type oneNamespace struct {
	client.Reader
	namespace string
}

func (o oneNamespace) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if _, is := list.(*v1alpha1.ReplicationList); is {
		opts = append(opts, client.InNamespace(o.namespace))
	}
	return o.Reader.List(ctx, list, opts...)
}

// One session at a time: of those that are due the one closest to its objective goes first; what somebody asks for waits for nobody;
// and all of it is the same when another manager takes over after every step.
func TestTheOneClosestToItsObjectiveStartsFirst(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("restarted %v", restarted), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			manager := func() *Reconciler {
				r := w.east.manager()
				r.Live, r.turns.limit = oneNamespace{w.east.kube, w.namespace}, 1
				return r
			}
			w.east.r = manager()
			if restarted {
				w.east.fresh = manager
			}
			for _, name := range []string{"busy", "far", "near", "none", "hand"} {
				w.scheduled(name, func(l *v1alpha1.Rlink) {
					l.Interval = "1d"
					l.RecoveryPointObjective = map[string]string{"far": "50h", "near": "30h"}[name]
				})
				w.until("the first point of "+name, w.east.committed(name, ""))
			}
			var order []string
			started := map[string]string{}
			look := func() {
				running := 0
				for _, name := range []string{"busy", "far", "near", "none", "hand"} {
					s := w.east.link(name).Session
					if s == nil {
						continue
					}
					if s.TriggerNow == "" {
						running++
					}
					if started[name] != s.Point {
						started[name] = s.Point
						order = append(order, name)
					}
				}
				if running > 1 {
					t.Fatalf("%d sessions that nobody asked for run together", running)
				}
			}
			w.until("rest", func() bool {
				for _, name := range []string{"busy", "far", "near", "none", "hand"} {
					if !w.east.idle(name)() {
						return false
					}
				}
				return true
			})
			w.east.holdMovers = true
			w.east.edit("busy", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].Interval = "1h" })
			w.skip += 61 * time.Minute
			w.until("one runs", func() bool { look(); return w.east.link("busy").Session != nil })
			for _, name := range []string{"far", "near", "none"} {
				w.east.editLink(name, func(l *v1alpha1.Rlink) { l.Interval = "1h" })
			}
			// far is due with more than two days left, near with more than one, none within the next hour.
			w.until("the others wait for their turn", func() bool {
				look()
				return strings.Contains(w.east.link("far").WaitingFor, "its turn: 1 of at most 1 sessions run, 2 replications are closer") &&
					strings.Contains(w.east.link("near").WaitingFor, "1 replication is closer") && strings.Contains(w.east.link("none").WaitingFor, "0 replications are closer")
			})
			if c := w.east.ready("far"); c.Status != "True" || c.Reason != cycle.ReasonItsTurn {
				t.Errorf("Ready while waiting: %+v", c)
			}
			w.east.trigger("hand", "now")
			w.until("somebody asks", func() bool { look(); return w.east.link("hand").Session != nil })
			w.east.holdMovers = false
			w.until("all had their turn", func() bool {
				look()
				for _, name := range []string{"far", "near", "none", "hand"} {
					if started[name] == "" || w.east.link(name).Session != nil {
						return false
					}
				}
				return true
			})
			order = slices.DeleteFunc(order, func(name string) bool { return name == "busy" })
			if !slices.Equal(order, []string{"hand", "none", "near", "far"}) {
				t.Errorf("order: %v", order)
			}
		})
	}
}

// A breach of the objective and its end are told once each; the forecast says what is to come.
func TestABreachOfTheObjectiveIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	told, toldThere := w.east.record(), w.west.record()
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Interval, l.RecoveryPointObjective = "1h", "30m" })
	w.until("the first point", w.east.committed("app", ""))
	w.until("rest", w.east.idle("app"))
	within := func(s *side) metav1.Condition {
		return conditionOf(s.get("app"), v1alpha1.ConditionWithinObjective)
	}
	if c := within(w.east); c.Status != "True" || c.Reason != reasonObjectiveAtRisk || !strings.Contains(c.Message, "past the objective if it takes") {
		t.Errorf("the schedule cannot keep the objective: %+v", c)
	}
	w.skip += 30 * time.Minute
	for range 3 {
		w.turn()
	}
	for _, s := range []*side{w.east, w.west} {
		if c := within(s); c.Status != "False" || c.Reason != reasonObjectiveBreached || !strings.Contains(c.Message, "the objective of 30m is breached since") {
			t.Errorf("%s: %+v", s.name, c)
		}
	}
	w.east.holdMovers = true
	w.east.trigger("app", "now")
	w.until("a session runs", func() bool { return w.east.link("app").Session != nil })
	w.east.holdMovers = false
	w.until("a point", w.east.committed("app", "now"))
	for range 2 {
		w.turn()
	}
	if c := within(w.east); c.Status != "True" {
		t.Errorf("after a session: %+v", c)
	}
	for _, r := range []*recorder{told, toldThere} {
		if begun, over := r.of(reasonObjectiveBreached), r.of(reasonObjectiveMet); len(begun) != 1 || len(over) != 1 || !strings.HasPrefix(begun[0], "Warning") || !strings.HasPrefix(over[0], "Normal") {
			t.Errorf("events: %v %v", begun, over)
		}
	}
	w.east.editLink("app", func(l *v1alpha1.Rlink) { l.RecoveryPointObjective = "" })
	w.until("no objective, nothing to say of it", func() bool { return within(w.east).Type == "" && w.east.link("app").Objective == nil })
}

// The forecast of a session that runs.
func TestARunningSessionIsForecast(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	rep := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}}
	rep.Spec.Rlinks = []v1alpha1.Rlink{{RlinkName: "dr", RecoveryPointObjective: "5m"}}
	rep.Status.Role = v1alpha1.RoleSource
	rep.Status.Rlinks = []v1alpha1.RlinkStatus{{RlinkName: "dr", Session: &v1alpha1.SessionStatus{ETASeconds: 240},
		RecoveryPoint: &v1alpha1.RecoveryPoint{Time: metav1.NewTime(now.Add(-3 * time.Minute))}}}
	v := &view{now: now, rep: rep, rlink: rep.Spec.Rlinks[0], status: &rep.Status.Rlinks[0], source: &cycle.Source{}}
	tellObjective(v, cycle.Decision{})
	tellSummary(rep)
	c := conditionOf(rep, v1alpha1.ConditionWithinObjective)
	if v.status.Objective.State != "AtRisk" || !strings.Contains(c.Message, "at the present rate the running session ends 2m past the objective") {
		t.Errorf("%+v %+v", v.status.Objective, c)
	}
}

// The peer's word on what it has counts, once it had the time to notice what was committed.
func TestTheLagIsThatOfThePeer(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		ended time.Duration
		there time.Time
		want  time.Time
	}{
		{"it has what was committed", 10 * time.Minute, now.Add(-3 * time.Minute), now.Add(-3 * time.Minute)},
		{"it has not noticed yet", 10 * time.Second, now.Add(-time.Hour), now.Add(-3 * time.Minute)},
		{"it has lost the newest", 10 * time.Minute, now.Add(-time.Hour), now.Add(-time.Hour)},
		{"it has none", 10 * time.Minute, time.Time{}, time.Time{}},
	} {
		v := &view{now: now, status: &v1alpha1.RlinkStatus{RecoveryPoint: &v1alpha1.RecoveryPoint{Time: metav1.NewTime(now.Add(-3 * time.Minute))}},
			source: &cycle.Source{InForce: cycle.Stand{Role: v1alpha1.RoleSource}, Last: &cycle.Ended{FinishedAt: now.Add(-c.ended)},
				Peer: cycle.Peer{Asked: true, Found: true, Recovery: cycle.Recovery{Time: c.there}}}}
		if got := pointThere(v); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Only what is news becomes an event: the first success, a failure after a success, a success after a failure.
func TestOnlyNewsBecomeEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	told := w.east.record()
	protect(w, "data")
	session := func(token string, fails bool) {
		t.Helper()
		w.east.ends = nil
		if fails {
			w.east.ends = func(c engine.SourceConfig) *ending {
				return &ending{exitRefused, &engine.Report{Point: c.Point, Error: "volumes differ in size: data"}}
			}
		}
		w.east.trigger("app", token)
		w.until("session "+token, func() bool { l := w.east.link("app"); return l.Session == nil && l.LastSession.TriggerNow == token })
	}
	for _, c := range []struct {
		token string
		fails bool
		ended int // events of committed sessions so far
		bad   int // events of failed ones
	}{{"a", false, 1, 0}, {"b", true, 1, 1}, {"c", true, 1, 1}, {"d", false, 2, 1}, {"e", false, 2, 1}, {"f", true, 2, 2}} {
		session(c.token, c.fails)
		if ended, bad := told.of(cycle.ReasonSessionEnded), told.of(cycle.ReasonMoverRefused); len(ended) != c.ended || len(bad) != c.bad {
			t.Errorf("after %s: %v %v", c.token, ended, bad)
		}
	}
	if first := told.of(cycle.ReasonSessionEnded); !strings.Contains(first[0], "the first session has ended") || !strings.Contains(first[1], "sessions succeed again") {
		t.Errorf("events: %v", first)
	}
}

func TestMetricsTellWhatIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.scheduled("app", func(l *v1alpha1.Rlink) { l.Interval, l.RecoveryPointObjective = "1h", "30m" })
	w.until("the first point", w.east.committed("app", ""))
	w.until("rest", w.east.idle("app"))
	registry := prometheus.NewRegistry()
	for _, s := range []*side{w.east, w.west} {
		s.r.figures.now, s.r.figures.turns = w.now, &s.r.turns
	}
	if err := registry.Register(&w.east.r.figures); err != nil {
		t.Fatal(err)
	}
	peer := "west"
	value := func(name string, labels ...string) (float64, bool) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				var have []string
				for _, l := range m.GetLabel() {
					have = append(have, l.GetName()+"="+l.GetValue())
				}
				if f.GetName() != name || slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(have, l) }) {
					continue
				}
				if strings.HasPrefix(name, "lifeboat_replication_") {
					for _, l := range []string{"namespace=" + w.namespace, "replication=app", "rlink=dr", "peer=" + peer} {
						if !slices.Contains(have, l) {
							t.Errorf("%s lacks the label %s: %v", name, l, have)
						}
					}
				}
				return m.GetGauge().GetValue() + m.GetCounter().GetValue(), true
			}
		}
		return 0, false
	}
	expect := func(name string, low, high float64, labels ...string) {
		t.Helper()
		if got, is := value(name, labels...); !is || got < low || got > high {
			t.Errorf("%s%v = %v (there: %v), want %v to %v", name, labels, got, is, low, high)
		}
	}
	const prefix = "lifeboat_replication_"
	lag := w.now().Sub(w.east.link("app").RecoveryPoint.Time.Time).Seconds()
	expect(prefix+"lag_seconds", lag-1, lag+600)
	expect(prefix+"objective_seconds", 1800, 1800)
	expect(prefix+"objective_breached", 0, 0)
	expect(prefix+"role", 1, 1, "role=source")
	expect(prefix+"last_session_success", 1, 1)
	expect(prefix+"last_session_tier", 1, 1, "tier=full")
	expect(prefix+"last_session_sent_bytes", 2048, 2048)
	expect(prefix+"last_session_duration_seconds", 0.1, 600)
	expect(prefix+"last_session_end_timestamp_seconds", 1e9, 1e10)
	expect(prefix+"sessions_total", 1, 1, "result=committed")
	expect(prefix+"sessions_total", 1, 1, "result=started")
	expect(prefix+"sessions_total", 0, 0, "result=failed")
	expect(prefix+"missed_runs_total", 0, 0)
	expect(prefix+"session_running", 0, 0)
	expect(prefix+"waiting_for_turn", 0, 0)
	expect(prefix+"suspended", 0, 0)
	expect("lifeboat_sessions_running", 0, 1000)
	expect("lifeboat_sessions_limit", 0, 0)
	// Time passes and nobody has looked: the lag grows all the same.
	w.skip += 40 * time.Minute
	expect(prefix+"lag_seconds", lag+2400, lag+3000)
	w.east.holdMovers = true
	w.east.trigger("app", "now")
	w.until("a session runs", func() bool { return w.east.link("app").Session != nil })
	expect(prefix+"objective_breached", 1, 1)
	expect(prefix+"session_running", 1, 1)
	expect(prefix+"sessions_total", 2, 2, "result=started")
	w.east.holdMovers = false
	w.until("it ends", w.east.committed("app", "now"))
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.until("it is gone", func() bool { return w.east.get("app") == nil })
	if _, is := value(prefix + "lag_seconds"); is {
		t.Error("a Replication that is gone still has figures")
	}

	there := prometheus.NewRegistry()
	if err := there.Register(&w.west.r.figures); err != nil {
		t.Fatal(err)
	}
	registry, peer = there, "east"
	expect(prefix+"role", 1, 1, "role=target")
	expect(prefix+"spool_bytes", 0, 0)
}
