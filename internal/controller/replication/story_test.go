package replication

import (
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// protect sets a source up and waits for its first point.
func protect(w *world, claims ...string) {
	w.t.Helper()
	for _, c := range claims {
		w.east.claim(c, "1Gi", className)
	}
	w.east.group("app", claims...)
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("the first point", w.east.committed("app", ""))
}

func TestASourceAloneSetsItsPeerUpAndKeepsItInStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data", "wal")

	first := w.east.link("app")
	if first.LastSession.Trigger != "First" || first.LastSession.Tier != "full" {
		t.Errorf("first session: %+v", first.LastSession)
	}
	there := w.west.get("app")
	if there.Spec.Role != v1alpha1.RoleTarget || there.Status.Role != v1alpha1.RoleTarget || there.Status.PrimaryCluster != "east" {
		t.Errorf("the peer's replication: %+v %+v", there.Spec, there.Status)
	}
	w.east.trigger("app", "now")
	w.until("a second point", w.east.committed("app", "now"))
	second := w.east.link("app")
	if second.LastSession.Tier != "digest" || second.BasePoint != second.LastSession.Point || len(second.History) != 1 {
		t.Errorf("second session: %+v", second)
	}
	w.until("rest", w.east.idle("app"))
	if got := w.east.claims(); len(got) != 2 {
		t.Errorf("claims at rest: %v", got)
	}
	if c := w.east.ready("app"); c.Status != "True" {
		t.Errorf("at rest: %s", describe(w.east.get("app")))
	}
	if c := conditionOf(w.east.get("app"), v1alpha1.ConditionReplicated); c.Status != "True" || !strings.Contains(c.Message, "2 members were snapshotted together, but not at one instant") {
		t.Errorf("Replicated: %+v", c)
	}
}

// A planned move by hand, and home again: the data follow, nothing of a former role stays, no user's claim or volume is touched.
func TestRolesAreExchangedAndBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	before := w.volumes("data")
	app := w.east.app("app-0", "data")

	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("the demotion names the pod", func() bool { return strings.Contains(w.east.ready("app").Message, "app-0") })
	if w.east.get("app").Status.Role != v1alpha1.RoleSource {
		t.Fatal("the source's role was left while its application runs")
	}
	w.east.must(w.east.kube.Delete(t.Context(), app, client.GracePeriodSeconds(0)))
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	if got := w.east.snapshots(); len(got) != 0 {
		t.Errorf("snapshots of sessions that stayed: %v", got)
	}
	if got := strings.Join(w.east.made(), " "); strings.Contains(got, "lb-app-dr-mover") {
		t.Errorf("what the former source keeps: %s", got)
	}
	final := w.east.peer.link("app").RecoveryPoint.Point
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("west is source", w.west.inForce("app", v1alpha1.RoleSource, 2))
	if got := w.west.claims(); !slices.Equal(got, []string{"data"}) {
		t.Errorf("claims beside the promoted one: %v", got)
	}
	if got := strings.Join(w.west.made(), " "); strings.Contains(got, "lb-app-dr-receiver") {
		t.Errorf("what the former target keeps: %s", got)
	}
	if got := w.west.link("app").RecoveryPoint.Point; got != final {
		t.Errorf("promoted with point %s, want %s", got, final)
	}
	w.until("the reverse replication", w.west.committed("app", ""))
	if tier := w.west.link("app").LastSession.Tier; tier != v1alpha1.TierDigest {
		t.Errorf("the way back used tier %s: the former primary's data were taken for nothing", tier)
	}

	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 3 })
	w.until("west is target again", w.west.inForce("app", v1alpha1.RoleTarget, 3))
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 3 })
	w.until("home", func() bool {
		return w.east.inForce("app", v1alpha1.RoleSource, 3)() && w.east.committed("app", "")() && w.east.link("app").RecoveryPoint.Epoch == 3
	})
	if after := w.volumes("data"); after != before {
		t.Errorf("the claims' volumes were %s, are %s", before, after)
	}
}

// Every write fails once, and after every step another manager takes over that remembers nothing.
func TestAManagerThatDiesAtEveryWriteGetsThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, s := range []*side{w.east, w.west} {
		flaky := &flakyClient{Client: s.kube, tried: map[string]bool{}}
		s.fresh = func() *Reconciler {
			r := s.manager()
			r.Client = flaky
			return r
		}
		t.Cleanup(func() {
			if flaky.failed < 20 {
				t.Errorf("%s: only %d writes failed", s.name, flaky.failed)
			}
		})
	}
	protect(w, "data", "wal")
	w.east.trigger("app", "now")
	w.until("a second point", w.east.committed("app", "now"))
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("the reverse replication", func() bool { return w.west.inForce("app", v1alpha1.RoleSource, 2)() && w.west.committed("app", "")() })
	w.until("rest", w.west.idle("app"))
	if got := w.west.claims(); len(got) != 2 {
		t.Errorf("claims at rest: %v", got)
	}
}

// M-098: what somebody removes by hand while a session runs is made again, or the session fails and says so, and the next one succeeds.
func TestRemovedByHand(t *testing.T) {
	for name, remove := range map[string]func(w *world, point string) client.Object{
		"the mover's Job": func(w *world, point string) client.Object {
			return &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "lb-app-dr-" + point}}
		},
		"a clone": func(w *world, point string) client.Object {
			return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "lb-app-" + point + "-0"}}
		},
		"a snapshot": func(w *world, point string) client.Object {
			return &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "lb-app-" + point + "-0"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			protect(w, "data")
			w.east.holdMovers = true
			w.east.trigger("app", "now")
			w.until("the mover runs", func() bool {
				s := w.east.link("app").Session
				return s != nil && strings.Contains(s.Message, "runs")
			})
			object := remove(w, w.east.link("app").Session.Point)
			object.SetNamespace(w.namespace)
			if err := w.east.kube.Delete(t.Context(), object, client.PropagationPolicy(metav1.DeletePropagationBackground)); err != nil {
				t.Fatal(err)
			}
			w.turn()
			w.east.holdMovers = false
			w.east.trigger("app", "again")
			w.until("a point after it", w.east.committed("app", "again"))
		})
	}
}

// M-104: a session that does not end well leaves the recovery points as they are.
func TestARefusedSessionFailsWithTheMoversWords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.east.ends = func(c engine.SourceConfig) *ending {
		return &ending{exitRefused, &engine.Report{Point: c.Point, Error: "volumes differ in size: data"}}
	}
	w.east.trigger("app", "now")
	w.until("a failed session", func() bool { l := w.east.link("app").LastSession; return l.TriggerNow == "now" })
	last := w.east.link("app").LastSession
	if last.Result != "Failed" || last.Message != "volumes differ in size: data" {
		t.Errorf("session: %+v", last)
	}
	if c := conditionOf(w.east.get("app"), v1alpha1.ConditionReplicated); c.Status != "False" || c.Reason != reasonSessionFailed {
		t.Errorf("Replicated: %+v", c)
	}
	if points := w.west.link("app").RecoveryPoints; len(w.west.snapshots()) != 1 || len(points) != 1 || points[0].Point == last.Point {
		t.Errorf("recovery points after a failed session: %+v, snapshots %v", points, w.west.snapshots())
	}
	w.until("its Job and claims are gone, the base is not", func() bool { return len(w.east.claims()) == 1 && len(w.east.snapshots()) == 1 })
	w.east.ends = nil
	w.east.trigger("app", "again")
	w.until("the next one succeeds", w.east.committed("app", "again"))
}

func TestProgressIsShownWhileTheMoverRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.east.holdMovers = true
	w.east.trigger("app", "now")
	w.until("the mover runs", func() bool {
		return len(w.east.made()) > 0 && w.east.link("app").Session != nil && len(w.east.claims()) == 2
	})
	w.west.must(w.west.kube.Delete(t.Context(), receiverService(&view{rep: w.west.get("app"), rlink: v1alpha1.Rlink{RlinkName: "dr"}, names: names{w.namespace, "app", "dr"}})))
	w.west.paused, w.east.holdMovers = true, false
	w.until("progress", func() bool {
		s := w.east.link("app").Session
		return s != nil && s.Percent == 12 && s.Phase == "Waiting" && strings.Contains(s.Message, "the target is away")
	})
	w.west.paused = false
	w.until("it ends when the target is back", w.east.committed("app", "now"))
}

func TestABlockClaimThatIsNotBoundSaysWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.east.holdClaims = true
	w.east.trigger("app", "now")
	w.until("a clone", func() bool { return len(w.east.claims()) == 2 })
	name := w.east.claims()[1]
	var claim corev1.PersistentVolumeClaim
	w.east.must(w.east.kube.Get(t.Context(), w.east.key(name), &claim))
	w.east.create(&corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "quota"}, Type: corev1.EventTypeWarning, Reason: "ProvisioningFailed", Message: "the pool is full",
		InvolvedObject: corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: w.namespace, Name: name, UID: claim.UID}, LastTimestamp: metav1.Now(),
	})
	w.until("the driver's words", func() bool {
		s := w.east.link("app").Session
		return s != nil && strings.Contains(s.Message, name) && strings.Contains(s.Message, "the pool is full")
	})
	w.east.holdClaims = false
	w.until("it goes on", w.east.committed("app", "now"))
}

func TestRecoveryPointsAreKeptAsManyAsWanted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	two := int32(2)
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].Retain = &two })
	w.until("the first point", w.east.committed("app", ""))
	for _, token := range []string{"a", "b", "c"} {
		w.east.trigger("app", token)
		w.until("point "+token, w.east.committed("app", token))
	}
	w.until("two are left", func() bool { return len(w.west.snapshots()) == 2 })
	points := w.west.link("app").RecoveryPoints
	w.until("they are shown", func() bool { points = w.west.link("app").RecoveryPoints; return len(points) == 2 })
	newest := w.east.link("app").LastSession.Point
	if points[0].Point != newest || len(points[0].Snapshots) != 1 || points[0].Epoch != 1 || points[1].Epoch != 1 {
		t.Errorf("recovery points: %+v, want %s first", points, newest)
	}
}

// The first copy may go straight onto volumes only when they were just made for it.
func TestVolumesThatMayHoldSomethingAreCompared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.west.claim("data", "1Gi", className)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("the first point", w.east.committed("app", ""))
	if tier := w.east.link("app").LastSession.Tier; tier != v1alpha1.TierDigest {
		t.Errorf("tier %s onto a claim that was there before", tier)
	}

	fresh := newWorld(t)
	protect(fresh, "data")
	// The spool is lost: what the volumes hold is not known any more.
	fresh.west.must(fresh.west.kube.Delete(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: fresh.namespace, Name: "lb-app-spool"}}))
	var deployment appsv1.Deployment
	fresh.west.must(fresh.west.kube.Get(t.Context(), fresh.west.key("lb-app-dr-receiver"), &deployment))
	fresh.west.must(fresh.west.kube.Delete(t.Context(), &deployment))
	fresh.until("another spool", func() bool {
		var claim corev1.PersistentVolumeClaim
		err := fresh.west.kube.Get(t.Context(), fresh.west.key("lb-app-spool"), &claim)
		return err == nil && claim.Annotations[annotationHolds] == string(engine.HoldsData)
	})
}

func TestAReplicaIsNotPromotedBeforeItHoldsEverything(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.applyLate = true
	w.turn()
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("it waits", func() bool { return w.west.ready("app").Reason == cycle.ReasonApplying })
	for range 5 {
		w.turn()
	}
	if got := w.west.claims(); !slices.Contains(got, "lb-data-replica") || !slices.Contains(got, "lb-app-spool") {
		t.Errorf("removed before the replica held everything: %v", got)
	}
	if w.west.receiver(w.namespace+"/app") != nil {
		t.Error("sources still reach the receiver")
	}
	w.west.deaf = true
	w.until("it waits for a receiver that is silent", func() bool { return w.west.ready("app").Reason == cycle.ReasonReceiverSilent })
	w.west.applyLate, w.west.deaf = false, false
	w.until("promoted", w.west.inForce("app", v1alpha1.RoleSource, 2))
}

// A source that nobody can ask is refused by a receiver of the new epoch before the replica is promoted. An epoch that somebody sets by hand
// says nothing of the source: what may be lost has to be acknowledged all the same, and is remembered.
func TestAReplicaIsPromotedWithoutItsSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("it asks for the source to leave first", func() bool { return w.west.ready("app").Reason == cycle.ReasonPeerIsSource })
	w.west.offline, w.east.offline = true, true
	w.until("it asks for an acknowledgement", func() bool {
		c := w.west.ready("app")
		return c.Reason == cycle.ReasonLinkLost && strings.Contains(c.Message, "spec.acknowledgePeerLost")
	})
	for range 5 {
		w.turn()
		w.skip += time.Minute
	}
	if r := w.west.get("app"); r.Status.Role != v1alpha1.RoleTarget || !slices.Contains(w.west.claims(), "lb-data-replica") {
		t.Fatalf("nobody acknowledged a loss, and west is %s with claims %v", r.Status.Role, w.west.claims())
	}
	point := w.west.link("app").RecoveryPoint.Point
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.AcknowledgePeerLost = point })
	epoch := w.promotedBehindAFence()
	if o := w.west.get("app").Status.Takeover; o == nil || o.Epoch != epoch || o.Point != point || !slices.Equal(o.Clusters, []string{"east"}) {
		t.Errorf("what is remembered of it: %+v", o)
	}
}

// promotedBehindAFence waits until west is the source, and tells in which epoch. A receiver must have run in it before.
func (w *world) promotedBehindAFence() int64 {
	w.t.Helper()
	var fences []uint64
	w.until("promoted", func() bool {
		var deployment appsv1.Deployment
		if err := w.west.kube.Get(w.t.Context(), w.west.key("lb-app-dr-receiver"), &deployment); err == nil {
			var config engine.TargetConfig
			w.west.config(&corev1.Pod{Spec: deployment.Spec.Template.Spec}, &config)
			fences = append(fences, config.Epoch)
		}
		return w.west.get("app").Status.Role == v1alpha1.RoleSource
	})
	epoch := w.west.get("app").Status.Epoch
	if epoch <= w.east.get("app").Status.Epoch || !slices.Contains(fences, uint64(epoch)) {
		w.t.Errorf("west is the source in epoch %d, receivers ran in %v: the former source could have committed until the end", epoch, fences)
	}
	return epoch
}

// A plan that was handed an epoch over has the word of the cluster that was the source: its promotion needs neither that cluster nor an
// acknowledgement. One that has another epoch, or another target, speaks for nobody.
func TestAPlanThatWasHandedOverPromotesWithoutItsSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.offline, w.east.offline = true, true
	plan := &v1alpha1.DisasterRecoveryPlan{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "shop"}, Spec: v1alpha1.DisasterRecoveryPlanSpec{
		PrimaryCluster: "west", PreferredClusterList: []string{"east", "west"}, DataReplicationPointer: "app"}}
	w.west.create(plan)
	tell := func(epoch int64, o v1alpha1.Operation) {
		o.ID, o.Type, o.StartedAt = "o1", v1alpha1.OperationMigrate, metav1.Now()
		plan.Status.Epoch, plan.Status.Operation = epoch, &o
		w.west.must(w.west.kube.Status().Update(t.Context(), plan))
	}
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 4 })
	for name, other := range map[string]func(){
		"an earlier epoch": func() { tell(3, v1alpha1.Operation{From: "east", To: "west", Step: v1alpha1.StepPromote}) },
		"the way home":     func() { tell(4, v1alpha1.Operation{From: "west", To: "east", Step: v1alpha1.StepPromote}) },
		"an earlier step":  func() { tell(4, v1alpha1.Operation{From: "east", To: "west", Step: v1alpha1.StepFinalSync}) },
	} {
		other()
		for range 3 {
			w.turn()
		}
		if c := w.west.ready("app"); c.Reason != cycle.ReasonLinkLost {
			t.Errorf("a plan with %s: %s %s", name, c.Reason, c.Message)
		}
	}
	tell(4, v1alpha1.Operation{From: "east", To: "west", Step: v1alpha1.StepPromote})
	if epoch := w.promotedBehindAFence(); epoch != 4 {
		t.Errorf("promoted in epoch %d", epoch)
	}
}

func TestPodsOnTheReplicaStopIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	app := w.west.app("intruder", "data")
	w.until("it says who", func() bool {
		c := w.west.ready("app")
		return c.Reason == cycle.ReasonClaimsInUse && strings.Contains(c.Message, "intruder")
	})
	w.until("no receiver writes beside it", func() bool { return slices.Equal(w.west.claims(), []string{"data"}) })
	if l := w.west.link("app"); l.ReceiverReady || l.RecoveryPoint != nil {
		t.Errorf("volumes that a pod uses are called a replica: %+v", l)
	}
	w.west.must(w.west.kube.Delete(t.Context(), app, client.GracePeriodSeconds(0)))
	w.east.trigger("app", "after")
	w.until("the next session compares", w.east.committed("app", "after"))
	if tier := w.east.link("app").LastSession.Tier; tier != v1alpha1.TierDigest {
		t.Errorf("tier %s onto volumes a pod has used", tier)
	}
}

func TestAStalePrimaryIsToldSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Epoch = 5 })
	w.until("west is in epoch 5", w.west.inForce("app", v1alpha1.RoleTarget, 5))
	w.east.trigger("app", "now")
	w.until("east knows", func() bool { return w.east.ready("app").Reason == cycle.ReasonStaleEpoch })
	if w.east.link("app").Session != nil {
		t.Error("a stale primary began a session")
	}
}

// M-092: recovery points go with their replication unless retainSnapshotsOnDeletion keeps them.
func TestDeletionTakesEverythingButTheUsersClaims(t *testing.T) {
	for _, c := range []struct {
		name   string
		retain bool
		kept   int
	}{{"recovery points go", false, 0}, {"recovery points stay", true, 1}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.east.claim("data", "1Gi", className)
			w.east.group("app", "data")
			w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].RetainSnapshotsOnDeletion = c.retain })
			w.until("the first point", w.east.committed("app", ""))
			w.east.trigger("app", "running")
			w.east.holdMovers = true
			w.until("a session runs", func() bool { return len(w.east.claims()) > 1 })
			w.west.must(w.west.kube.Delete(t.Context(), w.west.get("app")))
			w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
			w.until("both are gone", func() bool { return w.east.get("app") == nil && w.west.get("app") == nil })
			for _, s := range []*side{w.east, w.west} {
				w.until(s.name+" holds nothing but the claim", func() bool { return slices.Equal(s.claims(), []string{"data"}) })
				if left := s.made(); len(left) != 0 {
					t.Errorf("%s: left behind: %v", s.name, left)
				}
			}
			if got := w.west.snapshots(); len(got) != c.kept {
				t.Errorf("recovery points after the deletion: %v", got)
			}
			if got := w.volumes("data"); strings.Contains(got, "none") {
				t.Errorf("a user's volume is gone: %s", got)
			}
		})
	}
}

func TestDeletionEndsWhatEverHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	var spool corev1.PersistentVolumeClaim
	w.west.must(w.west.kube.Get(t.Context(), w.west.key("lb-app-spool"), &spool))
	spool.Finalizers = append(spool.Finalizers, "example.com/never")
	w.west.must(w.west.kube.Update(t.Context(), &spool))
	w.west.stuck = "lb-app-spool"
	w.west.must(w.west.kube.Delete(t.Context(), w.west.get("app")))
	w.until("it is gone", func() bool { return w.west.get("app") == nil })
}

func TestASourceWhosePeerIsAwayIsDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	w.east.replication("app", v1alpha1.RoleSource)
	w.east.offline = true
	w.until("the link is missed", func() bool {
		c := w.east.ready("app")
		return w.east.get("app").Status.Phase == cycle.Waiting && c.Status == "False" && c.Reason == cycle.ReasonLinkLost && strings.Contains(c.Message, "the cable is out")
	})
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.until("it is gone", func() bool { return w.east.get("app") == nil })
}

func TestTheScheduleStartsSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].Schedule = "*/2 * * * *" })
	w.until("the first point", w.east.committed("app", ""))
	first := w.east.link("app")
	if first.LastSession.Trigger != "First" || first.NextRun == nil {
		t.Fatalf("after the first session: %+v", first)
	}
	w.skip = time.Until(first.NextRun.Add(time.Second))
	w.until("a scheduled session", func() bool { return w.east.link("app").LastSession.Trigger == "Schedule" })
	w.until("rest", w.east.idle("app"))
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].SuspendReplication = true; r.Spec.TriggerNow = "no" })
	w.skip += 10 * time.Minute
	for range 5 {
		w.turn()
	}
	rep := w.east.get("app")
	if rep.Status.Phase != cycle.Suspended || rep.Status.Rlinks[0].Session != nil {
		t.Errorf("suspended: %s", describe(rep))
	}
	w.skip += 3 * time.Hour
	w.turn()
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].SuspendReplication = false })
	w.until("it goes on", w.east.committed("app", "no"))
	if missed := w.east.link("app").MissedRuns; missed < 60 {
		t.Errorf("missed runs: %d", missed)
	}
}

func TestBadInput(t *testing.T) {
	schedule := func(text string) func(*v1alpha1.Replication) {
		return func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].Schedule = text }
	}
	for _, c := range []struct {
		name   string
		set    func(w *world)
		edit   func(*v1alpha1.Replication)
		reason string
		says   string
	}{
		{"group missing", func(w *world) {}, nil, reasonGroupMissing, "PVCGroup %ns/app does not exist"},
		{"claim missing", func(w *world) { w.east.group("app", "data") }, nil, snapshot.FaultMissing, "claim %ns/data does not exist"},
		{"claim not bound", func(w *world) { w.east.claim("data", "1Gi", "late"); w.east.group("app", "data") }, nil, snapshot.FaultUnbound, "waits for the first pod"},
		{"driver without snapshots", func(w *world) { w.east.claim("data", "1Gi", "plain"); w.east.group("app", "data") }, nil, snapshot.FaultNoClass, "claim %ns/data: there is no VolumeSnapshotClass for its driver plain.example.com"},
		{"pair missing", okGroup, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].ClusterPair = "nowhere" }, reasonPairMissing, "ClusterPair nowhere does not exist"},
		{"cron with an error", okGroup, schedule("61 * * * *"), reasonScheduleInvalid, `schedule "61 * * * *"`},
		{"cron with a zone", okGroup, schedule("TZ=UTC * * * * *"), reasonScheduleInvalid, "time zone"},
		{"sizes differ", func(w *world) { okGroup(w); w.west.claim("data", "2Gi", className) }, nil, reasonSizesOrModeDiffer, "2Gi"},
		{"the peer's map", okGroup, func(r *v1alpha1.Replication) { r.Spec.Rlinks[0].PVCMap = map[string]string{"theirs": "data"} }, reasonPVCMapInvalid, "each other's inverse"},
		{"two claims to one", func(w *world) {
			w.east.claim("data", "1Gi", className)
			w.east.claim("wal", "1Gi", className)
			w.east.group("app", "data", "wal")
		}, func(r *v1alpha1.Replication) {
			r.Spec.Rlinks[0].PVCMap = map[string]string{"data": "one", "wal": "one"}
		}, reasonPVCMapInvalid, "both data and wal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c.set(w)
			var edits []func(*v1alpha1.Replication)
			if c.edit != nil {
				edits = append(edits, c.edit)
			}
			w.east.replication("app", v1alpha1.RoleSource, edits...)
			want := strings.ReplaceAll(c.says, "%ns", w.namespace)
			w.until(c.reason+" "+want, func() bool {
				ready := w.east.ready("app")
				return ready.Status == "False" && ready.Reason == c.reason && strings.Contains(ready.Message, want)
			})
			if w.east.link("app").Session != nil || len(w.east.snapshots()) != 0 {
				t.Error("a session was begun all the same")
			}
		})
	}
}

func okGroup(w *world) {
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "data")
}

// M-081: a replication is of one group; a claim that two groups of two replications name belongs to the older one.
func TestAClaimIsReplicatedByOneReplicationOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	w.skip += time.Second
	w.east.group("other", "data")
	w.east.replication("copy", v1alpha1.RoleSource, func(r *v1alpha1.Replication) { r.Spec.PVCGroupName = "other" })
	w.until("the younger one is refused", func() bool { return w.east.ready("copy").Reason == reasonClaimInTwoGroups })
	w.east.trigger("app", "still")
	w.until("the older one goes on", w.east.committed("app", "still"))
}
