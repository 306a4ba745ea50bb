//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// M-078, M-082: sixteen volumes under one writer are one group and one instant. The seventeenth is refused by name, and carried once the
// group may have it; a member that leaves takes nothing of the user's along.
func TestSixteenMembersAndOneMore(t *testing.T) {
	s := tell(t)
	must(t, s.Home.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}}))
	w := startWriter(t, s, "many", s.Home, 16)
	w.protectSelected(t, s.Away.Name)
	w.inStep(t, s.Home, s.Away)
	w.holdsOneInstant(t, 16)

	// A claim with the group's label joins by itself, and is one too many. Nothing is carried without it.
	extra := demoClaim(s.Namespace, "many-16", w.name)
	must(t, s.Home.Client.Create(t.Context(), extra))
	before := w.link(t, s.Home).RecoveryPoint.Point
	w.patch(t, s.Home, `{"spec":{"triggerNow":"seventeen"}}`)
	until(t, time.Minute, "the one too many is named", func() (bool, string) {
		m := conditionMessage(w.replication(t, s.Home).Status.Conditions, v1alpha1.ConditionReady)
		return strings.Contains(m, "claim many-16 is one more than spec.maxMembers 16"), m
	})
	if now := w.link(t, s.Home).RecoveryPoint.Point; now != before {
		t.Errorf("point %s was made of a group with a member too many", now)
	}
	w.allow(t, 17)
	w.carries(t, "seventeen", 17)

	// It leaves by losing the label.
	must(t, s.Home.Client.Patch(t.Context(), pvc(s, "many-16"), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"app":null}}}`))))
	w.patch(t, s.Home, `{"spec":{"triggerNow":"sixteen"}}`)
	w.carries(t, "sixteen", 16)
	w.holdsOneInstant(t, 16)
	for _, c := range []demo.Cluster{s.Home, s.Away} {
		claim := pvc(s, "many-16")
		if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil || !claim.DeletionTimestamp.IsZero() {
			t.Errorf("the user's claim on %s: deleted %v, %v", c.Name, claim.DeletionTimestamp, err)
		}
	}
	until(t, time.Minute, "the replica pair of the one that left is gone", func() (bool, string) {
		var claims corev1.PersistentVolumeClaimList
		must(t, s.Away.Client.List(t.Context(), &claims, client.InNamespace(s.Namespace)))
		i := slices.IndexFunc(claims.Items, func(o corev1.PersistentVolumeClaim) bool { return strings.Contains(o.Name, "many-16-replica") })
		return i < 0, fmt.Sprint(len(claims.Items), " claims")
	})
	for _, c := range []demo.Cluster{s.Home, s.Away} {
		must(t, client.IgnoreNotFound(c.Client.Delete(t.Context(), &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: w.name}})))
	}
}

// protectSelected makes a group by label, and its replication.
func (w *writer) protectSelected(t *testing.T, pair string) {
	t.Helper()
	must(t, w.story.Home.Client.Create(t.Context(), &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name},
		Spec: v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": w.name}}}}))
	must(t, w.story.Home.Client.Create(t.Context(), &v1alpha1.Replication{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name},
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, PVCGroupName: w.name,
			Rlinks: []v1alpha1.Rlink{{RlinkName: "peer", ClusterPair: pair}}},
	}))
}

func (w *writer) allow(t *testing.T, members int) {
	t.Helper()
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"maxMembers":%d}}`, members))
	must(t, w.story.Home.Client.Patch(t.Context(), &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name}}, patch))
}

// carries waits for a session's point of so many members on the target.
func (w *writer) carries(t *testing.T, trigger string, members int) {
	t.Helper()
	until(t, 3*time.Minute, fmt.Sprintf("a point of %d members", members), func() (bool, string) {
		r := w.replication(t, w.story.Home)
		here, there := w.link(t, w.story.Home), w.link(t, w.story.Away)
		seen := conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady) + " | " + there.WaitingFor
		if here.LastSession == nil || here.LastSession.TriggerNow != trigger || here.LastSession.Result != "Committed" || len(there.RecoveryPoints) == 0 {
			return false, seen
		}
		newest := there.RecoveryPoints[0]
		return newest.Point == here.LastSession.Point && len(newest.Snapshots) == members, seen
	})
	l := w.link(t, w.story.Home).LastSession
	t.Logf("%d members: tier %s, cut %s, %d bytes sent, %s", members, l.Tier, l.Cut, l.BytesSent, l.FinishedAt.Sub(l.StartedAt.Time))
}

// holdsOneInstant restores the newest recovery point on the away cluster and looks at the writer's order in it.
func (w *writer) holdsOneInstant(t *testing.T, members int) {
	t.Helper()
	away, ns := w.story.Away.Client, w.story.Namespace
	point := ""
	var kept []snapshotv1.VolumeSnapshot
	until(t, time.Minute, "the newest point is kept", func() (bool, string) {
		point = w.link(t, w.story.Away).RecoveryPoint.Point
		var list snapshotv1.VolumeSnapshotList
		must(t, away.List(t.Context(), &list, client.InNamespace(ns), client.MatchingLabels{snapshot.LabelPurpose: string(snapshot.ForRecovery), v1alpha1.LabelPoint: point}))
		kept = list.Items
		ready := len(kept) == members
		for _, o := range kept {
			ready = ready && o.Status != nil && o.Status.ReadyToUse != nil && *o.Status.ReadyToUse
		}
		return ready, fmt.Sprintf("%d snapshots of point %s", len(kept), point)
	})
	claims := make([]string, members)
	for i := range kept {
		var index int
		if _, err := fmt.Sscanf(kept[i].Annotations[v1alpha1.AnnotationVolume], w.name+"-%d", &index); err != nil || index >= members {
			t.Fatalf("snapshot %s is of claim %s", kept[i].Name, kept[i].Annotations[v1alpha1.AnnotationVolume])
		}
		claims[index] = fmt.Sprintf("look-%s-%d", point, index)
		must(t, away.Create(t.Context(), restoredClaim(ns, claims[index], &kept[i])))
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "look-" + point}, Spec: podWith(w.story.Image, claims, "/volumes", readScript, fmt.Sprint(members))}
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	must(t, away.Create(t.Context(), pod))
	printed := ""
	until(t, 3*time.Minute, "the restored volumes are read", func() (bool, string) {
		must(t, away.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		for _, status := range pod.Status.ContainerStatuses {
			if end := status.State.Terminated; end != nil {
				printed = end.Message
			}
		}
		return printed != "", string(pod.Status.Phase)
	})
	must(t, away.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
	for _, claim := range claims {
		must(t, away.Delete(t.Context(), pvc(w.story, claim)))
	}
	n, fault := outOfOrder(printed)
	if fault != "" {
		t.Errorf("point %s: %s", point, fault)
	}
	t.Logf("point %s: number %d in %d volumes", point, n, members)
}
