//go:build e2e

package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/demo"
)

// library is an application without a database: a shared claim with files of many kinds.
type library struct {
	t *testing.T
	s *demo.Story
}

const (
	libraryClaim = "library"
	// furnishLibrary makes files of several owners, some of which even root may not read without leave.
	furnishLibrary = `set -eu
cd /files
mkdir -p books/old "odd name" closed
for i in $(seq 200); do echo "page $i" > books/page-$i; done
head -c 3000000 /dev/urandom > large
truncate -s 50M sparse; echo island | dd of=sparse bs=1 seek=30000000 conv=notrunc status=none
ln large hard; ln -s books/page-1 soft; ln -s /nowhere dangling; mkfifo pipe; mknod null c 1 3
echo secret > closed/secret; chmod 000 closed/secret; chown -R 4321:1234 closed; chmod 500 closed
cp /bin/true tool; chown 7:8 tool; chmod 6755 tool
chown 999:999 books/old; chmod 3770 books/old; touch -d 1999-12-31T23:59:59.5Z books/old books/page-7
`
	changeLibrary = `set -eu
cd /files
mv large renamed; rm books/page-3; echo more >> books/page-4; ln books/page-5 books/old/again; rm -r "odd name"; echo file > "odd name"
chmod 600 books/page-6; rm null; mknod null c 1 5
`
	listLibrary = `set -eu
cd /files
find . -mindepth 1 -name lost+found -prune -o -type d -printf '%P %y %m %U:%G %T@\n' -o -printf '%P %y %m %U:%G %s %T@ %l %n\n' | sort
find . -type f -print0 | sort -z | xargs -0 sha256sum
find . -type c -exec stat -c '%n %t:%T' {} +
stat -c 'the root is %a %u:%g' .
`
)

// run runs a script over the files on a cluster, to its end, and returns what it printed.
func (l *library) run(c demo.Cluster, name, script string) string {
	t := l.t
	t.Helper()
	root := int64(0)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: l.s.Namespace, Name: name}, Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever,
		Containers: []corev1.Container{{Name: "files", Image: l.s.Image, Command: []string{"/bin/bash", "-c", script},
			SecurityContext: &corev1.SecurityContext{RunAsUser: &root},
			VolumeMounts:    []corev1.VolumeMount{{Name: "files", MountPath: "/files"}}}},
		Volumes: []corev1.Volume{{Name: "files", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: libraryClaim}}}},
	}}
	must(t, c.Client.Create(t.Context(), pod))
	until(t, 2*time.Minute, "pod "+name+" ends", func() (bool, string) {
		must(t, c.Client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed, string(pod.Status.Phase)
	})
	out, err := exec.CommandContext(t.Context(), clustersProgram, "kubectl", c.Name, "logs", "-n", l.s.Namespace, name).CombinedOutput()
	must(t, err)
	if pod.Status.Phase == corev1.PodFailed {
		t.Fatalf("%s failed:\n%s", name, out)
	}
	return string(out)
}

func (l *library) replication(c demo.Cluster) *v1alpha1.Replication {
	l.t.Helper()
	var r v1alpha1.Replication
	must(l.t, c.Client.Get(l.t.Context(), client.ObjectKey{Namespace: l.s.Namespace, Name: libraryClaim}, &r))
	return &r
}

func (l *library) edit(c demo.Cluster, change func(*v1alpha1.ReplicationSpec)) {
	l.t.Helper()
	r := l.replication(c)
	before := r.DeepCopy()
	change(&r.Spec)
	must(l.t, c.Client.Patch(l.t.Context(), r, client.MergeFrom(before)))
}

// committed waits for the session that answers a trigger.
func (l *library) committed(c demo.Cluster, trigger string) *v1alpha1.SessionReport {
	l.t.Helper()
	var report *v1alpha1.SessionReport
	until(l.t, 3*time.Minute, "a session for "+trigger, func() (bool, string) {
		r := l.replication(c)
		if len(r.Status.Rlinks) == 0 {
			return false, conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
		}
		report = r.Status.Rlinks[0].LastSession
		return report != nil && report.Result == "Committed" && report.TriggerNow == trigger, conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
	})
	return report
}

// become gives a side a role and waits until it is in force.
func (l *library) become(c demo.Cluster, role v1alpha1.Role, epoch int64) {
	l.t.Helper()
	l.edit(c, func(s *v1alpha1.ReplicationSpec) { s.Role, s.Epoch = role, epoch })
	until(l.t, 2*time.Minute, c.Name+" is "+string(role), func() (bool, string) {
		r := l.replication(c)
		return r.Status.Role == role && r.Status.Epoch == epoch, conditionMessage(r.Status.Conditions, v1alpha1.ConditionReady)
	})
}

// A claim that several pods share is replicated by its files, promoted on the other side, and brought home: names, content,
// modes, owners, times, links and devices, those of files included that nobody but their owner may read.
func TestFilesFollowTheirApplication(t *testing.T) {
	s := tell(t)
	l := &library{t, s}
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: libraryClaim}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("512Mi")}}}},
	} {
		must(t, s.Home.Client.Create(t.Context(), o))
	}
	l.run(s.Home, "furnish", furnishLibrary)
	for _, o := range []client.Object{
		&v1alpha1.PVCGroup{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: libraryClaim},
			Spec: v1alpha1.PVCGroupSpec{PVCList: []v1alpha1.PVCRef{{PVCName: libraryClaim}}}},
		&v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: libraryClaim}, Spec: v1alpha1.ReplicationSpec{
			Role: v1alpha1.RoleSource, PVCGroupName: libraryClaim, Epoch: 1, Rlinks: []v1alpha1.Rlink{{RlinkName: "dr", ClusterPair: s.Away.Name}}}},
	} {
		must(t, s.Home.Client.Create(t.Context(), o))
	}
	l.committed(s.Home, "")
	l.run(s.Home, "change", changeLibrary)
	want := l.run(s.Home, "list", listLibrary)
	l.edit(s.Home, func(spec *v1alpha1.ReplicationSpec) { spec.TriggerNow = "changed" })
	if report := l.committed(s.Home, "changed"); report.BytesSent > 1<<20 {
		t.Errorf("the changes took %d bytes: a rename sends no content", report.BytesSent)
	}
	intruder := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "intruder"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "intruder", Image: s.Image}},
		Volumes: []corev1.Volume{{Name: "files", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: libraryClaim}}}}}}
	if err := s.Away.Client.Create(t.Context(), intruder, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "belongs to a replica") {
		t.Errorf("a pod on the replica: %v", err)
	}

	l.become(s.Home, v1alpha1.RoleTarget, 2)
	l.become(s.Away, v1alpha1.RoleSource, 2)
	if got := l.run(s.Away, "list", listLibrary); got != want {
		t.Errorf("on %s the files are\n%s\ninstead of\n%s", s.Away.Name, got, want)
	}
	l.committed(s.Away, "")
	l.run(s.Away, "change", "set -eu; cd /files; rm -r books; echo written away > note; ln note note-again")
	want = l.run(s.Away, "list-again", listLibrary)
	l.edit(s.Away, func(spec *v1alpha1.ReplicationSpec) { spec.TriggerNow = "home" })
	l.committed(s.Away, "home")
	for _, name := range []string{"furnish", "change", "list"} {
		must(t, s.Home.Client.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: name}}, client.GracePeriodSeconds(0)))
	}
	l.become(s.Away, v1alpha1.RoleTarget, 3)
	l.become(s.Home, v1alpha1.RoleSource, 3)
	if got := l.run(s.Home, "list", listLibrary); got != want {
		t.Errorf("home again the files are\n%s\ninstead of\n%s", got, want)
	}
}
