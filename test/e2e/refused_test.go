//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// A migrate is asked for where the application runs; elsewhere the API server names the right cluster.
func TestMigrateOnTheWrongClusterIsRefused(t *testing.T) {
	s := running(t)
	err := setPrimary(t, s, s.Away, s.Away.Name)
	if err == nil || !strings.Contains(err.Error(), "make the edit there") || !strings.Contains(err.Error(), s.Home.Name) {
		t.Fatalf("want a refusal that names %s, got: %v", s.Home.Name, err)
	}
	onlyOneSideRuns(t, s, s.Home)
	must(t, s.Check(t.Context()))
}

// While the peer is down a migrate waits, says so, and touches nothing; taken back, it is forgotten.
func TestMigrateWhileThePeerIsDownWaits(t *testing.T) {
	s := running(t)
	clusters(t, "kill", s.Away.Name)
	restarted := false
	defer func() {
		if !restarted {
			clusters(t, "restart", s.Away.Name)
		}
	}()
	must(t, setPrimary(t, s, s.Home, s.Away.Name))
	until(t, 90*time.Second, "the plan says that the peer does not answer", func() (bool, string) {
		p := plan(t, s, s.Home)
		return strings.Contains(p.Status.Reason, "Peer") && p.Status.Message != "", p.Status.Reason + ": " + p.Status.Message
	})
	if n := databasePods(t, s, s.Home); n != 1 {
		t.Errorf("%d pods of the database on %s, want 1: the move must not touch it", n, s.Home.Name)
	}
	must(t, setPrimary(t, s, s.Home, s.Home.Name))
	until(t, time.Minute, "the plan forgets the move", func() (bool, string) {
		p := plan(t, s, s.Home)
		return p.Status.Operation == nil && p.Status.Step == "", p.Status.Phase + " " + p.Status.Message
	})
	clusters(t, "restart", s.Away.Name)
	restarted = true
	until(t, 2*time.Minute, "the peers find each other again", func() (bool, string) {
		p := plan(t, s, s.Home)
		return len(p.Status.Peers) == 1 && p.Status.Peers[0].Reachable, conditionMessage(p.Status.Conditions, v1alpha1.ConditionPeersReachable)
	})
	_, _, err := s.Move(t.Context(), s.Home, s.Away)
	must(t, err)
	onlyOneSideRuns(t, s, s.Away)
	must(t, s.Check(t.Context()))
}
