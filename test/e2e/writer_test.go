//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// writer is an application whose volumes betray a cut that was not one instant: it writes number n to its first
// volume and syncs, then to the second, then to the third. At any one instant each volume holds the number of the one
// before it, or one less than that, and the last no more than one less than the first.
type writer struct {
	story   *demo.Story
	name    string
	volumes int
	// script is what it runs; it is told the number of volumes, which are mounted at /volumes/0, /volumes/1, ..., and pause.
	script string
	// pause between two numbers, in seconds.
	pause string
}

// writerScript goes on with the number it finds.
const writerScript = `set -eu
last=$(($1 - 1))
for i in $(seq 0 $last); do
  [ -s /volumes/$i/n ] || { printf '%020d\n' 0 > /volumes/$i/n; sync /volumes/$i/n /volumes/$i; }
done
n=$(sed 's/^0*//' /volumes/0/n)
n=${n:-0}
trap 'exit 0' TERM INT
while :; do
  n=$((n + 1))
  for i in $(seq 0 $last); do
    printf '%020d\n' $n | dd of=/volumes/$i/n conv=notrunc,fsync status=none
  done
  # Something to carry, without a sync.
  [ $((n % 8)) -ne 0 ] || dd if=/dev/urandom of=/volumes/$((n % $1))/data bs=64k count=1 seek=$((n % 512)) conv=notrunc status=none
  sleep $2
done
`

// startWriter makes claims and writer on c and returns once it writes.
func startWriter(t *testing.T, s *demo.Story, name string, c demo.Cluster, volumes int) *writer {
	t.Helper()
	w := &writer{story: s, name: name, volumes: volumes, script: writerScript, pause: "0.05"}
	w.begin(t, c)
	return w
}

// begin makes the namespace, if it is not there, claims and writer on c and returns once it writes.
func (w *writer) begin(t *testing.T, c demo.Cluster) {
	t.Helper()
	err := c.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.story.Namespace}})
	if !apierrors.IsAlreadyExists(err) {
		must(t, err)
	}
	for _, claim := range w.claims() {
		must(t, c.Client.Create(t.Context(), writerClaim(w.story.Namespace, claim, w.name)))
	}
	w.start(t, c)
}

// writerClaim is one volume of a writer, or one like it.
func writerClaim(namespace, name, app string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("256Mi")}},
		},
	}
}

func (w *writer) claims() []string {
	var out []string
	for i := range w.volumes {
		out = append(out, fmt.Sprintf("%s-%d", w.name, i))
	}
	return out
}

// protect makes a group of the writer's claims by name, and replication, on the story's home cluster.
func (w *writer) protect(t *testing.T, pair, schedule string, retain *int32) {
	t.Helper()
	var group v1alpha1.PVCGroupSpec
	for _, claim := range w.claims() {
		group.PVCList = append(group.PVCList, v1alpha1.PVCRef{PVCName: claim})
	}
	w.protectBy(t, group, v1alpha1.Rlink{ClusterPair: pair, Schedule: schedule, Retain: retain})
}

// protectBy makes group and replication on the story's home cluster. The link's name is peer.
func (w *writer) protectBy(t *testing.T, group v1alpha1.PVCGroupSpec, link v1alpha1.Rlink, edit ...func(*v1alpha1.ReplicationSpec)) {
	t.Helper()
	about := metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name}
	link.RlinkName = "peer"
	spec := v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, PVCGroupName: w.name, Rlinks: []v1alpha1.Rlink{link}}
	for _, e := range edit {
		e(&spec)
	}
	must(t, w.story.Home.Client.Create(t.Context(), &v1alpha1.PVCGroup{ObjectMeta: about, Spec: group}))
	must(t, w.story.Home.Client.Create(t.Context(), &v1alpha1.Replication{ObjectMeta: about, Spec: spec}))
}

// label is what the writer's claims and pods bear.
func (w *writer) label() map[string]string { return map[string]string{"app": w.name} }

// start runs the writer on claims that are there, and returns once it writes.
func (w *writer) start(t *testing.T, c demo.Cluster) {
	t.Helper()
	labels := w.label()
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](1), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: podWith(w.story.Image, w.claims(), "/volumes", w.script, strconv.Itoa(w.volumes), w.pause)},
		},
	}
	must(t, c.Client.Create(t.Context(), d))
	until(t, 2*time.Minute, "the writer runs on "+c.Name, func() (bool, string) {
		must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(d), d))
		return d.Status.ReadyReplicas == 1, fmt.Sprint(d.Status)
	})
}

// stop ends the writer and returns once its pod is gone.
func (w *writer) stop(t *testing.T, c demo.Cluster) {
	t.Helper()
	must(t, c.Client.Delete(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name}}))
	until(t, time.Minute, "the writer has stopped", func() (bool, string) {
		var pods corev1.PodList
		must(t, c.Client.List(t.Context(), &pods, client.InNamespace(w.story.Namespace), client.MatchingLabels(w.label())))
		return len(pods.Items) == 0, fmt.Sprint(len(pods.Items), " pods")
	})
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

// edit changes the Replication on c.
func (w *writer) edit(t *testing.T, c demo.Cluster, change func(*v1alpha1.ReplicationSpec)) {
	t.Helper()
	r := w.replication(t, c)
	before := r.DeepCopy()
	change(&r.Spec)
	must(t, c.Client.Patch(t.Context(), r, client.MergeFrom(before)))
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

// number is what the first volume holds; all are read by a pod of their own, and must be in order.
func (w *writer) number(t *testing.T, c demo.Cluster) int64 {
	t.Helper()
	return w.numbers(t, c, w.claims())[0]
}

// numbers reads claims that hold the writer's volumes, in its order, and fails when they are not of one instant.
func (w *writer) numbers(t *testing.T, c demo.Cluster, claims []string) []int64 {
	t.Helper()
	numbers, fault := inOrder(w.read(t, c, claims))
	if fault != "" {
		t.Fatalf("%v on %s: %s", claims, c.Name, fault)
	}
	return numbers
}

// read prints what claims hold, by a pod of its own.
func (w *writer) read(t *testing.T, c demo.Cluster, claims []string) string {
	t.Helper()
	return runToItsEnd(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, GenerateName: "reader-"},
		Spec: podWith(w.story.Image, claims, "/volumes", readScript, strconv.Itoa(len(claims)))})
}

// runToItsEnd runs a pod of one container, once, and returns what it wrote to its termination log.
func runToItsEnd(t *testing.T, c demo.Cluster, pod *corev1.Pod) (printed string) {
	t.Helper()
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	must(t, c.Client.Create(t.Context(), pod))
	until(t, 2*time.Minute, "pod "+pod.Name+" on "+c.Name, func() (bool, string) {
		must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		for _, status := range pod.Status.ContainerStatuses {
			if end := status.State.Terminated; end != nil {
				printed = strings.TrimSpace(end.Message)
			}
		}
		return pod.Status.Phase == corev1.PodSucceeded && printed != "", string(pod.Status.Phase)
	})
	must(t, c.Client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
	return printed
}

// copies makes claims of a recovery point on the away cluster and returns their names.
func (w *writer) copies(t *testing.T, point, suffix string) (claims []string) {
	t.Helper()
	lifeboat(t, "restore", "-n", w.story.Namespace, w.name, "--context", w.story.Away.Name, "--point", point, "--suffix", suffix)
	for _, claim := range w.claims() {
		claims = append(claims, claim+suffix)
	}
	return claims
}

// session runs one and returns once its point is recorded on the target.
func (w *writer) session(t *testing.T, source, target demo.Cluster, token string) v1alpha1.SessionReport {
	t.Helper()
	w.patch(t, source, fmt.Sprintf(`{"spec":{"triggerNow":%q}}`, token))
	var last v1alpha1.SessionReport
	until(t, 3*time.Minute, "session "+token+" is committed and recorded", func() (bool, string) {
		l := w.link(t, source)
		if l.LastSession == nil || l.Session != nil || l.LastSession.TriggerNow != token {
			return false, fmt.Sprintf("%+v; %s", l.Session, l.WaitingFor)
		}
		last = *l.LastSession
		if last.Result != "Committed" {
			t.Fatalf("session %s failed: %s", token, last.Message)
		}
		p := w.link(t, target).RecoveryPoint
		return p != nil && p.Point == last.Point, "the target has not recorded it"
	})
	return last
}

// remove deletes the Replications of both clusters, so that nothing of them holds the end of the story up.
func (w *writer) remove(t *testing.T) {
	t.Helper()
	for _, c := range []demo.Cluster{w.story.Home, w.story.Away} {
		must(t, client.IgnoreNotFound(c.Client.Delete(t.Context(), &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name}})))
	}
}

// readScript prints the number in each volume, in order, where a pod's end is told. A volume that was cut before its
// file was written has none.
const readScript = `for i in $(seq 0 $(($1 - 1))); do cat /volumes/$i/n 2>/dev/null || echo none; done > /dev/termination-log`

// outOfOrder judges what readScript printed: why it cannot be one instant, or the number of the first volume.
func outOfOrder(printed string) (n int64, fault string) {
	numbers, fault := inOrder(printed)
	if fault != "" {
		return 0, fault
	}
	return numbers[0], ""
}

// inOrder judges what readScript printed: the numbers, or why they cannot be of one instant. A volume without one has -1.
func inOrder(printed string) (numbers []int64, fault string) {
	fields := strings.Fields(printed)
	for _, f := range fields {
		if f == "none" {
			numbers = append(numbers, -1)
			continue
		}
		v, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, fmt.Sprintf("%q is no number", f)
		}
		numbers = append(numbers, v)
	}
	if len(numbers) == 0 {
		return nil, "nothing was printed"
	}
	for i := 1; i < len(numbers); i++ {
		if numbers[i] > numbers[i-1] {
			return nil, fmt.Sprintf("volume %d is ahead of volume %d: %v", i, i-1, numbers)
		}
	}
	if last := numbers[len(numbers)-1]; numbers[0] > 0 && last < numbers[0]-1 {
		return nil, fmt.Sprintf("the last volume is %d writes behind the first: %v", numbers[0]-last, numbers)
	}
	return numbers, ""
}

// podWith runs a script on claims mounted at dir/0, dir/1, ...
func podWith(image string, claims []string, dir, script string, args ...string) corev1.PodSpec {
	pod := corev1.PodSpec{
		TerminationGracePeriodSeconds: ptr.To[int64](2),
		AutomountServiceAccountToken:  ptr.To(false),
		SecurityContext:               &corev1.PodSecurityContext{FSGroup: ptr.To[int64](999), FSGroupChangePolicy: ptr.To(corev1.FSGroupChangeOnRootMismatch)},
		Containers: []corev1.Container{{
			Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
			Command: append([]string{"/bin/bash", "-c", script, "script"}, args...),
		}},
	}
	for i, claim := range claims {
		name := "volume-" + strconv.Itoa(i)
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
		pod.Containers[0].VolumeMounts = append(pod.Containers[0].VolumeMounts, corev1.VolumeMount{Name: name, MountPath: dir + "/" + strconv.Itoa(i)})
	}
	return pod
}

const lifeboatProgram = "../../bin/lifeboat"

// lifeboat runs the command line as a user does.
func lifeboat(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), lifeboatProgram, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("lifeboat %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
