//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// M-082, M-103, M-105: volumes that are written one after the other, as fast as that goes, are never found the other way round in any
// recovery point: each is restored beside the replica and read, and the replica is promoted to one that is not the newest.
func TestAnOrderedWriterIsFoundInOrder(t *testing.T) {
	s := tell(t)
	w := &writer{story: s, name: "ordered", volumes: 3, script: writerScript, pause: "0"}
	w.begin(t, s.Home)
	w.protectBy(t, v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: w.label()}},
		v1alpha1.Rlink{ClusterPair: s.Away.Name, Retain: ptr.To[int32](5)}, func(spec *v1alpha1.ReplicationSpec) { spec.Epoch = 1 })
	w.inStep(t, s.Home, s.Away)
	reports := []v1alpha1.SessionReport{*w.link(t, s.Home).LastSession}
	for i := range 4 {
		reports = append(reports, w.session(t, s.Home, s.Away, fmt.Sprintf("again-%d", i)))
	}
	for _, r := range reports {
		t.Logf("session %s: %s, %s in %.1f s", r.Point, r.Tier, r.Cut, r.FinishedAt.Sub(r.StartedAt.Time).Seconds())
		if r.Cut != v1alpha1.CutAtomic {
			t.Errorf("session %s was cut %s: %s", r.Point, r.Cut, r.CutReason)
		}
	}
	list := lifeboat(t, "recovery-points", "-n", s.Namespace, w.name, "--context", s.Away.Name)
	t.Logf("recovery points\n%s", list)
	var held [][]int64
	for i, r := range reports {
		if !strings.Contains(list, r.Point) {
			t.Fatalf("point %s is not listed", r.Point)
		}
		n := w.numbers(t, s.Away, w.copies(t, r.Point, fmt.Sprintf("-%d", i)))
		t.Logf("point %s: %v", r.Point, n)
		if i > 0 && n[0] <= held[i-1][0] {
			t.Errorf("point %s holds %d, the one before it %d: the writer stood still", r.Point, n[0], held[i-1][0])
		}
		held = append(held, n)
	}
	w.stop(t, s.Home)
	w.edit(t, s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.Role, spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.edit(t, s.Away, func(spec *v1alpha1.ReplicationSpec) {
		spec.Role, spec.Epoch, spec.PromoteTo = v1alpha1.RoleSource, 2, reports[2].Point
	})
	until(t, 2*time.Minute, "the replica is promoted", func() (bool, string) {
		r := w.replication(t, s.Away)
		return r.Status.Role == v1alpha1.RoleSource, conditionMessage(r.Status.Conditions, v1alpha1.ConditionPromoted)
	})
	if n := w.numbers(t, s.Away, w.claims()); !slices.Equal(n, held[2]) {
		t.Errorf("promoted to point %s the claims hold %v, its copy held %v", reports[2].Point, n, held[2])
	}
	w.remove(t)
}
