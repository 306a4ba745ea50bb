//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// M-078, M-082: sixteen volumes under one writer are one group and one instant. The seventeenth is refused by name, and carried once the
// group may have it; a member that leaves takes nothing of the user's along.
func TestSixteenMembersAndOneMore(t *testing.T) {
	s := tell(t)
	w := startWriter(t, s, "many", s.Home, 16)
	w.protectBy(t, v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: w.label()}}, v1alpha1.Rlink{ClusterPair: s.Away.Name})
	w.inStep(t, s.Home, s.Away)
	w.holdsOneInstant(t, "-first")

	// A claim with the group's label joins by itself, and is one too many. Nothing is carried without it.
	extra := writerClaim(s.Namespace, "many-16", w.name)
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
	w.holdsOneInstant(t, "-last")
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
	w.remove(t)
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
func (w *writer) holdsOneInstant(t *testing.T, suffix string) {
	t.Helper()
	point := w.link(t, w.story.Away).RecoveryPoint.Point
	copies := w.copies(t, point, suffix)
	t.Logf("point %s: number %d in %d volumes", point, w.numbers(t, w.story.Away, copies)[0], len(copies))
}
