//go:build e2e

package e2e

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// slow makes sessions long enough to act in the middle of one.
func slow(t *testing.T, s *demo.Story, bytesPerSecond string) {
	t.Helper()
	limit := resource.MustParse(bytesPerSecond)
	editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.Rlinks[0].BandwidthLimit = &limit })
}

func waitStep(t *testing.T, s *demo.Story, c demo.Cluster, steps ...v1alpha1.OperationStep) {
	t.Helper()
	until(t, 2*time.Minute, "the operation reaches its step", func() (bool, string) {
		p := plan(t, s, c)
		if p.Status.Operation == nil {
			return false, "no operation: " + p.Status.Message
		}
		for _, step := range steps {
			if p.Status.Operation.Step == step {
				return true, ""
			}
		}
		return false, string(p.Status.Operation.Step) + ": " + p.Status.Message
	})
}

func waitEnded(t *testing.T, s *demo.Story, c demo.Cluster, result string) v1alpha1.OperationReport {
	t.Helper()
	var report v1alpha1.OperationReport
	until(t, 4*time.Minute, "the operation ends", func() (bool, string) {
		p := plan(t, s, c)
		if p.Status.Operation != nil || len(p.Status.History) == 0 {
			return false, p.Status.Reason + ": " + p.Status.Message
		}
		report = p.Status.History[0]
		return true, ""
	})
	if report.Result != result {
		t.Fatalf("the operation ended as %s (%s), want %s", report.Result, report.Message, result)
	}
	return report
}

// Setting primaryCluster back before the handover leaves the application where it was, running.
func TestAbortBeforeTheHandover(t *testing.T) {
	s := running(t)
	slow(t, s, "1M")
	must(t, setPrimary(t, s, s.Home, s.Away.Name))
	waitStep(t, s, s.Home, v1alpha1.StepPreSync, v1alpha1.StepOffline, v1alpha1.StepFinalSync)
	must(t, setPrimary(t, s, s.Home, s.Home.Name))
	waitEnded(t, s, s.Home, "Aborted")
	must(t, s.Database().WaitReady(t.Context(), time.Minute))
	onlyOneSideRuns(t, s, s.Home)
	if p := plan(t, s, s.Home); p.Status.PrimaryCluster != s.Home.Name || p.Status.Grant != nil {
		t.Errorf("after the abort the primary is %s, grant %v", p.Status.PrimaryCluster, p.Status.Grant)
	}
	must(t, s.Check(t.Context()))
}

// A link that stays cut while the application is offline puts the application back by itself.
func TestLostPeerRollsBackBeforeTheHandover(t *testing.T) {
	s := running(t)
	slow(t, s, "2M")
	must(t, setPrimary(t, s, s.Home, s.Away.Name))
	waitStep(t, s, s.Home, v1alpha1.StepOffline, v1alpha1.StepFinalSync)
	clusters(t, "cut")
	healed := false
	defer func() {
		if !healed {
			clusters(t, "heal")
		}
	}()
	report := waitEnded(t, s, s.Home, "RolledBack")
	t.Logf("rolled back: %s", report.Message)
	must(t, s.Database().WaitReady(t.Context(), time.Minute))
	onlyOneSideRuns(t, s, s.Home)
	if p := plan(t, s, s.Home); p.Spec.PrimaryCluster != s.Home.Name {
		t.Errorf("after the rollback spec.primaryCluster is %s", p.Spec.PrimaryCluster)
	}
	clusters(t, "heal")
	healed = true
	slow(t, s, "1G")
	until(t, 2*time.Minute, "the plan is protected again", func() (bool, string) {
		p := plan(t, s, s.Home)
		return p.Status.Phase == "Protected", p.Status.Phase + " " + p.Status.Message
	})
	_, _, err := s.Move(t.Context(), s.Home, s.Away)
	must(t, err)
	must(t, s.Check(t.Context()))
}
