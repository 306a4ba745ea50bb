//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// M-125, M-126, M-142, M-143, M-165: without a plan, kubectl patch on one side and then on the other is a failover, and the same the other
// way round the failback. The wrong order waits. Nothing is lost, and what moves back is about what was written.
func TestRolesByHand(t *testing.T) {
	s := tell(t)
	must(t, s.Home.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}}))
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
	for _, c := range []demo.Cluster{s.Home, s.Away} {
		must(t, client.IgnoreNotFound(c.Client.Delete(t.Context(), &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: w.name}})))
	}
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
	must(t, from.Client.Delete(t.Context(), w.deployment()))
	until(t, time.Minute, "the writer has stopped", func() (bool, string) {
		var pods corev1.PodList
		must(t, from.Client.List(t.Context(), &pods, client.InNamespace(w.story.Namespace), client.MatchingLabels{"app": w.name}))
		return len(pods.Items) == 0, fmt.Sprint(len(pods.Items), " pods")
	})
	written := w.number(t, from)
	token := fmt.Sprintf("final-%s-%d", from.Name, time.Now().UnixNano())
	w.patch(t, from, fmt.Sprintf(`{"spec":{"triggerNow":%q}}`, token))
	until(t, 2*time.Minute, "the final session", func() (bool, string) {
		l := w.link(t, from)
		return l.LastSession != nil && l.LastSession.TriggerNow == token && l.LastSession.Result == "Committed", l.WaitingFor
	})

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
	// What differs now is what is written here from now on: some blocks of two volumes of 256 MiB.
	l := w.link(t, to).LastSession
	t.Logf("the first session the other way: tier %s, %d bytes read, %d changed, %d sent", l.Tier, l.BytesRead, l.BytesChanged, l.BytesSent)
	if l.Tier == v1alpha1.TierFull || l.BytesSent > 64<<20 {
		t.Errorf("the way back sent %d bytes by tier %s: only what changed may move", l.BytesSent, l.Tier)
	}
	return epoch
}

// inStep waits for a point of the source's epoch that the target has recorded.
func (w *writer) inStep(t *testing.T, source, target demo.Cluster) {
	t.Helper()
	until(t, 3*time.Minute, "replication from "+source.Name+" to "+target.Name, func() (bool, string) {
		here, there := w.link(t, source), w.link(t, target)
		epoch := w.replication(t, source).Status.Epoch
		return here.Session == nil && here.RecoveryPoint != nil && here.RecoveryPoint.Epoch == epoch && there.RecoveryPoint != nil &&
			here.RecoveryPoint.Point == there.RecoveryPoint.Point && there.ReceiverReady, here.WaitingFor + " | " + there.WaitingFor
	})
}

// patch is what an operator types.
func (w *writer) patch(t *testing.T, c demo.Cluster, patch string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), clustersProgram, "kubectl", c.Name, "-n", w.story.Namespace, "patch", "replication", w.name, "--type=merge", "-p", patch).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl patch on %s: %v\n%s", c.Name, err, out)
	}
}

func (w *writer) replication(t *testing.T, c demo.Cluster) *v1alpha1.Replication {
	t.Helper()
	r := &v1alpha1.Replication{}
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: w.story.Namespace, Name: w.name}, r); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return r
}

func (w *writer) link(t *testing.T, c demo.Cluster) v1alpha1.RlinkStatus {
	t.Helper()
	if r := w.replication(t, c); len(r.Status.Rlinks) > 0 {
		return r.Status.Rlinks[0]
	}
	return v1alpha1.RlinkStatus{}
}

func (w *writer) deployment() *appsv1.Deployment {
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name}}
}

// start runs the writer on claims that are there.
func (w *writer) start(t *testing.T, c demo.Cluster) {
	t.Helper()
	labels := map[string]string{"app": w.name}
	d := w.deployment()
	d.Labels = labels
	one := int32(1)
	d.Spec = appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podWith(w.story.Image, w.claims(), "/volumes", writerScript, fmt.Sprint(w.volumes))}}
	must(t, c.Client.Create(t.Context(), d))
	until(t, 2*time.Minute, "the writer runs on "+c.Name, func() (bool, string) {
		must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(d), d))
		return d.Status.ReadyReplicas == 1, fmt.Sprint(d.Status)
	})
}

// number reads what the volumes on c hold, through a pod of its own.
func (w *writer) number(t *testing.T, c demo.Cluster) int64 {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, GenerateName: "reader-"}, Spec: podWith(w.story.Image, w.claims(), "/volumes", readScript, fmt.Sprint(w.volumes))}
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	must(t, c.Client.Create(t.Context(), pod))
	printed := ""
	until(t, 2*time.Minute, "the reader on "+c.Name, func() (bool, string) {
		must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		for _, status := range pod.Status.ContainerStatuses {
			if end := status.State.Terminated; end != nil {
				printed = end.Message
			}
		}
		return pod.Status.Phase == corev1.PodSucceeded && printed != "", string(pod.Status.Phase)
	})
	must(t, c.Client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
	n, fault := outOfOrder(printed)
	if fault != "" {
		t.Fatalf("on %s: %s", c.Name, fault)
	}
	return n
}
