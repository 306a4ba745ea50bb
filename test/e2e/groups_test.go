//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

const (
	lifeboatProgram = "../../bin/lifeboat"
	groupSpace      = "lifeboat-groups"
)

// ordered are the volumes of the writer, in the order in which it writes them.
var ordered = []string{"a", "b", "c"}

// orderedStory is a pod that writes number n to a, then to b, then to c, each synced before the next, as fast as it can.
type orderedStory struct {
	t          *testing.T
	home, away demo.Cluster
}

func newOrderedStory(t *testing.T) *orderedStory {
	s := &orderedStory{t: t, home: cluster(t, "east"), away: cluster(t, "west")}
	s.clear(t.Context())
	t.Cleanup(func() {
		if t.Failed() {
			for _, c := range []string{"east", "west"} {
				for _, args := range [][]string{
					{"get", "pods,pvc,volumegroupsnapshots,volumesnapshots,pvcgroups,replications", "-n", groupSpace, "-o", "wide"},
					{"get", "pvcgroups,replications,volumegroupsnapshots", "-n", groupSpace, "-o", "yaml"},
					{"get", "events", "-n", groupSpace, "--sort-by=.lastTimestamp"},
					{"logs", "-n", v1alpha1.SystemNamespace, "deployment/lifeboat-manager", "--tail=40"},
				} {
					out, _ := exec.Command(clustersProgram, append([]string{"kubectl", c}, args...)...).CombinedOutput()
					t.Logf("%s: kubectl %s\n%s", c, strings.Join(args, " "), out)
				}
			}
		}
		s.clear(context.Background())
	})
	return s
}

// clear removes everything of the story from both clusters.
func (s *orderedStory) clear(ctx context.Context) {
	for _, c := range []demo.Cluster{s.home, s.away} {
		for _, o := range []client.Object{
			&v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: "ordered"}},
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: groupSpace}},
		} {
			if err := c.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
				s.t.Errorf("%s: delete %T: %v", c.Name, o, err)
			}
		}
	}
	for _, c := range []demo.Cluster{s.home, s.away} {
		deadline := time.Now().Add(2 * time.Minute)
		for {
			var ns corev1.Namespace
			err := c.Client.Get(ctx, client.ObjectKey{Name: groupSpace}, &ns)
			if apierrors.IsNotFound(err) {
				break
			}
			if time.Now().After(deadline) {
				s.t.Errorf("%s: namespace %s is not gone: %v; %s", c.Name, groupSpace, err, demo.NamespaceRemains(&ns))
				break
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
}

func (s *orderedStory) create(c demo.Cluster, o client.Object) {
	s.t.Helper()
	if err := c.Client.Create(s.t.Context(), o); err != nil {
		s.t.Fatalf("%s: create %T %s: %v", c.Name, o, o.GetName(), err)
	}
}

func (s *orderedStory) claim(name string) {
	s.create(s.home, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: name, Labels: map[string]string{"app": "ordered"}},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("128Mi")}}},
	})
}

// pod mounts the claims, each at the path of its volume, and runs a script.
func (s *orderedStory) pod(name, script string, claims map[string]string) *corev1.Pod {
	root := int64(0)
	soon := int64(1)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &soon, SecurityContext: &corev1.PodSecurityContext{RunAsUser: &root},
			Containers: []corev1.Container{{Name: "main", Image: "lifeboat-demo/postgres:15", ImagePullPolicy: corev1.PullNever, Command: []string{"/bin/bash", "-c", script}}},
		}}
	for path, claim := range claims {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: path, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: path, MountPath: "/" + path})
	}
	return pod
}

// start makes claims, writer, group and replication.
func (s *orderedStory) start(edit func(*v1alpha1.Rlink)) {
	s.create(s.home, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: groupSpace}})
	mounts := map[string]string{}
	for _, v := range ordered {
		s.claim("vol-" + v)
		mounts[v] = "vol-" + v
	}
	s.create(s.home, s.pod("writer", `n=0; while true; do n=$((n+1)); for v in a b c; do printf '%09d\n' $n | dd of=/$v/n conv=notrunc,fsync status=none; done; done`, mounts))
	s.create(s.home, &v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: "ordered"},
		Spec: v1alpha1.PVCGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "ordered"}}}})
	link := v1alpha1.Rlink{RlinkName: "dr", ClusterPair: "west"}
	edit(&link)
	s.create(s.home, &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: "ordered"},
		Spec: v1alpha1.ReplicationSpec{Role: v1alpha1.RoleSource, PVCGroupName: "ordered", Epoch: 1, Rlinks: []v1alpha1.Rlink{link}}})
}

func (s *orderedStory) replication(c demo.Cluster) *v1alpha1.Replication {
	s.t.Helper()
	var r v1alpha1.Replication
	if err := c.Client.Get(s.t.Context(), client.ObjectKey{Namespace: groupSpace, Name: "ordered"}, &r); client.IgnoreNotFound(err) != nil {
		s.t.Fatal(err)
	}
	return &r
}

func (s *orderedStory) link(c demo.Cluster) v1alpha1.RlinkStatus {
	if r := s.replication(c); len(r.Status.Rlinks) > 0 {
		return r.Status.Rlinks[0]
	}
	return v1alpha1.RlinkStatus{}
}

func (s *orderedStory) edit(c demo.Cluster, change func(*v1alpha1.ReplicationSpec)) {
	s.t.Helper()
	r := s.replication(c)
	before := r.DeepCopy()
	change(&r.Spec)
	must(s.t, c.Client.Patch(s.t.Context(), r, client.MergeFrom(before)))
}

// session runs one and waits until its point is recorded on the target.
func (s *orderedStory) session(token string) v1alpha1.SessionReport {
	s.t.Helper()
	if token != "" {
		s.edit(s.home, func(spec *v1alpha1.ReplicationSpec) { spec.TriggerNow = token })
	}
	var last v1alpha1.SessionReport
	until(s.t, 3*time.Minute, "session "+token+" is committed and recorded", func() (bool, string) {
		l := s.link(s.home)
		if l.LastSession == nil || l.Session != nil || l.LastSession.TriggerNow != token {
			return false, fmt.Sprintf("%+v; %s; %s", l.Session, l.WaitingFor, conditionMessage(s.replication(s.home).Status.Conditions, v1alpha1.ConditionReady))
		}
		last = *l.LastSession
		if last.Result != "Committed" {
			s.t.Fatalf("session %s failed: %s", token, last.Message)
		}
		p := s.link(s.away).RecoveryPoint
		return p != nil && p.Point == last.Point, "the target has not recorded it"
	})
	return last
}

// numbers runs a pod on claims that says what the volumes hold.
func (s *orderedStory) numbers(c demo.Cluster, name string, mounts map[string]string) [3]int {
	s.t.Helper()
	s.create(c, s.pod(name, `cat /a/n /b/n /c/n; echo end`, mounts))
	var pod corev1.Pod
	until(s.t, 2*time.Minute, "pod "+name+" has read the volumes", func() (bool, string) {
		must(s.t, c.Client.Get(s.t.Context(), client.ObjectKey{Namespace: groupSpace, Name: name}, &pod))
		return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed, string(pod.Status.Phase)
	})
	out, err := exec.CommandContext(s.t.Context(), clustersProgram, "kubectl", c.Name, "logs", "-n", groupSpace, name).CombinedOutput()
	must(s.t, err)
	var n [3]int
	if _, err := fmt.Sscanf(string(out), "%d\n%d\n%d\nend", &n[0], &n[1], &n[2]); err != nil {
		s.t.Fatalf("%s says %q: %v", name, out, err)
	}
	must(s.t, c.Client.Delete(s.t.Context(), &pod, client.GracePeriodSeconds(0)))
	return n
}

// inOrder fails when a volume that is written later is ahead of one that is written earlier, or lags by more than the number that was
// under way.
func (s *orderedStory) inOrder(what string, n [3]int) {
	s.t.Helper()
	s.t.Logf("%s: a %d, b %d, c %d", what, n[0], n[1], n[2])
	if n[0] < n[1] || n[1] < n[2] || n[0] > n[2]+1 {
		s.t.Errorf("%s is not of one instant: a %d, b %d, c %d", what, n[0], n[1], n[2])
	}
}

func (s *orderedStory) lifeboat(args ...string) string {
	s.t.Helper()
	out, err := exec.CommandContext(s.t.Context(), lifeboatProgram, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("lifeboat %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// M-082, M-103, M-105: volumes that are written one after the other are never found the other way round in any recovery point: each is
// restored beside the replica and read, and the replica is promoted to one that is not the newest.
func TestAnOrderedWriterIsFoundInOrder(t *testing.T) {
	s := newOrderedStory(t)
	s.start(func(l *v1alpha1.Rlink) { five := int32(5); l.Retain = &five })
	reports := []v1alpha1.SessionReport{s.session("")}
	for i := range 4 {
		reports = append(reports, s.session(fmt.Sprintf("again-%d", i)))
	}
	for _, r := range reports {
		t.Logf("session %s: %s, %s in %.1f s", r.Point, r.Tier, r.Cut, r.FinishedAt.Sub(r.StartedAt.Time).Seconds())
		if r.Cut != v1alpha1.CutAtomic {
			t.Errorf("session %s was cut %s: %s", r.Point, r.Cut, r.CutReason)
		}
	}
	list := s.lifeboat("recovery-points", "-n", groupSpace, "ordered", "--context", s.away.Name)
	t.Logf("recovery points\n%s", list)
	var held [][3]int
	for i, r := range reports {
		if !strings.Contains(list, r.Point) {
			t.Fatalf("point %s is not listed", r.Point)
		}
		suffix := fmt.Sprintf("-%d", i)
		s.lifeboat("restore", "-n", groupSpace, "ordered", "--context", s.away.Name, "--point", r.Point, "--suffix", suffix)
		mounts := map[string]string{}
		for _, v := range ordered {
			mounts[v] = "vol-" + v + suffix
		}
		n := s.numbers(s.away, "reader"+suffix, mounts)
		s.inOrder("point "+r.Point, n)
		if i > 0 && n[0] <= held[i-1][0] {
			t.Errorf("point %s holds %d, the one before it %d: the writer stood still", r.Point, n[0], held[i-1][0])
		}
		held = append(held, n)
	}
	must(t, s.home.Client.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: groupSpace, Name: "writer"}}))
	s.edit(s.home, func(spec *v1alpha1.ReplicationSpec) { spec.Role, spec.Epoch = v1alpha1.RoleTarget, 2 })
	s.edit(s.away, func(spec *v1alpha1.ReplicationSpec) {
		spec.Role, spec.Epoch, spec.PromoteTo = v1alpha1.RoleSource, 2, reports[2].Point
	})
	until(t, 2*time.Minute, "the replica is promoted", func() (bool, string) {
		r := s.replication(s.away)
		return r.Status.Role == v1alpha1.RoleSource, conditionMessage(r.Status.Conditions, v1alpha1.ConditionPromoted)
	})
	mounts := map[string]string{}
	for _, v := range ordered {
		mounts[v] = "vol-" + v
	}
	if n := s.numbers(s.away, "promoted", mounts); n != held[2] {
		t.Errorf("promoted to point %s the claims hold %v, its copy held %v", reports[2].Point, n, held[2])
	}
}
