//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
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
}

// writerScript is told the number of volumes; they are mounted at /volumes/0, /volumes/1, ... It goes on with the number it finds.
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
  sleep 0.05
done
`

// startWriter makes claims and writer on c and returns once it writes.
func startWriter(t *testing.T, s *demo.Story, name string, c demo.Cluster, volumes int) *writer {
	t.Helper()
	w := &writer{s, name, volumes}
	for _, claim := range w.claims() {
		must(t, c.Client.Create(t.Context(), demoClaim(s.Namespace, claim, name)))
	}
	labels := map[string]string{"app": name}
	must(t, c.Client.Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](1), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: podWith(s.Image, w.claims(), "/volumes", writerScript, strconv.Itoa(volumes))},
		},
	}))
	until(t, 2*time.Minute, "the ordered writer runs", func() (bool, string) {
		var pods corev1.PodList
		must(t, c.Client.List(t.Context(), &pods, client.InNamespace(s.Namespace), client.MatchingLabels(labels)))
		return len(pods.Items) == 1 && pods.Items[0].Status.Phase == corev1.PodRunning, fmt.Sprint(len(pods.Items), " pods")
	})
	return w
}

func demoClaim(namespace, name, app string) *corev1.PersistentVolumeClaim {
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

// protect makes group and replication on the story's home cluster.
func (w *writer) protect(t *testing.T, pair, schedule string, retain *int32) {
	t.Helper()
	group := &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name}}
	for _, claim := range w.claims() {
		group.Spec.PVCList = append(group.Spec.PVCList, v1alpha1.PVCRef{PVCName: claim})
	}
	must(t, w.story.Home.Client.Create(t.Context(), group))
	must(t, w.story.Home.Client.Create(t.Context(), &v1alpha1.Replication{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.story.Namespace, Name: w.name},
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, PVCGroupName: w.name,
			Rlinks: []v1alpha1.Rlink{{RlinkName: "peer", ClusterPair: pair, Schedule: schedule, Retain: retain}}},
	}))
}

// readScript prints the number in each volume, in order, where a pod's end is told. A volume that was cut before its
// file was written has none.
const readScript = `for i in $(seq 0 $(($1 - 1))); do cat /volumes/$i/n 2>/dev/null || echo none; done > /dev/termination-log`

// outOfOrder judges what readScript printed: why it cannot be one instant, or the number of the first volume.
func outOfOrder(printed string) (n int64, fault string) {
	fields := strings.Fields(printed)
	var numbers []int64
	for _, f := range fields {
		if f == "none" {
			numbers = append(numbers, -1)
			continue
		}
		v, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Sprintf("%q is no number", f)
		}
		numbers = append(numbers, v)
	}
	if len(numbers) == 0 {
		return 0, "nothing was printed"
	}
	for i := 1; i < len(numbers); i++ {
		if numbers[i] > numbers[i-1] {
			return 0, fmt.Sprintf("volume %d is ahead of volume %d: %v", i, i-1, numbers)
		}
	}
	if last := numbers[len(numbers)-1]; numbers[0] > 0 && last < numbers[0]-1 {
		return 0, fmt.Sprintf("the last volume is %d writes behind the first: %v", numbers[0]-last, numbers)
	}
	return numbers[0], ""
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
