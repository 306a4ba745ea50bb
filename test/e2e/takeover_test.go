//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// M-093, M-105, M-125, M-142, M-143: without a plan the source's whole cluster loses power in the middle of a session. Nobody is promoted
// by that. A person acknowledges the loss, and the target is the source, with what its newest recovery point holds and nothing of the
// session that was under way. The old cluster comes back with its application running, and does not write into the new epoch; it becomes a
// target, and takes and gives back only what differs.
func TestATakeoverByHand(t *testing.T) {
	s := tell(t)
	w := startWriter(t, s, "writer", s.Home, 2)
	w.protect(t, s.Away.Name, "", nil)
	w.inStep(t, s.Home, s.Away)
	newest := w.session(t, s.Home, s.Away, "newest")
	held := w.numbers(t, s.Away, w.copies(t, newest.Point, "-held"))

	// A session that does not get to its end.
	slowly := resource.MustParse("64Ki")
	w.edit(t, s.Home, func(spec *v1alpha1.ReplicationSpec) {
		spec.Rlinks[0].BandwidthLimit, spec.TriggerNow = &slowly, "cut short"
	})
	until(t, 2*time.Minute, "a session is under way", func() (bool, string) {
		l := w.link(t, s.Home)
		return l.Session != nil && l.Session.Phase == "Transferring", fmt.Sprintf("%+v %s", l.Session, l.WaitingFor)
	})
	began := time.Now()
	clusters(t, "kill", s.Home.Name)
	restarted := false
	defer func() {
		if !restarted {
			clusters(t, "restart", s.Home.Name)
		}
	}()
	w.patch(t, s.Away, `{"spec":{"role":"source"}}`)
	until(t, 2*time.Minute, "it asks for the loss to be acknowledged, by point", func() (bool, string) {
		m := conditionMessage(w.replication(t, s.Away).Status.Conditions, v1alpha1.ConditionReady)
		return strings.Contains(m, fmt.Sprintf("set spec.acknowledgePeerLost to %q", newest.Point)), m
	})
	if r := w.replication(t, s.Away); r.Status.Role != v1alpha1.RoleTarget || r.Status.ClaimedEpoch != nil {
		t.Fatalf("nobody acknowledged a loss, and %s is %s in epoch %d, claimed %v", s.Away.Name, r.Status.Role, r.Status.Epoch, r.Status.ClaimedEpoch)
	}
	asked := time.Now()
	w.patch(t, s.Away, fmt.Sprintf(`{"spec":{"acknowledgePeerLost":%q}}`, newest.Point))
	until(t, time.Minute, "the target is the source", func() (bool, string) {
		r := w.replication(t, s.Away)
		return r.Status.Role == v1alpha1.RoleSource, conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
	})
	t.Logf("the loss was noticed %s after the kill; taken over %s after it was acknowledged", asked.Sub(began).Round(time.Millisecond), time.Since(asked).Round(time.Millisecond))
	over := w.replication(t, s.Away)
	if o := over.Status.Takeover; o == nil || o.Point != newest.Point || o.Epoch != over.Status.Epoch || !slices.Equal(o.Clusters, []string{s.Home.Name}) {
		t.Errorf("the takeover is remembered as %+v", o)
	}
	if m := conditionMessage(over.Status.Conditions, v1alpha1.ConditionPromoted); !strings.HasPrefix(m, "True TakenOver") {
		t.Errorf("Promoted: %s", m)
	}
	if got := w.numbers(t, s.Away, w.claims()); !slices.Equal(got, held) {
		t.Fatalf("taken over with point %s the claims hold %v, a copy of it %v", newest.Point, got, held)
	}
	w.start(t, s.Away)

	// The old cluster comes back. Its application runs, and it thinks that it is the source.
	clusters(t, "restart", s.Home.Name)
	restarted = true
	until(t, 3*time.Minute, "the old source knows that it is stale", func() (bool, string) {
		var r v1alpha1.Replication
		if err := s.Home.Client.Get(t.Context(), client.ObjectKey{Namespace: s.Namespace, Name: w.name}, &r); err != nil {
			return false, err.Error() // the API server is on its way back
		}
		m := conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
		return strings.Contains(m, "StaleEpoch"), m
	})
	point := w.link(t, s.Away).RecoveryPoint.Point
	w.patch(t, s.Home, `{"spec":{"triggerNow":"stale"}}`)
	until(t, time.Minute, "a session that is asked for by hand is refused too", func() (bool, string) {
		r := w.replication(t, s.Home)
		return r.Status.ObservedGeneration == r.Generation, fmt.Sprint(r.Status.ObservedGeneration, " of ", r.Generation)
	})
	stale, there := w.replication(t, s.Home), w.replication(t, s.Away)
	if stale.Status.Epoch >= over.Status.Epoch || there.Status.Epoch != over.Status.Epoch || there.Status.Role != v1alpha1.RoleSource || there.Status.Takeover == nil {
		t.Errorf("the old source is %s in epoch %d; the new one is %s in epoch %d, took over in %d and remembers %+v", stale.Status.Role, stale.Status.Epoch,
			there.Status.Role, there.Status.Epoch, over.Status.Epoch, there.Status.Takeover)
	}
	if last := stale.Status.Rlinks[0].LastSession; last.Result == "Committed" && last.Point != newest.Point {
		t.Errorf("a stale session was committed: %+v", last)
	}
	if now := w.link(t, s.Away).RecoveryPoint.Point; now != point {
		t.Errorf("%s had point %s and has %s: who brought it?", s.Away.Name, point, now)
	}

	// Its writer is stopped, what it wrote after the point is given up, and it follows.
	w.stop(t, s.Home)
	w.edit(t, s.Home, func(spec *v1alpha1.ReplicationSpec) {
		spec.Role, spec.Rlinks[0].BandwidthLimit = v1alpha1.RoleTarget, nil
	})
	w.inStep(t, s.Away, s.Home)
	w.movedLittle(t, s.Away)
	until(t, time.Minute, "the takeover is over", func() (bool, string) {
		o := w.replication(t, s.Away).Status.Takeover
		return o == nil, fmt.Sprintf("%+v", o)
	})
	w.exchange(t, s.Away, s.Home, over.Status.Epoch)
	w.remove(t)
}
