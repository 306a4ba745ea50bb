//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

const lifeboatProgram = "../../bin/lifeboat"

func lifeboat(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), lifeboatProgram, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("lifeboat %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// M-082, M-103, M-105: volumes that are written one after the other are never found the other way round in any recovery point: each is
// restored beside the replica and read, and the replica is promoted to one that is not the newest.
func TestAnOrderedWriterIsFoundInOrder(t *testing.T) {
	s := tell(t)
	must(t, s.Home.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}}))
	w := startWriter(t, s, "ordered", s.Home, 3)
	// The group is whoever bears the label.
	w.protect(t, s.Away.Name, "", ptr.To[int32](5), func(g *v1alpha1.PVCGroupSpec) {
		g.PVCList, g.Selector = nil, &metav1.LabelSelector{MatchLabels: map[string]string{"app": w.name}}
	})
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
		suffix := fmt.Sprintf("-%d", i)
		lifeboat(t, "restore", "-n", s.Namespace, w.name, "--context", s.Away.Name, "--point", r.Point, "--suffix", suffix)
		var claims []string
		for _, claim := range w.claims() {
			claims = append(claims, claim+suffix)
		}
		n := w.numbers(t, s.Away, claims)
		t.Logf("point %s holds %v", r.Point, n)
		if i > 0 && n[0] <= held[i-1][0] {
			t.Errorf("point %s holds %d, the one before it %d: the writer stood still", r.Point, n[0], held[i-1][0])
		}
		held = append(held, n)
	}
	w.stop(t, s.Home)
	w.patch(t, s.Home, `{"spec":{"role":"target","epoch":2}}`)
	w.patch(t, s.Away, fmt.Sprintf(`{"spec":{"role":"source","epoch":2,"promoteTo":%q}}`, reports[2].Point))
	until(t, 2*time.Minute, "the replica is promoted", func() (bool, string) {
		r := w.replication(t, s.Away)
		return r.Status.Role == v1alpha1.RoleSource, conditionMessage(r.Status.Conditions, v1alpha1.ConditionPromoted)
	})
	if n := w.numbers(t, s.Away, w.claims()); !slices.Equal(n, held[2]) {
		t.Errorf("promoted to point %s the claims hold %v, its copy held %v", reports[2].Point, n, held[2])
	}
	w.remove(t)
}
