package replication

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// sharedClaim makes a ReadWriteMany claim that the driver binds.
func (s *side) sharedClaim(name string) {
	s.w.t.Helper()
	class := className
	s.create(&corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.w.namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}, StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	})
}

func protectFiles(w *world) {
	w.t.Helper()
	w.east.sharedClaim("media")
	w.east.group("app", "media")
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("the first point", w.east.committed("app", ""))
}

// Files are moved as blocks are, and home again. The receiver mounts the claims themselves, and is gone before they are the
// application's.
func TestFilesAreReplicatedAndRolesExchanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.holdMovers = true
	w.east.sharedClaim("media")
	w.east.group("app", "media")
	w.east.replication("app", v1alpha1.RoleSource)
	var jobs batchv1.JobList
	w.until("a mover", func() bool {
		jobs = batchv1.JobList{}
		w.east.list(&jobs)
		return len(jobs.Items) == 1
	})
	pod := jobs.Items[0].Spec.Template.Spec
	mount := pod.Containers[0].VolumeMounts[len(pod.Containers[0].VolumeMounts)-1]
	if len(pod.Containers[0].VolumeDevices) != 0 || !mount.ReadOnly || mount.MountPath != "/var/lib/lifeboat/tree/0" {
		t.Errorf("the source's mover: %+v", pod.Containers[0])
	}
	var clone corev1.PersistentVolumeClaim
	w.east.must(w.east.kube.Get(t.Context(), w.east.key(pod.Volumes[len(pod.Volumes)-1].PersistentVolumeClaim.ClaimName), &clone))
	if *clone.Spec.VolumeMode != corev1.PersistentVolumeFilesystem || clone.Spec.AccessModes[0] != corev1.ReadWriteMany || clone.Spec.DataSource == nil {
		t.Errorf("the clone: %+v", clone.Spec)
	}
	w.east.holdMovers = false
	w.until("the first point", w.east.committed("app", ""))

	var receivers appsv1.DeploymentList
	w.west.list(&receivers)
	receiver := receivers.Items[0].Spec.Template.Spec
	if len(receiver.Containers[0].VolumeDevices) != 0 || !mounts(&corev1.Pod{Spec: receiver}, []string{"media"}) {
		t.Errorf("the receiver: %+v", receiver)
	}
	if got := w.west.claims(); !slices.Equal(got, []string{"lb-app-spool", "media"}) {
		t.Errorf("claims of the target: %v", got)
	}
	if got := w.west.made(); slices.ContainsFunc(got, func(o string) bool { return strings.HasPrefix(o, "volume ") }) {
		t.Errorf("made on the target: %v", got)
	}

	before := w.volumes("media")
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("west is source", func() bool {
		if !w.west.inForce("app", v1alpha1.RoleSource, 2)() {
			return false
		}
		var pods corev1.PodList
		w.west.list(&pods)
		for i := range pods.Items {
			if mounts(&pods.Items[i], []string{"media"}) {
				t.Errorf("pod %s mounts the claim of the promoted side", pods.Items[i].Name)
			}
		}
		return true
	})
	if got := w.west.claims(); !slices.Equal(got, []string{"media"}) {
		t.Errorf("claims beside the promoted one: %v", got)
	}
	w.until("the reverse replication", w.west.committed("app", ""))
	if tier := w.west.link("app").LastSession.Tier; tier != v1alpha1.TierDigest {
		t.Errorf("the way back used tier %s", tier)
	}
	if after := w.volumes("media"); after != before {
		t.Errorf("the claims' volumes were %s, are %s", before, after)
	}
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 3 })
	w.until("west is target again", w.west.inForce("app", v1alpha1.RoleTarget, 3))
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 3 })
	w.until("home", func() bool { return w.east.inForce("app", v1alpha1.RoleSource, 3)() && w.east.committed("app", "")() })
}

// Every write fails once, and each step is taken by a manager that remembers nothing.
func TestFilesAreReplicatedByAManagerThatDiesAtEveryWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, s := range []*side{w.east, w.west} {
		flaky := &flakyClient{Client: s.kube, tried: map[string]bool{}}
		s.fresh = func() *Reconciler {
			r := s.manager()
			r.Client = flaky
			return r
		}
	}
	protectFiles(w)
	w.east.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleTarget, 2 })
	w.until("east is target", w.east.inForce("app", v1alpha1.RoleTarget, 2))
	w.west.edit("app", func(r *v1alpha1.Replication) { r.Spec.Role, r.Spec.Epoch = v1alpha1.RoleSource, 2 })
	w.until("the reverse replication", func() bool { return w.west.inForce("app", v1alpha1.RoleSource, 2)() && w.west.committed("app", "")() })
}

// The receiver is no user of the claims it mounts; a pod of the application is.
func TestPodsOnAReplicaOfFilesStopIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protectFiles(w)
	w.until("rest", w.west.idle("app"))
	app := w.west.app("app-0", "media")
	w.until("the receiver is gone", func() bool {
		c := w.west.ready("app")
		return c.Reason == "ClaimsInUse" && strings.Contains(c.Message, "app-0") && len(w.west.claims()) == 1
	})
	if strings.Contains(w.west.ready("app").Message, "receiver") {
		t.Errorf("users: %s", w.west.ready("app").Message)
	}
	w.west.must(w.west.kube.Delete(t.Context(), app, client.GracePeriodSeconds(0)))
	w.east.trigger("app", "again")
	w.until("a new point", w.east.committed("app", "again"))
}

// A group that is to be replicated in another way gets a replica that is set up anew, and never a receiver of both kinds.
func TestAGroupChangesFromFilesToBlocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	protectFiles(w)
	var there v1alpha1.PVCGroup
	w.west.must(w.west.kube.Get(t.Context(), w.west.key("app"), &there))
	if there.Spec.VolumeAccess != v1alpha1.AccessFiles {
		t.Errorf("the peer's group was told %q", there.Spec.VolumeAccess)
	}
	for _, s := range []*side{w.east, w.west} {
		var g v1alpha1.PVCGroup
		s.must(s.kube.Get(t.Context(), s.key("app"), &g))
		g.Spec.VolumeAccess = v1alpha1.AccessBlock
		s.must(s.kube.Update(t.Context(), &g))
	}
	w.until("a pair", func() bool { return slices.Contains(w.west.claims(), "lb-media-replica") })
	w.east.trigger("app", "blocks")
	w.until("a point of blocks", w.east.committed("app", "blocks"))
	var pods corev1.PodList
	w.west.list(&pods)
	for i := range pods.Items {
		if mounts(&pods.Items[i], []string{"media"}) {
			t.Errorf("pod %s still mounts the files", pods.Items[i].Name)
		}
	}
}

func TestAMixtureOfFilesAndBlocksIsRefusedByName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.east.sharedClaim("media")
	w.east.claim("data", "1Gi", className)
	w.east.group("app", "media", "data")
	w.east.replication("app", v1alpha1.RoleSource)
	w.until("it is refused", func() bool {
		c := w.east.ready("app")
		return c.Reason == snapshot.FaultAccess && strings.Contains(c.Message, "claim media") && strings.Contains(c.Message, "claim data") && strings.Contains(c.Message, "spec.volumeAccess")
	})
}

// Movers of files may do what files of other owners need, and no more.
func TestMoversOfFilesMayDoWhatFilesNeed(t *testing.T) {
	r := &Reconciler{Cluster: "east", Image: "lifeboat:test"}
	v := viewOf()
	v.access = v1alpha1.AccessFiles
	config := r.sourceConfig(v, lists{})
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	want := []engine.SourceVolume{{Name: "a-wal", Device: "/var/lib/lifeboat/tree/1"}, {Name: "z-data", Device: "/var/lib/lifeboat/tree/0"}}
	if !slices.Equal(config.Volumes, want) {
		t.Errorf("volumes: %+v", config.Volumes)
	}
	v.replica.wanted = r.targetConfig(v)
	source, target := r.moverJob(v, lists{}).Spec.Template.Spec, r.receiverDeployment(v).Spec.Template.Spec
	for _, c := range []struct {
		pod      corev1.PodSpec
		may      []corev1.Capability
		readOnly bool
	}{
		{source, []corev1.Capability{"DAC_OVERRIDE"}, true},
		{target, []corev1.Capability{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"}, false},
	} {
		main := c.pod.Containers[0]
		if got := main.SecurityContext.Capabilities; !slices.Equal(got.Add, c.may) || !slices.Equal(got.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("capabilities: %+v, want %v", got, c.may)
		}
		trees := 0
		for _, m := range main.VolumeMounts {
			if strings.HasPrefix(m.MountPath, "/var/lib/lifeboat/tree/") {
				trees++
				if m.ReadOnly != c.readOnly {
					t.Errorf("mount %+v", m)
				}
			}
		}
		if trees != 2 || len(main.VolumeDevices) != 0 || *main.SecurityContext.AllowPrivilegeEscalation || main.SecurityContext.Privileged != nil {
			t.Errorf("container: %+v", main)
		}
	}
}

// A claim that was made anew is on another volume: what the spool knows of the former one is not true of it.
func TestAReplicaOfFilesKnowsItsVolumes(t *testing.T) {
	volume := func(handle string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{VolumeHandle: handle}}}}
	}
	v := viewOf()
	v.access = v1alpha1.AccessFiles
	v.members[0].Volume, v.members[1].Volume = volume("a"), volume("b")
	v.members[0].Claim = &corev1.PersistentVolumeClaim{}
	v.claims = append(v.claims, *spoolClaim(v, engine.HoldsNothing))
	for _, c := range []struct {
		name   string
		handle *corev1.PersistentVolume
		want   cycle.Presence
	}{{"the same", volume("b"), cycle.Present}, {"another", volume("c"), cycle.Outdated}, {"not bound now", nil, cycle.Present}} {
		v.members[1].Volume = c.handle
		if got := spoolPresence(v); got != c.want {
			t.Errorf("%s: the spool is %v, want %v", c.name, got, c.want)
		}
	}
}
