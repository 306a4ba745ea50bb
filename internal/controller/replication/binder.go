package replication

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/cycle"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

// A claim of a class with volumeBindingMode WaitForFirstConsumer gets its volume when a pod first mounts it. On a target no pod of the
// application does, so a pod of Lifeboat's mounts the claims, ends at once and is removed. It leaves a file system on them:
// see holds.

// observeBinding finds the claims that wait for a pod, and the pod that serves them.
func observeBinding(v *view, s *cycle.Target) {
	for _, m := range late(v.members) {
		s.Unbound = append(s.Unbound, m.Name)
	}
	for i := range v.pods {
		pod := &v.pods[i]
		if pod.Labels[v1alpha1.LabelComponent] != componentBinder {
			continue
		}
		s.Binder = cycle.Present
		if !pod.DeletionTimestamp.IsZero() {
			s.Binder = cycle.Partial
		}
		s.BinderTrouble = podTrouble(pod)
	}
	// What the pod is there for is no problem for a person.
	if len(s.Unbound) > 0 && s.Problem != nil && s.Problem.Reason == snapshot.FaultUnbound {
		s.Problem, v.problem = nil, nil
	}
}

func late(members []snapshot.Member) []snapshot.Member {
	var out []snapshot.Member
	for _, m := range members {
		if m.Claim != nil && m.Claim.DeletionTimestamp.IsZero() && !m.Bound() && m.Late {
			out = append(out, m)
		}
	}
	return out
}

// binds reports whether a pod is there only so that claims get their volumes.
func binds(pod *corev1.Pod, replication string) bool {
	return pod.Labels[v1alpha1.LabelReplication] == replication && pod.Labels[v1alpha1.LabelComponent] == componentBinder
}

// binderPod mounts all claims that wait, so that their volumes are where one receiver reaches them all, and where the volumes are that
// the group has already. It starts nothing but `lifeboat --version`.
func (r *Reconciler) binderPod(v *view) *corev1.Pod {
	labels := v.names.labels(componentBinder)
	delete(labels, labelApp) // no Service leads here
	pod := r.podSpec(v.rep, "", "", "")
	pod.Volumes = nil
	nobody := int64(65532)
	pod.SecurityContext.RunAsUser, pod.SecurityContext.RunAsGroup = &nobody, &nobody
	pod.RestartPolicy = corev1.RestartPolicyOnFailure
	main := &pod.Containers[0]
	main.Command, main.Ports, main.VolumeMounts = []string{"/usr/local/bin/lifeboat", "--version"}, nil, nil
	for i, m := range late(v.members) {
		name := "volume-" + string(rune('a'+i%26)) + devicePath(i)[len("/dev/lifeboat/"):]
		pod.Volumes = append(pod.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: m.Name}}})
		if m.Block() {
			main.VolumeDevices = append(main.VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: devicePath(i)})
			continue
		}
		main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/mnt/" + name})
	}
	near := slices.IndexFunc(v.members, func(m snapshot.Member) bool {
		return m.Volume != nil && m.Volume.Spec.NodeAffinity != nil && m.Volume.Spec.NodeAffinity.Required != nil
	})
	if near >= 0 {
		pod.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: v.members[near].Volume.Spec.NodeAffinity.Required.DeepCopy()}}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.binder(), Labels: labels, OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}},
		Spec:       pod,
	}
}

func (r *Reconciler) bindClaims(ctx context.Context, v *view) error {
	return r.create(ctx, r.binderPod(v))
}

func (r *Reconciler) removeBinder(ctx context.Context, v *view) error {
	return r.delete(ctx, &corev1.Pod{}, v.rep.Namespace, v.names.binder())
}
