//go:build e2e

package e2e

import (
	"testing"
	"time"

	"lifeboat.dev/lifeboat/internal/demo"
)

// The managers of both sides are killed whenever the operation has taken a step: it goes on where it was,
// and loses nothing.
func TestManagersKilledBetweenAnyTwoSteps(t *testing.T) {
	s := running(t)
	must(t, setPrimary(t, s, s.Home, s.Away.Name))
	last := map[string]string{}
	kills := 0
	until(t, 10*time.Minute, "the move completes under fire", func() (bool, string) {
		home, away := plan(t, s, s.Home), plan(t, s, s.Away)
		for _, side := range []struct {
			c    demo.Cluster
			step string
		}{{s.Home, string(home.Status.Step)}, {s.Away, string(away.Status.Step)}} {
			if side.step != "" && side.step != last[side.c.Name] {
				last[side.c.Name] = side.step
				t.Logf("killing the manager of %s at %s", side.c.Name, side.step)
				killManagers(t, side.c)
				kills++
			}
		}
		moved := home.Status.PrimaryCluster == s.Away.Name && away.Status.PrimaryCluster == s.Away.Name &&
			home.Status.Operation == nil && away.Status.Operation == nil
		return moved, home.Status.Message + " | " + away.Status.Message
	})
	if kills < 6 {
		t.Errorf("only %d kills: the steps were not seen", kills)
	}
	must(t, s.Database().WaitReady(t.Context(), time.Minute))
	onlyOneSideRuns(t, s, s.Away)
	must(t, s.Check(t.Context()))
}
