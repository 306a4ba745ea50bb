//go:build e2e

package e2e

import (
	"testing"
)

// The main job, small: replicate, migrate, migrate home, nothing lost.
func TestShortMoveAndHome(t *testing.T) {
	s := running(t)
	before := plan(t, s, s.Home).Status.Epoch
	replicaIsGuarded(t, s, s.Away, s.Home)
	replicationIsShown(t, s, s.Home)

	took, downtime, err := s.Move(t.Context(), s.Home, s.Away)
	must(t, err)
	t.Logf("migrate took %s, down %s", took, downtime)
	onlyOneSideRuns(t, s, s.Away)
	replicaIsGuarded(t, s, s.Home, s.Away)
	if after := plan(t, s, s.Away).Status.Epoch; after <= before {
		t.Errorf("the epoch did not grow: %d before, %d after", before, after)
	}

	must(t, s.WaitSessions(t.Context(), s.Away, 1, "reverse"))
	reverse := rlink(t, s, s.Away).LastSession
	size := int64(1 << 30)
	if reverse.BytesSent > size/4 {
		t.Errorf("the way back sent %d bytes: only what changed may move", reverse.BytesSent)
	}

	took, downtime, err = s.Move(t.Context(), s.Away, s.Home)
	must(t, err)
	t.Logf("migrate home took %s, down %s", took, downtime)
	onlyOneSideRuns(t, s, s.Home)
	must(t, s.Check(t.Context()))
	for _, c := range []string{plan(t, s, s.Home).Status.PrimaryCluster, plan(t, s, s.Away).Status.PrimaryCluster, plan(t, s, s.Away).Spec.PrimaryCluster} {
		if c != s.Home.Name {
			t.Errorf("a copy of the plan says %s, want %s", c, s.Home.Name)
		}
	}
}
