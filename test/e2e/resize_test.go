//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// M-153: under load the source's claim is grown, and nothing else is done. The replica grows, the next point has the new size, and after
// a move the file system has it too.
func TestAClaimGrowsOnBothSides(t *testing.T) {
	s := running(t)
	until(t, time.Minute, "the first point is recorded", func() (bool, string) {
		return rlink(t, s, s.Away).RecoveryPoint != nil, rlink(t, s, s.Away).WaitingFor
	})
	r, err := s.Replication(t.Context(), s.Home)
	must(t, err)
	claim := r.Status.Claims[0]
	grow := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`))
	must(t, s.Home.Client.Patch(t.Context(), pvc(s, claim), grow))

	began := time.Now()
	until(t, 2*time.Minute, "both sides have the new size", func() (bool, string) {
		home, err := s.Replication(t.Context(), s.Home)
		must(t, err)
		away, err := s.Replication(t.Context(), s.Away)
		must(t, err)
		seen := fmt.Sprintf("%v %s | %v %s", home.Status.Sizes, conditionMessage(home.Status.Conditions, v1alpha1.ConditionReady),
			away.Status.Sizes, conditionMessage(away.Status.Conditions, v1alpha1.ConditionReady))
		if l := rlink(t, s, s.Away); l.RecoveryPoint == nil {
			t.Fatalf("the replica lost its recovery point: %s", seen)
		}
		return size(home) == 2<<30 && size(away) == 2<<30 && away.Status.Rlinks[0].ReceiverReady, seen
	})
	t.Logf("grown on both sides after %s", time.Since(began).Round(time.Millisecond))
	editReplication(t, s, s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.TriggerNow = "grown" })
	until(t, 2*time.Minute, "the next point", func() (bool, string) {
		l := rlink(t, s, s.Home)
		if l.LastSession == nil || l.LastSession.TriggerNow != "grown" {
			return false, l.WaitingFor
		}
		return true, ""
	})
	last := rlink(t, s, s.Home).LastSession
	if last.Result != "Committed" {
		t.Fatalf("the session after growing: %+v", last)
	}
	t.Logf("the session after growing: tier %s (%s), %d bytes sent", last.Tier, last.TierReason, last.BytesSent)
	until(t, time.Minute, "the point is kept with the new size", func() (bool, string) {
		var kept snapshotv1.VolumeSnapshotList
		must(t, s.Away.Client.List(t.Context(), &kept, client.InNamespace(s.Namespace), client.MatchingLabels{v1alpha1.LabelPoint: last.Point}))
		if len(kept.Items) == 0 || kept.Items[0].Status == nil || kept.Items[0].Status.RestoreSize == nil {
			return false, "no snapshot"
		}
		got := kept.Items[0].Status.RestoreSize
		return got.Cmp(resource.MustParse("2Gi")) == 0, got.String()
	})

	_, _, err = s.Move(t.Context(), s.Home, s.Away)
	must(t, err)
	must(t, s.Check(t.Context()))
	if got := fileSystemSize(t, s, s.Away); got < 1800<<20 {
		t.Errorf("the file system on %s has %d bytes", s.Away.Name, got)
	}
	must(t, s.WaitSessions(t.Context(), s.Away, 1, "reverse"))
}

func pvc(s *demo.Story, name string) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{}
	claim.Namespace, claim.Name = s.Namespace, name
	return claim
}

func size(r *v1alpha1.Replication) int64 {
	if len(r.Status.Sizes) == 0 || len(r.Status.Rlinks) == 0 {
		return 0
	}
	return r.Status.Sizes[0].Bytes
}

// fileSystemSize is what the database's pod sees.
func fileSystemSize(t *testing.T, s *demo.Story, c demo.Cluster) int64 {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), clustersProgram, "kubectl", c.Name, "exec", "-n", s.Namespace, "postgres-0", "--",
		"stat", "-f", "-c", "%b %S", "/var/lib/postgresql/data").CombinedOutput()
	if err != nil {
		t.Fatalf("ask for the file system's size: %v\n%s", err, out)
	}
	blocks, unit, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	b, err := strconv.ParseInt(blocks, 10, 64)
	must(t, err)
	u, err := strconv.ParseInt(unit, 10, 64)
	must(t, err)
	return b * u
}
