package replication

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

func endedPod(code int32, message string) *corev1.Pod {
	return &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: container,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message, Reason: "Error"}}}}}}
}

func reportOf(t *testing.T, r engine.Report) string {
	t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestJudge(t *testing.T) {
	done := reportOf(t, engine.Report{Point: "p", Done: true})
	refused := reportOf(t, engine.Report{Point: "p", Error: "sizes differ"})
	now := metav1.Now()
	job := func(kind batchv1.JobConditionType) *batchv1.Job {
		j := &batchv1.Job{}
		if kind != "" {
			j.Status.Conditions = []batchv1.JobCondition{{Type: kind, Status: corev1.ConditionTrue, Message: "Job has reached the specified backoff limit"}}
		}
		return j
	}
	going := job("")
	going.DeletionTimestamp = &now
	running := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	unscheduled := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/1 nodes"}}}}
	for _, c := range []struct {
		name   string
		job    *batchv1.Job
		pods   []*corev1.Pod
		want   cycle.MoverState
		says   string
		report bool
	}{
		{"nothing there", nil, nil, cycle.MoverAbsent, "", false},
		{"a Job without pods", job(""), nil, cycle.MoverRunning, "waiting for the mover's pod", false},
		{"no node fits", job(""), []*corev1.Pod{unscheduled}, cycle.MoverRunning, "0/1 nodes", false},
		{"a pod runs", job(""), []*corev1.Pod{running}, cycle.MoverRunning, "runs", false},
		{"it crashed and is started again", job(""), []*corev1.Pod{endedPod(137, "")}, cycle.MoverRunning, "exit code 137", false},
		{"done, before the Job says so", job(""), []*corev1.Pod{endedPod(0, done)}, cycle.MoverCommitted, "", true},
		{"done after a crash", job(""), []*corev1.Pod{endedPod(0, done), endedPod(1, "")}, cycle.MoverCommitted, "", true},
		{"done, its pod was removed", job(batchv1.JobComplete), nil, cycle.MoverCommitted, "", false},
		{"done, its Job was removed", nil, []*corev1.Pod{endedPod(0, done)}, cycle.MoverCommitted, "", true},
		{"it says it is not done", job(""), []*corev1.Pod{endedPod(0, reportOf(t, engine.Report{Point: "p"}))}, cycle.MoverRunning, "", false},
		{"refused", job(""), []*corev1.Pod{endedPod(exitRefused, refused)}, cycle.MoverRefused, "sizes differ", true},
		{"misconfigured, without a report", job(""), []*corev1.Pod{endedPod(exitMisconfigured, "no such device")}, cycle.MoverRefused, "no such device", false},
		{"the Job gave up", job(batchv1.JobFailed), []*corev1.Pod{endedPod(1, "out of memory")}, cycle.MoverFailed, "backoff limit; its last words: out of memory", false},
		{"the Job is being removed", going, []*corev1.Pod{running}, cycle.MoverEnding, "", false},
		{"the Job is gone, its pod not yet", nil, []*corev1.Pod{running}, cycle.MoverEnding, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			mover, report := judge(c.job, c.pods)
			if mover.State != c.want || !strings.Contains(mover.Message, c.says) || (report != nil) != c.report {
				t.Errorf("judged %+v, report %v", mover, report)
			}
		})
	}
}

// viewOf is a session of two members, whose names the peer orders the other way round.
func viewOf() *view {
	cut := metav1.NewTime(time.Unix(1_700_000_000, 0))
	rep := &v1alpha1.Replication{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "u"}}
	v := &view{
		rep: rep, names: names{"shop", "db", "dr"}, pair: &v1alpha1.ClusterPair{Spec: v1alpha1.ClusterPairSpec{PeerCluster: "west", GatewayAddress: "192.0.2.7:9002"}},
		rlink:   v1alpha1.Rlink{RlinkName: "dr", PVCMap: map[string]string{"data": "z-data", "wal": "a-wal"}, Compression: v1alpha1.CompressionOff},
		status:  &v1alpha1.RlinkStatus{Session: &v1alpha1.SessionStatus{Point: "20261121t120000-0000aa", Epoch: 4, Claims: []string{"data", "wal"}, CutAt: &cut}},
		members: []snapshot.Member{{Name: "data"}, {Name: "wal"}},
	}
	return v
}

func TestMoversAreToldWhatTheyNeedAndMayDoNothingElse(t *testing.T) {
	r := &Reconciler{Cluster: "east", Image: "lifeboat:test"}
	v := viewOf()
	config := r.sourceConfig(v, lists{})
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	// The peer's order of its own names, each with the device of the right member.
	want := []engine.SourceVolume{{Name: "a-wal", Device: "/dev/lifeboat/1"}, {Name: "z-data", Device: "/dev/lifeboat/0"}}
	if !slices.Equal(config.Volumes, want) || config.Epoch != 4 || config.PeerIdentity != "lifeboat://west/replication/shop/db" || config.Compression != engine.CompressionOff {
		t.Errorf("configuration: %+v", config)
	}
	job := r.moverJob(v, lists{})
	if len(job.Name) > 63 || job.Spec.Template.Labels["app"] != "dbdr" {
		t.Errorf("Job: %s %v", job.Name, job.Spec.Template.Labels)
	}
	v.members[0].Volume, v.members[1].Volume = &corev1.PersistentVolume{}, &corev1.PersistentVolume{}
	v.replica.wanted = r.targetConfig(v)
	for _, pod := range []corev1.PodSpec{job.Spec.Template.Spec, r.receiverDeployment(v).Spec.Template.Spec} {
		c := pod.Containers[0].SecurityContext
		if *pod.AutomountServiceAccountToken || *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem || !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
			len(c.Capabilities.Add) > 0 || pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || pod.HostNetwork || c.Privileged != nil {
			t.Errorf("a mover may do more than it needs: %+v", pod)
		}
		if devices := pod.Containers[0].VolumeDevices; len(devices) != 2 || devices[1].DevicePath != "/dev/lifeboat/1" {
			t.Errorf("devices: %+v", devices)
		}
	}
}

func TestAReplicaVolumeIsTheSameStorageAndNothingOfTheUsersClaim(t *testing.T) {
	v := viewOf()
	user := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		StorageClassName: "fast", PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete, ClaimRef: &corev1.ObjectReference{Name: "data", UID: "x"},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "disk", VolumeHandle: "h", FSType: "ext4", VolumeAttributes: map[string]string{"a": "b"}}},
		NodeAffinity:           &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{}},
	}}
	got := replicaVolume(v, snapshot.Member{Name: "data", Volume: user}).Spec
	if got.CSI.VolumeHandle != "h" || got.CSI.FSType != "" || got.CSI.VolumeAttributes["a"] != "b" || got.NodeAffinity == nil {
		t.Errorf("storage: %+v", got)
	}
	if got.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain || got.ClaimRef.UID != "" || got.ClaimRef.Name != "lb-data-replica" || got.StorageClassName != "" || *got.VolumeMode != corev1.PersistentVolumeBlock {
		t.Errorf("binding: %+v", got)
	}
	if user.Spec.CSI.FSType != "ext4" {
		t.Error("the user's volume was changed in memory")
	}
}

func TestHolds(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	claim := func(age time.Duration, annotations map[string]string) snapshot.Member {
		return snapshot.Member{Claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-age)), Annotations: annotations}}}
	}
	fresh := map[string]string{v1alpha1.AnnotationCreatedFor: "db"}
	for _, c := range []struct {
		name    string
		members []snapshot.Member
		want    engine.Content
	}{
		{"made for it, lately", []snapshot.Member{claim(time.Minute, fresh)}, engine.HoldsNothing},
		{"a user's", []snapshot.Member{claim(time.Minute, nil)}, engine.HoldsData},
		{"made for another", []snapshot.Member{claim(time.Minute, map[string]string{v1alpha1.AnnotationCreatedFor: "other"})}, engine.HoldsData},
		{"one of them a user's", []snapshot.Member{claim(time.Minute, fresh), claim(time.Minute, nil)}, engine.HoldsData},
		{"a replica was begun on it", []snapshot.Member{claim(time.Minute, map[string]string{v1alpha1.AnnotationCreatedFor: "db", annotationUsed: "true"})}, engine.HoldsData},
		{"a pod was scheduled onto it", []snapshot.Member{claim(time.Minute, map[string]string{v1alpha1.AnnotationCreatedFor: "db", "volume.kubernetes.io/selected-node": "n"})}, engine.HoldsData},
		{"made long ago", []snapshot.Member{claim(time.Hour, fresh)}, engine.HoldsData},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := viewOf()
			v.now, v.members = now, c.members
			if got := holds(v); got != c.want {
				t.Errorf("holds %s, want %s", got, c.want)
			}
		})
	}
}

func TestPodsThatEndedHoldNothing(t *testing.T) {
	pod := func(name string, phase corev1.PodPhase, claim string) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.PodStatus{Phase: phase}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{
			{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}}}
	}
	scratch := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "job"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}}}
	pods := []corev1.Pod{pod("runs", corev1.PodRunning, "data"), pod("waits", corev1.PodPending, "data"), pod("done", corev1.PodSucceeded, "data"),
		pod("failed", corev1.PodFailed, "data"), pod("other", corev1.PodRunning, "logs"), scratch}
	if got := mounting(pods, []string{"data", "job-scratch"}); !slices.Equal(got, []string{"job", "runs", "waits"}) {
		t.Errorf("users: %v", got)
	}
}

// A spool takes what its file system and the digest maps leave of its claim, and half of it at least.
func TestASpoolIsBounded(t *testing.T) {
	v := viewOf()
	if got := spoolLimit(v); got != 0 {
		t.Errorf("without a spool: %d", got)
	}
	spool := corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: v.names.spool()}}
	for request, want := range map[string]int64{"100Gi": 90 << 30, "10Mi": 9 << 20} {
		spool.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(request)}
		v.claims = []corev1.PersistentVolumeClaim{spool}
		if got := spoolLimit(v); got != want {
			t.Errorf("%s: %d, want %d", request, got, want)
		}
	}
}
