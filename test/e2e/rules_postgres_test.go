//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// apartScript runs a database whose write-ahead log is on a volume of its own, commits as fast as that goes and writes its pages all the
// time. Beside it numbers are written to the log's volume, then to that of the data, without a pause: they tell how far the two were cut from
// each other.
const apartScript = `set -eu
export PATH=/usr/lib/postgresql/15/bin:$PATH
initdb -D /data/pgdata -X /wal/pg_wal --data-checksums -U postgres --auth=trust
trap 'kill $(jobs -p); exit 0' TERM INT
postgres -D /data/pgdata -c listen_addresses= &
until pg_isready -q; do sleep 0.1; done
psql -U postgres -qc 'CREATE EXTENSION amcheck'
pgbench -U postgres -iq -s 2 postgres
while :; do psql -U postgres -qc CHECKPOINT; done &
while :; do pgbench -U postgres -n -c 2 -T 3600 postgres; done &
echo loaded > /tmp/loaded
n=0
while :; do
  n=$((n + 1))
  for at in /wal /data; do printf '%020d\n' $n 1<>$at/n; done
done
`

// apartCheck starts the database from restored volumes, as a failover would, and prints how many transactions it holds and how far the
// volumes are apart.
const apartCheck = `export PATH=/usr/lib/postgresql/15/bin:$PATH
{
  pg_ctl -D /data/pgdata -w -t 60 -s -l /tmp/log -o "-c listen_addresses=''" start > /tmp/start 2>&1 || { tail -5 /tmp/log; exit; }
  psql -U postgres -AtX -v ON_ERROR_STOP=1 -c "SELECT CASE WHEN (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta) AND (SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta)
    AND (SELECT sum(bbalance) FROM pgbench_branches) = sum(delta) THEN count(*)::text ELSE 'the sums differ' END FROM pgbench_history"
  pg_amcheck -U postgres postgres || echo damaged
  expr $(cat /wal/n) - $(cat /data/n)
} 2>&1 | tail -c 2000 > /dev/termination-log
`

// example is the Rule of the guide's example that has a word in it, as it stands there.
func example(t *testing.T, word string) *v1alpha1.Rule {
	t.Helper()
	guide, err := os.ReadFile("../../docs/guide/rules.md")
	must(t, err)
	var found []string
	for _, part := range strings.Split(string(guide), "```yaml\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		if strings.Contains(block, word) {
			found = append(found, block)
		}
	}
	if len(found) != 1 {
		t.Fatalf("the guide has %d examples with %s", len(found), word)
	}
	var rule v1alpha1.Rule
	must(t, yaml.UnmarshalStrict([]byte(found[0]), &rule))
	return &rule
}

// apartPod has the two volumes where the guide's example has them.
func apartPod(s *demo.Story, name, script, data, wal string) *corev1.Pod {
	volume := func(name, claim string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: name}, Spec: corev1.PodSpec{
		RestartPolicy:                 corev1.RestartPolicyNever,
		TerminationGracePeriodSeconds: ptr.To[int64](5),
		SecurityContext:               &corev1.PodSecurityContext{FSGroup: ptr.To[int64](999), FSGroupChangePolicy: ptr.To(corev1.FSGroupChangeOnRootMismatch)},
		Containers: []corev1.Container{{Name: "postgres", Image: s.Image, Command: []string{"/bin/bash", "-c", script},
			VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "wal", MountPath: "/wal"}, {Name: "socket", MountPath: "/var/run/postgresql"}}}},
		Volumes: []corev1.Volume{volume("data", data), volume("wal", wal), {Name: "socket", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
	}}
}

// M-047: PostgreSQL with its log on a volume of its own, on storage that cuts one volume after the other, is recovered from every point
// when its file systems are frozen meanwhile as the guide says. When they are not its volumes are of different instants. The guide's
// other example is run as well.
func TestTheGuidesRulesForPostgreSQL(t *testing.T) {
	s := tell(t)
	w := &writer{story: s, name: "apart", volumes: 2}
	must(t, s.Home.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}}))
	for _, name := range w.claims() {
		claim := writerClaim(s.Namespace, name, w.name)
		claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("2Gi")
		must(t, s.Home.Client.Create(t.Context(), claim))
	}
	// The log is the first member, and so is cut before the data.
	wal, data := w.claims()[0], w.claims()[1]
	pod := apartPod(s, "postgres", apartScript, data, wal)
	pod.Labels = map[string]string{"app": "postgres"}
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cat", "/tmp/loaded"}}}}
	freezer := *pod.Spec.Containers[0].DeepCopy()
	freezer.Name, freezer.Command, freezer.ReadinessProbe = "freezer", []string{"sleep", "infinity"}, nil
	freezer.SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true), RunAsUser: ptr.To[int64](0)}
	pod.Spec.Containers = append(pod.Spec.Containers, freezer)
	must(t, s.Home.Client.Create(t.Context(), pod))
	until(t, 2*time.Minute, "the database is filled", func() (bool, string) {
		must(t, s.Home.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		for _, status := range pod.Status.ContainerStatuses {
			if !status.Ready {
				return false, fmt.Sprintf("%s %+v", status.Name, status.State)
			}
		}
		return len(pod.Status.ContainerStatuses) == 2, string(pod.Status.Phase)
	})
	for name, word := range map[string]string{"freeze": "fsfreeze", "checkpoint": "CHECKPOINT"} {
		rule := example(t, word)
		rule.Namespace, rule.Name = s.Namespace, name
		must(t, s.Home.Client.Create(t.Context(), rule))
	}
	w.protectBy(t, v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: wal}, {PVCName: data}}, CutPolicy: v1alpha1.CutSeparate},
		v1alpha1.Rlink{ClusterPair: s.Away.Name, Retain: ptr.To[int32](20)}, func(spec *v1alpha1.ReplicationSpec) { spec.PreCutRule = "freeze" })
	w.inStep(t, s.Home, s.Away)
	before := int64(0)
	for i, r := range w.heldSessions(t) {
		n, apart, printed := w.recovered(t, r.Point, fmt.Sprintf("-frozen-%d", i))
		t.Logf("point %s, frozen for %s: %d transactions, the volumes %d numbers apart", r.Point, r.Quiesce.ResumedAt.Sub(r.Quiesce.BegunAt.Time).Round(time.Millisecond), n, apart)
		if n <= before || apart < 0 || apart > 1 {
			t.Errorf("from point %s, after one that held %d transactions: %s", r.Point, before, printed)
		}
		before = n
	}

	w.edit(t, s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.PreCutRule = "checkpoint" })
	w.free(t, func(r v1alpha1.SessionReport, suffix string) bool {
		if r.Quiesce == nil || r.Quiesce.Failed != "" {
			t.Errorf("the checkpoint before session %s: %+v", r.Point, r.Quiesce)
		}
		_, apart, printed := w.recovered(t, r.Point, suffix)
		t.Logf("point %s, not frozen: %s", r.Point, printed)
		return apart < 0 || apart > 1
	})
	w.remove(t)
}

// recovered is what the database that is started from a point's copies says: how many transactions it holds, 0 if it cannot be used, and
// how far its volumes are apart.
func (w *writer) recovered(t *testing.T, point, suffix string) (transactions, apart int64, printed string) {
	t.Helper()
	copies := w.copies(t, point, suffix)
	printed = runToItsEnd(t, w.story.Away, apartPod(w.story, "check"+suffix, apartCheck, copies[1], copies[0]))
	if n, err := fmt.Sscanf(printed, "%d\n%d", &transactions, &apart); n != 2 || err != nil {
		return 0, -1, printed
	}
	return transactions, apart, printed
}
