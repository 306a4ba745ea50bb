package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/runbook"
)

// clock only moves when somebody looks.
type clock struct{ at *time.Time }

func newClock() clock {
	at := time.Now()
	return clock{&at}
}

func (c clock) now() time.Time            { return *c.at }
func (c clock) tick() time.Time           { c.forward(time.Millisecond); return *c.at }
func (c clock) forward(d time.Duration)   { *c.at = c.at.Add(d) }
func (w *world) patience(d time.Duration) { w.clock.forward(d) }

// reconcile is one look of a manager that was started just now: nothing is remembered from the one before.
func (w *world) reconcile(s *side) {
	r := &Reconciler{Client: s.faults.client(s.api), Reader: s.api, Cluster: s.name, Peers: peers{w, s}, Hook: s.hook, Restorer: restorer{w, s},
		Now: w.clock.tick, Events: events.NewFakeRecorder(1000)}
	_, err := r.Reconcile(w.t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: w.namespace, Name: "shop"}})
	if err != nil && !errors.Is(err, errLost) && !errors.Is(err, errKnob) {
		w.t.Fatalf("reconcile on %s: %v", s.name, err)
	}
	p := w.plan(s)
	now := step{s.name, string(p.Status.Step), p.Status.Reason}
	if now.step != "" && !slices.Contains(w.trail, now) {
		w.trail = append(w.trail, now)
	}
	w.check()
}

var errKnob = errors.New("as the test wants")

// check is what must hold at every instant.
func (w *world) check() {
	w.t.Helper()
	primaries, runs := 0, 0
	for _, s := range w.sides {
		standing := runbook.StandingOf(s.name, copyOf(w.plan(s)))
		if standing == runbook.Primary || standing == runbook.Taking {
			primaries++
		}
		if !s.hook.running() {
			continue
		}
		runs++
		if w.replication(s) == nil {
			continue
		}
		if s.content != w.written {
			w.t.Fatalf("the application runs on %s with %d of %d writes", s.name, s.content, w.written)
		}
	}
	if primaries > 1 || runs > 1 {
		w.t.Fatalf("%d primaries, the application runs on %d sides", primaries, runs)
	}
}

// look lets everything happen once: both managers, replication, snapshots, and a write of the application.
func (w *world) look() {
	for _, s := range w.sides {
		w.reconcile(s)
		w.replicate()
		w.capture()
		if s.hook.running() {
			w.written++
			s.content++
		}
	}
	w.clock.forward(100 * time.Millisecond)
}

func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for range 150 {
		if done() {
			return
		}
		w.look()
	}
	for _, s := range w.sides {
		st := w.plan(s).Status
		w.t.Logf("%s: primary %s epoch %d phase %s step %s reason %s: %s", s.name, st.PrimaryCluster, st.Epoch, st.Phase, st.Step, st.Reason, st.Message)
		for _, c := range st.Conditions {
			w.t.Logf("    %s %s %s: %s", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	w.t.Fatalf("did not come: %s", what)
}

// settled: both copies agree that a cluster is primary, nothing runs any more, and the application runs there alone.
func (w *world) settled(s *side) bool {
	for _, each := range w.sides {
		p := w.plan(each)
		st := p.Status
		if st.PrimaryCluster != s.name || p.Spec.PrimaryCluster != s.name || st.Operation != nil || st.Step != "" || each.hook.running() != (each == s) {
			return false
		}
	}
	return w.plan(s).Status.Phase == phaseProtected && w.plan(w.other(s)).Status.Phase == phaseStandby &&
		w.plan(s).Status.Epoch == w.plan(w.other(s)).Status.Epoch
}

func (w *world) lastReport(s *side) v1alpha1.OperationReport {
	w.t.Helper()
	h := w.plan(s).Status.History
	if len(h) == 0 {
		w.t.Fatalf("%s has no history", s.name)
	}
	return h[0]
}

func TestAPlanIsCopiedClaimedAndProtected(t *testing.T) {
	w := protect(t, true)
	east, west := w.plan(w.east()).Status, w.plan(w.west()).Status
	if east.Epoch != 1 || west.Epoch != 1 || west.PrimaryCluster != "east" || west.LocalCluster != "west" {
		t.Errorf("east %+v\nwest %+v", east, west)
	}
	if east.LastApplicationSnapshot == "" || len(east.Peers) != 1 || !east.Peers[0].Reachable || east.Peers[0].ApplicationSnapshot != east.LastApplicationSnapshot {
		t.Errorf("the peer as east shows it: %+v", east.Peers)
	}
}

func TestMigrateAndHomeLoseNothing(t *testing.T) {
	for _, data := range []bool{true, false} {
		t.Run(fmt.Sprintf("data %t", data), func(t *testing.T) {
			w := protect(t, data)
			w.mustWant(w.east(), "west")
			w.until("the application runs on west", func() bool { return w.settled(w.west()) })
			w.mustWant(w.west(), "east")
			w.until("the application runs on east again", func() bool { return w.settled(w.east()) })
			if epoch := w.plan(w.east()).Status.Epoch; epoch != 3 {
				t.Errorf("epoch %d after two moves", epoch)
			}
			for _, s := range w.sides {
				st := w.plan(s).Status
				if st.BackupStatus+st.RestoreStatus+st.DataReplicationStatus != "" {
					t.Errorf("transient statuses remain on %s: %q %q %q", s.name, st.BackupStatus, st.DataReplicationStatus, st.RestoreStatus)
				}
				if len(st.History) != 2 {
					t.Fatalf("%s has %d reports", s.name, len(st.History))
				}
				for _, h := range st.History {
					var steps []string
					for _, record := range h.Steps {
						steps = append(steps, record.Cluster+" "+string(record.Name))
						if record.FinishedAt == nil && record.Name != v1alpha1.StepComplete {
							t.Errorf("%s: step %s of %s has no end", s.name, record.Name, h.ID)
						}
					}
					want := []string{h.From + " Precheck", h.From + " CaptureObjects", h.From + " PreSync", h.From + " Offline", h.From + " FinalSync", h.From + " Handover",
						h.To + " Promote", h.To + " Restore", h.To + " Verify", h.To + " Complete"}
					if !data {
						want = slices.DeleteFunc(want, func(step string) bool { return strings.HasSuffix(step, "Sync") })
					}
					if h.Result != "Completed" || !slices.Equal(steps, want) {
						t.Errorf("%s reports %s with %v, want %v", s.name, h.Result, steps, want)
					}
				}
			}
		})
	}
}

// Every second write of the managers is lost, before or after it reached the API server, from every phase.
func TestMigrateWithLostWrites(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for _, every := range []int{2, 3} {
			t.Run(fmt.Sprintf("applied %t every %d", applied, every), func(t *testing.T) {
				w := protect(t, true)
				for i, s := range w.sides {
					*s.faults = faults{every: every, applied: applied, count: i}
				}
				w.mustWant(w.east(), "west")
				w.until("the application runs on west", func() bool { return w.settled(w.west()) })
			})
		}
	}
}

func TestAnEditBeforeTheHandoverAborts(t *testing.T) {
	w := protect(t, true)
	w.east().hook.stuck = true
	w.mustWant(w.east(), "west")
	w.until("a pod does not stop", func() bool {
		st := w.plan(w.east()).Status
		return st.Step == v1alpha1.StepOffline && strings.Contains(st.Message, "2 pods of Deployment db")
	})
	w.mustWant(w.east(), "east")
	w.east().hook.stuck = false
	w.until("the application runs on east", func() bool { return w.settled(w.east()) })
	if r := w.lastReport(w.east()); r.Result != "Aborted" || r.Epoch != 1 {
		t.Errorf("report %+v", r)
	}
	w.mustWant(w.east(), "west")
	w.until("the next move succeeds", func() bool { return w.settled(w.west()) })
}

func TestPodsThatNeverStopEndTheMove(t *testing.T) {
	w := protect(t, true)
	w.east().hook.stuck = true
	w.mustWant(w.east(), "west")
	w.until("a pod does not stop", func() bool { return w.plan(w.east()).Status.Step == v1alpha1.StepOffline })
	w.look()
	w.patience(16 * time.Minute)
	w.until("the application runs on east", func() bool { return w.settled(w.east()) })
	if r := w.lastReport(w.east()); r.Result != "RolledBack" || !strings.HasPrefix(r.Message, runbook.ReasonOfflineTimedOut) {
		t.Errorf("report %+v", r)
	}
}

func TestFailedSessionsAreTriedAgainAndThenRollTheMoveBack(t *testing.T) {
	w := protect(t, true)
	w.failing = 2
	w.mustWant(w.east(), "west")
	w.until("the third try succeeds", func() bool { return w.settled(w.west()) })
	if got := w.lastReport(w.west()); !slices.ContainsFunc(got.Steps, func(s v1alpha1.StepRecord) bool { return strings.Contains(s.Message, "is tried again") }) {
		t.Errorf("no step tells of the failed session: %+v", got.Steps)
	}

	w.mustWant(w.west(), "east")
	w.until("the final session is next", func() bool { return w.plan(w.west()).Status.Step == v1alpha1.StepOffline })
	w.failing = 3
	w.until("the application runs on west", func() bool { return len(w.plan(w.west()).Status.History) == 2 && w.settled(w.west()) })
	if r := w.lastReport(w.west()); r.Result != "RolledBack" || !strings.HasPrefix(r.Message, runbook.ReasonSessionFailed) {
		t.Errorf("report %+v", r)
	}
}

func TestAFailedCaptureLeavesTheApplicationAlone(t *testing.T) {
	w := protect(t, true)
	w.badCapture = true
	w.mustWant(w.east(), "west")
	w.until("it is over", func() bool { return len(w.plan(w.east()).Status.History) == 1 && w.settled(w.east()) })
	if r := w.lastReport(w.east()); r.Result != "RolledBack" || !strings.Contains(r.Message, "no rights to list secrets") {
		t.Errorf("report %+v", r)
	}
	if slices.ContainsFunc(w.trail, func(s step) bool { return s.step == "Offline" }) {
		t.Errorf("the application was stopped: %v", w.trail)
	}
}

func TestAMoveAskedForWhileThePeerIsDownWaits(t *testing.T) {
	w := protect(t, true)
	w.link = v1alpha1.LinkLost
	w.mustWant(w.east(), "west")
	waits := func() bool {
		st := w.plan(w.east()).Status
		return st.Phase == phaseWaiting && st.Reason == runbook.ReasonPeerUnreachable && st.WaitingSince != nil && st.Operation == nil
	}
	w.until("it waits", waits)
	for range 5 {
		w.look()
	}
	if !waits() || !w.east().hook.running() {
		t.Fatalf("did not wait: %+v", w.plan(w.east()).Status)
	}
	w.mustWant(w.east(), "east")
	w.until("the edit is taken back", func() bool { return w.plan(w.east()).Status.Reason == runbook.ReasonInStep })
	w.mustWant(w.east(), "west")
	w.until("it waits again", waits)
	w.link = v1alpha1.LinkConnected
	w.until("the application runs on west", func() bool { return w.settled(w.west()) })
}

func TestALostPeerRollsBackASilentOneOnlyWaits(t *testing.T) {
	w := protect(t, true)
	w.mustWant(w.east(), "west")
	offline := func() bool { return w.plan(w.east()).Status.Step == v1alpha1.StepFinalSync }
	w.until("the application is offline", offline)
	w.silent = true
	for range 10 {
		w.look()
	}
	if st := w.plan(w.east()).Status; st.Reason != runbook.ReasonPeerUnknown || st.Operation.RollbackReason != "" {
		t.Fatalf("a silent peer: %+v", st)
	}
	w.silent = false
	w.until("the application runs on west", func() bool { return w.settled(w.west()) })

	w.mustWant(w.west(), "east")
	w.until("the application is offline", func() bool { return w.plan(w.west()).Status.Step == v1alpha1.StepFinalSync })
	w.link = v1alpha1.LinkLost
	w.until("the application is back on west", func() bool { return len(w.plan(w.west()).Status.History) == 2 && w.west().hook.running() })
	w.link = v1alpha1.LinkConnected
	w.until("all is well", func() bool { return w.settled(w.west()) })
	if r := w.lastReport(w.west()); r.Result != "RolledBack" || !strings.HasPrefix(r.Message, runbook.ReasonPeerUnreachable) {
		t.Errorf("report %+v", r)
	}
}

func TestAfterTheHandoverTheNewPrimaryNeedsNobody(t *testing.T) {
	w := protect(t, true)
	w.mustWant(w.east(), "west")
	w.until("west has accepted", func() bool { return w.plan(w.west()).Status.Epoch == 2 })
	w.link = v1alpha1.LinkLost
	w.mustWant(w.east(), "east") // too late
	w.until("the application runs on west", func() bool { return w.plan(w.west()).Status.PrimaryCluster == "west" && w.west().hook.running() })
	if st := w.plan(w.east()).Status; st.Reason != runbook.ReasonHandedOver || w.east().hook.running() || !strings.Contains(st.Message, "came after the handover") {
		t.Errorf("east: %+v", st)
	}
	w.link = v1alpha1.LinkConnected
	w.until("all agree", func() bool { return w.settled(w.west()) })
}

func TestAnApplicationStartedDuringTheMoveIsStoppedAndSyncedAgain(t *testing.T) {
	w := protect(t, true)
	w.mustWant(w.east(), "west")
	w.until("the final session runs", func() bool { return w.plan(w.east()).Status.Step == v1alpha1.StepFinalSync })
	h := w.east().hook
	h.mu.Lock()
	h.wanted, h.pods = 2, 2
	h.mu.Unlock()
	w.written++
	w.east().content++
	w.until("the application runs on west", func() bool { return w.settled(w.west()) })
	if w.west().content < w.written {
		t.Errorf("west has %d of %d writes", w.west().content, w.written)
	}
}

func TestFailuresOfTheHookAndTheRestorerAreTriedAgain(t *testing.T) {
	w := protect(t, true)
	w.east().hook.FailNext(errKnob)
	w.west().restoreErr = errKnob
	w.mustWant(w.east(), "west")
	w.until("the application runs on west", func() bool { return w.settled(w.west()) })
}

func TestAPlanDeletedDuringAMoveGoesWhenTheMoveHasEnded(t *testing.T) {
	w := protect(t, true)
	if f := w.plan(w.east()).Finalizers; len(f) > 0 {
		t.Errorf("finalizers %v between operations", f)
	}
	w.mustWant(w.east(), "west")
	w.until("the application is offline", func() bool { return w.plan(w.east()).Status.Step == v1alpha1.StepFinalSync })
	must(w.east().api.Delete(t.Context(), w.plan(w.east())))
	w.until("the application runs on west", func() bool { return w.plan(w.west()).Status.Operation == nil && w.west().hook.running() })
	w.until("the plan is gone on east", func() bool { return w.plan(w.east()).Name == "" || w.plan(w.east()).DeletionTimestamp.IsZero() })
	w.until("and copied again", func() bool { return w.settled(w.west()) })
	for _, s := range w.sides {
		if f := w.plan(s).Finalizers; len(f) > 0 {
			t.Errorf("finalizers %v on %s after the move", f, s.name)
		}
	}
}

func TestAnEditOnAStandbyIsRefusedByTheAPI(t *testing.T) {
	w := protect(t, false)
	err := w.want(w.west(), "west")
	if err == nil || !strings.Contains(err.Error(), "the primary is east; make the edit there") {
		t.Errorf("the edit was answered with %v", err)
	}
}

func TestWhatFitsNotIsRefusedBeforeAnythingIsDone(t *testing.T) {
	w := protect(t, true)
	r := w.replication(w.east())
	before := r.DeepCopy()
	r.Spec.Rlinks[0].SuspendReplication = true
	must(w.east().api.Patch(t.Context(), r, client.MergeFrom(before)))
	w.mustWant(w.east(), "west")
	w.until("it is refused", func() bool {
		st := w.plan(w.east()).Status
		return st.Phase == phaseRefused && st.Reason == runbook.ReasonSuspended
	})
	if !w.east().hook.running() || w.plan(w.east()).Status.Operation != nil {
		t.Error("something was done")
	}
	r = w.replication(w.east())
	before = r.DeepCopy()
	r.Spec.Rlinks[0].SuspendReplication = false
	must(w.east().api.Patch(t.Context(), r, client.MergeFrom(before)))
	w.until("the application runs on west", func() bool { return w.settled(w.west()) })
}

func TestCopiesThatDisagreeAreNotClaimed(t *testing.T) {
	w := empty(t)
	w.create(w.east(), newPlan(w.namespace, false))
	other := newPlan(w.namespace, false)
	other.Spec.PrimaryCluster = "west"
	w.create(w.west(), other)
	w.until("east refuses", func() bool { return w.plan(w.east()).Status.Reason == runbook.ReasonCopiesDisagree })
	for range 5 {
		w.look()
	}
	for _, s := range w.sides {
		if p := w.plan(s); p.Status.PrimaryCluster != "" {
			t.Errorf("%s claimed: %+v", s.name, p.Status)
		}
	}
	must(w.west().api.Delete(t.Context(), other))
	w.until("the plan is protected", func() bool { return w.settled(w.east()) })
}

func TestClaimsWithoutAReplicationAreReported(t *testing.T) {
	w := empty(t)
	w.create(w.east(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "pgdata"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}})
	w.create(w.east(), newPlan(w.namespace, false))
	w.until("the plan says so", func() bool {
		for _, c := range w.plan(w.east()).Status.Conditions {
			if c.Type == v1alpha1.ConditionProtected && c.Reason == reasonVolumesUnreplicated && strings.Contains(c.Message, "pgdata") {
				return w.plan(w.east()).Status.Phase == phaseNotReady
			}
		}
		return false
	})
}

func TestSnapshotsAreTakenByTheClockAndTheOldestGo(t *testing.T) {
	w := protect(t, false)
	for range 8 {
		before := w.captures
		w.patience(14 * time.Minute)
		w.look()
		if w.captures != before {
			t.Fatal("captured before the interval was over")
		}
		w.patience(time.Minute)
		w.look()
		if w.captures != before+1 {
			t.Fatalf("%d captures in an interval", w.captures-before)
		}
	}
	w.until("five are kept on each side", func() bool { return len(w.snapshots(w.east())) == 5 && len(w.snapshots(w.west())) == 5 })
	newest := w.plan(w.east()).Status.LastApplicationSnapshot
	if !slices.ContainsFunc(w.snapshots(w.west()), func(s v1alpha1.ApplicationSnapshot) bool { return s.Name == newest }) {
		t.Errorf("the newest snapshot %s is not on west", newest)
	}
}

// The managers with their queues, watches and nudges, and nobody else to call them.
func TestManagersMoveAnApplicationByThemselves(t *testing.T) {
	w := empty(t)
	for i, s := range w.sides {
		m, err := ctrl.NewManager(configs[i], ctrl.Options{Scheme: s.api.Scheme(), Metrics: server.Options{BindAddress: "0"},
			Controller: config.Controller{SkipNameValidation: new(true)}, // two managers in one process
			Cache:      cache.Options{DefaultNamespaces: map[string]cache.Config{w.namespace: {}}}})
		must(err)
		r := &Reconciler{Client: m.GetClient(), Reader: m.GetAPIReader(), Cluster: s.name, Peers: peers{w, s}, Hook: s.hook, Restorer: restorer{w, s}, Nudges: s.nudges.Channel("DisasterRecoveryPlan")}
		must(r.SetupWithManager(m))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Start(ctx) }()
		defer func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
	}
	moved := func(to *side) func() bool { return func() bool { return w.settled(to) } }
	w.create(w.east(), newPlan(w.namespace, false))
	w.soon("the plan is protected", moved(w.east()))
	w.mustWant(w.east(), "west")
	began := time.Now()
	w.soon("the application runs on west", moved(w.west()))
	t.Logf("moved in %s", time.Since(began).Round(time.Millisecond))
}

// soon waits for what managers do by themselves; only the snapshots need the test.
func (w *world) soon(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		w.capture()
		if done() {
			return
		}
		select {
		case <-w.t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	w.t.Fatalf("did not come: %s", what)
}

func TestAnApplicationThatDoesNotGetReadyHasMovedAllTheSame(t *testing.T) {
	w := protect(t, true)
	w.mustWant(w.east(), "west")
	w.until("west verifies", func() bool {
		if w.west().hook.running() {
			w.west().hook.mu.Lock()
			w.west().hook.pods = 1
			w.west().hook.mu.Unlock()
		}
		return w.plan(w.west()).Status.Step == v1alpha1.StepVerify
	})
	w.west().hook.mu.Lock()
	w.west().hook.pods = 1
	w.west().hook.mu.Unlock()
	w.until("west waits", func() bool {
		st := w.plan(w.west()).Status
		return st.Reason == runbook.ReasonApplicationStarting && strings.Contains(st.Message, "1 of 2 pods ready")
	})
	w.patience(3 * time.Minute)
	w.until("it has moved", func() bool {
		st := w.plan(w.west()).Status
		return st.PrimaryCluster == "west" && st.Operation == nil && st.Phase == phaseNotReady && w.plan(w.east()).Status.PrimaryCluster == "west"
	})
}
