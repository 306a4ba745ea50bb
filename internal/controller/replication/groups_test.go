package replication

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// groupingDriver cuts groups, groupingClass is the storage, snapshot and group snapshot class of it.
const (
	groupingDriver = "grouping.example.com"
	groupingClass  = "grouping"
)

// playGroups does what snapshot controller and driver do about group snapshots: they choose claims by label, and make a snapshot of
// each. Where two PersistentVolumes lead to one volume they do not know which claim the snapshot is of.
func (s *side) playGroups() {
	ctx := s.w.t.Context()
	var groups groupsnapshotv1.VolumeGroupSnapshotList
	var snapshots snapshotv1.VolumeSnapshotList
	s.list(&groups)
	s.list(&snapshots)
	alive := map[string]bool{}
	for i := range groups.Items {
		g := &groups.Items[i]
		alive[g.Name] = true
		if g.Status != nil && g.Status.ReadyToUse != nil && *g.Status.ReadyToUse {
			continue
		}
		if s.refuseGroups != "" {
			g.Status = &groupsnapshotv1.VolumeGroupSnapshotStatus{Error: &snapshotv1.VolumeSnapshotError{Message: &s.refuseGroups}}
			s.must(s.kube.Status().Update(ctx, g))
			continue
		}
		if s.holdSnapshots {
			continue
		}
		s.cutGroup(g)
	}
	for i := range snapshots.Items {
		snap := &snapshots.Items[i]
		if len(snap.OwnerReferences) == 1 && snap.OwnerReferences[0].Kind == "VolumeGroupSnapshot" && !alive[snap.OwnerReferences[0].Name] {
			s.must(s.kube.Delete(ctx, snap))
		}
	}
}

func (s *side) cutGroup(g *groupsnapshotv1.VolumeGroupSnapshot) {
	ctx := s.w.t.Context()
	var claims corev1.PersistentVolumeClaimList
	s.must(s.kube.List(ctx, &claims, client.InNamespace(g.Namespace), client.MatchingLabels(g.Spec.Source.Selector.MatchLabels)))
	var volumes corev1.PersistentVolumeList
	s.must(s.kube.List(ctx, &volumes))
	now, yes, content := metav1.Now(), true, "group-"+string(g.UID)
	for i := range claims.Items {
		claim := &claims.Items[i]
		var volume corev1.PersistentVolume
		s.must(s.kube.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &volume))
		handle, of := volume.Spec.CSI.VolumeHandle, claim.Name
		for j := range volumes.Items {
			if o := &volumes.Items[j]; o.Name != volume.Name && o.Spec.CSI != nil && o.Spec.CSI.VolumeHandle == handle {
				of = "" // as the snapshot controller does: it finds two and takes neither
			}
		}
		snap := &snapshotv1.VolumeSnapshot{
			ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: fmt.Sprintf("snapshot-%x-%s", handle[:8], g.UID),
				OwnerReferences: []metav1.OwnerReference{{APIVersion: groupsnapshotv1.SchemeGroupVersion.String(), Kind: "VolumeGroupSnapshot", Name: g.Name, UID: g.UID}}},
			Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &of}},
		}
		snap.Name = snapshot.Name(snap.Name, claim.Name)
		s.must(s.kube.Create(ctx, snap))
		stored := &snapshotv1.VolumeSnapshotContent{
			ObjectMeta: metav1.ObjectMeta{Name: "content-" + string(snap.UID)},
			Spec: snapshotv1.VolumeSnapshotContentSpec{Driver: groupingDriver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
				Source:            snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle},
				VolumeSnapshotRef: corev1.ObjectReference{Namespace: snap.Namespace, Name: snap.Name, UID: snap.UID}},
		}
		s.must(s.kube.Create(ctx, stored))
		size := claim.Status.Capacity[corev1.ResourceStorage]
		snap.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &stored.Name, CreationTime: &now, ReadyToUse: &yes, RestoreSize: &size, VolumeGroupSnapshotName: &g.Name}
		s.must(s.kube.Status().Update(ctx, snap))
	}
	g.Status = &groupsnapshotv1.VolumeGroupSnapshotStatus{BoundVolumeGroupSnapshotContentName: &content, CreationTime: &now, ReadyToUse: &yes}
	s.must(s.kube.Status().Update(ctx, g))
}

// groups lists the group snapshots of a purpose.
func (s *side) groups(purpose snapshot.Purpose) []string {
	var list groupsnapshotv1.VolumeGroupSnapshotList
	s.must(s.kube.List(s.w.t.Context(), &list, client.InNamespace(s.w.namespace), client.MatchingLabels{snapshot.LabelPurpose: string(purpose)}))
	var out []string
	for _, o := range list.Items {
		out = append(out, o.Name)
	}
	return out
}

// marked lists the claims that bear a cut's label.
func (s *side) marked() []string {
	var list corev1.PersistentVolumeClaimList
	s.list(&list)
	var out []string
	for _, o := range list.Items {
		for key := range o.Labels {
			if strings.HasPrefix(key, v1alpha1.LabelCutPrefix) {
				out = append(out, o.Name+" "+key)
			}
		}
	}
	return out
}

func protectTogether(w *world, class string, edit func(*v1alpha1.Replication), claims ...string) {
	w.t.Helper()
	for _, c := range claims {
		w.east.claim(c, "1Gi", class)
	}
	w.east.group("app", claims...)
	w.east.replication("app", v1alpha1.RoleSource, func(r *v1alpha1.Replication) {
		if edit != nil {
			edit(r)
		}
	})
	w.until("the first point", w.east.committed("app", ""))
}

// M-082: all members are cut by one group snapshot of the storage; recovery points are kept alike; labels that chose the claims are gone
// once they did, and everything is used and removed as single snapshots are.
func TestAGroupIsCutAtOneInstantByItsStorage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protectTogether(w, groupingClass, func(r *v1alpha1.Replication) { two := int32(2); r.Spec.Rlinks[0].Retain = &two }, "data", "log", "wal")
	first := w.east.link("app")
	if first.LastSession.Cut != v1alpha1.CutAtomic || first.LastSession.CutReason != "" || first.RecoveryPoint.Cut != v1alpha1.CutAtomic {
		t.Errorf("the session: %+v, its point: %+v", first.LastSession, first.RecoveryPoint)
	}
	for _, s := range []*side{w.east, w.west} {
		if c := conditionOf(s.get("app"), v1alpha1.ConditionCutAtomic); c.Status != metav1.ConditionTrue {
			t.Errorf("%s: CutAtomic: %+v", s.name, c)
		}
	}
	points := w.west.link("app").RecoveryPoints
	if len(points) != 1 || points[0].Cut != v1alpha1.CutAtomic || points[0].GroupSnapshot == "" || len(points[0].Snapshots) != 3 {
		t.Errorf("recovery points: %+v", points)
	}
	for i := range 3 {
		token := fmt.Sprintf("now-%d", i)
		w.east.trigger("app", token)
		w.until("a further point", w.east.committed("app", token))
	}
	w.until("what is surplus is gone", func() bool {
		return len(w.west.groups(snapshot.ForRecovery)) == 2 && len(w.west.snapshots()) == 6 && len(w.east.groups(snapshot.ForSession)) == 1 && len(w.east.snapshots()) == 3
	})
	if got := slices.Concat(w.east.marked(), w.west.marked()); len(got) != 0 {
		t.Errorf("labels of cuts that stayed: %v", got)
	}
	// Members of a group snapshot are found like snapshots that were taken one by one.
	var found snapshotv1.VolumeSnapshotList
	w.west.must(w.west.kube.List(t.Context(), &found, client.InNamespace(w.namespace), client.MatchingLabels{
		v1alpha1.LabelReplication: "app", v1alpha1.LabelPoint: w.west.link("app").RecoveryPoint.Point}))
	var of []string
	for _, o := range found.Items {
		of = append(of, o.Annotations[v1alpha1.AnnotationVolume])
	}
	if slices.Sort(of); !slices.Equal(of, []string{"data", "log", "wal"}) {
		t.Errorf("snapshots by label of the newest point are of %v", of)
	}
	w.west.must(w.west.kube.Delete(t.Context(), w.west.get("app")))
	w.east.must(w.east.kube.Delete(t.Context(), w.east.get("app")))
	w.until("everything is gone", func() bool {
		return w.east.get("app") == nil && w.west.get("app") == nil && len(w.east.snapshots()) == 0 && len(w.west.snapshots()) == 0
	})
}

// A storage that has a class and refuses all the same does not stop replication: its words are in the status, and for a while it is not asked.
func TestAGroupSnapshotThatIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.refuseGroups, w.west.refuseGroups = "cannot hold two block devices", "the receiver has them open"
	protectTogether(w, groupingClass, nil, "data", "wal")
	last := w.east.link("app").LastSession
	if last.Cut != v1alpha1.CutNotAtomic || !strings.Contains(last.CutReason, "cannot hold two block devices") {
		t.Errorf("the session: %+v", last)
	}
	if c := conditionOf(w.east.get("app"), v1alpha1.ConditionCutAtomic); c.Status != metav1.ConditionFalse || c.Reason != snapshot.CutRefused {
		t.Errorf("CutAtomic on the source: %+v", c)
	}
	if c := conditionOf(w.west.get("app"), v1alpha1.ConditionCutAtomic); c.Status != metav1.ConditionFalse || c.Reason != reasonCutNotAtomic {
		t.Errorf("CutAtomic on the target: %+v", c)
	}
	if p := w.west.link("app").RecoveryPoints; len(p) != 1 || p[0].GroupSnapshot != "" || len(p[0].Snapshots) != 2 {
		t.Errorf("the recovery point on a target that refuses too: %+v", p)
	}
	w.until("the refused one is removed", func() bool { return len(w.east.groups(snapshot.ForSession)) == 0 })
	if got := w.east.marked(); len(got) != 0 {
		t.Errorf("labels of cuts that stayed: %v", got)
	}
	w.east.refuseGroups = ""
	w.east.trigger("app", "soon")
	w.until("the next point", w.east.committed("app", "soon"))
	if cut := w.east.link("app").LastSession.Cut; cut != v1alpha1.CutNotAtomic {
		t.Errorf("soon after the refusal: %s", cut)
	}
	w.skip += refusedFor
	w.east.trigger("app", "later")
	w.until("a point after a while", w.east.committed("app", "later"))
	if cut := w.east.link("app").LastSession.Cut; cut != v1alpha1.CutAtomic {
		t.Errorf("a while after the refusal: %s", cut)
	}
}

// Who asks for one instant or nothing gets nothing where there is none, with the reason.
func TestAGroupThatMustBeAtomicIsNotCutOtherwise(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.claim("data", "1Gi", className)
	w.east.claim("wal", "1Gi", className)
	w.east.group("app", "data", "wal")
	var group v1alpha1.PVCGroup
	w.east.must(w.east.kube.Get(t.Context(), w.east.key("app"), &group))
	group.Spec.CutPolicy = v1alpha1.CutRequireAtomic
	w.east.must(w.east.kube.Update(t.Context(), &group))
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("it says why", func() bool {
		c := w.east.ready("app")
		return c.Reason == reasonCutNotAtomic && strings.Contains(c.Message, "no VolumeGroupSnapshotClass for driver "+driver)
	})
	if got := w.east.snapshots(); len(got) != 0 {
		t.Errorf("snapshots: %v", got)
	}
}

// regroup changes the members on the source.
func (w *world) regroup(claims ...string) {
	w.t.Helper()
	var group v1alpha1.PVCGroup
	w.east.must(w.east.kube.Get(w.t.Context(), w.east.key("app"), &group))
	group.Spec.PVCList = nil
	for _, c := range claims {
		group.Spec.PVCList = append(group.Spec.PVCList, v1alpha1.PVCRef{PVCName: c})
	}
	w.east.must(w.east.kube.Update(w.t.Context(), &group))
}

// M-078: members come and go while replication runs. A new one is in the next session, together with the others; one that left goes on
// both sides with its replica pair, and the users' claims are untouched. The others' replica is not begun anew.
func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// A spool that holds the larger group too: one that does not is made anew for it, and the next session compares.
	protectTogether(w, className, func(r *v1alpha1.Replication) {
		large := resource.MustParse("10Gi")
		r.Spec.Rlinks[0].SpoolSize = &large
	}, "data", "wal")
	spool := func() string {
		var claim corev1.PersistentVolumeClaim
		w.west.must(w.west.kube.Get(t.Context(), w.west.key("lb-app-spool"), &claim))
		return string(claim.UID)
	}
	before, volumes := spool(), w.volumes("data")
	w.east.claim("extra", "2Gi", className)
	w.regroup("data", "extra", "wal")
	w.east.trigger("app", "more")
	w.until("a point of three", w.east.committed("app", "more"))
	last := w.east.link("app").LastSession
	if last.Tier != v1alpha1.TierDigest {
		t.Errorf("the session: %+v", last)
	}
	if points := w.west.link("app").RecoveryPoints; len(points[0].Snapshots) != 3 || len(points[1].Snapshots) != 2 {
		t.Errorf("recovery points: %+v", points)
	}
	if got := w.west.get("app").Status.Claims; !slices.Equal(got, []string{"data", "extra", "wal"}) {
		t.Errorf("claims of the target: %v", got)
	}
	w.regroup("data", "extra")
	w.east.trigger("app", "fewer")
	w.until("a point of two", w.east.committed("app", "fewer"))
	w.until("rest", func() bool { return w.east.idle("app")() && w.west.idle("app")() })
	if got := w.west.claims(); !slices.Equal(got, []string{"data", "extra", "lb-app-spool", "lb-data-replica", "lb-extra-replica", "wal"}) {
		t.Errorf("claims on the target: %v", got)
	}
	for _, made := range w.west.made() {
		if strings.Contains(made, "volume") && strings.Contains(made, "wal") {
			t.Errorf("%s is still there", made)
		}
	}
	if got := w.east.claims(); !slices.Equal(got, []string{"data", "extra", "wal"}) {
		t.Errorf("claims on the source: %v", got)
	}
	if after := spool(); after != before || w.volumes("data") != volumes {
		t.Error("the replica was begun anew")
	}
	if got := w.west.get("app").Status.Claims; !slices.Equal(got, []string{"data", "extra"}) {
		t.Errorf("claims of the target: %v", got)
	}
}

// What the receiver has committed is of the members it has: it gets others only once that is applied and kept.
func TestAReceiverAppliesWhatItHasBeforeItsMembersChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data", "wal")
	w.west.applyLate = true
	w.east.trigger("app", "now")
	w.until("a point that is not applied yet", func() bool {
		l := w.east.link("app")
		return l.Session == nil && l.LastSession.TriggerNow == "now"
	})
	point := w.east.link("app").LastSession.Point
	w.regroup("data")
	var group v1alpha1.PVCGroup
	w.west.must(w.west.kube.Get(t.Context(), w.west.key("app"), &group))
	group.Spec.PVCList = group.Spec.PVCList[:1]
	w.west.must(w.west.kube.Update(t.Context(), &group))
	w.until("the target waits", func() bool {
		c := w.west.ready("app")
		return strings.Contains(c.Message, "waiting for the receiver to apply what it has")
	})
	if got := w.west.claims(); !slices.Contains(got, "lb-wal-replica") {
		t.Errorf("the pair of the former member went before its data were applied: %v", got)
	}
	w.west.applyLate = false
	w.until("it is recorded and the pair gone", func() bool {
		p := w.west.link("app").RecoveryPoint
		return p != nil && p.Point == point && !slices.Contains(w.west.claims(), "lb-wal-replica")
	})
}

// M-103: retention by age counts from the instant a point was cut at, and never takes the newest.
func TestRecoveryPointsAreKeptForAsLongAsWanted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protectTogether(w, className, func(r *v1alpha1.Replication) {
		five := int32(5)
		r.Spec.Rlinks[0].Retain, r.Spec.Rlinks[0].RetainFor = &five, &metav1.Duration{Duration: 3 * time.Hour}
	}, "data")
	w.east.trigger("app", "second")
	w.until("a second point", w.east.committed("app", "second"))
	newest := w.west.link("app").RecoveryPoint.Point
	if got := w.west.link("app").RecoveryPoints; len(got) != 2 {
		t.Fatalf("recovery points: %+v", got)
	}
	w.skip += 4 * time.Hour
	w.until("the older one is gone", func() bool { return len(w.west.snapshots()) == 1 })
	for range 3 {
		w.turn()
	}
	if got := w.west.link("app").RecoveryPoints; len(got) != 1 || got[0].Point != newest {
		t.Errorf("recovery points: %+v, want %s, the newest", got, newest)
	}
}

// three points on the target, oldest first.
func threePoints(w *world) []string {
	w.t.Helper()
	protect(w, "data", "wal")
	points := []string{w.west.link("app").RecoveryPoint.Point}
	for _, token := range []string{"a", "b"} {
		w.east.trigger("app", token)
		w.until("point "+token, w.east.committed("app", token))
		points = append(points, w.west.link("app").RecoveryPoint.Point)
	}
	return points
}

// M-105: a promotion to an older point rolls the replica back before its claims become usable, once; what was written is named until it is.
func TestPromotionToAnOlderPoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	points := threePoints(w)
	volumes := w.volumes("data")
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	w.west.edit("app", func(r *v1alpha1.Replication) {
		r.Spec.Role, r.Spec.Epoch, r.Spec.PromoteTo = v1alpha1.RoleSource, 2, "20200101t000000-000000"
	})
	w.until("a point that is not kept is refused with those that are", func() bool {
		c := w.west.ready("app")
		return c.Reason == cycle.ReasonPointNotKept && strings.Contains(c.Message, points[0]) && strings.Contains(c.Message, points[2])
	})
	w.west.holdMovers = true
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.PromoteTo = points[0] })
	w.until("the rollback runs", func() bool { return strings.Contains(strings.Join(w.west.made(), " "), "rollback") })
	if s := w.west.get("app").Status; s.Role != v1alpha1.RoleTarget || s.RollingBackTo != points[0] || s.Rlinks[0].RecoveryPoint != nil {
		t.Errorf("while it runs: %+v", s)
	}
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.PromoteTo = "" })
	w.until("half a rollback is not promoted", func() bool { return w.west.ready("app").Reason == cycle.ReasonPointNotKept })
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.PromoteTo = points[0] })
	w.west.holdMovers = false
	w.until("west is source", w.west.inForce("app", v1alpha1.RoleSource, 2))
	s := w.west.get("app").Status
	if s.PromotedTo != points[0] || s.RollingBackTo != "" || s.Rlinks[0].RecoveryPoint == nil || s.Rlinks[0].RecoveryPoint.Point != points[0] {
		t.Errorf("promoted: %+v", s)
	}
	if !slices.Equal(w.west.rolledBack, []string{points[0]}) {
		t.Errorf("rollbacks: %v", w.west.rolledBack)
	}
	if got := w.west.claims(); !slices.Equal(got, []string{"data", "wal"}) || w.volumes("data") != volumes {
		t.Errorf("claims: %v", got)
	}
	// The next promotion does not go back there again.
	w.until("the reverse replication", w.west.committed("app", ""))
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 3 })
	w.until("west is target again", w.west.inForce("app", v1alpha1.RoleTarget, 3))
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 3 })
	w.until("home", func() bool {
		p := w.west.link("app").RecoveryPoint
		return w.east.inForce("app", v1alpha1.RoleSource, 3)() && p != nil && p.Epoch == 3
	})
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 4 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 4))
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 4 })
	w.until("west is source", w.west.inForce("app", v1alpha1.RoleSource, 4))
	if len(w.west.rolledBack) != 1 {
		t.Errorf("rollbacks: %v", w.west.rolledBack)
	}
}

// A promotion that is taken back while the replica is rolled back leaves no point that is none: the replica is compared anew.
func TestARollbackThatIsTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	points := threePoints(w)
	w.east.paused, w.west.offline = true, true
	w.west.holdMovers = true
	w.west.edit("app", func(r *v1alpha1.Replication) {
		r.Spec.Role, r.Spec.AcknowledgePeerLost, r.Spec.PromoteTo = v1alpha1.RoleSource, w.west.link("app").RecoveryPoint.Point, points[1]
	})
	w.until("the rollback runs", func() bool { return strings.Contains(strings.Join(w.west.made(), " "), "rollback") })
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role = v1alpha1.RoleTarget })
	w.until("nothing of it is left, and the receiver is there again", func() bool {
		s := w.west.get("app").Status
		return !strings.Contains(strings.Join(append(w.west.made(), w.west.claims()...), " "), "rollback") && s.RollingBackTo == "" && slices.Contains(w.west.claims(), "lb-app-spool")
	})
	if p := w.west.link("app").RecoveryPoint; p != nil {
		t.Errorf("the half rolled back replica is said to hold %+v", p)
	}
	w.east.paused, w.west.offline, w.west.holdMovers = false, false, false
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Epoch = 2 })
	w.east.trigger("app", "again")
	w.until("a point again", w.east.committed("app", "again"))
	if len(w.west.rolledBack) != 0 {
		t.Errorf("rollbacks: %v", w.west.rolledBack)
	}
}

// A delta that the spool cannot hold may go straight onto the replica only while snapshots keep what that holds, and only this once.
func TestADeltaThatIsTooLargeForTheSpool(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protect(w, "data")
	receiver := func() engine.TargetConfig {
		pod := w.west.receiver(w.namespace + "/app")
		if pod == nil {
			return engine.TargetConfig{}
		}
		var config engine.TargetConfig
		w.west.config(pod, &config)
		return config
	}
	if c := receiver(); c.KeptElsewhere || c.SpoolLimit == 0 {
		t.Errorf("at rest: %+v", c)
	}
	w.west.tooLarge = "20261121t120000-0000aa"
	w.until("the replica may be written over", func() bool { return receiver().KeptElsewhere })
	w.west.tooLarge = ""
	for range 3 {
		w.turn()
	}
	if !receiver().KeptElsewhere {
		t.Error("it was taken back before a point came")
	}
	w.east.trigger("app", "next")
	w.until("the next point", w.east.committed("app", "next"))
	w.until("the spool is asked first again", func() bool { c := receiver(); return c.Spool != "" && !c.KeptElsewhere })

	// Without a snapshot of what the replica holds there is nothing else that keeps it.
	point := w.west.link("app").RecoveryPoint.Point
	var kept snapshotv1.VolumeSnapshotList
	w.west.must(w.west.kube.List(t.Context(), &kept, client.InNamespace(w.namespace), client.MatchingLabels{v1alpha1.LabelPoint: point}))
	for i := range kept.Items {
		w.west.must(w.west.kube.Delete(t.Context(), &kept.Items[i]))
	}
	w.west.tooLarge = "20261121t120000-0000ab"
	for range 5 {
		w.turn()
	}
	if receiver().KeptElsewhere {
		t.Error("the only copy of the point may be written over")
	}
}
