package replication

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/link/identity"
	"lifeboat.dev/lifeboat/internal/mover/engine"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

const (
	dataPort   = 9444
	statusPort = 9445

	container       = "mover"
	configFile      = "config.json"
	configDir       = "/etc/lifeboat/config"
	identityDir     = "/etc/lifeboat/identity"
	spoolDir        = "/var/lib/lifeboat/spool"
	terminationFile = "/dev/termination-log"

	// exitMisconfigured and exitRefused are how a mover says that trying again cannot help.
	exitMisconfigured = 2
	exitRefused       = 3
	// moverRetries is how often a Job starts its pod again; each carries the same point and goes on where the last one was cut.
	moverRetries = 8
)

// devicePath is where a mover finds a member.
func devicePath(index int) string { return "/dev/lifeboat/" + strconv.Itoa(index) }

// sourceConfig is the session's, for the mover, with what is known of lists of changes.
func (r *Reconciler) sourceConfig(v *view, l lists) engine.SourceConfig {
	s := v.status.Session
	c := engine.SourceConfig{
		Replication: v.key().String(), Epoch: uint64(s.Epoch), Point: s.Point, PointTime: s.CutAt.UTC(), Cut: string(s.Cut),
		Address: v.pair.Spec.GatewayAddress, ServerName: identity.ReceiverServerName(v.rep.Namespace, v.rep.Name),
		IdentityDir: identityDir, PeerIdentity: identity.ReplicationURI(v.peerCluster(), v.rep.Namespace, v.rep.Name),
		StatusListen: fmt.Sprintf(":%d", statusPort), ManagerIdentity: identity.ManagerURI(r.Cluster), TerminationLog: terminationFile,
		Compression: engine.CompressionAuto,
		Base:        l.base, ChangeNote: l.note,
	}
	files := v.clonesAreFiles()
	for i, claim := range s.Claims {
		volume := engine.SourceVolume{Name: v.peerName(claim), Device: memberPath(i, files)}
		if len(l.allocated) > 0 {
			volume.Allocated = l.allocated[i]
		}
		if len(l.changes) > 0 {
			volume.Changes = l.changes[i]
		}
		c.Volumes = append(c.Volumes, volume)
	}
	// Both sides list the group in one order: that of the target's names.
	slices.SortFunc(c.Volumes, func(a, b engine.SourceVolume) int { return cmp.Compare(a.Name, b.Name) })
	if v.rlink.Compression == v1alpha1.CompressionOff {
		c.Compression = engine.CompressionOff
	}
	if v.rlink.BandwidthLimit != nil {
		c.BandwidthLimit = v.rlink.BandwidthLimit.Value()
	}
	return c
}

// moverJob carries the session's point. A pod that crashed or was evicted is started again; one that was refused is not.
func (r *Reconciler) moverJob(v *view, l lists) *batchv1.Job {
	s := v.status.Session
	labels := with(v.names.labels(v1alpha1.ComponentSourceMover), v1alpha1.LabelPoint, s.Point)
	retries := int32(moverRetries)
	pod := r.podSpec("source", v.names.job(s.Point), v.names.mover())
	if v.clonesAreFiles() {
		pod.Containers[0].SecurityContext.Capabilities.Add = sourceCapabilities
		for i := range s.Claims {
			mountTree(&pod, i, snapshot.MemberName(v.rep.Name, s.Point, i), true)
		}
	} else {
		for i := range s.Claims {
			mountDevice(&pod, i, snapshot.MemberName(v.rep.Name, s.Point, i))
		}
	}
	l.mountTokens(&pod, v.names.mover())
	pod.RestartPolicy = corev1.RestartPolicyNever
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.job(s.Point), Labels: labels, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec: batchv1.JobSpec{
			BackoffLimit: &retries,
			PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
				{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
					Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{exitMisconfigured, exitRefused}}},
				// A drained node is nobody's failure.
				{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
					{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
			}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	}
}

// podSpec is what both movers have in common. They run as root because the devices belong to root, without any of root's
// capabilities but those that files need, without a token for the API server, and on a file system they cannot write.
func (r *Reconciler) podSpec(verb, config, secret string) corev1.PodSpec {
	no, yes, root, soon, readable := false, true, int64(0), int64(5), int32(0o400)
	return corev1.PodSpec{
		AutomountServiceAccountToken:  &no,
		EnableServiceLinks:            &no,
		TerminationGracePeriodSeconds: &soon,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsUser: &root, RunAsGroup: &root,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: container, Image: r.Image, ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{"/usr/local/bin/lifeboat", "mover", verb, "--config", configDir + "/" + configFile},
			Ports:   []corev1.ContainerPort{{Name: "status", ContainerPort: statusPort}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
			}},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
			TerminationMessagePath: terminationFile, TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			VolumeMounts: []corev1.VolumeMount{
				{Name: "config", MountPath: configDir, ReadOnly: true},
				{Name: "identity", MountPath: identityDir, ReadOnly: true},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: config}}}},
			{Name: "identity", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret, DefaultMode: &readable}}},
		},
	}
}

func mountDevice(pod *corev1.PodSpec, index int, claim string) {
	name := "volume-" + strconv.Itoa(index)
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
	pod.Containers[0].VolumeDevices = append(pod.Containers[0].VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: devicePath(index)})
}

// clone is the block claim a member's snapshot is read through.
func clone(v *view, index int, from *snapshot.Seen, size int64, class *string) *corev1.PersistentVolumeClaim {
	s := v.status.Session
	return blockClaim(v, snapshot.MemberName(v.rep.Name, s.Point, index), componentClone, from, size, class)
}

// blockClaim is a block claim made from a snapshot.
func blockClaim(v *view, name, component string, from *snapshot.Seen, size int64, class *string) *corev1.PersistentVolumeClaim {
	block, group := corev1.PersistentVolumeBlock, "snapshot.storage.k8s.io"
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: v.rep.Namespace, Name: name, Labels: with(v.names.labels(component), v1alpha1.LabelPoint, from.Point),
			Annotations: map[string]string{v1alpha1.AnnotationVolume: from.Claim}, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeMode: &block, StorageClassName: class,
			DataSource: &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: from.Name},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: *resource.NewQuantity(max(size, from.RestoreSize), resource.BinarySI),
			}},
		},
	}
}

// judgeMover says where the running session's mover stands, and what it reported. Pods are believed before the Job: they
// are what ran, and they are seen seconds earlier.
func judgeMover(v *view) (cycle.Mover, *engine.Report) {
	if v.status.Session == nil {
		return cycle.Mover{}, nil
	}
	var job *batchv1.Job
	for i := range v.jobs {
		if v.jobs[i].Labels[v1alpha1.LabelPoint] == v.status.Session.Point {
			job = &v.jobs[i]
		}
	}
	var pods []*corev1.Pod
	for i := range v.pods {
		if pod := &v.pods[i]; pod.Labels[v1alpha1.LabelPoint] == v.status.Session.Point && pod.Labels[v1alpha1.LabelComponent] == v1alpha1.ComponentSourceMover {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(b.CreationTimestamp.Unix(), a.CreationTimestamp.Unix()) })
	return judge(job, pods)
}

func judge(job *batchv1.Job, pods []*corev1.Pod) (cycle.Mover, *engine.Report) {
	for _, pod := range pods {
		end := termination(pod)
		if end == nil {
			continue
		}
		report := parseReport(end.Message)
		switch {
		case end.ExitCode == 0 && (report == nil || report.Done):
			return cycle.Mover{State: cycle.MoverCommitted}, report
		case end.ExitCode == exitRefused, end.ExitCode == exitMisconfigured:
			return cycle.Mover{State: cycle.MoverRefused, Message: lastWords(end, report)}, report
		}
	}
	switch {
	case job == nil && len(pods) == 0:
		return cycle.Mover{State: cycle.MoverAbsent}, nil
	case job == nil || !job.DeletionTimestamp.IsZero():
		return cycle.Mover{State: cycle.MoverEnding, Message: "the mover is being removed"}, nil
	}
	for _, condition := range job.Status.Conditions {
		if condition.Status != corev1.ConditionTrue {
			continue
		}
		switch condition.Type {
		case batchv1.JobComplete:
			return cycle.Mover{State: cycle.MoverCommitted}, nil
		case batchv1.JobFailed:
			message := condition.Message
			if end := newestEnd(pods); end != nil {
				message = fmt.Sprintf("%s; its last words: %s", message, lastWords(end, parseReport(end.Message)))
			}
			return cycle.Mover{State: cycle.MoverFailed, Message: "the mover failed: " + message}, nil
		}
	}
	return cycle.Mover{State: cycle.MoverRunning, Message: startingMessage(pods)}, nil
}

func newestEnd(pods []*corev1.Pod) *corev1.ContainerStateTerminated {
	for _, pod := range pods {
		if end := termination(pod); end != nil {
			return end
		}
	}
	return nil
}

func termination(pod *corev1.Pod) *corev1.ContainerStateTerminated {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name == container && status.State.Terminated != nil {
			return status.State.Terminated
		}
	}
	return nil
}

// parseReport reads the report in a termination message; nil when there is none, as after a crash.
func parseReport(message string) *engine.Report {
	var report engine.Report
	if json.Unmarshal([]byte(message), &report) != nil || report.Point == "" {
		return nil
	}
	return &report
}

func lastWords(end *corev1.ContainerStateTerminated, report *engine.Report) string {
	switch {
	case report != nil && report.Error != "":
		return report.Error
	case end.Message != "":
		return end.Message
	}
	return fmt.Sprintf("%s, exit code %d", end.Reason, end.ExitCode)
}

// startingMessage tells why the newest pod is not running yet, in the words of whoever holds it up.
func startingMessage(pods []*corev1.Pod) string {
	if len(pods) == 0 {
		return "waiting for the mover's pod"
	}
	if trouble := podTrouble(pods[0]); trouble != "" {
		return trouble
	}
	return "the mover runs"
}

func podTrouble(pod *corev1.Pod) string {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return fmt.Sprintf("pod %s is not scheduled: %s", pod.Name, condition.Message)
		}
	}
	for _, status := range pod.Status.ContainerStatuses {
		switch {
		case status.State.Waiting != nil:
			return fmt.Sprintf("pod %s waits: %s %s", pod.Name, status.State.Waiting.Reason, status.State.Waiting.Message)
		case status.State.Terminated != nil:
			return fmt.Sprintf("pod %s ended: %s", pod.Name, lastWords(status.State.Terminated, parseReport(status.State.Terminated.Message)))
		}
	}
	if pod.Status.Phase == corev1.PodPending {
		return fmt.Sprintf("pod %s waits for its node to start it", pod.Name)
	}
	return ""
}

// moverAddress is where the running mover of a component answers; empty when none runs.
func moverAddress(pods []corev1.Pod, component, point string) string {
	for _, pod := range pods {
		if pod.Labels[v1alpha1.LabelComponent] != component || (point != "" && pod.Labels[v1alpha1.LabelPoint] != point) {
			continue
		}
		if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp.IsZero() && pod.Status.PodIP != "" {
			return pod.Status.PodIP
		}
	}
	return ""
}
