//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// M-125, M-126, M-142, M-143, M-165: without a plan, kubectl patch on one side and then on the other is a failover, and the same the other
// way round the failback. The wrong order waits. Nothing is lost, and what moves back is about what was written.
func TestRolesByHand(t *testing.T) {
	s := tell(t)
	w := startWriter(t, s, "writer", s.Home, 2)
	w.protect(t, s.Away.Name, "", nil)
	w.inStep(t, s.Home, s.Away)

	// The wrong order: the target first. It waits, says what to patch where, and the source goes on being one.
	w.patch(t, s.Away, `{"spec":{"role":"source"}}`)
	until(t, time.Minute, "the wrong order is named", func() (bool, string) {
		m := conditionMessage(w.replication(t, s.Away).Status.Conditions, v1alpha1.ConditionReady)
		return strings.Contains(m, "cluster "+s.Home.Name) && strings.Contains(m, "kubectl -n "+s.Namespace+" patch replication writer"), m
	})
	if r := w.replication(t, s.Away); r.Status.Role != v1alpha1.RoleTarget {
		t.Fatalf("%s became %s beside a source", s.Away.Name, r.Status.Role)
	}
	w.patch(t, s.Away, `{"spec":{"role":"target"}}`)

	epoch := w.exchange(t, s.Home, s.Away, 1)
	w.exchange(t, s.Away, s.Home, epoch)
	w.remove(t)
}

// exchange moves the writer from one cluster to the other by two patches, and lets it write there. It returns the new epoch.
func (w *writer) exchange(t *testing.T, from, to demo.Cluster, former int64) int64 {
	t.Helper()
	// The demotion waits for the application, by name.
	w.patch(t, from, `{"spec":{"role":"target"}}`)
	until(t, time.Minute, "the pod holds the demotion", func() (bool, string) {
		m := conditionMessage(w.replication(t, from).Status.Conditions, v1alpha1.ConditionReady)
		return strings.Contains(m, w.name+"-"), m
	})
	w.patch(t, from, `{"spec":{"role":"source"}}`)
	w.stop(t, from)
	written := w.number(t, from)
	w.session(t, from, to, fmt.Sprintf("final-%s-%d", from.Name, time.Now().UnixNano()))

	began := time.Now()
	w.patch(t, from, `{"spec":{"role":"target"}}`)
	until(t, time.Minute, "the former source is a target", func() (bool, string) {
		r := w.replication(t, from)
		return r.Status.Role == v1alpha1.RoleTarget, conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
	})
	w.patch(t, to, `{"spec":{"role":"source"}}`)
	until(t, time.Minute, "the former target is the source", func() (bool, string) {
		r := w.replication(t, to)
		return r.Status.Role == v1alpha1.RoleSource, conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
	})
	t.Logf("roles of %s and %s were exchanged in %s", from.Name, to.Name, time.Since(began).Round(time.Millisecond))
	epoch := w.replication(t, to).Status.Epoch
	if epoch <= former {
		t.Errorf("the epoch was %d, is %d", former, epoch)
	}
	if got := w.number(t, to); got != written {
		t.Fatalf("%s holds number %d, %s had written %d", to.Name, got, from.Name, written)
	}
	w.start(t, to)
	w.inStep(t, to, from)
	w.movedLittle(t, to)
	return epoch
}

// movedLittle fails unless the newest session from c took only what differs: some blocks of two volumes of 256 MiB.
func (w *writer) movedLittle(t *testing.T, c demo.Cluster) {
	t.Helper()
	l := w.link(t, c).LastSession
	t.Logf("the session from %s: tier %s, %d bytes read, %d changed, %d sent", c.Name, l.Tier, l.BytesRead, l.BytesChanged, l.BytesSent)
	if l.Tier == v1alpha1.TierFull || l.BytesSent > 64<<20 {
		t.Errorf("the session from %s sent %d bytes by tier %s: only what changed may move", c.Name, l.BytesSent, l.Tier)
	}
}
